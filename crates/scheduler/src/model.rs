//! What the scheduler knows of the cluster: nodes, and the pods on them, those that are bound and
//! those whose binding is still being written (assumed).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_semantics::node_selector::NodeView;

use crate::pod_info::PodInfo;
use crate::resources::Resources;

#[derive(Default)]
pub(crate) struct Model {
    /// Nodes that exist, and placeholders for nodes that pods name before the node is known.
    nodes: BTreeMap<String, NodeInfo>,
    /// Where each pod that occupies a node stands, by uid.
    placed: HashMap<String, String>,
    namespaces: HashMap<String, BTreeMap<String, String>>,
    /// Pods on nodes that have affinity terms of their own; with none the plugin is skipped.
    with_affinity: usize,
}

#[derive(Default, Clone)]
pub(crate) struct NodeInfo {
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) name: String,
    pub(crate) allocatable: Resources,
    pub(crate) requested: Resources,
    pub(crate) score_requested: Resources,
    pub(crate) pods: BTreeMap<String, Arc<PodInfo>>,
}

impl NodeInfo {
    pub(crate) fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.node.as_ref()?.metadata.labels.as_ref()
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    pub(crate) fn view(&self) -> NodeView<'_> {
        NodeView {
            name: &self.name,
            labels: self.labels(),
        }
    }

    pub(crate) fn add(&mut self, info: Arc<PodInfo>) {
        self.requested.add(&info.requests);
        self.score_requested.add(&info.score_requests);
        self.pods.insert(info.uid().to_owned(), info);
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let info = self.pods.remove(uid)?;
        self.requested.subtract(&info.requests);
        self.score_requested.subtract(&info.score_requests);
        Some(info)
    }
}

impl Model {
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|info| info.node.is_some())
    }

    pub(crate) fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name).filter(|info| info.node.is_some())
    }

    pub(crate) fn set_namespace(&mut self, name: &str, labels: Option<&BTreeMap<String, String>>) {
        self.namespaces
            .insert(name.to_owned(), labels.cloned().unwrap_or_default());
    }

    pub(crate) fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    pub(crate) fn namespace_labels(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        self.namespaces.get(name)
    }

    pub(crate) fn any_pod_with_affinity(&self) -> bool {
        self.with_affinity > 0
    }

    pub(crate) fn set_node(&mut self, node: &Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let info = self.entry(&name);
        info.allocatable = Resources::of(
            node.status
                .as_ref()
                .and_then(|status| status.allocatable.as_ref()),
        );
        info.node = Some(node.clone());
    }

    pub(crate) fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.node = None;
            if info.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// A pod that the API says is on a node; replaces an assumption about it.
    pub(crate) fn set_pod(&mut self, pod: &Arc<Pod>) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let node = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.as_deref())
            .unwrap_or_default();
        let finished = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
        if node.is_empty() {
            return;
        }
        self.remove_pod(uid);
        if !finished {
            self.place(Arc::new(PodInfo::new(pod.clone())), node);
        }
    }

    /// Counts a pod on a node although its binding is not written yet.
    pub(crate) fn assume(&mut self, info: Arc<PodInfo>, node: &str) {
        self.place(info, node);
    }

    pub(crate) fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    pub(crate) fn remove_pod(&mut self, uid: &str) {
        let Some(node) = self.placed.remove(uid) else {
            return;
        };
        if let Some(info) = self.nodes.get_mut(&node) {
            if info.remove(uid).is_some_and(|pod| pod.has_pod_affinity()) {
                self.with_affinity -= 1;
            }
            if info.node.is_none() && info.pods.is_empty() {
                self.nodes.remove(&node);
            }
        }
    }

    fn place(&mut self, info: Arc<PodInfo>, node: &str) {
        if info.has_pod_affinity() {
            self.with_affinity += 1;
        }
        self.placed.insert(info.uid().to_owned(), node.to_owned());
        self.entry(node).add(info);
    }

    fn entry(&mut self, name: &str) -> &mut NodeInfo {
        self.nodes
            .entry(name.to_owned())
            .or_insert_with(|| NodeInfo {
                name: name.to_owned(),
                ..NodeInfo::default()
            })
    }
}
