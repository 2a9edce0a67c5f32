//! Small mutations, one plugin each: default tolerations, taints of new nodes, default storage
//! and ingress classes.

use std::cmp::Reverse;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::{AdmissionPlugin, Attributes, Cluster, Operation};

/// Pods tolerate an unready or unreachable node for five minutes unless they say otherwise.
pub(super) struct DefaultTolerationSeconds;

#[async_trait]
impl AdmissionPlugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attrs: &mut Attributes, _cluster: &Cluster) -> Result<(), Status> {
        if attrs.is("", "pods")
            && let Some(pod) = attrs.object.as_mut()
        {
            tolerate(&mut pod["spec"]);
        }
        Ok(())
    }
}

fn tolerate(spec: &mut Value) {
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = spec["tolerations"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|t| {
                let (own, effect) = (
                    t["key"].as_str().unwrap_or_default(),
                    t["effect"].as_str().unwrap_or_default(),
                );
                (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
            });
        if tolerated {
            continue;
        }
        let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
        match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
            Some(list) => list.push(toleration),
            None => spec["tolerations"] = json!([toleration]),
        }
    }
}

/// A new node takes no pods before it said that it is ready.
pub(super) struct TaintNodesByCondition;

#[async_trait]
impl AdmissionPlugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attrs: &mut Attributes, _cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is("", "nodes") {
            return Ok(());
        }
        let Some(node) = attrs.object.as_mut() else {
            return Ok(());
        };
        let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let taints = node["spec"]["taints"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if !taints
            .iter()
            .any(|t| t["key"] == taint["key"] && t["effect"] == taint["effect"])
        {
            let mut taints = taints;
            taints.push(taint);
            if !node["spec"].is_object() {
                node["spec"] = json!({});
            }
            node["spec"]["taints"] = Value::Array(taints);
        }
        Ok(())
    }
}

/// A claim that names no class gets the default one.
pub(super) struct DefaultStorageClass;

#[async_trait]
impl AdmissionPlugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is("", "persistentvolumeclaims") {
            return Ok(());
        }
        let Some(claim) = attrs.object.as_mut() else {
            return Ok(());
        };
        let named = !claim["spec"]["storageClassName"].is_null()
            || meta::annotation(claim, "volume.beta.kubernetes.io/storage-class").is_some();
        if named {
            return Ok(());
        }
        let marks = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        if let Some(class) = newest_default(cluster, "storage.k8s.io", "storageclasses", &marks) {
            claim["spec"]["storageClassName"] = json!(class);
        }
        Ok(())
    }
}

/// An ingress that names no class gets the default one.
pub(super) struct DefaultIngressClass;

#[async_trait]
impl AdmissionPlugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is("networking.k8s.io", "ingresses") {
            return Ok(());
        }
        let Some(ingress) = attrs.object.as_mut() else {
            return Ok(());
        };
        let named = !ingress["spec"]["ingressClassName"].is_null()
            || meta::annotation(ingress, "kubernetes.io/ingress.class").is_some();
        let marks = ["ingressclass.kubernetes.io/is-default-class"];
        if !named
            && let Some(class) =
                newest_default(cluster, "networking.k8s.io", "ingressclasses", &marks)
        {
            ingress["spec"]["ingressClassName"] = json!(class);
        }
        Ok(())
    }
}

/// The default among classes; of several, the newest.
fn newest_default(
    cluster: &Cluster,
    group: &str,
    resource: &str,
    marks: &[&str],
) -> Option<String> {
    let mut classes = cluster.objects.list(group, resource, "");
    classes.retain(|class| {
        marks
            .iter()
            .any(|mark| meta::annotation(class, mark) == Some("true"))
    });
    classes.sort_by_key(|class| {
        (
            Reverse(
                meta::creation_timestamp(class)
                    .unwrap_or_default()
                    .to_owned(),
            ),
            meta::name(class).to_owned(),
        )
    });
    classes.first().map(|class| meta::name(class).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_tolerations_are_kept() {
        let mut spec = json!({"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]});
        tolerate(&mut spec);
        let keys: Vec<_> = spec["tolerations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["key"].clone())
            .collect();
        assert_eq!(
            keys,
            [
                "node.kubernetes.io/not-ready",
                "node.kubernetes.io/unreachable"
            ]
        );
        let mut spec = json!({"tolerations": [{"operator": "Exists"}]});
        tolerate(&mut spec);
        assert_eq!(spec["tolerations"].as_array().unwrap().len(), 1);
    }
}
