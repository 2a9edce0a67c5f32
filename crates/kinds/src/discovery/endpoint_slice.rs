//! EndpointSlice.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell::{self, UNSET};
use crate::check::{At, same};
use crate::core::endpoints::endpoint_ip;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    resource: "endpointslices",
    default: |obj| {
        for port in obj.list_mut("ports") {
            port.fill("name", "");
            port.fill("protocol", "TCP");
        }
    },
    prepare_create: |obj| {
        obj.put("metadata.generation", 1);
        drop_topology(obj);
    },
    validate,
    prepare_update: |new, old, _| {
        let changed = ["addressType", "endpoints", "ports"]
            .iter()
            .any(|f| !same(new.at(f), old.at(f)))
            || !same(new.at("metadata.labels"), old.at("metadata.labels"));
        rules::raise_generation(new, old, changed);
        drop_topology(new);
    },
    validate_update: |new, old, _| {
        let mut e = validate_with(new, !same(new.at("endpoints"), old.at("endpoints")));
        workload::immutable(new, old, "addressType", &mut e);
        e
    },
    warnings: |new, old| {
        let deprecated = old.is_none() && new.text("addressType") == "FQDN";
        let text = || "spec.addressType: FQDN endpoints are deprecated".to_owned();
        deprecated.then(text).into_iter().collect()
    },
    columns: &[
        Column::text("AddressType"),
        Column::text("Ports"),
        Column::text("Endpoints"),
        Column::AGE,
    ],
    cells,
    ..Kind::GENERIC
};

/// Only versions before v1 had it.
fn drop_topology(obj: &mut Value) {
    for endpoint in obj.list_mut("endpoints") {
        endpoint.remove("deprecatedTopology");
    }
}

fn validate(obj: &Value) -> ErrorList {
    validate_with(obj, true)
}

fn validate_with(obj: &Value, endpoints_changed: bool) -> ErrorList {
    let mut e = ErrorList::new();
    At::new(obj, "addressType").required_one_of(&mut e, &["FQDN", "IPv4", "IPv6"]);
    ports(&At::new(obj, "ports"), &mut e);
    let endpoints = At::new(obj, "endpoints");
    if !endpoints_changed {
        return e;
    }
    if endpoints.len() > 1000 {
        e.push(FieldError::too_many(&endpoints.path, endpoints.len(), 1000));
        return e;
    }
    for endpoint in endpoints.each() {
        self::endpoint(&endpoint, obj.text("addressType"), &mut e);
    }
    e
}

fn ports(list: &At, e: &mut ErrorList) {
    if list.len() > 20_000 {
        return e.push(FieldError::too_many(&list.path, list.len(), 20_000));
    }
    let mut names = BTreeSet::new();
    for port in list.each() {
        let name = port.at("name");
        name.optional_conforms(e, validation::is_dns1123_label);
        if !names.insert(name.text()) {
            e.push(name.duplicate());
        }
        port.at("protocol")
            .strictly_one_of(e, &["SCTP", "TCP", "UDP"]);
        if port.has("appProtocol") {
            port.at("appProtocol")
                .conforms(e, validation::is_qualified_name);
        }
    }
}

fn endpoint(endpoint: &At, kind: &str, e: &mut ErrorList) {
    let addresses = endpoint.at("addresses");
    match addresses.len() {
        0 => e.push(addresses.required("must contain at least 1 address")),
        n if n > 100 => e.push(FieldError::too_many(&addresses.path, n, 100)),
        _ => {}
    }
    for address in addresses.each() {
        let text = address.text();
        match kind {
            "IPv4" | "IPv6" => {
                let before = e.len();
                address.conforms(e, validation::is_valid_ip);
                if e.len() > before {
                    continue;
                }
                if text.contains(':') != (kind == "IPv6") {
                    e.push(FieldError::invalid(
                        &addresses.path,
                        text,
                        format!("must be an {kind} address"),
                    ));
                }
                endpoint_ip(&address, e);
            }
            "FQDN" => address.conforms(e, validation::is_fully_qualified_name),
            _ => {}
        }
    }
    if endpoint.has("nodeName") {
        endpoint
            .at("nodeName")
            .conforms(e, validation::is_dns1123_subdomain);
    }
    let topology = endpoint.at("deprecatedTopology");
    if topology.len() > 16 {
        e.push(FieldError::too_many(&topology.path, topology.len(), 16));
    }
    topology.labels(e);
    if endpoint.has("hostname") {
        endpoint
            .at("hostname")
            .conforms(e, validation::is_dns1123_label);
    }
    for (list, rule) in [
        (
            "forZones",
            validation::is_valid_label_value as fn(&str) -> Vec<String>,
        ),
        ("forNodes", validation::is_dns1123_subdomain),
    ] {
        let hints = endpoint.at("hints").at(list);
        if hints.len() > 8 {
            e.push(FieldError::too_many(&hints.path, hints.len(), 8));
            continue;
        }
        let mut names = BTreeSet::new();
        for hint in hints.each() {
            let name = hint.at("name");
            if !names.insert(name.text()) {
                e.push(name.duplicate());
            }
            name.conforms(e, rule);
        }
    }
}

fn summary(all: &[String]) -> String {
    if all.is_empty() {
        return UNSET.to_owned();
    }
    let shown = all
        .iter()
        .take(3)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(",");
    if all.len() > 3 {
        format!("{shown} + {} more...", all.len() - 3)
    } else {
        shown
    }
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let ports: Vec<_> = obj
        .list("ports")
        .iter()
        .map(|p| {
            p.int("port").map_or_else(
                || p.at("name").as_str().unwrap_or("*").to_owned(),
                |n| n.to_string(),
            )
        })
        .collect();
    let addresses: Vec<_> = obj
        .list("endpoints")
        .iter()
        .flat_map(|e| e.list("addresses"))
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    vec![
        obj.text("addressType").into(),
        summary(&ports).into(),
        summary(&addresses).into(),
        cell::age(obj, now),
    ]
}
