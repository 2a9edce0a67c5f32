//! One task per pod: gather, plan, apply, report; until the pod is gone from API and machine.

mod operations;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use keelson_client::{DeleteOptions, Patch};
use keelson_ports::{CgroupResources, ContainerState};
use tokio::sync::{Notify, mpsc};

use crate::logs;
use crate::metrics::{
    POD_START_DURATION, POD_START_TOTAL_DURATION, POD_STATUS_SYNC_DURATION, POD_WORKER_DURATION,
    POD_WORKER_START_DURATION,
};
use crate::node::Node;
use crate::plan::{
    self, Backoff, Busy, Goal, KillReason, Observed, Plan, ProbeState, RuntimePod, StartError,
};
use crate::pod;
use crate::probes::{ContainerProbes, ProbeReport, ProbeTarget};
use crate::status::{self, StatusInput, Verdict};
use crate::volumes::MountedVolumes;

use operations::Done;

/// Everything is looked at again after this time even if nothing seems to have happened: a lost
/// event must not be lost for ever.
const RESYNC: Duration = Duration::from_secs(120);
const API_RETRY: Duration = Duration::from_secs(1);
/// For how long a pod at least stays readable after its deletion was asked for. Clients that delete
/// with a grace period read the pod once more, and a process that obeys at once is gone in a few
/// milliseconds.
const FAREWELL: Duration = Duration::from_millis(200);

/// Where the agent leaves word for a worker.
pub(crate) struct Inbox {
    pod: Mutex<Arc<Pod>>,
    gone: AtomicBool,
    dirty: AtomicBool,
    refused: AtomicBool,
    verdict: Mutex<Option<(Verdict, Duration)>>,
    volumes: Mutex<Arc<MountedVolumes>>,
    first_seen: Instant,
    notify: Notify,
}

impl Inbox {
    pub(crate) fn new(pod: Arc<Pod>) -> Arc<Self> {
        Arc::new(Self {
            pod: Mutex::new(pod),
            gone: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            verdict: Mutex::default(),
            volumes: Mutex::default(),
            first_seen: Instant::now(),
            notify: Notify::new(),
        })
    }

    /// Takes a newer form of the pod; an older one (a slow watch) is ignored.
    pub(crate) fn update(&self, pod: Arc<Pod>) {
        let mut current = self.pod.lock().unwrap_or_else(PoisonError::into_inner);
        if version(&pod) >= version(&current) {
            // Files of the downward API show the metadata.
            if pod.metadata.labels != current.metadata.labels
                || pod.metadata.annotations != current.metadata.annotations
            {
                self.dirty.store(true, Ordering::Release);
            }
            *current = pod;
        }
        drop(current);
        self.notify.notify_one();
    }

    /// The pod is gone from the API.
    pub(crate) fn remove(&self) {
        self.gone.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    /// Something the pod refers to has changed.
    pub(crate) fn refresh(&self) {
        self.dirty.store(true, Ordering::Release);
        self.notify.notify_one();
    }

    pub(crate) fn poke(&self) {
        self.notify.notify_one();
    }

    /// What the pod's worker mounted last.
    pub(crate) fn volumes(&self) -> Arc<MountedVolumes> {
        self.volumes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_volumes(&self, mounted: Arc<MountedVolumes>) {
        *self.volumes.lock().unwrap_or_else(PoisonError::into_inner) = mounted;
    }

    /// Whether the pod is to have what it asks for: it was let in and is not over.
    pub(crate) fn holds_resources(&self) -> bool {
        !self.refused.load(Ordering::Acquire)
            && !self.gone.load(Ordering::Acquire)
            && !pod::is_phase_terminal(&self.pod())
    }

    /// The pod never starts here.
    pub(crate) fn refuse(&self, verdict: Verdict) {
        self.refused.store(true, Ordering::Release);
        self.condemn(verdict, Duration::ZERO);
    }

    /// Ends the pod as failed.
    pub(crate) fn condemn(&self, verdict: Verdict, grace: Duration) {
        self.verdict
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert((verdict, grace));
        self.notify.notify_one();
    }

    pub(crate) fn pod(&self) -> Arc<Pod> {
        self.pod
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Revisions are decimal numbers; anything else counts as the oldest.
fn version(pod: &Pod) -> u64 {
    pod.metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

pub(crate) struct Worker {
    node: Arc<Node>,
    inbox: Arc<Inbox>,
    uid: String,
    busy: BTreeSet<Busy>,
    kill_deadlines: BTreeMap<String, SystemTime>,
    backoff: BTreeMap<String, Backoff>,
    /// Container ids whose back-off has been told as an event.
    told: BTreeSet<String>,
    start_errors: BTreeMap<String, StartError>,
    probes: BTreeMap<String, ContainerProbes>,
    volumes: Option<Arc<MountedVolumes>>,
    /// Preparations (volumes, sandbox) that failed in a row, and the next try.
    failures: u32,
    retry_at: Option<SystemTime>,
    /// When a failed refresh of the volumes is tried again.
    refresh_retry_at: Option<SystemTime>,
    /// Containers that were stopped because their definition changed, by id.
    replaced: BTreeSet<String>,
    /// When the deletion was first seen.
    deleted_at: Option<SystemTime>,
    stop_deadline: Option<SystemTime>,
    stop_grace: Option<Duration>,
    verdict: Option<Verdict>,
    cleaned: bool,
    /// Ends of logs that stand for termination messages, by container id.
    log_tails: BTreeMap<String, String>,
    /// Limits that running containers were given, by container id.
    limits: BTreeMap<String, CgroupResources>,
    done: (mpsc::Sender<Done>, mpsc::Receiver<Done>),
    reports: (mpsc::Sender<ProbeReport>, mpsc::Receiver<ProbeReport>),
}

enum Next {
    Wait(Option<SystemTime>),
    Finished,
}

impl Worker {
    pub(crate) fn new(node: Arc<Node>, inbox: Arc<Inbox>) -> Self {
        let uid = pod::uid(&inbox.pod()).to_owned();
        Self {
            node,
            inbox,
            uid,
            busy: BTreeSet::new(),
            kill_deadlines: BTreeMap::new(),
            backoff: BTreeMap::new(),
            told: BTreeSet::new(),
            start_errors: BTreeMap::new(),
            probes: BTreeMap::new(),
            volumes: None,
            failures: 0,
            retry_at: None,
            refresh_retry_at: None,
            replaced: BTreeSet::new(),
            deleted_at: None,
            stop_deadline: None,
            stop_grace: None,
            verdict: None,
            cleaned: false,
            log_tails: BTreeMap::new(),
            limits: BTreeMap::new(),
            done: mpsc::channel(16),
            reports: mpsc::channel(16),
        }
    }

    pub(crate) async fn run(mut self) {
        self.node.objects.register(&self.inbox.pod());
        self.node.metrics.observe(
            &POD_WORKER_START_DURATION,
            &[],
            self.inbox.first_seen.elapsed(),
        );
        loop {
            let started = Instant::now();
            let next = self.sync().await;
            let operation =
                if self.inbox.gone.load(Ordering::Acquire) || pod::is_deleted(&self.inbox.pod()) {
                    "kill"
                } else {
                    "sync"
                };
            self.node
                .metrics
                .observe(&POD_WORKER_DURATION, &[operation], started.elapsed());
            let wake_at = match next {
                Next::Finished => break,
                Next::Wait(wake_at) => wake_at,
            };
            let now = self.node.clock.now();
            let pause = wake_at
                .map_or(RESYNC, |at| at.duration_since(now).unwrap_or_default())
                .min(RESYNC);
            tokio::select! {
                () = self.inbox.notify.notified() => {}
                Some(done) = self.done.1.recv() => self.finish(done),
                Some(report) = self.reports.1.recv() => self.take_report(&report),
                () = self.node.clock.sleep(pause) => {}
            }
            // Whatever else has arrived meanwhile is one sync, not several.
            while let Ok(done) = self.done.1.try_recv() {
                self.finish(done);
            }
            while let Ok(report) = self.reports.1.try_recv() {
                self.take_report(&report);
            }
        }
        self.node.objects.unregister(&self.uid);
        self.node.volumes.tokens.forget(&self.uid);
        self.node.puller.forget(&self.uid);
    }

    async fn sync(&mut self) -> Next {
        let pod = self.inbox.pod();
        let mut runtime = self.node.state.pod(&self.uid);
        self.explain_ends(&pod, &mut runtime);
        runtime.replaced.clone_from(&self.replaced);
        let now = self.node.clock.now();
        let gone = self.inbox.gone.load(Ordering::Acquire);
        let deadline_at = self.check_deadline(&pod, now);
        let goal = self.goal(&pod, &runtime, gone, now);
        self.update_probes(&pod, &runtime);
        if goal == Goal::Run {
            self.resize(&pod, &runtime).await;
        }
        let probe_states: BTreeMap<String, ProbeState> = self
            .probes
            .iter()
            .map(|(name, probes)| (name.clone(), probes.state.clone()))
            .collect();
        let plan = plan::plan(&Observed {
            pod: &pod,
            runtime: &runtime,
            goal: goal.clone(),
            busy: &self.busy,
            kill_deadlines: &self.kill_deadlines,
            probes: &probe_states,
            backoff: &self.backoff,
            start_errors: &self.start_errors,
            volumes_ready: self.volumes.is_some(),
            retry_at: self.retry_at,
            now,
        });
        self.tell_backoff(&pod, &runtime, &plan);
        for action in &plan.actions {
            self.apply(&pod, &runtime, action, now);
        }
        let stopped = plan.stopped && self.cleaned;
        let mut wake_at = earliest(plan.wake_at, deadline_at);
        if goal == Goal::Run {
            wake_at = earliest(wake_at, self.refresh_volumes(&pod, &runtime, now));
        }
        if gone {
            return if stopped {
                self.erase(&pod, &runtime).await
            } else {
                Next::Wait(wake_at)
            };
        }
        let new = self.compute_status(&pod, &runtime, &probe_states, &plan, stopped, now);
        if self.is_settling(&pod, &runtime) || plan.settles_at.is_some() {
            return Next::Wait(earliest(wake_at, plan.settles_at));
        }
        self.observe_start(&pod, &new);
        let mut written = self.write_status(&pod, &new).await;
        if written && stopped && pod::is_deleted(&pod) {
            let farewell = *self.deleted_at.get_or_insert(now) + FAREWELL;
            if farewell > now {
                return Next::Wait(earliest(wake_at, Some(farewell)));
            }
            written = self.delete(&pod).await;
        }
        if !written {
            wake_at = earliest(wake_at, Some(now + API_RETRY));
        }
        Next::Wait(wake_at)
    }

    /// The pod runs, and did not when it was seen last.
    fn observe_start(&self, pod: &Pod, new: &PodStatus) {
        let runs_now = new.phase.as_deref() == Some("Running") && pod::phase(pod) == "Pending";
        if !runs_now {
            return;
        }
        let metrics = &self.node.metrics;
        metrics.observe(&POD_START_DURATION, &[], self.inbox.first_seen.elapsed());
        let created = pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map(pod::system_time);
        if let Some(age) = created.and_then(|at| self.node.clock.now().duration_since(at).ok()) {
            metrics.observe(&POD_START_TOTAL_DURATION, &[], age);
        }
    }

    /// Sets the verdict when the pod has been active for too long; else says when that will be.
    fn check_deadline(&mut self, pod: &Pod, now: SystemTime) -> Option<SystemTime> {
        let pending = self
            .inbox
            .verdict
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((verdict, grace)) = pending
            && self.verdict.is_none()
            && !pod::is_phase_terminal(pod)
        {
            self.verdict = Some(verdict);
            self.stop_grace = Some(grace);
        }
        let seconds = u64::try_from(pod::spec(pod).active_deadline_seconds?).ok()?;
        let start = pod
            .status
            .as_ref()?
            .start_time
            .as_ref()
            .map(pod::system_time)?;
        let deadline = start + Duration::from_secs(seconds);
        if deadline > now {
            return Some(deadline);
        }
        if self.verdict.is_none() && !pod::is_phase_terminal(pod) {
            let message =
                "Pod was active on the node longer than the specified deadline".to_owned();
            self.node
                .events
                .pod(pod, "Normal", "DeadlineExceeded", message.clone());
            self.verdict = Some(Verdict {
                reason: "DeadlineExceeded".to_owned(),
                message,
                disruption: false,
            });
        }
        None
    }

    fn goal(&mut self, pod: &Pod, runtime: &RuntimePod, gone: bool, now: SystemTime) -> Goal {
        if pod::is_deleted(pod) {
            self.deleted_at.get_or_insert(now);
        }
        let ends = gone
            || pod::is_deleted(pod)
            || pod::is_phase_terminal(pod)
            || self.verdict.is_some()
            || plan::is_finished(pod, runtime);
        if !ends && self.stop_deadline.is_none() {
            return Goal::Run;
        }
        let grace = self.stop_grace.unwrap_or_else(|| pod::grace_period(pod));
        let asked = now + grace;
        // A deadline moves only towards now: when the deletion is repeated with a shorter grace.
        let shorter =
            pod.metadata.deletion_grace_period_seconds.is_some() && self.stop_grace.is_none();
        let deadline = match self.stop_deadline {
            Some(planned) if shorter => planned.min(asked),
            Some(planned) => planned,
            None => asked,
        };
        self.stop_deadline = Some(deadline);
        Goal::Stop { deadline }
    }

    /// Containers that left no message but want their log's end for one.
    fn explain_ends(&mut self, pod: &Pod, runtime: &mut RuntimePod) {
        let is_known = |id: &String| runtime.containers.iter().any(|known| known.id == *id);
        self.log_tails.retain(|id, _| is_known(id));
        self.replaced.retain(is_known);
        for status in &mut runtime.containers {
            let failed = status.state == ContainerState::Exited && plan::exit_code(status) != 0;
            if !failed || !status.message.is_empty() {
                continue;
            }
            let wanted = pod::find_container(pod, &status.name).is_some_and(|(_, container)| {
                container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
            });
            if wanted {
                let tail = self
                    .log_tails
                    .entry(status.id.clone())
                    .or_insert_with(|| logs::last_words(&status.log_path));
                status.message.clone_from(tail);
            }
        }
    }

    /// Probes exist exactly for running containers that have some.
    fn update_probes(&mut self, pod: &Arc<Pod>, runtime: &RuntimePod) {
        let running: BTreeMap<&str, &keelson_ports::ContainerStatus> = runtime
            .running()
            .filter(|status| !self.busy.contains(&Busy::Start(status.name.clone())))
            .map(|status| (status.name.as_str(), status))
            .collect();
        self.probes.retain(|name, probes| {
            running
                .get(name.as_str())
                .is_some_and(|status| status.id == probes.state.id)
        });
        let ip = if pod::is_host_network(pod) {
            self.node.host_ips().first().cloned()
        } else {
            runtime
                .sandboxes
                .first()
                .and_then(|sandbox| sandbox.ips.first())
                .map(ToString::to_string)
        };
        for (kind, container) in pod::all_containers(pod) {
            let has_probe = container.liveness_probe.is_some()
                || container.readiness_probe.is_some()
                || container.startup_probe.is_some();
            let Some(status) = running.get(container.name.as_str()).filter(|_| has_probe) else {
                continue;
            };
            if self.probes.contains_key(&container.name) {
                continue;
            }
            let recorded = status::recorded(pod, &container.name).filter(|recorded| {
                recorded.container_id.as_deref()
                    == Some(&format!("{}{}", status::ID_PREFIX, status.id))
            });
            let target = ProbeTarget {
                pod: pod.clone(),
                container: Arc::new(container.clone().into_owned()),
                kind,
                id: status.id.clone(),
                ip: ip.clone().unwrap_or_default(),
                started_at: status.started_at.unwrap_or(status.created_at),
                runtime: self.node.runtime.clone(),
                clock: self.node.clock.clone(),
                events: self.node.events.clone(),
            };
            let was_started = recorded.is_some_and(|recorded| recorded.started == Some(true));
            let was_ready = recorded.is_some_and(|recorded| recorded.ready);
            let probes = ContainerProbes::start(&target, was_started, was_ready, &self.reports.0);
            self.probes.insert(container.name.clone(), probes);
        }
    }

    fn take_report(&mut self, report: &ProbeReport) {
        if let Some(probes) = self.probes.get_mut(&report.container) {
            probes.report(report);
        }
    }

    fn tell_backoff(&mut self, pod: &Pod, runtime: &RuntimePod, plan: &Plan) {
        for name in plan.backing_off.keys() {
            let Some(status) = runtime.latest(name) else {
                continue;
            };
            if self.told.insert(status.id.clone())
                && let Some((kind, _)) = pod::find_container(pod, name)
            {
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    pod::name(pod),
                    pod::namespace(pod),
                    self.uid
                );
                self.node
                    .events
                    .container(pod, kind, name, "Warning", "BackOff", message);
            }
        }
        self.told.retain(|id| {
            runtime
                .containers
                .iter()
                .any(|container| container.id == *id)
        });
    }

    /// Brings running containers to the limits that the specification has now.
    async fn resize(&mut self, pod: &Arc<Pod>, runtime: &RuntimePod) {
        self.limits.retain(|id, _| {
            runtime
                .containers
                .iter()
                .any(|container| container.id == *id)
        });
        let mut changed = false;
        for status in runtime.running() {
            let Some((_, container)) = pod::find_container(pod, &status.name) else {
                continue;
            };
            let wanted = pod::resources::container_cgroup(&container, None);
            let Some(known) = self.limits.insert(status.id.clone(), wanted.clone()) else {
                continue;
            };
            if known == wanted {
                continue;
            }
            changed = true;
            let restart_for = |resource: &str| {
                container.resize_policy.iter().flatten().any(|policy| {
                    policy.resource_name == resource && policy.restart_policy == "RestartContainer"
                })
            };
            let cpu =
                known.cpu_shares != wanted.cpu_shares || known.cpu_quota_us != wanted.cpu_quota_us;
            let memory = known.memory_limit_bytes != wanted.memory_limit_bytes;
            if (cpu && restart_for("cpu")) || (memory && restart_for("memory")) {
                let deadline = self.node.clock.now() + pod::grace_period(pod);
                self.kill(pod, &status.id, &status.name, KillReason::Resized, deadline);
            } else if let Err(error) = self
                .node
                .runtime
                .update_container_resources(&status.id, wanted)
                .await
            {
                let message = format!("Error resizing container {}: {error}", status.name);
                self.node.events.pod(pod, "Warning", "ResizeError", message);
            }
        }
        if changed {
            let limits = pod::resources::pod_cgroup(pod, self.node.config.pod_pids_limit);
            if let Err(error) = self
                .node
                .cgroups
                .ensure(&pod::qos::cgroup_path(pod), &limits)
                .await
            {
                self.node.events.pod(
                    pod,
                    "Warning",
                    "ResizeError",
                    format!("Error resizing pod: {error}"),
                );
            }
        }
    }

    fn compute_status(
        &self,
        pod: &Pod,
        runtime: &RuntimePod,
        probes: &BTreeMap<String, ProbeState>,
        plan: &Plan,
        stopped: bool,
        now: SystemTime,
    ) -> PodStatus {
        let digests = self.node.digests().clone();
        let busy = &self.busy;
        status::compute(&StatusInput {
            pod,
            runtime,
            probes,
            start_errors: &self.start_errors,
            backing_off: &plan.backing_off,
            starting: &|name| busy.contains(&Busy::Start(name.to_owned())),
            digests: &digests,
            host_ips: &self.node.host_ips(),
            verdict: self.verdict.as_ref(),
            stopping: self.stop_deadline.is_some(),
            stopped,
            now,
        })
    }

    /// A container runs already while the operation that started it has not reported yet. Its report
    /// comes at once when no hook runs: one status write instead of two.
    fn is_settling(&self, pod: &Pod, runtime: &RuntimePod) -> bool {
        runtime.running().any(|status| {
            self.busy.contains(&Busy::Start(status.name.clone()))
                && pod::find_container(pod, &status.name).is_some_and(|(_, container)| {
                    container
                        .lifecycle
                        .as_ref()
                        .is_none_or(|lifecycle| lifecycle.post_start.is_none())
                })
        })
    }

    /// False when the write must be tried again.
    async fn write_status(&self, pod: &Pod, new: &PodStatus) -> bool {
        let Some(patch) = status::patch(pod, new) else {
            return true;
        };
        let started = Instant::now();
        let written = self
            .node
            .client
            .patch::<Pod>(
                pod::namespace(pod),
                pod::name(pod),
                &Patch::Strategic(patch),
                Some("status"),
            )
            .await;
        match written {
            Ok(written) => {
                self.node
                    .metrics
                    .observe(&POD_STATUS_SYNC_DURATION, &[], started.elapsed());
                let mut current = self
                    .inbox
                    .pod
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if version(&written) >= version(&current) {
                    *current = Arc::new(written);
                }
                true
            }
            // Gone, or another pod of that name: the informer tells soon.
            Err(error) if error.is_not_found() || error.is_conflict() => true,
            Err(error) => {
                tracing::debug!(pod = pod::name(pod), %error, "a pod's status was not written");
                false
            }
        }
    }

    /// Finishes a graceful deletion. False when it must be tried again.
    async fn delete(&self, pod: &Pod) -> bool {
        let options = DeleteOptions::grace(0).uid(&*self.uid);
        match self
            .node
            .client
            .delete::<Pod>(pod::namespace(pod), pod::name(pod), &options)
            .await
        {
            Ok(()) => true,
            Err(error) if error.is_not_found() || error.is_conflict() => true,
            Err(error) => {
                tracing::debug!(pod = pod::name(pod), %error, "a pod was not deleted");
                false
            }
        }
    }

    /// Removes what is left of a pod that nobody can ask about any more.
    async fn erase(&mut self, pod: &Pod, runtime: &RuntimePod) -> Next {
        for sandbox in &runtime.sandboxes {
            if let Err(error) = self.node.runtime.remove_pod_sandbox(&sandbox.id).await {
                tracing::warn!(pod = pod::name(pod), %error, "removing a sandbox failed");
                return Next::Wait(Some(self.node.clock.now() + API_RETRY * 5));
            }
            self.node.state.forget_sandbox(&sandbox.id);
        }
        let logs = self
            .node
            .config
            .pod_log_dir(pod::namespace(pod), pod::name(pod), &self.uid);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(logs)).await;
        if let Ok(Err(error)) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(pod = pod::name(pod), %error, "removing a pod's logs failed");
        }
        Next::Finished
    }
}

/// The earlier of two moments that may not be.
fn earliest(a: Option<SystemTime>, b: Option<SystemTime>) -> Option<SystemTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
