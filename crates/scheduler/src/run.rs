//! The loop: informers feed model and queue, cycles decide, bindings are written concurrently.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use keelson_client::{Change, Client, DeleteOptions, EventRecorder, Informer, Informers, Patch};
use keelson_semantics::label_selector;
use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::cycle::{Unschedulable, decide};
use crate::model::Model;
use crate::pod_info::PodInfo;
use crate::preemption;
use crate::queue::Queue;

/// Bindings under way at once.
const BINDINGS: usize = 64;

#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Pods with another `spec.schedulerName` are left alone.
    pub scheduler_name: String,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".to_owned(),
        }
    }
}

struct Scheduler {
    client: Client,
    events: EventRecorder,
    config: SchedulerConfig,
    state: Mutex<State>,
    changed: Notify,
    bindings: Arc<Semaphore>,
    budgets: Informer<PodDisruptionBudget>,
}

#[derive(Default)]
struct State {
    model: Model,
    queue: Queue,
}

/// Schedules until the informers are shut down. `client` carries the scheduler's identity.
pub async fn run(client: Client, informers: &Informers, config: SchedulerConfig) {
    let scheduler = Arc::new(Scheduler {
        events: EventRecorder::new(client.clone(), &config.scheduler_name, ""),
        client: client.with_user_agent("kube-scheduler"),
        config,
        state: Mutex::default(),
        changed: Notify::new(),
        bindings: Arc::new(Semaphore::new(BINDINGS)),
        budgets: informers.informer(),
    });
    scheduler.observe(informers).await;
    let mut tie = 0_usize;
    let work = async {
        loop {
            let changed = scheduler.changed.notified();
            let next = scheduler.lock().queue.take(Instant::now());
            match next {
                Ok(pod) => {
                    tie = tie.wrapping_add(1);
                    scheduler.clone().schedule(pod, tie).await;
                }
                Err(None) => changed.await,
                Err(Some(due)) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
            }
        }
    };
    informers.shutdown().run_until_cancelled(work).await;
}

impl Scheduler {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything a decision needs is known.
    async fn observe(self: &Arc<Self>, informers: &Informers) {
        let nodes = informers.informer::<Node>();
        let scheduler = self.clone();
        nodes.subscribe(move |change| scheduler.node_changed(change));
        let namespaces = informers.informer::<Namespace>();
        let scheduler = self.clone();
        namespaces.subscribe(move |change| scheduler.namespace_changed(change));
        nodes.synced().await;
        namespaces.synced().await;
        self.budgets.synced().await;
        let pods = informers.informer::<Pod>();
        let scheduler = self.clone();
        pods.subscribe(move |change| scheduler.pod_changed(change));
        pods.synced().await;
    }

    fn node_changed(&self, change: &Change<Node>) {
        let mut state = self.lock();
        match change {
            Change::Added(node) => state.model.set_node(node),
            Change::Updated { old, new } => {
                state.model.set_node(new);
                if !node_may_help(old, new) {
                    return;
                }
            }
            Change::Deleted(node) => state
                .model
                .remove_node(node.metadata.name.as_deref().unwrap_or_default()),
        }
        state.queue.wake_all(Instant::now());
        self.changed.notify_one();
    }

    fn namespace_changed(&self, change: &Change<Namespace>) {
        let meta = &change.object().metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        match change {
            Change::Deleted(_) => self.lock().model.remove_namespace(name),
            _ => self.lock().model.set_namespace(name, meta.labels.as_ref()),
        }
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut state = self.lock();
        let finished = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
        let spec = pod.spec.as_ref();
        let bound = spec
            .and_then(|spec| spec.node_name.as_deref())
            .is_some_and(|node| !node.is_empty());
        if matches!(change, Change::Deleted(_)) || finished {
            state.queue.remove(uid);
            let freed = state.model.is_placed(uid);
            state.model.remove_pod(uid);
            if freed {
                state.queue.wake_all(Instant::now());
            }
        } else if bound {
            state.queue.remove(uid);
            let arrived = !state.model.is_placed(uid);
            state.model.set_pod(pod);
            // A pod that another scheduler placed can satisfy somebody's affinity.
            if arrived && state.model.any_pod_with_affinity() {
                state.queue.wake_all(Instant::now());
            }
        } else {
            let ours = spec
                .and_then(|spec| spec.scheduler_name.as_deref())
                .unwrap_or("default-scheduler")
                == self.config.scheduler_name;
            let gated = spec
                .and_then(|spec| spec.scheduling_gates.as_ref())
                .is_some_and(|gates| !gates.is_empty());
            if ours && !gated && pod.metadata.deletion_timestamp.is_none() {
                state.queue.set(pod.clone());
            } else {
                state.queue.remove(uid);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    async fn schedule(self: Arc<Self>, pod: Arc<Pod>, tie: usize) {
        let info = Arc::new(PodInfo::new(pod));
        let decision = {
            let mut state = self.lock();
            let decision = decide(&info, &state.model, tie);
            if let Ok(node) = &decision {
                state.model.assume(info.clone(), node);
            }
            decision
        };
        match decision {
            Ok(node) => {
                // The semaphore is never closed.
                let Ok(permit) = self.bindings.clone().acquire_owned().await else {
                    return;
                };
                tokio::spawn(async move {
                    self.bind(&info, &node).await;
                    drop(permit);
                });
            }
            Err(reason) => self.unschedulable(&info, reason).await,
        }
    }

    async fn bind(&self, info: &PodInfo, node: &str) {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": info.name(), "namespace": info.namespace(), "uid": info.uid()},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let written = self
            .client
            .create_subresource::<Pod>(info.namespace(), info.name(), "binding", &binding)
            .await;
        match written {
            Ok(_) => {
                let message = format!(
                    "Successfully assigned {}/{} to {node}",
                    info.namespace(),
                    info.name()
                );
                self.events.normal(&*info.pod, "Scheduled", message);
            }
            Err(error) => {
                tracing::debug!(pod = info.name(), namespace = info.namespace(), %error, "the binding was refused");
                let mut state = self.lock();
                state.model.remove_pod(info.uid());
                state.queue.reject(info.uid(), Instant::now());
                state.queue.wake_all(Instant::now());
                drop(state);
                self.changed.notify_one();
            }
        }
    }

    async fn unschedulable(&self, info: &Arc<PodInfo>, reason: Unschedulable) {
        let plan = {
            let mut state = self.lock();
            state.queue.reject(info.uid(), Instant::now());
            let protected = |pod: &PodInfo| self.protected(pod);
            preemption::plan(info, &reason.preemptable, &state.model, &protected)
        };
        let mut message = if reason.nodes == 0 {
            "no nodes available to schedule pods".to_owned()
        } else {
            reason.message()
        };
        let nominated = plan.as_ref().map(|plan| plan.node.clone());
        if reason.nodes > 0 && plan.is_none() {
            message.push_str(&preemption_note(&reason));
        }
        self.events
            .warning(&*info.pod, "FailedScheduling", message.clone());
        self.write_condition(info, &message, nominated).await;
        for victim in plan.iter().flat_map(|plan| &plan.victims) {
            self.evict(info, victim).await;
        }
    }

    async fn evict(&self, preemptor: &PodInfo, victim: &PodInfo) {
        let condition = json!({"status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", self.config.scheduler_name),
            "lastTransitionTime": k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }]}});
        let (namespace, name) = (victim.namespace(), victim.name());
        let marked = self
            .client
            .patch::<Pod>(
                namespace,
                name,
                &Patch::Strategic(condition),
                Some("status"),
            )
            .await;
        let deleted = match marked {
            Ok(_) => {
                self.client
                    .delete::<Pod>(namespace, name, &DeleteOptions::default().uid(victim.uid()))
                    .await
            }
            Err(error) => Err(error),
        };
        match deleted {
            Ok(()) => {
                let by = preemptor.uid();
                self.events.normal(
                    &*victim.pod,
                    "Preempted",
                    format!("Preempted by pod {by} on node {}", node_of(victim)),
                );
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => tracing::warn!(pod = name, namespace, %error, "a pod was not preempted"),
        }
    }

    /// Evicting this pod would violate a disruption budget.
    fn protected(&self, pod: &PodInfo) -> bool {
        self.budgets.list_in(pod.namespace()).iter().any(|budget| {
            let allowed = budget
                .status
                .as_ref()
                .and_then(|status| status.disruptions_allowed)
                .unwrap_or(0);
            let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            allowed <= 0
                && selector.is_some_and(|selector| label_selector::matches(selector, pod.labels()))
        })
    }

    async fn write_condition(&self, info: &PodInfo, message: &str, nominated: Option<String>) {
        let status = info.pod.status.as_ref();
        let current = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|conditions| {
                conditions
                    .iter()
                    .find(|condition| condition.type_ == "PodScheduled")
            });
        let same = current.is_some_and(|condition| {
            condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
                && condition.message.as_deref() == Some(message)
        });
        let old_nomination = status.and_then(|status| status.nominated_node_name.as_deref());
        if same
            && nominated
                .as_deref()
                .is_none_or(|node| Some(node) == old_nomination)
        {
            return;
        }
        let mut condition = json!({
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
        });
        if current.is_none_or(|condition| condition.status != "False") {
            let now = k8s_openapi::jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string();
            condition["lastTransitionTime"] = now.into();
        }
        let mut patch = json!({"status": {"conditions": [condition]}});
        if let Some(node) = nominated {
            patch["status"]["nominatedNodeName"] = node.into();
        }
        let patch = Patch::Strategic(patch);
        let written = self
            .client
            .patch::<Pod>(info.namespace(), info.name(), &patch, Some("status"))
            .await;
        if let Err(error) = written
            && !error.is_not_found()
        {
            tracing::debug!(pod = info.name(), namespace = info.namespace(), %error, "the PodScheduled condition was not written");
        }
    }
}

fn node_of(pod: &PodInfo) -> &str {
    pod.spec()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

/// Upstream's second sentence, which tells whether evicting others was considered.
fn preemption_note(reason: &Unschedulable) -> String {
    let (helpless, hopeless) = (
        reason.nodes - reason.preemptable.len(),
        reason.preemptable.len(),
    );
    let mut parts = Vec::new();
    if hopeless > 0 {
        parts.push(format!(
            "{hopeless} No preemption victims found for incoming pod"
        ));
    }
    if helpless > 0 {
        parts.push(format!(
            "{helpless} Preemption is not helpful for scheduling"
        ));
    }
    format!(
        " preemption: 0/{} nodes are available: {}.",
        reason.nodes,
        parts.join(", ")
    )
}

/// Heartbeats change a node's status all the time; only these changes can make room.
fn node_may_help(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| {
        node.status
            .as_ref()
            .and_then(|status| status.allocatable.clone())
    };
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || allocatable(old) != allocatable(new)
}
