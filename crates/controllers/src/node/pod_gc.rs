//! Removes pods that nobody else will: those of nodes that are gone, those deleted before they
//! were scheduled, and finished ones beyond a threshold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::{
    Change, Client, Controller, ControllerContext, DeleteOptions, Informer, Key, Outcome, Patch,
    ReconcileError, Watches,
};
use serde_json::json;

use super::lifecycle::{index_by_node, ready_status};
use crate::{children, clock, pod};

/// A node may come back under its name shortly after it was deleted.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// The key for counting finished pods; no pod has an empty namespace.
const FINISHED: &str = "finished";

pub(crate) struct PodGcController {
    client: Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    threshold: usize,
    /// Since when a node is known to be missing.
    missing: Mutex<HashMap<String, Instant>>,
}

impl PodGcController {
    pub(crate) fn new(context: &ControllerContext, threshold: usize) -> Self {
        let this = Self {
            client: context.client.clone(),
            nodes: context.informer(),
            pods: context.informer(),
            threshold,
            missing: Mutex::default(),
        };
        index_by_node(&this.pods);
        this
    }

    async fn delete(
        &self,
        victim: &Pod,
        disruption: Option<&str>,
    ) -> Result<(), keelson_client::Error> {
        let (namespace, name) = (
            pod::namespace(&victim.metadata),
            pod::name(&victim.metadata),
        );
        // A pod that still counts as running is first marked failed: whoever waits for its end
        // (a Job, say) must learn of it.
        if !pod::is_terminal(victim) {
            let conditions: Vec<_> = disruption
                .map(|message| {
                    json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                        "message": message, "lastTransitionTime": clock::stamp(clock::now())})
                })
                .into_iter()
                .collect();
            let patch = Patch::Strategic(json!({
                "metadata": {"uid": victim.metadata.uid},
                "status": {"phase": "Failed", "conditions": conditions},
            }));
            match self
                .client
                .patch::<Pod>(namespace, name, &patch, Some("status"))
                .await
            {
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        let options = DeleteOptions::grace(0).uid(pod::uid(&victim.metadata));
        match self.client.delete::<Pod>(namespace, name, &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    async fn trim_finished(&self) -> Result<Outcome, ReconcileError> {
        if self.threshold == 0 {
            return Ok(Outcome::Done);
        }
        let mut finished: Vec<Arc<Pod>> = self
            .pods
            .list()
            .into_iter()
            .filter(|p| pod::is_terminal(p) && !pod::is_terminating(p))
            .collect();
        let surplus = finished.len().saturating_sub(self.threshold);
        if surplus == 0 {
            return Ok(Outcome::Done);
        }
        let evicted =
            |p: &Pod| p.status.as_ref().and_then(|s| s.reason.as_deref()) == Some("Evicted");
        finished.sort_by_key(|p| {
            (
                !evicted(p),
                p.metadata.creation_timestamp.as_ref().map(|t| t.0),
            )
        });
        children::side_by_side(
            finished
                .iter()
                .take(surplus)
                .cloned()
                .map(|p| async move { self.delete(&p, None).await }),
        )
        .await?;
        Ok(Outcome::Done)
    }

    async fn orphaned(&self, victim: &Pod, node: &str) -> Result<Outcome, ReconcileError> {
        let since = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            *missing.entry(node.to_owned()).or_insert_with(Instant::now)
        };
        if let Some(left) = QUARANTINE
            .checked_sub(since.elapsed())
            .filter(|d| !d.is_zero())
        {
            return Ok(Outcome::RequeueAfter(left));
        }
        if self.client.try_get::<Node>("", node).await?.is_some() {
            return Ok(Outcome::Done);
        }
        self.delete(victim, Some("PodGC: node no longer exists"))
            .await?;
        Ok(Outcome::Done)
    }
}

/// A node that an administrator has declared dead for good.
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    ready_status(node) != Some("True")
        && taints.is_some_and(|t| t.iter().any(|t| t.key == OUT_OF_SERVICE))
}

#[async_trait]
impl Controller for PodGcController {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn watch(&self, watches: &mut Watches) {
        let nodes = self.nodes.clone();
        let threshold = self.threshold;
        let pods = self.pods.clone();
        watches.mapped(&self.pods, move |change| {
            let p = change.object();
            let mut keys = Vec::new();
            let stranded = match pod::node_name(p) {
                None => pod::is_terminating(p),
                Some(name) => nodes
                    .get("", name)
                    .is_none_or(|n| pod::is_terminating(p) && is_out_of_service(&n)),
            };
            if stranded && !matches!(change, Change::Deleted(_)) {
                keys.push(Key::of(&p.metadata));
            }
            if threshold > 0 && pod::is_terminal(p) && pods.len() > threshold {
                keys.push(Key::new("", FINISHED));
            }
            keys
        });
        let pods = self.pods.clone();
        watches.mapped(&self.nodes, move |change| {
            let node = change.object();
            if !matches!(change, Change::Deleted(_)) && !is_out_of_service(node) {
                return Vec::new();
            }
            pods.by_index("node", pod::name(&node.metadata))
                .iter()
                .map(|p| Key::of(&p.metadata))
                .collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        if key.namespace.is_empty() {
            return self.trim_finished().await;
        }
        let Some(victim) = self.pods.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let Some(name) = pod::node_name(&victim) else {
            if pod::is_terminating(&victim) {
                self.delete(&victim, None).await?;
            }
            return Ok(Outcome::Done);
        };
        match self.nodes.get("", name) {
            None => self.orphaned(&victim, name).await,
            Some(node) => {
                self.missing
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(name);
                if pod::is_terminating(&victim) && is_out_of_service(&node) {
                    self.delete(&victim, Some("PodGC: node is out of service"))
                        .await?;
                }
                Ok(Outcome::Done)
            }
        }
    }
}
