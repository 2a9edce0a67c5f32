//! Applying a plan: every action is its own task, and reports when it is done.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;

use super::Worker;
use crate::plan::{Action, Backoff, Busy, KillReason, RuntimePod, StartError};
use crate::pod::container::{SandboxInput, sandbox_config};
use crate::pod::{self, ContainerKind, qos, resources};
use crate::start::{self, StartRequest};
use crate::stop::{self, StopRequest};
use crate::volumes::{self, MountedVolumes, VolumeContext};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(10);

/// An operation has ended.
pub(super) struct Done {
    busy: Busy,
    result: Outcome,
}

enum Outcome {
    Volumes(Result<MountedVolumes, String>),
    Prepared(Result<(), String>),
    Started {
        name: String,
        result: Result<String, StartError>,
    },
    Cleaned(Result<(), String>),
    Ended,
}

impl Worker {
    pub(super) fn apply(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &RuntimePod,
        action: &Action,
        now: SystemTime,
    ) {
        match action {
            Action::PrepareVolumes => self.prepare_volumes(pod, runtime),
            Action::CreateSandbox { attempt } => self.create_sandbox(pod, *attempt),
            Action::StartContainer {
                name,
                kind,
                attempt,
                restart,
            } => {
                if *restart {
                    let next = Backoff::next(self.backoff.get(name).copied(), now);
                    self.backoff.insert(name.clone(), next);
                }
                self.start(pod, runtime, name, *kind, *attempt);
            }
            Action::KillContainer {
                id,
                name,
                reason,
                deadline,
            } => self.kill(pod, id, name, reason.clone(), *deadline),
            Action::StopSandbox { id } => self.stop_sandbox(id),
            Action::RemoveContainer { id } => self.remove_container(id),
            Action::Cleanup if self.cleaned => {}
            Action::Cleanup => self.cleanup(pod),
        }
    }

    /// Takes an operation's result in.
    pub(super) fn finish(&mut self, done: Done) {
        let Done { busy, result } = done;
        self.busy.remove(&busy);
        if let Busy::Kill(id) = &busy {
            self.kill_deadlines.remove(id);
        }
        let now = self.node.clock.now();
        match result {
            Outcome::Volumes(Ok(mounted)) => {
                let mounted = Arc::new(mounted);
                self.inbox.set_volumes(mounted.clone());
                self.volumes = Some(mounted);
                self.recover();
                self.refresh_retry_at = None;
            }
            Outcome::Volumes(Err(message)) => {
                self.node
                    .events
                    .pod(&self.inbox.pod(), "Warning", "FailedMount", message);
                if self.volumes.is_some() {
                    self.refresh_retry_at = Some(now + MAX_RETRY);
                } else {
                    self.retry_later(now);
                }
            }
            Outcome::Prepared(Ok(())) => self.recover(),
            Outcome::Prepared(Err(message)) => {
                let message = format!("Failed to create pod sandbox: {message}");
                self.node.events.pod(
                    &self.inbox.pod(),
                    "Warning",
                    "FailedCreatePodSandBox",
                    message,
                );
                self.retry_later(now);
            }
            Outcome::Started {
                name,
                result: Ok(_),
            } => {
                self.start_errors.remove(&name);
            }
            Outcome::Started {
                name,
                result: Err(error),
            } => {
                self.start_errors.insert(name, error);
            }
            Outcome::Cleaned(Ok(())) => {
                self.cleaned = true;
                self.volumes = None;
                self.inbox.set_volumes(Arc::default());
            }
            Outcome::Cleaned(Err(error)) => {
                tracing::warn!(uid = self.uid, error, "cleaning up after a pod failed");
                // Not removed from the busy set at once, or it would spin.
                self.busy.insert(Busy::Cleanup);
                let (sender, clock) = (self.done.0.clone(), self.node.clock.clone());
                tokio::spawn(async move {
                    clock.sleep(MAX_RETRY).await;
                    let _ = sender
                        .send(Done {
                            busy: Busy::Cleanup,
                            result: Outcome::Ended,
                        })
                        .await;
                });
            }
            Outcome::Ended => {}
        }
    }

    fn recover(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }

    fn retry_later(&mut self, now: SystemTime) {
        self.retry_at =
            Some(now + (FIRST_RETRY * 2_u32.saturating_pow(self.failures.min(8))).min(MAX_RETRY));
        self.failures = self.failures.saturating_add(1);
    }

    /// Runs `work` beside the worker; its end wakes the worker.
    fn spawn(&mut self, busy: Busy, work: impl Future<Output = Outcome> + Send + 'static) {
        self.busy.insert(busy.clone());
        let sender = self.done.0.clone();
        tokio::spawn(async move {
            // A panic in one operation must not leave the pod busy for ever.
            let result = tokio::spawn(work).await.unwrap_or_else(|error| {
                tracing::error!(%error, "an operation on a pod panicked");
                Outcome::Ended
            });
            // The worker may be gone; then nobody waits for this.
            let _ = sender.send(Done { busy, result }).await;
        });
    }

    fn prepare_volumes(&mut self, pod: &Arc<Pod>, runtime: &RuntimePod) {
        let (node, pod) = (self.node.clone(), pod.clone());
        let pod_ips = if pod::is_host_network(&pod) {
            node.host_ips()
        } else {
            runtime
                .sandboxes
                .first()
                .map(|s| s.ips.iter().map(ToString::to_string).collect())
                .unwrap_or_default()
        };
        let fresh = self.volumes.is_none();
        self.spawn(Busy::Volumes, async move {
            node.objects.register(&pod);
            let pod_dir = node.config.pod_dir(pod::uid(&pod));
            if let Err(error) = std::fs::create_dir_all(&pod_dir) {
                return Outcome::Volumes(Err(format!(
                    "error making pod data directories: {error}"
                )));
            }
            let facts = node.facts(pod_ips);
            let context = VolumeContext {
                fresh,
                services: &node.volumes,
                pod: &pod,
                pod_dir: &pod_dir,
                facts: &facts,
            };
            Outcome::Volumes(
                volumes::set_up(&context)
                    .await
                    .map_err(|error| error.to_string()),
            )
        });
    }

    /// Writes volumes again when what they show has changed; says when a token will need it.
    pub(super) fn refresh_volumes(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &RuntimePod,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let mounted = self.volumes.as_ref()?;
        let token_at = mounted
            .values()
            .filter_map(|volume| volume.refresh_at)
            .min();
        let due = [token_at, self.refresh_retry_at]
            .into_iter()
            .flatten()
            .min();
        if self.busy.contains(&Busy::Volumes) {
            return None;
        }
        let dirty = self.inbox.dirty.swap(false, Ordering::AcqRel);
        if dirty {
            // What made a start fail may be there now.
            self.start_errors
                .retain(|_, error| error.reason != "CreateContainerConfigError");
            self.inbox.poke();
        }
        let waiting = self.refresh_retry_at.is_some_and(|at| at > now) && !dirty;
        if dirty || (due.is_some_and(|at| at <= now) && !waiting) {
            self.prepare_volumes(pod, runtime);
            return None;
        }
        due.map(|at| at.max(self.refresh_retry_at.unwrap_or(at)))
    }

    fn create_sandbox(&mut self, pod: &Arc<Pod>, attempt: u32) {
        let (node, pod) = (self.node.clone(), pod.clone());
        if attempt > 0 {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.node
                .events
                .pod(&pod, "Normal", "SandboxChanged", message);
        }
        self.spawn(Busy::Sandbox, async move {
            let log_directory =
                node.config
                    .pod_log_dir(pod::namespace(&pod), pod::name(&pod), pod::uid(&pod));
            if let Err(error) = std::fs::create_dir_all(&log_directory) {
                return Outcome::Prepared(Err(format!(
                    "create pod log directory {}: {error}",
                    log_directory.display()
                )));
            }
            if let Some(feature) = unsupported(&pod) {
                return Outcome::Prepared(Err(format!("{feature} are not supported by this node")));
            }
            let limits = resources::pod_cgroup(&pod, node.config.pod_pids_limit);
            if let Err(error) = node.cgroups.ensure(&qos::cgroup_path(&pod), &limits).await {
                return Outcome::Prepared(Err(format!(
                    "unable to ensure pod container exists: {error}"
                )));
            }
            let runtime_handler = match runtime_handler(&node, &pod).await {
                Ok(handler) => handler,
                Err(error) => return Outcome::Prepared(Err(error)),
            };
            let dns = pod::dns::for_pod(&pod, &node.dns());
            for warning in dns.warnings {
                node.events
                    .pod(&pod, "Warning", warning.reason, warning.message);
            }
            let config = sandbox_config(SandboxInput {
                pod: &pod,
                attempt,
                cluster_domain: &node.config.cluster_domain,
                dns: dns.config,
                log_directory,
                node_hostname: &node.machine.hostname,
                runtime_handler,
            });
            match node.runtime.run_pod_sandbox(config).await {
                Ok(id) => {
                    node.state.refresh_sandbox(&id).await;
                    Outcome::Prepared(Ok(()))
                }
                Err(error) => Outcome::Prepared(Err(error.to_string())),
            }
        });
    }

    fn start(
        &mut self,
        pod: &Arc<Pod>,
        runtime: &RuntimePod,
        name: &str,
        kind: ContainerKind,
        attempt: u32,
    ) {
        let Some(sandbox) = runtime.ready_sandbox().cloned() else {
            return;
        };
        let Some((_, container)) = pod::find_container(pod, name) else {
            return;
        };
        let target_id = pod::ephemeral_containers(pod)
            .into_iter()
            .find(|(ephemeral, _)| kind == ContainerKind::Ephemeral && ephemeral.name == name)
            .and_then(|(_, target)| target)
            .and_then(|target| runtime.latest(&target).map(|status| status.id.clone()));
        let request = StartRequest {
            pod: pod.clone(),
            container: Arc::new(container.into_owned()),
            kind,
            attempt,
            sandbox,
            volumes: self.volumes.clone().unwrap_or_default(),
            target_id,
        };
        let node = self.node.clone();
        let name = name.to_owned();
        self.spawn(Busy::Start(name.clone()), async move {
            let result = start::start(&node, &request).await;
            Outcome::Started { name, result }
        });
    }

    pub(super) fn kill(
        &mut self,
        pod: &Arc<Pod>,
        id: &str,
        name: &str,
        reason: KillReason,
        deadline: SystemTime,
    ) {
        let busy = Busy::Kill(id.to_owned());
        let again = self.busy.contains(&busy);
        if matches!(reason, KillReason::Changed | KillReason::Resized) {
            self.replaced.insert(id.to_owned());
            // The back-off was the old definition's.
            self.backoff.remove(name);
        }
        self.kill_deadlines.insert(id.to_owned(), deadline);
        let node = self.node.clone();
        let request = StopRequest {
            pod: pod.clone(),
            id: id.to_owned(),
            name: name.to_owned(),
            reason,
            deadline,
            again,
        };
        self.spawn(busy, async move {
            stop::stop(&node, &request).await;
            Outcome::Ended
        });
    }

    fn stop_sandbox(&mut self, id: &str) {
        let (node, id) = (self.node.clone(), id.to_owned());
        self.spawn(Busy::StopSandbox, async move {
            if let Err(error) = node.runtime.stop_pod_sandbox(&id).await
                && !error.is_not_found()
            {
                tracing::warn!(id, %error, "stopping a sandbox failed");
                node.clock.sleep(FIRST_RETRY).await;
            }
            node.state.refresh_sandbox(&id).await;
            for container in node
                .state
                .running()
                .into_iter()
                .filter(|container| container.sandbox == id)
            {
                node.state.refresh_container(&container.id).await;
            }
            Outcome::Ended
        });
    }

    fn remove_container(&mut self, id: &str) {
        let (node, id) = (self.node.clone(), id.to_owned());
        self.spawn(Busy::Remove(id.clone()), async move {
            let log = node
                .runtime
                .container_status(&id)
                .await
                .map(|status| status.log_path);
            match node.runtime.remove_container(&id).await {
                Ok(()) => {
                    node.state.forget_container(&id);
                    if let Ok(log) = log {
                        crate::logs::remove_all(&log);
                    }
                }
                Err(error) if error.is_not_found() => node.state.forget_container(&id),
                Err(error) => {
                    tracing::debug!(id, %error, "removing a container failed");
                    node.clock.sleep(MAX_RETRY).await;
                }
            }
            Outcome::Ended
        });
    }

    fn cleanup(&mut self, pod: &Arc<Pod>) {
        let (node, pod) = (self.node.clone(), pod.clone());
        self.spawn(Busy::Cleanup, async move {
            let volumes =
                volumes::tear_down(&*node.mounts, &node.config.pod_dir(pod::uid(&pod))).await;
            if let Err(error) = volumes {
                return Outcome::Cleaned(Err(error.to_string()));
            }
            Outcome::Cleaned(
                node.cgroups
                    .remove(&qos::cgroup_path(&pod))
                    .await
                    .map_err(|error| error.to_string()),
            )
        });
    }
}

/// What the pod asks for and this node would have to ignore.
fn unsupported(pod: &Pod) -> Option<&'static str> {
    let spec = pod::spec(pod);
    if spec.host_users == Some(false) {
        return Some("user namespaces (hostUsers: false)");
    }
    if spec
        .resource_claims
        .as_ref()
        .is_some_and(|claims| !claims.is_empty())
    {
        return Some("resource claims");
    }
    let block = pod::all_containers(pod).iter().any(|(_, container)| {
        container
            .volume_devices
            .as_ref()
            .is_some_and(|devices| !devices.is_empty())
    });
    block.then_some("block volumes (volumeDevices)")
}

/// The handler that the pod's RuntimeClass names.
async fn runtime_handler(node: &crate::node::Node, pod: &Pod) -> Result<Option<String>, String> {
    let Some(name) = pod::spec(pod)
        .runtime_class_name
        .as_deref()
        .filter(|name| !name.is_empty())
    else {
        return Ok(None);
    };
    let class = node
        .client
        .try_get::<k8s_openapi::api::node::v1::RuntimeClass>("", name)
        .await
        .map_err(|error| error.to_string())?;
    match class {
        Some(class) => Ok(Some(class.handler).filter(|handler| !handler.is_empty())),
        None => Err(format!(
            "failed to get sandbox runtime: runtimeclass.node.k8s.io \"{name}\" not found"
        )),
    }
}
