//! The smallest status patch: only what differs, and only what the node owns.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};

use super::conditions::OWNED;

/// Fields of the status that the node writes, beside the conditions.
const FIELDS: &[&str] = &[
    "phase",
    "reason",
    "message",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "observedGeneration",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];

/// Lists that a strategic merge would merge by key instead of replacing.
const MERGED_LISTS: &[&str] = &["hostIPs", "podIPs"];

/// A strategic merge patch that turns the pod's status into `new`; `None` when nothing differs.
pub(crate) fn patch(pod: &Pod, new: &PodStatus) -> Option<Value> {
    let old = to_map(pod.status.as_ref());
    let new = to_map(Some(new));
    let mut status = Map::new();
    for field in FIELDS {
        match (old.get(*field), new.get(*field)) {
            (before, Some(after)) if before != Some(after) => {
                let mut after = after.clone();
                if MERGED_LISTS.contains(field)
                    && before.is_some()
                    && let Value::Array(items) = &mut after
                {
                    items.insert(0, json!({"$patch": "replace"}));
                }
                status.insert((*field).to_owned(), after);
            }
            (Some(_), None) => {
                status.insert((*field).to_owned(), Value::Null);
            }
            _ => {}
        }
    }
    let conditions = changed_conditions(old.get("conditions"), new.get("conditions"));
    if !conditions.is_empty() {
        status.insert("conditions".to_owned(), Value::Array(conditions));
    }
    if status.is_empty() {
        return None;
    }
    // The uid keeps the status of a dead pod away from its successor of the same name.
    Some(json!({"metadata": {"uid": pod.metadata.uid}, "status": status}))
}

fn changed_conditions(old: Option<&Value>, new: Option<&Value>) -> Vec<Value> {
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let old = list(old);
    list(new)
        .into_iter()
        .filter(|condition| {
            OWNED.contains(&condition["type"].as_str().unwrap_or_default())
                && !old.contains(condition)
        })
        .map(|mut condition| {
            // A merge keeps what it is not told about: reason and message of the previous state must go.
            let before = old
                .iter()
                .find(|before| before["type"] == condition["type"]);
            for field in ["reason", "message"] {
                if condition.get(field).is_none()
                    && before.is_some_and(|before| before.get(field).is_some())
                {
                    condition[field] = Value::Null;
                }
            }
            condition
        })
        .collect()
}

fn to_map(status: Option<&PodStatus>) -> Map<String, Value> {
    match status.and_then(|status| serde_json::to_value(status).ok()) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}
