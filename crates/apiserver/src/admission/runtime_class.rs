//! RuntimeClass: the class a pod names exists; its overhead and scheduling rules become the pod's.

use std::collections::BTreeMap;

use async_trait::async_trait;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::{AdmissionPlugin, Attributes, Cluster, Operation, quantity_of};

pub(super) struct RuntimeClass;

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

#[async_trait]
impl AdmissionPlugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        let Some(class) = class_of(attrs, cluster).await? else {
            return Ok(());
        };
        let conflict = attrs
            .object
            .as_mut()
            .and_then(|pod| merge(&mut pod["spec"], &class));
        conflict.map_or(Ok(()), |message| Err(attrs.forbidden(message)))
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        let class = class_of(attrs, cluster).await?;
        let Some(pod) = attrs.object.as_ref().filter(|_| attrs.is("", "pods")) else {
            return Ok(());
        };
        let overhead = &pod["spec"]["overhead"];
        match class.filter(|class| class["overhead"].is_object()) {
            Some(class) if differs(overhead, &class["overhead"]["podFixed"]) => {
                Err(attrs.forbidden(MISMATCH))
            }
            None if !overhead.is_null() => Err(attrs.forbidden(
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            _ => Ok(()),
        }
    }
}

async fn class_of(attrs: &Attributes, cluster: &Cluster) -> Result<Option<Value>, Status> {
    if !attrs.is("", "pods") {
        return Ok(None);
    }
    let name = attrs
        .object
        .as_ref()
        .and_then(|pod| pod["spec"]["runtimeClassName"].as_str())
        .unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let found = cluster
        .objects
        .read("node.k8s.io", "runtimeclasses", "", name)
        .await?;
    found
        .map(Some)
        .ok_or_else(|| attrs.forbidden(format!("pod rejected: RuntimeClass {name:?} not found")))
}

/// Whether two sets of amounts differ, however they are written.
fn differs(a: &Value, b: &Value) -> bool {
    let amounts = |value: &Value| -> BTreeMap<String, Option<Quantity>> {
        let all = value.as_object().into_iter().flatten();
        all.map(|(name, amount)| (name.clone(), quantity_of(amount)))
            .collect()
    };
    amounts(a) != amounts(b)
}

fn merge(spec: &mut Value, class: &Value) -> Option<String> {
    let fixed = &class["overhead"]["podFixed"];
    if class["overhead"].is_object() {
        let given = spec["overhead"].as_object().is_some_and(|o| !o.is_empty());
        if given && differs(&spec["overhead"], fixed) {
            return Some(MISMATCH.to_owned());
        }
        if fixed.is_object() {
            spec["overhead"] = fixed.clone();
        }
    }
    for (key, value) in class["scheduling"]["nodeSelector"]
        .as_object()
        .into_iter()
        .flatten()
    {
        match spec["nodeSelector"].get(key) {
            Some(own) if own != value => {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                return Some(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(own)
                ));
            }
            Some(_) => {}
            None => {
                if !spec["nodeSelector"].is_object() {
                    spec["nodeSelector"] = json!({});
                }
                spec["nodeSelector"][key] = value.clone();
            }
        }
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let of_class = list(&class["scheduling"]["tolerations"]);
    if !of_class.is_empty() {
        let all = [list(&spec["tolerations"]), of_class].concat();
        spec["tolerations"] = Value::Array(without_redundant(&all));
    }
    None
}

/// Tolerations less those that another one covers; of two equal ones the first stays.
fn without_redundant(all: &[Value]) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for (at, one) in all.iter().enumerate() {
        let covered = kept.iter().any(|other| covers(other, one))
            || all[at + 1..]
                .iter()
                .any(|other| other != one && covers(other, one));
        if !covered {
            kept.push(one.clone());
        }
    }
    kept
}

/// Whether whatever `inner` tolerates `outer` tolerates too.
fn covers(outer: &Value, inner: &Value) -> bool {
    let text =
        |toleration: &Value, field: &str| toleration[field].as_str().unwrap_or_default().to_owned();
    let operator = |toleration: &Value| match text(toleration, "operator").as_str() {
        "" => "Equal".to_owned(),
        other => other.to_owned(),
    };
    if outer == inner {
        return true;
    }
    let (key, effect) = (text(outer, "key"), text(outer, "effect"));
    let any_key = key.is_empty() && operator(outer) == "Exists";
    if (key != text(inner, "key") && !any_key)
        || (effect != text(inner, "effect") && !effect.is_empty())
    {
        return false;
    }
    let seconds = |toleration: &Value| toleration["tolerationSeconds"].as_i64();
    if effect == "NoExecute"
        && seconds(outer).is_some_and(|outer| seconds(inner).is_none_or(|inner| inner > outer))
    {
        return false;
    }
    match operator(outer).as_str() {
        "Equal" => operator(inner) == "Equal" && text(outer, "value") == text(inner, "value"),
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_of_pod_and_class_are_merged() {
        let all = |key: &str| json!({"key": key, "operator": "Exists"});
        let cases = [
            // (the pod's, the class's, merged)
            (json!([]), json!([all("b")]), json!([all("b")])),
            (
                json!([all("a")]),
                json!([all("b")]),
                json!([all("a"), all("b")]),
            ),
            (json!([all("a")]), json!([all("a")]), json!([all("a")])),
            (
                json!([{"key": "a", "operator": "Equal", "value": "1"}]),
                json!([all("a")]),
                json!([all("a")]),
            ),
            (
                json!([{"operator": "Exists"}]),
                json!([{"key": "a", "operator": "Exists", "effect": "NoSchedule"}]),
                json!([{"operator": "Exists"}]),
            ),
            (
                json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]),
                json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}]),
                json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}]),
            ),
            (
                json!([{"key": "a", "value": "1"}]),
                json!([{"key": "a", "value": "2"}]),
                json!([{"key": "a", "value": "1"}, {"key": "a", "value": "2"}]),
            ),
        ];
        for (own, class, merged) in cases {
            let mut spec = json!({"tolerations": own});
            let class = json!({"scheduling": {"tolerations": class}});
            assert_eq!(merge(&mut spec, &class), None);
            assert_eq!(spec["tolerations"], merged, "{class}");
        }
    }
}
