//! Pods, and the rules of pod specs that every workload's template shares.

mod app_armor;
mod columns;
mod container;
pub(crate) mod default;
pub(crate) mod disabled;
mod overlaps;
pub(crate) mod resources;
pub(crate) mod scheduling;
mod security;
mod update;
mod validate;
pub(crate) mod volumes;
mod warnings;
mod windows;

use serde_json::{Value, json};

pub(crate) use warnings::fraction as fraction_warning;
pub(crate) use warnings::node_selector_term as node_selector_warnings;
pub(crate) use warnings::of_template as template_warnings;

pub(crate) use validate::{pod_template, template_metadata};

use crate::check::At;
use crate::kind::{Column, Kind};
use crate::tree::{Tree, TreeMut};

pub(crate) static POD: Kind = Kind {
    group: "",
    resource: "pods",
    default: default::pod,
    prepare_create,
    validate: validate::create,
    prepare_update: update::prepare,
    validate_update: update::validate,
    warnings,
    columns: &[
        Column::text("Ready"),
        Column::text("Status"),
        Column::text("Restarts"),
        Column::AGE,
        Column::wide("IP"),
        Column::wide("Node"),
        Column::wide("Nominated Node"),
        Column::wide("Readiness Gates"),
    ],
    cells: columns::cells,
    selectable,
    selectable_names: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ],
    graceful_deletion_seconds,
    reset_fields: &[
        ("", &["status"]),
        (
            "status",
            &[
                "spec",
                "metadata.deletionTimestamp",
                "metadata.ownerReferences",
            ],
        ),
    ],
    ..Kind::GENERIC
};

/// Every container of a spec: init containers first, then containers, then ephemeral ones.
pub(crate) fn each_container<'a>(spec: &At<'a>) -> impl Iterator<Item = At<'a>> + use<'a> {
    let lists = default::CONTAINER_LISTS.map(|name| spec.at(name));
    lists
        .into_iter()
        .flat_map(|list| list.each().collect::<Vec<_>>())
}

/// The template under `path` gets its defaults and no generated metadata.
pub(crate) fn default_template(obj: &mut Value, path: &str) {
    if let Some(template) = obj.at_mut(path).filter(|t| t.is_object()) {
        template.fill("metadata", json!({}));
        if let Some(spec) = template.at_mut("spec") {
            default::pod_spec(spec);
        }
    }
}

/// The pod spec under `path` loses the fields whose gates are off, unless the old object has them.
pub(crate) fn drop_disabled(obj: &mut Value, old: &Value, path: &str) {
    if let Some(spec) = obj.at_mut(path) {
        disabled::drop(spec, old.at(path));
    }
}

fn prepare_create(pod: &mut Value) {
    pod.put("metadata.generation", 1);
    if let Some(spec) = pod.at_mut("spec") {
        disabled::drop(spec, &Value::Null);
    }
    let qos = resources::qos_class(pod.at("spec"));
    let mut status = json!({"phase": "Pending", "qosClass": qos});
    if !pod.list("spec.schedulingGates").is_empty() {
        status.put(
            "conditions",
            json!([{
                "type": "PodScheduled",
                "status": "False",
                "lastProbeTime": null,
                "lastTransitionTime": pod.at("metadata.creationTimestamp").clone(),
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]),
        );
    }
    pod.put("status", status);
    merge_label_keys(pod);
    app_armor::copy_to_fields(pod);
}

/// `matchLabelKeys` become expressions over the pod's own labels.
fn merge_label_keys(pod: &mut Value) {
    let labels = pod.map("metadata.labels").clone();
    let merge = |term: &mut Value| {
        for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            let keys: Vec<String> = term
                .list(keys)
                .iter()
                .filter_map(|k| k.as_str().map(str::to_owned))
                .collect();
            for key in keys {
                // A selector that is absent selects nothing, and stays so.
                let selector = term.at_mut("labelSelector").and_then(Value::as_object_mut);
                let (Some(value), Some(selector)) = (labels.get(&key), selector) else {
                    continue;
                };
                let more = json!({"key": key, "operator": operator, "values": [value]});
                let list = selector
                    .entry("matchExpressions")
                    .or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    list.push(more);
                }
            }
        }
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        pod.list_mut(&format!(
            "spec.affinity.{kind}.requiredDuringSchedulingIgnoredDuringExecution"
        ))
        .iter_mut()
        .for_each(merge);
        pod.list_mut(&format!(
            "spec.affinity.{kind}.preferredDuringSchedulingIgnoredDuringExecution"
        ))
        .iter_mut()
        .filter_map(|t| t.at_mut("podAffinityTerm"))
        .for_each(merge);
    }
    pod.list_mut("spec.topologySpreadConstraints")
        .iter_mut()
        .for_each(merge);
}

fn selectable(pod: &Value) -> Vec<(&'static str, String)> {
    let ips: Vec<_> = pod
        .list("status.podIPs")
        .iter()
        .map(|ip| ip.text("ip"))
        .collect();
    let text = |path: &str| pod.text(path).to_owned();
    vec![
        ("spec.nodeName", text("spec.nodeName")),
        ("spec.restartPolicy", text("spec.restartPolicy")),
        ("spec.schedulerName", text("spec.schedulerName")),
        ("spec.serviceAccountName", text("spec.serviceAccountName")),
        ("spec.hostNetwork", pod.flag("spec.hostNetwork").to_string()),
        ("status.phase", text("status.phase")),
        (
            "status.podIP",
            ips.first()
                .copied()
                .unwrap_or(pod.text("status.podIP"))
                .to_owned(),
        ),
        ("status.podIPs", ips.join(",")),
        ("status.nominatedNodeName", text("status.nominatedNodeName")),
    ]
}

/// A pod on a node is given the period that the client asks for, else its own; one that runs nowhere
/// or has finished goes at once.
fn graceful_deletion_seconds(pod: &Value, wanted: Option<i64>) -> Option<i64> {
    let finished = matches!(pod.text("status.phase"), "Failed" | "Succeeded");
    if pod.text("spec.nodeName").is_empty() || finished {
        return Some(0);
    }
    let seconds = wanted.unwrap_or_else(|| pod.num("spec.terminationGracePeriodSeconds"));
    Some(if seconds < 0 { 1 } else { seconds })
}

fn warnings(pod: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let msgs = keelson_machinery::validation::is_dns1123_label(pod.text("metadata.name"));
    if !msgs.is_empty() {
        out.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            msgs.join(" ")
        ));
    }
    app_armor::pod_warnings(pod, &mut out);
    out.extend(warnings::of_pod(pod));
    out
}
