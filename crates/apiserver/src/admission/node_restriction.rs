//! NodeRestriction: a kubelet writes its own node and the pods bound to it, and no more.

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::{AdmissionPlugin, Attributes, Cluster, Operation};

pub(super) struct NodeRestriction;

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels of these domains are the cluster's, but for what kubelets are known to set.
const OWN_LABELS: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "node.kubernetes.io/windows-build",
];

#[async_trait]
impl AdmissionPlugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        let Some(node) = attrs.user.username.strip_prefix("system:node:") else {
            return Ok(());
        };
        if !attrs.user.in_group("system:nodes") {
            return Ok(());
        }
        match (
            attrs.group.as_str(),
            attrs.resource.as_str(),
            attrs.subresource.as_str(),
        ) {
            ("", "pods", "") => pod(attrs, cluster, node),
            ("", "pods", "status") => {
                let bound = attrs
                    .old_object
                    .as_deref()
                    .is_some_and(|old| old["spec"]["nodeName"] == node);
                if attrs.operation == Operation::Update && bound {
                    Ok(())
                } else {
                    Err(attrs.forbidden(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")))
                }
            }
            ("", "pods", "eviction") => {
                let pod = cluster
                    .objects
                    .get("", "pods", &attrs.namespace, &attrs.name);
                if pod.is_none_or(|pod| pod["spec"]["nodeName"] == node) {
                    Ok(())
                } else {
                    Err(attrs.forbidden(format!(
                        "node {node} can only evict pods with spec.nodeName set to itself"
                    )))
                }
            }
            ("", "pods", sub) => Err(attrs.forbidden(format!(
                "unexpected pod subresource {sub:?}, only 'status' and 'eviction' are allowed"
            ))),
            ("", "nodes", _) => own_node(attrs, node),
            ("", "serviceaccounts", "token") => token(attrs, cluster, node),
            ("coordination.k8s.io", "leases", _) => own_name(attrs, node, "lease"),
            ("storage.k8s.io", "csinodes", _) => own_name(attrs, node, "CSINode"),
            _ => Ok(()),
        }
    }
}

fn own_name(attrs: &Attributes, node: &str, what: &str) -> Result<(), Status> {
    let name = match attrs.operation {
        Operation::Create => attrs.object.as_ref().map(meta::name).unwrap_or_default(),
        _ => attrs.name.as_str(),
    };
    if name == node {
        Ok(())
    } else {
        Err(attrs.forbidden(format!(
            "can only access {what} with the same name as the requesting node"
        )))
    }
}

fn pod(attrs: &Attributes, cluster: &Cluster, node: &str) -> Result<(), Status> {
    match attrs.operation {
        Operation::Create => {
            let Some(pod) = attrs.object.as_ref() else {
                return Ok(());
            };
            if meta::annotation(pod, MIRROR).is_none() {
                return Err(attrs.forbidden(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods")));
            }
            if pod["spec"]["nodeName"] != node {
                return Err(attrs.forbidden(format!(
                    "node {node:?} can only create pods with spec.nodeName set to itself"
                )));
            }
            Ok(())
        }
        Operation::Delete => {
            let pod = cluster
                .objects
                .get("", "pods", &attrs.namespace, &attrs.name);
            if pod.is_none_or(|pod| pod["spec"]["nodeName"] == node) {
                Ok(())
            } else {
                Err(attrs.forbidden(format!(
                    "node {node:?} can only delete pods with spec.nodeName set to itself"
                )))
            }
        }
        _ => Err(attrs.forbidden(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            attrs.operation.as_str()
        ))),
    }
}

fn own_node(attrs: &Attributes, node: &str) -> Result<(), Status> {
    let name = match (attrs.operation, attrs.object.as_ref()) {
        (Operation::Create, Some(object)) => meta::name(object),
        _ => attrs.name.as_str(),
    };
    if name != node {
        return Err(attrs.forbidden(format!(
            "node {node:?} is not allowed to modify node {name:?}"
        )));
    }
    let Some(object) = attrs.object.as_ref() else {
        return Ok(());
    };
    let empty = Value::Null;
    let old = attrs.old_object.as_deref().unwrap_or(&empty);
    if attrs.operation == Operation::Update
        && attrs.subresource.is_empty()
        && object["spec"]["taints"] != old["spec"]["taints"]
    {
        return Err(attrs.forbidden(format!("node {node:?} is not allowed to modify taints")));
    }
    let (new, before) = (meta::labels(object), meta::labels(old));
    let changed = new
        .iter()
        .filter(|(k, v)| before.get(*k) != Some(v))
        .map(|(k, _)| k);
    let removed = before.keys().filter(|k| !new.contains_key(*k));
    let refused: Vec<&str> = changed
        .chain(removed)
        .map(String::as_str)
        .filter(|key| is_reserved(key))
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(attrs.forbidden(format!(
        "is not allowed to modify labels: {}",
        refused.join(", ")
    )))
}

fn is_reserved(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else {
        return false;
    };
    let of = |suffix: &str| domain == suffix || domain.ends_with(&format!(".{suffix}"));
    if of("node-restriction.kubernetes.io") {
        return true;
    }
    if !of("kubernetes.io") && !of("k8s.io") {
        return false;
    }
    !(OWN_LABELS.contains(&label) || of("kubelet.kubernetes.io") || of("node.kubernetes.io"))
}

fn token(attrs: &Attributes, cluster: &Cluster, node: &str) -> Result<(), Status> {
    let Some(request) = attrs.object.as_ref() else {
        return Ok(());
    };
    let bound = &request["spec"]["boundObjectRef"];
    let pod_name = bound["name"].as_str().unwrap_or_default();
    if bound["apiVersion"] != "v1" || bound["kind"] != "Pod" || pod_name.is_empty() {
        return Err(attrs.forbidden("node requested token not bound to a pod"));
    }
    let pod = cluster.objects.get("", "pods", &attrs.namespace, pod_name);
    match pod {
        Some(pod)
            if bound["uid"]
                .as_str()
                .is_some_and(|uid| uid != meta::uid(&pod)) =>
        {
            Err(attrs.forbidden(
                "the UID in the bound object reference does not match the UID in record",
            ))
        }
        Some(pod) if pod["spec"]["nodeName"] == node => Ok(()),
        Some(_) => {
            Err(attrs
                .forbidden("node requested token bound to a pod scheduled on a different node"))
        }
        None => Err(Status::not_found("", "pods", pod_name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_labels_are_not_a_nodes_to_set() {
        for (label, expected) in [
            ("kubernetes.io/hostname", false),
            ("node.kubernetes.io/anything", false),
            ("node-role.kubernetes.io/control-plane", true),
            ("x.node-restriction.kubernetes.io/a", true),
            ("example.com/a", false),
            ("plain", false),
        ] {
            assert_eq!(is_reserved(label), expected, "{label}");
        }
    }
}
