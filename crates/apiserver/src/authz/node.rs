//! The node authorizer: a kubelet reads what the pods bound to its node refer to, and writes what
//! is its own.

use keelson_machinery::meta;
use serde_json::Value;

use super::rbac::Rule;
use super::{Attributes, Decision};
use crate::objects::Objects;

pub(super) struct NodeAuthorizer {
    /// What every node may do besides what depends on its pods: the rules of `system:node`.
    rules: Vec<Rule>,
}

impl NodeAuthorizer {
    pub(super) fn new() -> Self {
        let rules = crate::bootstrap::cluster_role("system:node")
            .map(|role| {
                role["rules"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(Rule::from_json)
                    .collect()
            })
            .unwrap_or_default();
        Self { rules }
    }

    pub(super) fn authorize(&self, a: &Attributes<'_>, objects: &dyn Objects) -> Decision {
        let Some(node) = node_name(a) else {
            return Decision::NoOpinion(String::new());
        };
        if !a.is_resource {
            return Decision::NoOpinion(String::new());
        }
        let refused = |why: &str| Decision::NoOpinion(why.to_owned());
        let related = |found: bool| {
            if found {
                Decision::Allow(String::new())
            } else {
                Decision::NoOpinion(format!(
                    "no relationship found between node '{node}' and this object"
                ))
            }
        };
        let reads = matches!(a.verb, "get" | "list" | "watch");
        match (a.group, a.resource, a.subresource) {
            ("", "secrets" | "configmaps", "") => {
                if !reads {
                    return refused("can only read resources of this type");
                }
                if a.name.is_empty() || a.namespace.is_empty() {
                    return refused("No Object name found");
                }
                related(
                    pods_of(objects, node, a.namespace).any(|pod| refers(&pod, a.resource, a.name)),
                )
            }
            ("", "persistentvolumeclaims", "" | "status") => match (a.verb, a.subresource) {
                ("get", "") | ("update" | "patch", "status") => related(
                    pods_of(objects, node, a.namespace).any(|pod| refers(&pod, a.resource, a.name)),
                ),
                _ => refused("can only get individual resources of this type"),
            },
            ("", "persistentvolumes", "") => {
                if a.verb != "get" {
                    return refused("can only get individual resources of this type");
                }
                let claim = objects
                    .get("", "persistentvolumes", "", a.name)
                    .map(|v| v["spec"]["claimRef"].clone());
                let claim = claim.unwrap_or_default();
                let (namespace, name) = (text(&claim["namespace"]), text(&claim["name"]));
                related(
                    !name.is_empty()
                        && pods_of(objects, node, namespace)
                            .any(|pod| refers(&pod, "persistentvolumeclaims", name)),
                )
            }
            ("", "serviceaccounts", "token") => {
                if a.verb != "create" {
                    return refused("only supports 'create' of this subresource");
                }
                related(
                    pods_of(objects, node, a.namespace)
                        .any(|pod| text(&pod["spec"]["serviceAccountName"]) == a.name),
                )
            }
            ("coordination.k8s.io", "leases", "") => {
                if a.namespace != "kube-node-lease" {
                    return refused(
                        "can only access leases in the \"kube-node-lease\" system namespace",
                    );
                }
                let own = a.name == node || (a.verb == "create" && a.name.is_empty());
                if own && matches!(a.verb, "get" | "create" | "update" | "patch" | "delete") {
                    Decision::Allow(String::new())
                } else {
                    refused("can only access node lease with the same name as the requesting node")
                }
            }
            ("storage.k8s.io", "csinodes", "") => {
                let own = a.name == node || (a.verb == "create" && a.name.is_empty());
                if own && matches!(a.verb, "get" | "create" | "update" | "patch" | "delete") {
                    Decision::Allow(String::new())
                } else {
                    refused("can only access CSINode with the same name as the requesting node")
                }
            }
            ("storage.k8s.io", "volumeattachments", "") => {
                let own = objects
                    .get("storage.k8s.io", "volumeattachments", "", a.name)
                    .is_some_and(|v| text(&v["spec"]["nodeName"]) == node);
                related(a.verb == "get" && own)
            }
            _ => {
                if self.rules.iter().any(|rule| rule.allows(a)) {
                    Decision::Allow(String::new())
                } else {
                    Decision::NoOpinion(String::new())
                }
            }
        }
    }
}

/// The node's name when the caller is a node.
fn node_name<'a>(a: &Attributes<'a>) -> Option<&'a str> {
    let name = a.user.username.strip_prefix("system:node:")?;
    (!name.is_empty() && a.user.in_group("system:nodes")).then_some(name)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn pods_of<'a>(
    objects: &'a dyn Objects,
    node: &'a str,
    namespace: &'a str,
) -> impl Iterator<Item = std::sync::Arc<Value>> + 'a {
    objects
        .list("", "pods", namespace)
        .into_iter()
        .filter(move |pod| text(&pod["spec"]["nodeName"]) == node)
}

/// Whether a pod refers to a secret, config map or claim of its namespace by name.
fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let array = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let volumes = array(&spec["volumes"]);
    let containers = ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|key| array(&spec[*key]));
    match resource {
        "persistentvolumeclaims" => volumes.iter().any(|v| {
            text(&v["persistentVolumeClaim"]["claimName"]) == name
                || (v["ephemeral"].is_object()
                    && format!("{}-{}", meta::name(pod), text(&v["name"])) == name)
        }),
        "secrets" => {
            array(&spec["imagePullSecrets"])
                .iter()
                .any(|r| text(&r["name"]) == name)
                || volumes.iter().any(|v| {
                    text(&v["secret"]["secretName"]) == name
                        || v.as_object().into_iter().flatten().any(|(_, source)| {
                            ["secretRef", "nodePublishSecretRef"]
                                .iter()
                                .any(|key| text(&source[*key]["name"]) == name)
                                || text(&source["secretName"]) == name
                        })
                        || array(&v["projected"]["sources"])
                            .iter()
                            .any(|s| text(&s["secret"]["name"]) == name)
                })
                || containers
                    .into_iter()
                    .any(|c| from_environment(&c, "secretRef", "secretKeyRef", name))
        }
        _ => {
            volumes.iter().any(|v| {
                text(&v["configMap"]["name"]) == name
                    || array(&v["projected"]["sources"])
                        .iter()
                        .any(|s| text(&s["configMap"]["name"]) == name)
            }) || containers
                .into_iter()
                .any(|c| from_environment(&c, "configMapRef", "configMapKeyRef", name))
        }
    }
}

fn from_environment(container: &Value, whole: &str, key: &str, name: &str) -> bool {
    let sources = container["envFrom"].as_array().into_iter().flatten();
    let variables = container["env"].as_array().into_iter().flatten();
    sources
        .into_iter()
        .any(|source| text(&source[whole]["name"]) == name)
        || variables
            .into_iter()
            .any(|variable| text(&variable["valueFrom"][key]["name"]) == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_where_pods_keep_them() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "vol"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "root"}}, {"secret": {"name": "proj"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "d", "ephemeral": {}},
            ],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "cm"}}]}],
        }});
        for (resource, name, expected) in [
            ("secrets", "pull", true),
            ("secrets", "vol", true),
            ("secrets", "proj", true),
            ("secrets", "env", true),
            ("secrets", "cm", false),
            ("configmaps", "root", true),
            ("configmaps", "cm", true),
            ("configmaps", "vol", false),
            ("persistentvolumeclaims", "data", true),
            ("persistentvolumeclaims", "p-d", true),
            ("persistentvolumeclaims", "other", false),
        ] {
            assert_eq!(refers(&pod, resource, name), expected, "{resource} {name}");
        }
    }
}
