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
    for toleration in class["scheduling"]["tolerations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
        if !all.contains(toleration) {
            all.push(toleration.clone());
            spec["tolerations"] = Value::Array(all);
        }
    }
    None
}
