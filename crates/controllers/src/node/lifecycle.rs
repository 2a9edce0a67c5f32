//! Watches over nodes: one that stops renewing its lease becomes unknown, and its state turns into
//! taints that keep pods away or drive them off.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use keelson_client::{
    Change, Controller, ControllerContext, Informer, InformerOptions, Key, Outcome, Patch,
    ReconcileError, Watches,
};
use serde_json::json;

use crate::{children, clock, pod};

/// A node that has not been heard of for this long is unknown.
const GRACE: Duration = Duration::from_secs(50);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Node conditions that become `NoSchedule` taints: type, status, taint.
const PRESSURE: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

pub(crate) struct NodeLifecycleController {
    context: ControllerContext,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    /// When each node was last heard of, on this machine's own clock: clocks of nodes may differ.
    heard: Arc<Mutex<HashMap<String, Instant>>>,
}

impl NodeLifecycleController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let options = InformerOptions {
            namespace: "kube-node-lease".into(),
            ..InformerOptions::default()
        };
        let pods = context.informer::<Pod>();
        index_by_node(&pods);
        Self {
            context: context.clone(),
            nodes: context.informer(),
            leases: context.informers.informer_with(options),
            pods,
            heard: Arc::default(),
        }
    }

    /// How much longer the node may stay silent; `None` when its time is over.
    fn patience(&self, name: &str) -> Option<Duration> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let last = *heard.entry(name.to_owned()).or_insert_with(Instant::now);
        GRACE
            .checked_sub(last.elapsed())
            .filter(|left| !left.is_zero())
    }

    async fn mark_unknown(&self, node: &Node) -> Result<Node, ReconcileError> {
        let conditions = unknown_conditions(node, clock::now());
        let known = node
            .status
            .as_ref()
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        if conditions == known {
            return Ok(node.clone());
        }
        let name = pod::name(&node.metadata);
        if ready_status(node) == Some("True") {
            self.context.events.normal(
                node,
                "NodeNotReady",
                format!("Node {name} status is now: NodeNotReady"),
            );
        }
        let patch = Patch::Strategic(json!({"status": {"conditions": conditions}}));
        Ok(self
            .context
            .client
            .patch::<Node>("", name, &patch, Some("status"))
            .await?)
    }

    async fn write_taints(&self, node: &Node, all_down: bool) -> Result<(), ReconcileError> {
        let known = node
            .spec
            .as_ref()
            .and_then(|s| s.taints.clone())
            .unwrap_or_default();
        let wanted = taints(node, all_down, clock::now());
        if known == wanted {
            return Ok(());
        }
        let body = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": wanted},
        });
        let name = pod::name(&node.metadata);
        match self
            .context
            .client
            .patch::<Node>("", name, &Patch::Merge(body), None)
            .await
        {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Pods of a silent node are not ready: nobody vouches for them, and traffic must go elsewhere.
    async fn mark_pods(&self, node: &str) -> Result<(), ReconcileError> {
        let ready: Vec<Arc<Pod>> = self
            .pods
            .by_index("node", node)
            .into_iter()
            .filter(|p| pod::is_ready(p))
            .collect();
        children::side_by_side(ready.into_iter().map(|p| async move {
            let condition = json!({
                "type": "Ready", "status": "False", "reason": "NodeNotReady",
                "lastTransitionTime": clock::stamp(clock::now()),
            });
            let patch = Patch::Strategic(
                json!({"metadata": {"uid": p.metadata.uid}, "status": {"conditions": [condition]}}),
            );
            let (namespace, name) = (pod::namespace(&p.metadata), pod::name(&p.metadata));
            self.context
                .events
                .warning(&*p, "NodeNotReady", "Node is not ready");
            match self
                .context
                .client
                .patch::<Pod>(namespace, name, &patch, Some("status"))
                .await
            {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        }))
        .await?;
        Ok(())
    }
}

/// Pods by the node they are assigned to.
pub(crate) fn index_by_node(pods: &Informer<Pod>) {
    pods.add_index("node", |p| {
        pod::node_name(p).map(str::to_owned).into_iter().collect()
    });
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == kind)
}

pub(crate) fn ready_status(node: &Node) -> Option<&str> {
    condition(node, "Ready").map(|c| c.status.as_str())
}

/// The node's conditions when nothing is heard of it. Pure.
fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<NodeCondition> {
    let mut conditions = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(known) if known.status == "Unknown" => {}
            Some(known) => {
                known.status = "Unknown".into();
                known.reason = Some("NodeStatusUnknown".into());
                known.message = Some("Kubelet stopped posting node status.".into());
                known.last_transition_time = Some(clock::stamp(now));
            }
            None => conditions.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(clock::stamp(now)),
            }),
        }
    }
    conditions
}

/// The taints a node must have; taints of others are kept. When every node is down the fault is
/// more likely on this side, so that nothing is driven off. Pure.
fn taints(node: &Node, all_down: bool, now: Timestamp) -> Vec<Taint> {
    let known = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in PRESSURE {
        if condition(node, kind).is_some_and(|c| c.status == *status) {
            wanted.push((key, "NoSchedule"));
        }
    }
    // A node that has not reported yet is as good as one that is not ready.
    if ready_status(node).is_none() {
        wanted.push((NOT_READY, "NoSchedule"));
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    if !all_down {
        match ready_status(node) {
            Some("False") => wanted.push((NOT_READY, "NoExecute")),
            Some("Unknown") => wanted.push((UNREACHABLE, "NoExecute")),
            _ => {}
        }
    }
    let is_ours = |t: &Taint| {
        (t.effect == "NoSchedule"
            && (t.key == UNSCHEDULABLE || PRESSURE.iter().any(|(.., key)| *key == t.key)))
            || (t.effect == "NoExecute" && (t.key == NOT_READY || t.key == UNREACHABLE))
    };
    let is_wanted = |t: &Taint| {
        wanted
            .iter()
            .any(|(key, effect)| *key == t.key && *effect == t.effect)
    };
    let mut result: Vec<Taint> = known
        .iter()
        .filter(|t| !is_ours(t) || is_wanted(t))
        .cloned()
        .collect();
    for (key, effect) in &wanted {
        if !result.iter().any(|t| t.key == *key && t.effect == *effect) {
            result.push(Taint {
                key: (*key).to_owned(),
                effect: (*effect).to_owned(),
                value: None,
                time_added: Some(clock::stamp(now)),
            });
        }
    }
    result
}

#[async_trait]
impl Controller for NodeLifecycleController {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn workers(&self) -> usize {
        8
    }

    fn watch(&self, watches: &mut Watches) {
        let heard = self.heard.clone();
        let nodes = self.nodes.clone();
        watches.mapped(&self.nodes, move |change| {
            let name = pod::name(&change.object().metadata).to_owned();
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            match change {
                Change::Deleted(_) => {
                    heard.remove(&name);
                }
                Change::Updated { old, new } => {
                    let beat = |n: &Node| {
                        condition(n, "Ready").and_then(|c| c.last_heartbeat_time.clone())
                    };
                    if beat(old) != beat(new) {
                        heard.insert(name.clone(), Instant::now());
                    }
                    if ready_status(old) != ready_status(new) {
                        // Whether all are down decides over the taints of each.
                        return nodes.list().iter().map(|n| Key::of(&n.metadata)).collect();
                    }
                }
                Change::Added(_) => {
                    heard.insert(name.clone(), Instant::now());
                }
            }
            vec![Key::new("", name)]
        });
        let heard = self.heard.clone();
        watches.mapped(&self.leases, move |change| {
            // A renewal is only noted: ten nodes would otherwise cost one pass a second for nothing.
            let renewed = |l: &Lease| l.spec.as_ref().and_then(|s| s.renew_time.clone());
            if let Change::Updated { old, new } = change
                && renewed(old) != renewed(new)
            {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.insert(pod::name(&new.metadata).to_owned(), Instant::now());
            }
            Vec::new()
        });
        watches.needs(&self.pods);
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(node) = self.nodes.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        let patience = self.patience(&key.name);
        let node = match patience {
            Some(_) => Node::clone(&node),
            None => self.mark_unknown(&node).await?,
        };
        let all_down = self.nodes.list().iter().all(|n| {
            let status = if n.metadata.uid == node.metadata.uid {
                ready_status(&node)
            } else {
                ready_status(n)
            };
            status != Some("True")
        });
        self.write_taints(&node, all_down).await?;
        if matches!(ready_status(&node), Some("False" | "Unknown")) {
            self.mark_pods(&key.name).await?;
        }
        // A node that is unknown speaks up through its lease alone at first, but its kubelet then
        // reports Ready, which is a change of the node.
        Ok(patience.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<&str>, taints: serde_json::Value) -> Node {
        let conditions: Vec<_> = ready
            .map(|s| json!({"type": "Ready", "status": s}))
            .into_iter()
            .collect();
        serde_json::from_value(
            json!({"spec": {"taints": taints}, "status": {"conditions": conditions}}),
        )
        .unwrap()
    }

    fn keys(node: &Node, all_down: bool) -> Vec<String> {
        taints(node, all_down, "2026-01-01T00:00:00Z".parse().unwrap())
            .iter()
            .map(|t| {
                format!(
                    "{}:{}",
                    t.key.trim_start_matches("node.kubernetes.io/"),
                    t.effect
                )
            })
            .collect()
    }

    #[test]
    fn taints_follow_readiness() {
        let own = json!([{"key": "mine", "effect": "NoExecute"}]);
        assert_eq!(
            keys(&node(Some("True"), own.clone()), false),
            ["mine:NoExecute"]
        );
        assert_eq!(
            keys(&node(Some("False"), own.clone()), false),
            [
                "mine:NoExecute",
                "not-ready:NoSchedule",
                "not-ready:NoExecute"
            ]
        );
        assert_eq!(
            keys(&node(Some("Unknown"), json!([])), false),
            ["unreachable:NoSchedule", "unreachable:NoExecute"]
        );
        assert_eq!(
            keys(&node(Some("Unknown"), json!([])), true),
            ["unreachable:NoSchedule"]
        );
        assert_eq!(
            keys(&node(None, json!([])), false),
            ["not-ready:NoSchedule"]
        );
    }

    #[test]
    fn recovered_nodes_lose_their_taints() {
        let tainted = json!([
            {"key": NOT_READY, "effect": "NoSchedule"},
            {"key": NOT_READY, "effect": "NoExecute"},
            {"key": UNREACHABLE, "effect": "NoExecute"},
        ]);
        assert!(keys(&node(Some("True"), tainted), false).is_empty());
    }

    #[test]
    fn silence_makes_conditions_unknown_once() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut n = node(Some("True"), json!([]));
        let first = unknown_conditions(&n, now);
        assert!(first.iter().all(|c| c.status == "Unknown"));
        assert_eq!(first[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(first[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        n.status.as_mut().unwrap().conditions = Some(first.clone());
        assert_eq!(unknown_conditions(&n, clock::after(now, 90)), first);
    }
}
