//! NodeRestriction: a kubelet writes its own node and the pods bound to it, and no more.

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::certificates::subject_of;
use super::{AdmissionPlugin, Attributes, Cluster, Operation};
use crate::authz::Attributes as Question;
use crate::authz::references::{api_reference, claims_of};

pub(super) struct NodeRestriction;

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels of these domains are the cluster's, but for what kubelets are known to set.
const OWN_LABELS: [&str; 11] = [
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
];

#[async_trait]
impl AdmissionPlugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        let attrs = &*attrs;
        let Some(node) = attrs.user.username.strip_prefix("system:node:") else {
            return Ok(());
        };
        if !attrs.user.in_group("system:nodes") {
            return Ok(());
        }
        if node.is_empty() {
            return Err(attrs.forbidden(format!(
                "could not determine node from user {:?}",
                attrs.user.username
            )));
        }
        let caller = Caller {
            attrs,
            cluster,
            node,
        };
        match (attrs.group.as_str(), attrs.resource.as_str()) {
            ("", "pods") => match attrs.subresource.as_str() {
                "" => caller.pod(),
                "status" => caller.pod_status(),
                "eviction" => caller.eviction(),
                other => caller.refuse(format!(
                    "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
                )),
            },
            ("", "nodes") => caller.own_node(),
            ("", "persistentvolumeclaims") => caller.claim(),
            ("", "serviceaccounts") => caller.token().await,
            ("certificates.k8s.io", "podcertificaterequests") => caller.certificate_request(),
            ("coordination.k8s.io", "leases") => caller.lease(),
            ("storage.k8s.io", "csinodes") => {
                caller.own_name("can only access CSINode with the same name as the requesting node")
            }
            ("resource.k8s.io", "resourceslices") => caller.resource_slice(),
            ("certificates.k8s.io", "certificatesigningrequests") => caller.signing_request(),
            _ => Ok(()),
        }
    }
}

/// A kubelet and its write.
struct Caller<'a> {
    attrs: &'a Attributes,
    cluster: &'a Cluster,
    node: &'a str,
}

impl Caller<'_> {
    fn refuse(&self, message: impl std::fmt::Display) -> Result<(), Status> {
        Err(self.attrs.forbidden(message))
    }

    fn unexpected(&self) -> Result<(), Status> {
        self.refuse(format!(
            "unexpected operation {:?}",
            self.attrs.operation.as_str()
        ))
    }

    fn find_pod(&self, name: &str) -> Result<Arc<Value>, Status> {
        let found = self
            .cluster
            .objects
            .get("", "pods", &self.attrs.namespace, name);
        found.ok_or_else(|| Status::not_found("", "pod", name))
    }

    fn pod(&self) -> Result<(), Status> {
        let node = self.node;
        match self.attrs.operation {
            Operation::Create => self.mirror_pod(),
            Operation::Delete if self.find_pod(&self.attrs.name)?["spec"]["nodeName"] == node => {
                Ok(())
            }
            Operation::Delete => self.refuse(format!(
                "node {node:?} can only delete pods with spec.nodeName set to itself"
            )),
            other => self.refuse(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                other.as_str()
            )),
        }
    }

    fn mirror_pod(&self) -> Result<(), Status> {
        let node = self.node;
        let Some(pod) = self.attrs.object.as_ref() else {
            return Ok(());
        };
        if meta::annotation(pod, MIRROR).is_none() {
            return self.refuse(format!(
                "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
            ));
        }
        if pod["spec"]["nodeName"] != node {
            return self.refuse(format!(
                "node {node:?} can only create pods with spec.nodeName set to itself"
            ));
        }
        let owner = match meta::owner_references(pod) {
            [one] => one,
            [] => {
                return self.refuse(format!(
                    "node {node:?} can only create pods with an owner reference set to itself"
                ));
            }
            _ => {
                return self.refuse(format!(
                    "node {node:?} can only create pods with a single owner reference set to itself"
                ));
            }
        };
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
            return self.refuse(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        if owner["controller"] != true {
            return self.refuse(format!(
                "node {node:?} can only create pods with a controller owner reference set to itself"
            ));
        }
        if owner["blockOwnerDeletion"] == true {
            return self.refuse(format!(
                "node {node:?} must not set blockOwnerDeletion on an owner reference"
            ));
        }
        let own = self.cluster.objects.get("", "nodes", "", node);
        let own = own.ok_or_else(|| Status::not_found("", "nodes", node))?;
        let uid = owner["uid"].as_str().unwrap_or_default();
        if uid != meta::uid(&own) {
            return self.refuse(format!(
                "node {node} UID mismatch: expected {uid} got {}",
                meta::uid(&own)
            ));
        }
        match api_reference(pod) {
            Some(what) => self.refuse(format!(
                "node {node:?} can not create pods that reference {what}"
            )),
            None => Ok(()),
        }
    }

    fn pod_status(&self) -> Result<(), Status> {
        let node = self.node;
        if self.attrs.operation != Operation::Update {
            return self.unexpected();
        }
        let (Some(new), Some(old)) = (self.attrs.object.as_ref(), self.attrs.old_object.as_deref())
        else {
            return Ok(());
        };
        if old["spec"]["nodeName"] != node {
            return self.refuse(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        if meta::labels(new) != meta::labels(old) {
            return self.refuse(format!(
                "node {node:?} cannot update labels through pod status"
            ));
        }
        if !same(new, old, "/status/resourceClaimStatuses") {
            return self.refuse(format!(
                "node {node:?} cannot update resource claim statues"
            ));
        }
        if !same(new, old, "/status/extendedResourceClaimStatus") {
            return self.refuse(format!(
                "node {node:?} cannot update extended resource claim status"
            ));
        }
        Ok(())
    }

    fn eviction(&self) -> Result<(), Status> {
        if self.attrs.operation != Operation::Create {
            return self.refuse(format!(
                "unexpected operation {}",
                self.attrs.operation.as_str()
            ));
        }
        let named = self.attrs.object.as_ref().map(meta::name);
        let name = match self.attrs.name.as_str() {
            "" => named.unwrap_or_default(),
            name => name,
        };
        if name.is_empty() {
            return self.refuse("could not determine pod from request data");
        }
        if self.find_pod(name)?["spec"]["nodeName"] == self.node {
            return Ok(());
        }
        self.refuse(format!(
            "node {} can only evict pods with spec.nodeName set to itself",
            self.node
        ))
    }

    fn claim(&self) -> Result<(), Status> {
        if self.attrs.subresource != "status" {
            return self.refuse("may only update PVC status");
        }
        if self.attrs.operation != Operation::Update {
            return self.unexpected();
        }
        let (Some(new), Some(old)) = (self.attrs.object.as_ref(), self.attrs.old_object.as_deref())
        else {
            return Ok(());
        };
        if without_claim_progress(new) == without_claim_progress(old) {
            return Ok(());
        }
        self.refuse(format!(
            "node {:?} is not allowed to update fields other than status.quantity and status.conditions",
            self.node
        ))
    }

    fn own_node(&self) -> Result<(), Status> {
        let (attrs, node) = (self.attrs, self.node);
        if attrs.name != node {
            return self.refuse(format!(
                "node {node:?} is not allowed to modify node {:?}",
                attrs.name
            ));
        }
        let Some(object) = attrs.object.as_ref() else {
            return Ok(());
        };
        let empty = Value::Null;
        let old = attrs.old_object.as_deref().unwrap_or(&empty);
        let source = &object["spec"]["configSource"];
        if attrs.operation == Operation::Create && !source.is_null() {
            return self.refuse(format!(
                "node {node:?} is not allowed to create pods with a non-nil configSource"
            ));
        }
        if attrs.operation == Operation::Update {
            if !source.is_null() && *source != old["spec"]["configSource"] {
                return self.refuse(format!(
                    "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                ));
            }
            if !same(object, old, "/spec/taints") {
                return self.refuse(format!("node {node:?} is not allowed to modify taints"));
            }
            if !same(object, old, "/metadata/ownerReferences") {
                return self.refuse(format!(
                    "node {node:?} is not allowed to modify ownerReferences"
                ));
            }
        }
        let refused = reserved_changes(object, old).join(", ");
        match (refused.is_empty(), attrs.operation) {
            (true, _) => Ok(()),
            (false, Operation::Create) => self.refuse(format!(
                "node {node:?} is not allowed to set the following labels: {refused}"
            )),
            (false, _) => self.refuse(format!("is not allowed to modify labels: {refused}")),
        }
    }

    /// The name is in the object when it is being created.
    fn own_name(&self, message: &str) -> Result<(), Status> {
        let name = match self.attrs.operation {
            Operation::Create => self
                .attrs
                .object
                .as_ref()
                .map(meta::name)
                .unwrap_or_default(),
            _ => self.attrs.name.as_str(),
        };
        if name == self.node {
            Ok(())
        } else {
            self.refuse(message)
        }
    }

    fn lease(&self) -> Result<(), Status> {
        if self.attrs.namespace != "kube-node-lease" {
            return self
                .refuse("can only access leases in the \"kube-node-lease\" system namespace");
        }
        self.own_name("can only access node lease with the same name as the requesting node")
    }

    fn resource_slice(&self) -> Result<(), Status> {
        let (slice, verb) = match self.attrs.operation {
            Operation::Create => (self.attrs.object.as_ref(), "create"),
            Operation::Delete => (self.attrs.old_object.as_deref(), "delete"),
            _ => return Ok(()),
        };
        if slice.is_some_and(|slice| slice["spec"]["nodeName"] == self.node) {
            return Ok(());
        }
        self.refuse(format!(
            "can only {verb} ResourceSlice with the same NodeName as the requesting node"
        ))
    }

    fn signing_request(&self) -> Result<(), Status> {
        let Some(request) = self
            .attrs
            .object
            .as_ref()
            .filter(|_| self.attrs.operation == Operation::Create)
        else {
            return Ok(());
        };
        let signer = request["spec"]["signerName"].as_str().unwrap_or_default();
        if !matches!(
            signer,
            "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet"
        ) {
            return Ok(());
        }
        let subject = subject_of(request).map_err(|reason| {
            self.attrs
                .forbidden(format!("unable to parse csr: {reason}"))
        })?;
        if subject.common_name == format!("system:node:{}", self.node) {
            return Ok(());
        }
        self.refuse(format!(
            "can only create a node CSR with CN=system:node:{}",
            self.node
        ))
    }

    /// Every name in the request must be of what runs on this node right now. What may be the
    /// fault of a slow cache is no refusal, so that the kubelet asks again.
    fn certificate_request(&self) -> Result<(), Status> {
        let attrs = self.attrs;
        if attrs.operation != Operation::Create {
            return self.refuse(format!("unexpected operation {}", attrs.operation.as_str()));
        }
        if !attrs.subresource.is_empty() {
            return self.refuse(format!("unexpected subresource {}", attrs.subresource));
        }
        let Some(request) = attrs.object.as_ref() else {
            return Ok(());
        };
        let text = |key: &str| request["spec"][key].as_str().unwrap_or_default();
        let objects = &self.cluster.objects;
        if text("nodeName") != self.node {
            return self.refuse(format!(
                "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {:?}",
                text("nodeName"),
                self.node
            ));
        }
        let node = objects
            .get("", "nodes", "", self.node)
            .ok_or_else(|| Status::not_found("", "nodes", self.node))?;
        let pod = self.find_pod(text("podName"))?;
        let shown = format!("{}/{}", attrs.namespace, text("podName"));
        let account_name = text("serviceAccountName");
        for (what, wanted, found) in [
            ("node UID", text("nodeUID"), meta::uid(&node)),
            ("pod UID", text("podUID"), meta::uid(&pod)),
        ] {
            if wanted != found {
                return Err(Status::internal(format!(
                    "PodCertificateRequest for pod {shown:?} names {what} {wanted:?}, inconsistent with the running one ({found:?})"
                )));
            }
        }
        if pod["spec"]["nodeName"] != self.node {
            return self.refuse(format!(
                "pod {shown:?} is not running on node {:?} named in the PodCertificateRequest",
                self.node
            ));
        }
        if meta::annotation(&pod, MIRROR).is_some() {
            return self.refuse(format!("pod {shown:?} is a mirror pod"));
        }
        if pod["spec"]["serviceAccountName"] != account_name {
            return self.refuse(format!(
                "PodCertificateRequest for pod {shown:?} contains serviceAccountName ({account_name:?}) that differs from running pod ({})",
                pod["spec"]["serviceAccountName"]
            ));
        }
        let account = objects
            .get("", "serviceaccounts", &attrs.namespace, account_name)
            .ok_or_else(|| Status::not_found("", "serviceaccounts", account_name))?;
        if text("serviceAccountUID") != meta::uid(&account) {
            return Err(Status::internal(format!(
                "PodCertificateRequest for pod {shown:?} names service account UID {:?}, which differs from the running service account ({:?})",
                text("serviceAccountUID"),
                meta::uid(&account)
            )));
        }
        Ok(())
    }

    async fn token(&self) -> Result<(), Status> {
        let attrs = self.attrs;
        let Some(request) = attrs
            .object
            .as_ref()
            .filter(|_| attrs.operation == Operation::Create && attrs.subresource == "token")
        else {
            return Ok(());
        };
        let bound = &request["spec"]["boundObjectRef"];
        let name = bound["name"].as_str().unwrap_or_default();
        if bound["apiVersion"] != "v1" || bound["kind"] != "Pod" || name.is_empty() {
            return self.refuse("node requested token not bound to a pod");
        }
        let uid = bound["uid"].as_str().unwrap_or_default();
        if uid.is_empty() {
            return self.refuse("node requested token with a pod binding without a uid");
        }
        let pod = self.find_pod(name)?;
        if uid != meta::uid(&pod) {
            return self.refuse(format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ));
        }
        if pod["spec"]["nodeName"] != self.node {
            return self
                .refuse("node requested token bound to a pod scheduled on a different node");
        }
        self.audience(request, &pod).await
    }

    /// A node asks only for audiences that its pod names, unless it is allowed to ask for others.
    async fn audience(&self, request: &Value, pod: &Value) -> Result<(), Status> {
        let audiences = request["spec"]["audiences"].as_array();
        let audience = match audiences.map(Vec::as_slice).unwrap_or_default() {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return self.refuse("node may only request 0 or 1 audiences"),
        };
        if self.names_audience(pod, audience) {
            return Ok(());
        }
        let question = Question {
            version: "v1",
            ..Question::resource(
                &self.attrs.user,
                "request-serviceaccounts-token-audience",
                "",
                audience,
                &self.attrs.namespace,
                &self.attrs.name,
            )
        };
        if self.cluster.authorizer.is_allowed(&question).await {
            return Ok(());
        }
        self.refuse(format!(
            "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            self.attrs.user.username
        ))
    }

    fn names_audience(&self, pod: &Value, audience: &str) -> bool {
        let items = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
        let wants = |requests: &[Value], key: fn(&Value) -> &Value| {
            requests
                .iter()
                .any(|r| key(r).as_str().unwrap_or_default() == audience)
        };
        let volumes = items(&pod["spec"]["volumes"]);
        let projected = volumes.iter().any(|volume| {
            let sources: Vec<Value> = items(&volume["projected"]["sources"])
                .into_iter()
                .filter(|source| source["serviceAccountToken"].is_object())
                .collect();
            wants(
                &sources,
                |source| &source["serviceAccountToken"]["audience"],
            )
        });
        if projected {
            return true;
        }
        let inline = volumes
            .iter()
            .filter_map(|volume| Some(volume["csi"]["driver"].as_str()?.to_owned()));
        let claimed = claims_of(pod).filter_map(|claim| self.driver_of(&claim));
        inline.chain(claimed).any(|driver| {
            let driver = self
                .cluster
                .objects
                .get("storage.k8s.io", "csidrivers", "", &driver);
            driver.is_some_and(|driver| {
                wants(&items(&driver["spec"]["tokenRequests"]), |r| &r["audience"])
            })
        })
    }

    fn driver_of(&self, claim: &str) -> Option<String> {
        let objects = &self.cluster.objects;
        let claim = objects.get("", "persistentvolumeclaims", &self.attrs.namespace, claim)?;
        let volume = claim["spec"]["volumeName"].as_str()?;
        let volume = objects.get("", "persistentvolumes", "", volume)?;
        Some(volume["spec"]["csi"]["driver"].as_str()?.to_owned())
    }
}

/// Whether both have the same there; none is as good as an empty list.
fn same(a: &Value, b: &Value, pointer: &str) -> bool {
    let at = |object: &Value| -> Value {
        let found = object.pointer(pointer).cloned().unwrap_or_default();
        let is_empty = found.as_array().is_some_and(Vec::is_empty);
        if is_empty { Value::Null } else { found }
    };
    at(a) == at(b)
}

/// A claim without what a node may report of it.
fn without_claim_progress(claim: &Value) -> Value {
    let mut claim = claim.clone();
    if let Some(metadata) = claim["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
        metadata.remove("managedFields");
    }
    if let Some(status) = claim["status"].as_object_mut() {
        for key in [
            "capacity",
            "conditions",
            "allocatedResourceStatuses",
            "allocatedResources",
        ] {
            status.remove(key);
        }
    }
    claim
}

/// Labels that changed and are not the kubelet's to change.
fn reserved_changes(object: &Value, old: &Value) -> Vec<String> {
    let (new, before) = (meta::labels(object), meta::labels(old));
    let mut all: Vec<String> = new
        .keys()
        .chain(before.keys())
        .filter(|key| new.get(*key) != before.get(*key) && is_reserved(key))
        .cloned()
        .collect();
    all.sort();
    all.dedup();
    all
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
