//! The node authorizer: a kubelet reads what the pods bound to its node refer to, and writes what
//! is its own.

use std::sync::Arc;

use keelson_machinery::meta;
use serde_json::Value;

use super::rbac::Rule;
use super::references::{self, claims_of, volume_secrets};
use super::{Attributes, Decision};
use crate::objects::Objects;

pub(super) struct NodeAuthorizer {
    /// What every node may do besides what depends on its pods: the rules of `system:node`.
    rules: Vec<Rule>,
}

/// The objects a node reaches only through its pods.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reached {
    Pod,
    Referred(&'static str),
    Volume,
    Attachment,
    Slice,
    CertificateRequest,
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
            return no_opinion("");
        };
        if node.is_empty() {
            return no_opinion(format!("unknown node for user {:?}", a.user.username));
        }
        if !a.is_resource {
            return self.by_rules(a);
        }
        let question = Question { a, node, objects };
        match (a.group, a.resource) {
            ("", "secrets") => question.read_namespaced(Reached::Referred("secrets")),
            ("", "configmaps") => question.read_namespaced(Reached::Referred("configmaps")),
            ("", "persistentvolumeclaims") if a.subresource == "status" => question.claim_status(),
            ("", "persistentvolumeclaims") => {
                question.get(Reached::Referred("persistentvolumeclaims"))
            }
            ("", "persistentvolumes") => question.get(Reached::Volume),
            ("resource.k8s.io", "resourceclaims") => {
                question.get(Reached::Referred("resourceclaims"))
            }
            ("storage.k8s.io", "volumeattachments") => question.get(Reached::Attachment),
            ("", "serviceaccounts") => question.service_account(),
            ("coordination.k8s.io", "leases") => question.lease(),
            ("storage.k8s.io", "csinodes") => question.csi_node(),
            ("resource.k8s.io", "resourceslices") => question.resource_slice(),
            ("", "nodes") => question.node(),
            ("", "pods") => question.pod(),
            ("certificates.k8s.io", "podcertificaterequests") => question.certificate_request(),
            _ => self.by_rules(a),
        }
    }

    fn by_rules(&self, a: &Attributes<'_>) -> Decision {
        if self.rules.iter().any(|rule| rule.allows(a)) {
            allow()
        } else {
            no_opinion("")
        }
    }
}

fn allow() -> Decision {
    Decision::Allow(String::new())
}

fn no_opinion(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion(reason.into())
}

struct Question<'a> {
    a: &'a Attributes<'a>,
    node: &'a str,
    objects: &'a dyn Objects,
}

impl Question<'_> {
    fn read_namespaced(&self, what: Reached) -> Decision {
        if !matches!(self.a.verb, "get" | "list" | "watch") {
            return no_opinion("can only read resources of this type");
        }
        if !self.a.subresource.is_empty() {
            return no_opinion("cannot read subresource");
        }
        if self.a.namespace.is_empty() {
            return no_opinion("can only read namespaced object of this type");
        }
        self.related(what)
    }

    fn get(&self, what: Reached) -> Decision {
        if self.a.verb != "get" {
            return no_opinion("can only get individual resources of this type");
        }
        if !self.a.subresource.is_empty() {
            return no_opinion("cannot get subresource");
        }
        self.related(what)
    }

    fn claim_status(&self) -> Decision {
        if !matches!(self.a.verb, "update" | "patch") {
            return no_opinion("can only get/update/patch this type");
        }
        self.related(Reached::Referred("persistentvolumeclaims"))
    }

    fn service_account(&self) -> Decision {
        let a = self.a;
        if a.verb == "get" && a.subresource.is_empty() {
            return self.read_namespaced(Reached::Referred("serviceaccounts"));
        }
        if a.verb != "create" || a.name.is_empty() {
            return no_opinion("can only create tokens for individual service accounts");
        }
        if a.subresource != "token" {
            return no_opinion("can only create token subresource of serviceaccount");
        }
        self.related(Reached::Referred("serviceaccounts"))
    }

    fn lease(&self) -> Decision {
        let a = self.a;
        if !matches!(a.verb, "get" | "create" | "update" | "patch" | "delete") {
            return no_opinion("can only get, create, update, patch, or delete a node lease");
        }
        if a.namespace != "kube-node-lease" {
            return no_opinion(
                "can only access leases in the \"kube-node-lease\" system namespace",
            );
        }
        // A create's name is not known here; NodeRestriction looks at it.
        if a.verb != "create" && a.name != self.node {
            return no_opinion(
                "can only access node lease with the same name as the requesting node",
            );
        }
        allow()
    }

    fn csi_node(&self) -> Decision {
        let a = self.a;
        if !matches!(a.verb, "get" | "create" | "update" | "patch" | "delete") {
            return no_opinion("can only get, create, update, patch, or delete a CSINode");
        }
        if !a.subresource.is_empty() {
            return no_opinion("cannot authorize CSINode subresources");
        }
        if a.verb != "create" && a.name != self.node {
            return no_opinion("can only access CSINode with the same name as the requesting node");
        }
        allow()
    }

    fn resource_slice(&self) -> Decision {
        if !self.a.subresource.is_empty() {
            return no_opinion("cannot authorize ResourceSlice subresources");
        }
        match self.a.verb {
            "create" => allow(),
            "get" | "update" | "patch" | "delete" => self.related(Reached::Slice),
            "watch" | "list" | "deletecollection" if self.selects_own() => allow(),
            "watch" | "list" | "deletecollection" => no_opinion(
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => no_opinion(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn node(&self) -> Decision {
        let a = self.a;
        match (a.subresource, a.verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allow(),
            ("", "get" | "list" | "watch") if a.name == self.node => allow(),
            ("", "get" | "list" | "watch") if a.name.is_empty() => no_opinion(format!(
                "node '{}' cannot read all nodes, only its own Node object",
                self.node
            )),
            ("", "get" | "list" | "watch") => no_opinion(format!(
                "node '{}' cannot read '{}', only its own Node object",
                self.node, a.name
            )),
            _ => no_opinion(""),
        }
    }

    fn pod(&self) -> Decision {
        let a = self.a;
        match (a.subresource, a.verb) {
            ("", "get") => self.related(Reached::Pod),
            ("", "list" | "watch") if self.selects_own() => allow(),
            ("", "list" | "watch") if !a.name.is_empty() => self.related(Reached::Pod),
            ("", "list" | "watch") => {
                no_opinion("can only list/watch pods with spec.nodeName field selector")
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                allow()
            }
            _ => no_opinion(""),
        }
    }

    fn certificate_request(&self) -> Decision {
        if !self.a.subresource.is_empty() {
            return no_opinion(
                "nodes may not access the status subresource of PodCertificateRequests",
            );
        }
        match self.a.verb {
            "create" => allow(),
            "get" => self.related(Reached::CertificateRequest),
            "list" | "watch" if self.selects_own() => allow(),
            "list" | "watch" => no_opinion(
                "can only list/watch podcertificaterequests with nodeName field selector",
            ),
            verb => no_opinion(format!("nodes may not {verb} podcertificaterequests")),
        }
    }

    /// Whether a list is narrowed to what is bound to the node.
    fn selects_own(&self) -> bool {
        self.a
            .field_requirements()
            .any(|(field, value)| field == "spec.nodeName" && value == self.node)
    }

    fn related(&self, what: Reached) -> Decision {
        if self.a.name.is_empty() {
            return no_opinion("No Object name found");
        }
        if self.is_related(what) {
            allow()
        } else {
            no_opinion(format!(
                "no relationship found between node '{}' and this object",
                self.node
            ))
        }
    }

    fn is_related(&self, what: Reached) -> bool {
        let (namespace, name) = (self.a.namespace, self.a.name);
        let own = |group: &str, resource: &str, namespace: &str| {
            self.objects
                .get(group, resource, namespace, name)
                .is_some_and(|object| object["spec"]["nodeName"] == self.node)
        };
        match what {
            Reached::Pod => own("", "pods", namespace),
            Reached::Attachment => own("storage.k8s.io", "volumeattachments", ""),
            Reached::Slice => own("resource.k8s.io", "resourceslices", ""),
            Reached::CertificateRequest => {
                own("certificates.k8s.io", "podcertificaterequests", namespace)
            }
            Reached::Referred(resource) => {
                self.pods(namespace)
                    .any(|pod| references::refers(&pod, resource, name))
                    || (resource == "secrets" && self.is_secret_of_volume(namespace, name))
            }
            Reached::Volume => self
                .objects
                .get("", "persistentvolumes", "", name)
                .is_some_and(|volume| self.uses_volume(&volume)),
        }
    }

    /// Pods of the node that may lend it their references; what a node runs by itself lends none.
    fn pods(&self, namespace: &str) -> impl Iterator<Item = Arc<Value>> {
        let node = self.node;
        self.objects
            .list("", "pods", namespace)
            .into_iter()
            .filter(move |pod| {
                pod["spec"]["nodeName"] == node
                    && meta::annotation(pod, "kubernetes.io/config.mirror").is_none()
            })
    }

    fn uses_volume(&self, volume: &Value) -> bool {
        let claim = &volume["spec"]["claimRef"];
        let text = |key: &str| claim[key].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        !name.is_empty()
            && self
                .pods(namespace)
                .any(|pod| claims_of(&pod).any(|claim| claim == name))
    }

    fn is_secret_of_volume(&self, namespace: &str, name: &str) -> bool {
        self.objects
            .list("", "persistentvolumes", "")
            .iter()
            .any(|volume| {
                volume_secrets(volume)
                    .any(|(in_namespace, secret)| in_namespace == namespace && secret == name)
                    && self.uses_volume(volume)
            })
    }
}

/// The node's name when the caller is a node.
fn node_name<'a>(a: &Attributes<'a>) -> Option<&'a str> {
    let name = a.user.username.strip_prefix("system:node:")?;
    a.user.in_group("system:nodes").then_some(name)
}
