//! Drives pods off nodes whose `NoExecute` taints they do not tolerate, or not for that long.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::{
    Change, Controller, ControllerContext, DeleteOptions, Informer, Key, Outcome, Patch,
    ReconcileError, Watches,
};
use serde_json::json;

use super::lifecycle::index_by_node;
use crate::{clock, pod};
use keelson_semantics::taint::{Stay, stay};

pub(crate) struct TaintEvictionController {
    context: ControllerContext,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
}

impl TaintEvictionController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            context: context.clone(),
            nodes: context.informer(),
            pods: context.informer(),
        };
        index_by_node(&this.pods);
        this
    }

    async fn evict(&self, victim: &Pod) -> Result<Outcome, ReconcileError> {
        let (namespace, name) = (
            pod::namespace(&victim.metadata),
            pod::name(&victim.metadata),
        );
        self.context.events.normal(
            victim,
            "TaintManagerEviction",
            format!("Marking for deletion Pod {namespace}/{name}"),
        );
        let condition = json!({
            "type": "DisruptionTarget", "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": clock::stamp(clock::now()),
        });
        let patch = Patch::Strategic(
            json!({"metadata": {"uid": victim.metadata.uid}, "status": {"conditions": [condition]}}),
        );
        match self
            .context
            .client
            .patch::<Pod>(namespace, name, &patch, Some("status"))
            .await
        {
            Err(error) if error.is_not_found() || error.is_conflict() => return Ok(Outcome::Done),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let options = DeleteOptions::default().uid(pod::uid(&victim.metadata));
        match self
            .context
            .client
            .delete::<Pod>(namespace, name, &options)
            .await
        {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

fn has_no_execute(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.is_some_and(|t| t.iter().any(|t| t.effect == "NoExecute"))
}

#[async_trait]
impl Controller for TaintEvictionController {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn workers(&self) -> usize {
        8
    }

    fn watch(&self, watches: &mut Watches) {
        let nodes = self.nodes.clone();
        watches.mapped(&self.pods, move |change| {
            let p = change.object();
            let tainted = pod::node_name(p)
                .and_then(|n| nodes.get("", n))
                .is_some_and(|n| has_no_execute(&n));
            if tainted {
                vec![Key::of(&p.metadata)]
            } else {
                Vec::new()
            }
        });
        let pods = self.pods.clone();
        watches.mapped(&self.nodes, move |change| {
            let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
            let node = change.object();
            let moved = change.old().is_none_or(|old| taints(old) != taints(node));
            if matches!(change, Change::Deleted(_)) || !moved || !has_no_execute(node) {
                return Vec::new();
            }
            pods.by_index("node", pod::name(&node.metadata))
                .iter()
                .map(|p| Key::of(&p.metadata))
                .collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(victim) = self.pods.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        if !pod::is_active(&victim) {
            return Ok(Outcome::Done);
        }
        let Some(node) = pod::node_name(&victim).and_then(|n| self.nodes.get("", n)) else {
            return Ok(Outcome::Done);
        };
        let taints = node
            .spec
            .as_ref()
            .and_then(|s| s.taints.clone())
            .unwrap_or_default();
        let tolerations = victim
            .spec
            .as_ref()
            .and_then(|s| s.tolerations.clone())
            .unwrap_or_default();
        let now = clock::now();
        match stay(&tolerations, &taints) {
            Stay::Forever => Ok(Outcome::Done),
            Stay::No => self.evict(&victim).await,
            Stay::Seconds(seconds) => {
                // The time starts with the newest taint: it is that one which shortened the stay.
                let since = taints
                    .iter()
                    .filter(|t| t.effect == "NoExecute")
                    .filter_map(|t| t.time_added.as_ref().map(|t| t.0))
                    .max()
                    .unwrap_or(now);
                match clock::until(now, clock::after(since, seconds)) {
                    Some(left) => Ok(Outcome::RequeueAfter(left)),
                    None => self.evict(&victim).await,
                }
            }
        }
    }
}
