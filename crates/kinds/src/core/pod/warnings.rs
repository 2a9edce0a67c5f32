//! Remarks about a pod spec, a pod's own or a template's.

use std::collections::{BTreeMap, BTreeSet};

use super::each_container;
use crate::check::At;
use crate::tree::Tree;

/// Volume types that are on their way out, with what upstream says of them.
const DEPRECATED_VOLUMES: &[(&str, &str)] = &[
    (
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    (
        "gitRepo",
        "deprecated in v1.11, and disabled by default in v1.33+",
    ),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

pub(crate) fn of_spec(spec: &At) -> Vec<String> {
    let mut out = Vec::new();
    labels(spec, &mut out);
    for volume in spec.at("volumes").each() {
        for (kind, remark) in DEPRECATED_VOLUMES {
            if volume.has(kind) {
                let shown = if *kind == "storageos" {
                    "storageOS"
                } else {
                    kind
                };
                out.push(format!("{}: {remark}", volume.path.child(shown)));
            }
        }
    }
    repeated(&spec.at("hostAliases"), "ip", "ip", &mut out);
    repeated(&spec.at("imagePullSecrets"), "name", "name", &mut out);
    for secret in spec.at("imagePullSecrets").each() {
        if secret.at("name").is_empty() {
            out.push(format!(
                "{}: invalid empty name \"\"",
                secret.path.child("name")
            ));
        }
    }
    fractions(&spec.at("overhead"), &mut out);
    for c in each_container(spec) {
        fractions(&c.at("resources").at("limits"), &mut out);
        fractions(&c.at("resources").at("requests"), &mut out);
        environment(&c.at("env"), &mut out);
    }
    ports(spec, &mut out);
    let grace = spec.at("terminationGracePeriodSeconds");
    if grace.num() < 0 {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            grace.path
        ));
    }
    out
}

fn deprecated_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        _ => return None,
    })
}

fn labels(spec: &At, out: &mut Vec<String>) {
    for (key, at) in spec.at("nodeSelector").entries() {
        if let Some(remark) = deprecated_label(key) {
            out.push(format!("{}: {remark}", at.path));
        }
    }
    for constraint in spec.at("topologySpreadConstraints").each() {
        let key = constraint.at("topologyKey");
        if let Some(remark) = deprecated_label(key.text()) {
            out.push(format!("{}: {} is {remark}", key.path, key.text()));
        }
        if !constraint.has("labelSelector") {
            let path = constraint.path.child("labelSelector");
            out.push(format!(
                "{path}: a null labelSelector results in matching no pod"
            ));
        }
    }
}

fn repeated(list: &At, field: &str, what: &str, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for item in list.each() {
        let at = item.at(field);
        if !seen.insert(at.text()) {
            out.push(format!("{}: duplicate {what} {:?}", at.path, at.text()));
        }
    }
}

/// Bytes are whole.
fn fractions(amounts: &At, out: &mut Vec<String>) {
    for (name, at) in amounts.entries() {
        let Some(q) = at.quantity() else { continue };
        if matches!(name, "memory" | "ephemeral-storage") && q.milli_value() % 1000 != 0 {
            out.push(format!(
                "{}: fractional byte value {:?} is invalid, must be an integer",
                at.path,
                q.to_string()
            ));
        }
    }
}

/// A later definition hides an earlier one, unless it builds on it.
fn environment(list: &At, out: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for var in list.each() {
        let name = var.value.text("name");
        if seen.insert(name) {
            continue;
        }
        let (value, reference) = (var.value.text("value"), format!("$({name})"));
        if var.has("valueFrom") || value == reference || !value.contains(&reference) {
            out.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                var.path
            ));
        }
    }
}

fn ports(spec: &At, out: &mut Vec<String>) {
    let mut by_number: BTreeMap<(i64, &str), Vec<At>> = BTreeMap::new();
    let mut by_name: BTreeMap<&str, At> = BTreeMap::new();
    let mut named = Vec::new();
    for port in each_container(spec).flat_map(|c| c.at("ports").each().collect::<Vec<_>>()) {
        let (host, address) = (port.value.num("hostPort"), port.value.text("hostIP"));
        let others = by_number
            .entry((port.value.num("containerPort"), port.value.text("protocol")))
            .or_default();
        for other in others.iter() {
            let (other_host, other_address) =
                (other.value.num("hostPort"), other.value.text("hostIP"));
            let kind = if address == other_address && host == other_host {
                "duplicate"
            } else if host == 0 || other_host == 0 {
                "overlapping"
            } else if host == other_host && address.is_empty() != other_address.is_empty() {
                "dangerously ambiguous"
            } else {
                continue;
            };
            out.push(format!(
                "{}: {kind} port definition with {}",
                port.path, other.path
            ));
        }
        others.push(port.clone());
        let name = port.at("name").value.as_str().unwrap_or("");
        match by_name.get(name) {
            Some(other) if !name.is_empty() => named.push(format!(
                "{}: duplicate port name {name:?} with {1}, services and probes that select ports by name will use {1}",
                port.path, other.path
            )),
            _ => {
                by_name.insert(name, port);
            }
        }
    }
    out.append(&mut named);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_upstream_remarks_on() {
        let pod: Value = json!({"spec": {
            "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "containers": [
                {"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "X", "value": "2"}],
                 "ports": [{"name": "p", "containerPort": 80, "protocol": "TCP"}]},
                {"name": "b", "env": [{"name": "X", "value": "1"}, {"name": "X", "value": "$(X)2"}],
                 "ports": [{"name": "p", "containerPort": 80, "protocol": "TCP"}]},
            ],
        }});
        assert_eq!(
            of_spec(&At::new(&pod, "spec")),
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.containers[0].env[1]: hides previous definition of \"X\", which may be dropped when using apply",
                "spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[1].ports[0]: duplicate port name \"p\" with spec.containers[0].ports[0], services and probes that select ports by name will use spec.containers[0].ports[0]",
            ]
        );
    }
}
