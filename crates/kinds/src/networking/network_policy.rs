//! NetworkPolicy.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::{Value, json};

use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

pub(crate) static NETWORK_POLICY: Kind = Kind {
    group: "networking.k8s.io",
    resource: "networkpolicies",
    default,
    prepare_create: |obj| obj.put("metadata.generation", 1),
    validate,
    prepare_update: rules::with_generation,
    validate_update: |new, _, _| validate(new),
    columns: &[Column::text("Pod-Selector"), Column::AGE],
    cells: |obj, now| {
        vec![
            cell::selector(obj.at("spec.podSelector")).into(),
            cell::age(obj, now),
        ]
    },
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    if obj.list("spec.policyTypes").is_empty() && obj.has("spec") {
        let mut types = vec!["Ingress"];
        if !obj.list("spec.egress").is_empty() {
            types.push("Egress");
        }
        obj.put("spec.policyTypes", json!(types));
    }
    for direction in ["spec.ingress", "spec.egress"] {
        for rule in obj.list_mut(direction) {
            for port in rule.list_mut("ports") {
                port.fill("protocol", "TCP");
            }
        }
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    spec.at("podSelector").label_selector(&mut e);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.at(direction).each() {
            rule.at("ports").each().for_each(|p| port(&p, &mut e));
            rule.at(peers).each().for_each(|p| peer(&p, &mut e));
        }
    }
    let types = spec.at("policyTypes");
    if types.len() > 2 {
        e.push(types.invalid("may not specify more than two policyTypes"));
        return e;
    }
    types
        .each()
        .for_each(|t| t.one_of(&mut e, &["Ingress", "Egress"]));
    e
}

fn port(port: &At, e: &mut ErrorList) {
    port.at("protocol").one_of(e, &["TCP", "UDP", "SCTP"]);
    let (start, end) = (port.at("port"), port.at("endPort"));
    if !start.value.is_string() && start.exists() {
        start.port_or_name(e);
    }
    if !end.exists() {
        if start.value.is_string() {
            start.port_or_name(e);
        }
        return;
    }
    if let Some(first) = start.int() {
        if end.num() < first {
            let detail = "must be greater than or equal to `port`";
            e.push(FieldError::invalid(&end.path, first, detail));
        }
        end.port(e);
    } else if start.exists() {
        e.push(end.invalid("may not be specified when `port` is non-numeric"));
        start.port_or_name(e);
    } else {
        e.push(end.invalid("may not be specified when `port` is not specified"));
    }
}

fn peer(peer: &At, e: &mut ErrorList) {
    let mut count = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if peer.has(field) {
            count += 1;
            peer.at(field).label_selector(e);
        }
    }
    let block = peer.at("ipBlock");
    if block.exists() {
        count += 1;
        ip_block(&block, e);
    }
    if count == 0 {
        e.push(peer.required("must specify a peer"));
    } else if count > 1 && block.exists() {
        e.push(peer.forbidden("may not specify both ipBlock and another peer"));
    }
}

fn ip_block(block: &At, e: &mut ErrorList) {
    const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let cidr = block.at("cidr");
    if cidr.is_empty() {
        return e.push(cidr.required(""));
    }
    let Some((network, length)) = validation::parse_cidr(cidr.text()) else {
        return e.push(cidr.invalid(CIDR));
    };
    for except in block.at("except").each() {
        let Some((inner, inner_length)) = validation::parse_cidr(except.text()) else {
            e.push(except.invalid(CIDR));
            continue;
        };
        if inner_length <= length || !contains(network, length, inner) {
            e.push(except.invalid("must be a strict subset of `cidr`"));
        }
    }
}

fn contains(network: std::net::IpAddr, length: u8, ip: std::net::IpAddr) -> bool {
    use std::net::IpAddr::{V4, V6};
    let (a, b, width) = match (network, ip) {
        (V4(a), V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (V6(a), V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let shift = width - u32::from(length).min(width);
    a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
}
