//! Remarks about a pod spec, a pod's own or a template's.

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::validation;
use serde_json::Value;

use super::each_container;
use crate::check::{At, addresses};
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

/// Remarks about a new pod.
pub(super) fn of_pod(pod: &Value) -> Vec<String> {
    let mut out = Vec::new();
    of_spec(&At::new(pod, "metadata"), &At::new(pod, "spec"), &mut out);
    out
}

/// Remarks about a template.
pub(crate) fn of_template(template: &At) -> Vec<String> {
    let mut out = Vec::new();
    let (metadata, spec) = (template.at("metadata"), template.at("spec"));
    of_spec(&metadata, &spec, &mut out);
    let own = spec.value.at("securityContext.appArmorProfile");
    for container in each_container(&spec) {
        super::app_armor::template_warnings(&metadata, &container, own, &mut out);
    }
    out
}

fn of_spec(metadata: &At, spec: &At, out: &mut Vec<String>) {
    labels(spec, out);
    annotations(&metadata.at("annotations"), out);
    for volume in spec.at("volumes").each() {
        volume_type(&volume, out);
    }
    super::overlaps::warnings(spec, out);
    repeated(&spec.at("hostAliases"), "ip", "ip", out);
    repeated(&spec.at("imagePullSecrets"), "name", "name", out);
    for secret in spec.at("imagePullSecrets").each() {
        if secret.at("name").is_empty() {
            out.push(format!(
                "{}: invalid empty name \"\"",
                secret.path.child("name")
            ));
        }
    }
    fractions(&spec.at("overhead"), out);
    seccomp(
        metadata,
        spec.value,
        "seccomp.security.alpha.kubernetes.io/pod",
        out,
    );
    for c in each_container(spec) {
        let name = c.value.text("name");
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{name}");
        seccomp(metadata, c.value, &key, out);
        for amount in ["memory", "ephemeral-storage"] {
            for list in ["limits", "requests"] {
                fraction(&c.at("resources").at(list), amount, out);
            }
        }
        environment(&c.at("env"), out);
    }
    ports(spec, out);
    let grace = spec.at("terminationGracePeriodSeconds");
    if grace.num() < 0 {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            grace.path
        ));
    }
    null_selectors(&spec.at("affinity"), out);
    for server in spec.at("dnsConfig").at("nameservers").each() {
        addresses::legacy_ip_warning(&server, out);
    }
    for alias in spec.at("hostAliases").each() {
        addresses::legacy_ip_warning(&alias.at("ip"), out);
    }
}

fn annotations(annotations: &At, out: &mut Vec<String>) {
    const DEPRECATED: &[(&str, &str)] = &[
        (
            "scheduler.alpha.kubernetes.io/critical-pod",
            "non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
        (
            "security.alpha.kubernetes.io/unsafe-sysctls",
            "non-functional in v1.11+; use the \"sysctls\" field instead",
        ),
    ];
    for (key, remark) in DEPRECATED {
        if annotations.has_key(key) {
            out.push(format!("{}: {remark}", annotations.path.key(key)));
        }
    }
}

fn volume_type(volume: &At, out: &mut Vec<String>) {
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
    let claim = volume.at("ephemeral").at("volumeClaimTemplate").at("spec");
    for list in ["requests", "limits"] {
        fraction(&claim.at("resources").at(list), "storage", out);
    }
}

/// An annotation that means nothing any more, on something that does not have the field either.
fn seccomp(metadata: &At, holder: &Value, key: &str, out: &mut Vec<String>) {
    let annotations = metadata.at("annotations");
    if !holder.has("securityContext.seccompProfile") && annotations.has_key(key) {
        out.push(format!(
            "{}: non-functional in v1.27+; use the \"seccompProfile\" field instead",
            annotations.path.key(key)
        ));
    }
}

fn null_selectors(affinity: &At, out: &mut Vec<String>) {
    let mut remark = |term: &At| {
        if !term.has("labelSelector") {
            let path = term.path.child("labelSelector");
            out.push(format!(
                "{path}: a null labelSelector results in matching no pod"
            ));
        }
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.at(kind);
        let required = pods.at("requiredDuringSchedulingIgnoredDuringExecution");
        required.each().for_each(|term| remark(&term));
        let preferred = pods.at("preferredDuringSchedulingIgnoredDuringExecution");
        for term in preferred.each() {
            remark(&term.at("podAffinityTerm"));
        }
    }
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
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => {
            "deprecated since v1.22; use Taints and Tolerations instead"
        }
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

fn labels(spec: &At, out: &mut Vec<String>) {
    for (key, at) in spec.at("nodeSelector").entries() {
        if let Some(remark) = deprecated_label(key) {
            out.push(format!("{}: {remark}", at.path));
        }
    }
    let node = spec.at("affinity").at("nodeAffinity");
    let required = node.at("requiredDuringSchedulingIgnoredDuringExecution");
    for term in required.at("nodeSelectorTerms").each() {
        node_selector_term(&term, false, out);
    }
    for term in node
        .at("preferredDuringSchedulingIgnoredDuringExecution")
        .each()
    {
        node_selector_term(&term.at("preference"), true, out);
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

/// Values of preferences are not validated, only remarked on.
pub(crate) fn node_selector_term(term: &At, check_values: bool, out: &mut Vec<String>) {
    for expression in term.at("matchExpressions").each() {
        let key = expression.at("key");
        if let Some(remark) = deprecated_label(key.text()) {
            out.push(format!("{}: {} is {remark}", key.path, key.text()));
        }
        for value in expression.at("values").each().filter(|_| check_values) {
            for msg in validation::is_valid_label_value(value.text()) {
                out.push(format!(
                    "{}: {} is invalid, {msg}",
                    value.path,
                    value.text()
                ));
            }
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

fn fractions(amounts: &At, out: &mut Vec<String>) {
    fraction(amounts, "memory", out);
    fraction(amounts, "ephemeral-storage", out);
}

/// Bytes are whole.
pub(crate) fn fraction(amounts: &At, name: &str, out: &mut Vec<String>) {
    let amount = At {
        value: amounts.value.get(name).unwrap_or(&Value::Null),
        path: amounts.path.key(name),
    };
    if let Some(q) = amount.quantity().filter(|q| q.milli_value() % 1000 != 0) {
        out.push(format!(
            "{}: fractional byte value {:?} is invalid, must be an integer",
            amount.path,
            q.to_string()
        ));
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
        if !address.is_empty() && host == 0 {
            out.push(format!(
                "{}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{address}}}",
                port.path,
                port.value.text("name"),
                port.value.num("containerPort"),
                port.value.text("protocol"),
            ));
        }
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
    use serde_json::json;

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
            of_pod(&pod),
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.containers[0].env[1]: hides previous definition of \"X\", which may be dropped when using apply",
                "spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[1].ports[0]: duplicate port name \"p\" with spec.containers[0].ports[0], services and probes that select ports by name will use spec.containers[0].ports[0]",
            ]
        );
    }
}
