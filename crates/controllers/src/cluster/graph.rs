//! The graph of owners and dependents, fed with metadata alone. Pure: applying a change returns
//! what has to be looked at.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::ResourceType;

pub(crate) const ORPHAN: &str = "orphan";
pub(crate) const FOREGROUND: &str = "foregroundDeletion";

/// Uids of deleted owners that are remembered, so that their dependents need no look-up each.
const REMEMBERED: usize = 1000;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub resource: ResourceType,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    /// Being deleted in the foreground: dependents that block go first.
    pub foreground: bool,
    /// Being deleted with its dependents left behind.
    pub orphan: bool,
}

impl Node {
    pub(crate) fn new(resource: &ResourceType, meta: &ObjectMeta) -> Self {
        let deleting = meta.deletion_timestamp.is_some();
        let has = |name: &str| meta.finalizers.iter().flatten().any(|f| f == name);
        Self {
            resource: resource.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphan: deleting && has(ORPHAN),
        }
    }
}

/// What a change asks for, by uid.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// See whether the object's owners are gone.
    Delete(String),
    /// Cut the object's dependents loose.
    Orphan(String),
}

#[derive(Default)]
pub(crate) struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
    absent: HashSet<(String, String)>,
    absent_order: std::collections::VecDeque<(String, String)>,
}

impl Graph {
    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub(crate) fn dependents(&self, uid: &str) -> Vec<Node> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|uid| self.nodes.get(uid))
            .cloned()
            .collect()
    }

    /// The object whose uid is the owner's, when it is where the reference says.
    pub(crate) fn owner(&self, dependent: &Node, reference: &OwnerReference) -> Option<&Node> {
        self.nodes
            .get(&reference.uid)
            .filter(|o| o.namespace.is_empty() || o.namespace == dependent.namespace)
            .filter(|o| o.resource.kind == reference.kind && o.name == reference.name)
    }

    /// Whether an owner was found to be gone before. A namespaced owner is looked for in its
    /// dependent's namespace, so the answer holds for that namespace.
    pub(crate) fn is_absent(&self, namespace: &str, uid: &str) -> bool {
        self.absent
            .contains(&(namespace.to_owned(), uid.to_owned()))
    }

    pub(crate) fn remember_absent(&mut self, namespace: &str, uid: &str) {
        let entry = (namespace.to_owned(), uid.to_owned());
        if self.absent.insert(entry.clone()) {
            self.absent_order.push_back(entry);
        }
        if self.absent_order.len() > REMEMBERED
            && let Some(oldest) = self.absent_order.pop_front()
        {
            self.absent.remove(&oldest);
        }
    }

    pub(crate) fn upsert(&mut self, node: Node) -> Vec<Task> {
        let mut tasks = Vec::new();
        let old = self.nodes.insert(node.uid.clone(), node.clone());
        let before = old
            .as_ref()
            .map(|o| o.owners.as_slice())
            .unwrap_or_default();
        for reference in &node.owners {
            self.dependents
                .entry(reference.uid.clone())
                .or_default()
                .insert(node.uid.clone());
            let known = before.iter().find(|o| o.uid == reference.uid);
            let owner = self.owner(&node, reference);
            if known != Some(reference) && owner.is_none_or(|o| o.foreground) {
                tasks.push(Task::Delete(node.uid.clone()));
            }
            // A dependent that no longer blocks may be the last that its owner waited for.
            let blocked = |r: &OwnerReference| r.block_owner_deletion == Some(true);
            if known.is_some_and(|k| blocked(k) && !blocked(reference))
                && owner.is_some_and(|o| o.foreground)
            {
                tasks.push(Task::Delete(reference.uid.clone()));
            }
        }
        for gone in before
            .iter()
            .filter(|o| node.owners.iter().all(|n| n.uid != o.uid))
        {
            self.unlink(&gone.uid, &node.uid);
            if self.nodes.get(&gone.uid).is_some_and(|o| o.foreground) {
                tasks.push(Task::Delete(gone.uid.clone()));
            }
        }
        if node.orphan && old.as_ref().is_none_or(|o| !o.orphan) {
            tasks.push(Task::Orphan(node.uid.clone()));
        }
        if node.foreground && old.as_ref().is_none_or(|o| !o.foreground) {
            tasks.extend(
                self.dependents
                    .get(&node.uid)
                    .into_iter()
                    .flatten()
                    .cloned()
                    .map(Task::Delete),
            );
            tasks.push(Task::Delete(node.uid.clone()));
        }
        tasks
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Vec<Task> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut tasks: Vec<Task> = self
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .map(Task::Delete)
            .collect();
        if !tasks.is_empty() {
            self.remember_absent(&node.namespace, uid);
        }
        for reference in &node.owners {
            self.unlink(&reference.uid, uid);
            if self.nodes.get(&reference.uid).is_some_and(|o| o.foreground) {
                tasks.push(Task::Delete(reference.uid.clone()));
            }
        }
        tasks
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// Every dependent one of whose owners is not there: looked at once all informers have synced.
    pub(crate) fn doubtful(&self) -> Vec<Task> {
        self.nodes
            .values()
            .filter(|n| {
                n.owners
                    .iter()
                    .any(|r| self.owner(n, r).is_none_or(|o| o.foreground))
            })
            .map(|n| Task::Delete(n.uid.clone()))
            .collect()
    }

    /// Uids of a resource that is no longer served.
    pub(crate) fn of_resource(&self, resource: &ResourceType) -> Vec<String> {
        self.nodes
            .values()
            .filter(|n| &n.resource == resource)
            .map(|n| n.uid.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, owners: &[(&str, bool)], finalizer: Option<&str>) -> Node {
        let references: Vec<_> = owners
            .iter()
            .map(|(uid, block)| OwnerReference {
                api_version: "v1".into(),
                kind: "Thing".into(),
                name: (*uid).into(),
                uid: (*uid).into(),
                controller: None,
                block_owner_deletion: Some(*block),
            })
            .collect();
        let resource = ResourceType {
            group: String::new(),
            version: "v1".into(),
            resource: "things".into(),
            kind: "Thing".into(),
            namespaced: true,
        };
        Node {
            resource,
            namespace: "ns".into(),
            name: name.into(),
            uid: name.into(),
            owners: references,
            deleting: finalizer.is_some(),
            foreground: finalizer == Some(FOREGROUND),
            orphan: finalizer == Some(ORPHAN),
        }
    }

    fn delete(uid: &str) -> Task {
        Task::Delete(uid.into())
    }

    #[test]
    fn a_dependent_without_its_owner_is_looked_at() {
        let mut graph = Graph::default();
        assert_eq!(
            graph.upsert(node("child", &[("parent", true)], None)),
            [delete("child")]
        );
        assert_eq!(graph.upsert(node("parent", &[], None)), []);
        assert_eq!(graph.upsert(node("child", &[("parent", true)], None)), []);
        assert_eq!(graph.remove("parent"), [delete("child")]);
        assert!(graph.is_absent("ns", "parent"));
    }

    #[test]
    fn foreground_and_orphan() {
        let mut graph = Graph::default();
        graph.upsert(node("parent", &[], None));
        graph.upsert(node("child", &[("parent", true)], None));
        assert_eq!(
            graph.upsert(node("parent", &[], Some(FOREGROUND))),
            [delete("child"), delete("parent")]
        );
        assert_eq!(
            graph.upsert(node("child", &[("parent", false)], None)),
            [delete("child"), delete("parent")]
        );
        assert_eq!(graph.remove("child"), [delete("parent")]);
        graph.upsert(node("other", &[], None));
        assert_eq!(
            graph.upsert(node("other", &[], Some(ORPHAN))),
            [Task::Orphan("other".into())]
        );
    }

    #[test]
    fn an_owner_in_another_namespace_is_none() {
        let mut graph = Graph::default();
        let mut parent = node("parent", &[], None);
        parent.namespace = "elsewhere".into();
        graph.upsert(parent);
        let child = node("child", &[("parent", true)], None);
        assert_eq!(graph.upsert(child.clone()), [delete("child")]);
        assert!(graph.owner(&child, &child.owners[0]).is_none());
    }
}
