//! Ingress.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell::{self, NONE};
use crate::check::addresses::legacy_ip;
use crate::check::{At, name_is_path_segment};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::Tree;

const CLASS: &str = "kubernetes.io/ingress.class";

pub(crate) static INGRESS: Kind = Kind {
    group: "networking.k8s.io",
    resource: "ingresses",
    prepare_create: |obj| {
        rules::first_generation(obj);
        crate::tree::TreeMut::put(obj, "status", serde_json::json!({"loadBalancer": {}}));
    },
    validate: |obj| {
        let mut e = validate(obj);
        let class = obj.at("metadata.annotations").get(CLASS);
        if let Some(class) = class
            && obj
                .at("spec")
                .get("ingressClassName")
                .is_some_and(|c| c != class)
        {
            let path = Path::new("annotations").child(CLASS);
            e.push(FieldError::invalid(
                &path,
                class.clone(),
                "must match `ingressClassName` when both are specified",
            ));
        }
        e
    },
    prepare_update: rules::with_generation,
    validate_update: |new, _, ctx| {
        if ctx.subresource == "status" {
            status(new)
        } else {
            validate(new)
        }
    },
    warnings: |new, _| match new.at("metadata.annotations").get(CLASS) {
        Some(_) => vec![format!(
            "annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"
        )],
        None => Vec::new(),
    },
    columns: &[
        Column::text("Class"),
        Column::text("Hosts"),
        Column::text("Address"),
        Column::text("Ports"),
        Column::AGE,
    ],
    cells,
    ..Kind::GENERIC
};

fn host_name(host: &At, e: &mut ErrorList) {
    if host.text().contains('*') {
        host.conforms(e, validation::is_wildcard_dns1123_subdomain);
    } else {
        host.conforms(e, validation::is_dns1123_subdomain);
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let (ingress_rules, fallback) = (spec.at("rules"), spec.at("defaultBackend"));
    if ingress_rules.is_empty() && !fallback.exists() {
        let shown = ingress_rules.value.clone();
        e.push(FieldError::invalid(
            &spec.path,
            shown,
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    if fallback.exists() {
        backend(&fallback, &mut e);
    }
    for rule in ingress_rules.each() {
        let host = rule.at("host");
        if !host.is_empty() {
            if host.text().parse::<std::net::IpAddr>().is_ok() {
                e.push(host.invalid("must be a DNS name, not an IP address"));
            }
            host_name(&host, &mut e);
        }
        let http = rule.at("http");
        if http.exists() {
            http.at("paths").require(&mut e);
            http.at("paths").each().for_each(|p| path(&p, &mut e));
        }
    }
    for tls in spec.at("tls").each() {
        tls.at("hosts").each().for_each(|h| host_name(&h, &mut e));
        tls.at("secretName")
            .optional_conforms(&mut e, validation::is_dns1123_subdomain);
    }
    if spec.has("ingressClassName") {
        spec.at("ingressClassName")
            .conforms(&mut e, validation::is_dns1123_subdomain);
    }
    e
}

fn path(rule: &At, e: &mut ErrorList) {
    let (kind, path) = (rule.at("pathType"), rule.at("path"));
    if !kind.exists() {
        return e.push(kind.required("pathType must be specified"));
    }
    let text = path.text();
    let absolute = |e: &mut ErrorList| {
        if !text.starts_with('/') {
            e.push(FieldError::invalid(
                &path.path,
                text,
                "must be an absolute path",
            ));
        }
    };
    match kind.text() {
        "Exact" | "Prefix" => {
            absolute(e);
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(part) {
                    e.push(path.invalid(format!("must not contain '{part}'")));
                }
            }
            for end in ["/..", "/."] {
                if text.ends_with(end) {
                    e.push(path.invalid(format!("cannot end with '{end}'")));
                }
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() {
                absolute(e);
            }
        }
        _ => e.push(kind.not_supported(&["Exact", "ImplementationSpecific", "Prefix"])),
    }
    backend(&rule.at("backend"), e);
}

fn backend(backend: &At, e: &mut ErrorList) {
    let (resource, service) = (backend.at("resource"), backend.at("service"));
    match (resource.exists(), service.exists()) {
        (true, true) => {
            e.push(FieldError::invalid(
                &backend.path,
                "",
                "cannot set both resource and service backends",
            ));
        }
        (false, false) => e.push(FieldError::invalid(
            &backend.path,
            "",
            "resource or service backend is required",
        )),
        (true, false) => typed_reference(&resource, e),
        (false, true) => {
            service
                .at("name")
                .required_conforms(e, validation::is_dns1123_label);
            let (name, number) = (
                service.at("port").at("name"),
                service.at("port").at("number"),
            );
            match (name.is_empty(), number.num() == 0) {
                (false, false) => {
                    e.push(FieldError::invalid(
                        &backend.path,
                        "",
                        "cannot set both port name & port number",
                    ));
                }
                (false, true) => name.conforms(e, validation::is_valid_port_name),
                (true, false) => number.port(e),
                (true, true) => e.push(backend.required("port name or number is required")),
            }
        }
    }
}

/// A reference by group, kind and name.
pub(super) fn typed_reference(reference: &At, e: &mut ErrorList) {
    if reference.has("apiGroup") {
        reference
            .at("apiGroup")
            .conforms(e, validation::is_dns1123_subdomain);
    }
    for field in ["kind", "name"] {
        reference
            .at(field)
            .required_conforms(e, |n| name_is_path_segment(n, false));
    }
}

fn status(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    for point in At::new(obj, "status")
        .at("loadBalancer")
        .at("ingress")
        .each()
    {
        let (ip, host) = (point.at("ip"), point.at("hostname"));
        if !ip.is_empty() {
            legacy_ip(&ip, &mut e);
        }
        host.optional_conforms(&mut e, validation::is_dns1123_subdomain);
        if host.text().parse::<std::net::IpAddr>().is_ok() {
            e.push(host.invalid("must be a DNS name, not an IP address"));
        }
    }
    e
}

fn hosts(rules: &[Value]) -> String {
    let named: Vec<_> = rules
        .iter()
        .map(|r| r.text("host"))
        .filter(|h| !h.is_empty())
        .take(3)
        .collect();
    if named.is_empty() {
        return "*".to_owned();
    }
    let text = named.join(",");
    if rules.len() > 3 && named.len() == 3 {
        format!("{text} + {} more...", rules.len() - 3)
    } else {
        text
    }
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let mut points: BTreeSet<&str> = BTreeSet::new();
    for point in obj.list("status.loadBalancer.ingress") {
        points.insert(if point.text("ip").is_empty() {
            point.text("hostname")
        } else {
            point.text("ip")
        });
    }
    points.remove("");
    let address = points.into_iter().collect::<Vec<_>>().join(",");
    vec![
        obj.at("spec.ingressClassName")
            .as_str()
            .unwrap_or(NONE)
            .into(),
        hosts(obj.list("spec.rules")).into(),
        address.into(),
        if obj.list("spec.tls").is_empty() {
            "80".into()
        } else {
            "80, 443".into()
        },
        cell::age(obj, now),
    ]
}
