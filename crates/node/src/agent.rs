//! The agent: hands API changes and runtime events to the pods' workers, and keeps house.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::Change;
use keelson_ports::{CgroupResources, RuntimeEvent};
use tokio::sync::mpsc;

use crate::admission::{self, Situation};
use crate::metrics::{PLEG_RELIST_DURATION, TERMINATED_CONTAINERS};
use crate::node::Node;
use crate::pod::{self, qos, resources};
use crate::status::Verdict;
use crate::volumes::MountedVolumes;
use crate::worker::{Inbox, Worker};
use crate::{logs, volumes};

/// Logs are looked at this often: a stat per running container.
const LOG_PERIOD: Duration = Duration::from_secs(10);
const LOST_PAUSE: Duration = Duration::from_millis(500);

pub(crate) struct Agent {
    pub(crate) node: Arc<Node>,
    workers: Arc<Mutex<BTreeMap<String, Arc<Inbox>>>>,
}

impl Agent {
    pub(crate) fn new(node: Arc<Node>, workers: Workers) -> Arc<Self> {
        Arc::new(Self {
            node,
            workers: workers.0,
        })
    }

    /// Ends a pod as failed.
    pub(crate) fn condemn(&self, uid: &str, verdict: Verdict, grace: Duration) {
        if let Some(inbox) = self.inbox(uid) {
            inbox.condemn(verdict, grace);
        }
    }

    /// The newest form of a pod, with the status that this node wrote last.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods: Vec<Arc<Pod>> = self.lock().values().map(|inbox| inbox.pod()).collect();
        pods.into_iter()
            .filter(|pod| pod::namespace(pod) == namespace && pod::name(pod) == name)
            .max_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|time| time.0))
    }

    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().values().map(|inbox| inbox.pod()).collect()
    }

    /// Pods that are to have what they ask for.
    pub(crate) fn active_pods(&self) -> Vec<Arc<Pod>> {
        self.lock()
            .values()
            .filter(|inbox| inbox.holds_resources())
            .map(|inbox| inbox.pod())
            .collect()
    }

    pub(crate) fn mounted_volumes(&self) -> Vec<(Arc<Pod>, Arc<MountedVolumes>)> {
        self.lock()
            .values()
            .map(|inbox| (inbox.pod(), inbox.volumes()))
            .collect()
    }

    fn inbox(&self, uid: &str) -> Option<Arc<Inbox>> {
        self.lock().get(uid).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Inbox>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the API and the runtime for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        // Events from before the list would be lost otherwise.
        let mut events = self.node.runtime.events();
        self.relist().await;
        let (changes, mut received) = mpsc::unbounded_channel();
        self.node.pods.synced().await;
        self.node.services.synced().await;
        self.node.this_node.synced().await;
        self.node.pods.subscribe(move |change| {
            // The receiver lives as long as the agent.
            let _ = changes.send(change.clone());
        });
        self.remove_orphans().await;
        let mut node_ips = self.node.config.node_ips.clone();
        let mut log_tick = std::pin::pin!(self.node.clock.sleep(LOG_PERIOD));
        loop {
            tokio::select! {
                Some(change) = received.recv() => self.pod_changed(change),
                event = events.next() => match event {
                    Some(event) => self.runtime_changed(event).await,
                    None => {
                        self.node.clock.sleep(LOST_PAUSE).await;
                        events = self.node.runtime.events();
                        self.relist().await;
                    }
                },
                // Statuses of pods tell the node's address.
                () = Node::host_ips_changed(&mut node_ips) => self.poke_all(),
                () = &mut log_tick => {
                    self.rotate_logs().await;
                    log_tick.set(self.node.clock.sleep(LOG_PERIOD));
                }
            }
        }
    }

    fn pod_changed(self: &Arc<Self>, change: Change<Pod>) {
        match change {
            Change::Added(pod) | Change::Updated { new: pod, .. } => {
                let uid = pod::uid(&pod).to_owned();
                if let Some(inbox) = self.inbox(&uid) {
                    inbox.update(pod);
                    return;
                }
                self.update_qos();
                self.employ(pod);
            }
            Change::Deleted(pod) => {
                if let Some(inbox) = self.inbox(pod::uid(&pod)) {
                    // Carries the grace period that the deletion asked for last.
                    inbox.update(pod);
                    inbox.remove();
                }
                self.update_qos();
            }
        }
    }

    fn employ(self: &Arc<Self>, pod: Arc<Pod>) {
        let uid = pod::uid(&pod).to_owned();
        let refusal = self.refusal(&pod);
        let inbox = Inbox::new(pod);
        if let Some(verdict) = refusal {
            self.node.events.pod(
                &inbox.pod(),
                "Warning",
                &verdict.reason,
                verdict.message.clone(),
            );
            inbox.refuse(verdict);
        }
        self.lock().insert(uid.clone(), inbox.clone());
        let agent = self.clone();
        tokio::spawn(async move {
            loop {
                let worker = Worker::new(agent.node.clone(), inbox.clone());
                let shutdown = agent.node.shutdown.clone();
                match tokio::spawn(shutdown.run_until_cancelled_owned(worker.run())).await {
                    Ok(_) => break,
                    Err(error) if error.is_panic() => {
                        tracing::error!(uid, %error, "a pod's worker panicked; starting another");
                        agent.node.clock.sleep(Duration::from_secs(1)).await;
                    }
                    Err(_) => break,
                }
            }
            agent.lock().remove(&uid);
        });
    }

    /// Why a pod that is new here cannot run here. What this node has begun it goes on with.
    fn refusal(&self, pod: &Pod) -> Option<Verdict> {
        let begun = pod
            .status
            .as_ref()
            .is_some_and(|status| status.start_time.is_some());
        if begun || pod::is_deleted(pod) || pod::is_phase_terminal(pod) {
            return None;
        }
        let active = self.active_pods();
        let config = &self.node.config;
        let this_node = self.node.this_node.get("", &config.node_name);
        admission::refuse(
            pod,
            &Situation {
                node: this_node.as_deref(),
                allocatable: self.node.machine.allocatable(config),
                max_pods: usize::try_from(config.max_pods).unwrap_or(usize::MAX),
                allowed_unsafe_sysctls: &config.allowed_unsafe_sysctls,
                active: &active,
            },
        )
    }

    async fn runtime_changed(&self, event: RuntimeEvent) {
        let uid = match event {
            RuntimeEvent::ContainerStarted { container, .. } => {
                self.node.state.refresh_container(&container).await
            }
            RuntimeEvent::ContainerExited { container, .. } => {
                let uid = self.node.state.refresh_container(&container).await;
                self.count_end(uid.as_deref(), &container);
                uid
            }
            RuntimeEvent::SandboxExited { sandbox } => {
                let uid = self.node.state.refresh_sandbox(&sandbox).await;
                for container in self
                    .node
                    .state
                    .running()
                    .into_iter()
                    .filter(|c| c.sandbox == sandbox)
                {
                    self.node.state.refresh_container(&container.id).await;
                }
                uid
            }
            RuntimeEvent::Lost => {
                self.relist().await;
                return;
            }
        };
        if let Some(inbox) = uid.and_then(|uid| self.inbox(&uid)) {
            inbox.poke();
        }
    }

    fn count_end(&self, uid: Option<&str>, container: &str) {
        let Some(status) = self.node.state.container(container) else {
            return;
        };
        let pod = uid.and_then(|uid| self.inbox(uid)).map(|inbox| inbox.pod());
        let kind = pod
            .as_ref()
            .and_then(|pod| pod::find_container(pod, &status.name))
            .map_or("container", |(kind, _)| kind.metric_label());
        let code = status.exit_code.unwrap_or_default().to_string();
        self.node
            .metrics
            .count(&TERMINATED_CONTAINERS, &[kind, &code, &status.reason]);
    }

    async fn relist(&self) {
        let started = std::time::Instant::now();
        while let Err(error) = self.node.state.relist().await {
            tracing::warn!(%error, "listing what the runtime has failed; trying again");
            self.node.clock.sleep(LOST_PAUSE).await;
        }
        self.node
            .metrics
            .observe(&PLEG_RELIST_DURATION, &[], started.elapsed());
        for status in self.node.state.images_in_use() {
            self.node.learn_digest(&status).await;
        }
        self.poke_all();
    }

    fn poke_all(&self) {
        for inbox in self.lock().values() {
            inbox.poke();
        }
    }

    /// Clears away what belongs to pods that the API does not have any more.
    async fn remove_orphans(&self) {
        let node = &self.node;
        let known: BTreeSet<String> = node
            .pods
            .list()
            .iter()
            .map(|pod| pod::uid(pod).to_owned())
            .collect();
        for sandbox in node.runtime.list_pod_sandboxes().await.unwrap_or_default() {
            if known.contains(&sandbox.uid) {
                continue;
            }
            tracing::info!(
                pod = sandbox.name,
                namespace = sandbox.namespace,
                "removing a pod that no longer exists"
            );
            let stopped = node.runtime.stop_pod_sandbox(&sandbox.id).await;
            let removed = node.runtime.remove_pod_sandbox(&sandbox.id).await;
            if let Err(error) = stopped.and(removed) {
                tracing::warn!(pod = sandbox.name, %error, "removing a sandbox failed");
                continue;
            }
            node.state.forget_sandbox(&sandbox.id);
        }
        for dir in children(&node.config.data_dir.join("pods")) {
            let uid = dir
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if !known.contains(&uid)
                && let Err(error) = volumes::tear_down(&*node.mounts, &dir).await
            {
                tracing::warn!(uid, %error, "removing a pod's directory failed");
            }
        }
        for dir in children(&node.config.log_dir.join("pods")) {
            let name = dir
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let uid = name.rsplit('_').next().unwrap_or_default();
            if !known.contains(uid)
                && let Err(error) = std::fs::remove_dir_all(&dir)
            {
                tracing::warn!(dir = name, %error, "removing a pod's logs failed");
            }
        }
        for parent in [qos::ROOT, qos::BURSTABLE, qos::BEST_EFFORT] {
            for child in node.cgroups.children(parent).await.unwrap_or_default() {
                let orphan = child
                    .strip_prefix("pod")
                    .is_some_and(|uid| !known.contains(uid));
                if orphan
                    && let Err(error) = node.cgroups.remove(&format!("{parent}/{child}")).await
                {
                    tracing::warn!(child, %error, "removing a pod's cgroup failed");
                }
            }
        }
    }

    /// Burstable pods together weigh what they ask for; best-effort pods weigh next to nothing.
    fn update_qos(&self) {
        let node = self.node.clone();
        tokio::spawn(async move {
            let milli: i64 = node
                .pods
                .list()
                .iter()
                .filter(|pod| {
                    !pod::is_phase_terminal(pod) && qos::class(pod) == qos::QosClass::Burstable
                })
                .map(|pod| resources::pod_sum(pod, resources::cpu_request_milli))
                .sum();
            ensure_qos(&node, milli).await;
        });
    }

    async fn rotate_logs(&self) {
        let config = &self.node.config;
        for container in self.node.state.running() {
            let rotated = logs::rotate(
                &*self.node.runtime,
                &container.id,
                &container.log_path,
                config.container_log_max_bytes,
                config.container_log_max_files,
            )
            .await;
            if let Err(error) = rotated {
                tracing::warn!(log = %container.log_path.display(), %error, "rotating a log failed");
            }
            let log = container.log_path.clone();
            let compressed = tokio::task::spawn_blocking(move || logs::compress(&log)).await;
            if let Ok(Err(error)) = compressed {
                tracing::warn!(log = %container.log_path.display(), %error, "compressing a log failed");
            }
        }
    }
}

/// The workers' inboxes before the agent exists: what references poke.
#[derive(Clone, Default)]
pub(crate) struct Workers(Arc<Mutex<BTreeMap<String, Arc<Inbox>>>>);

impl Workers {
    pub(crate) fn refresh(&self, uid: &str) {
        let inbox = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .cloned();
        if let Some(inbox) = inbox {
            inbox.refresh();
        }
    }
}

pub(crate) async fn ensure_qos(node: &Node, burstable_milli: i64) {
    let shares = |shares: u64| CgroupResources {
        cpu_shares: Some(shares),
        ..CgroupResources::default()
    };
    let root =
        u64::try_from(node.machine.allocatable(&node.config).cpu_milli).unwrap_or(0) * 1024 / 1000;
    for (path, limits) in [
        (qos::ROOT, shares(root.max(2))),
        (
            qos::BURSTABLE,
            shares(resources::cpu_shares(burstable_milli)),
        ),
        (qos::BEST_EFFORT, shares(2)),
    ] {
        if let Err(error) = node.cgroups.ensure(path, &limits).await {
            tracing::warn!(path, %error, "preparing a cgroup failed");
        }
    }
}

fn children(dir: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}
