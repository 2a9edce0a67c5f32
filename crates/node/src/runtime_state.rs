//! What the runtime has, kept current by its events instead of by polling.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use keelson_ports::{ContainerState, ContainerStatus, PodSandboxStatus, Runtime, SandboxState};

use crate::plan::RuntimePod;

#[derive(Default)]
struct State {
    sandboxes: HashMap<String, PodSandboxStatus>,
    containers: HashMap<String, ContainerStatus>,
    /// Ids that were removed: an answer that was under way must not bring them back.
    removed: BTreeSet<String>,
}

pub(crate) struct RuntimeState {
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
}

/// How far along a container is; a late answer never turns time back.
fn rank(state: ContainerState) -> u8 {
    match state {
        ContainerState::Created => 0,
        ContainerState::Running => 1,
        ContainerState::Unknown => 2,
        ContainerState::Exited => 3,
    }
}

impl RuntimeState {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self {
            runtime,
            state: Mutex::default(),
        }
    }

    /// Reads everything again; returns the uids of all pods with a sandbox.
    pub(crate) async fn relist(&self) -> keelson_ports::Result<BTreeSet<String>> {
        let sandboxes = self.runtime.list_pod_sandboxes().await?;
        let containers = self.runtime.list_containers().await?;
        let mut state = self.lock();
        state.sandboxes = sandboxes
            .into_iter()
            .map(|sandbox| (sandbox.id.clone(), sandbox))
            .collect();
        state.containers = containers
            .into_iter()
            .map(|container| (container.id.clone(), container))
            .collect();
        state.removed.clear();
        Ok(state
            .sandboxes
            .values()
            .map(|sandbox| sandbox.uid.clone())
            .collect())
    }

    /// Reads one container again; returns its pod's uid.
    pub(crate) async fn refresh_container(&self, id: &str) -> Option<String> {
        let answer = self.runtime.container_status(id).await;
        let mut state = self.lock();
        match answer {
            Ok(status) => {
                let sandbox = status.sandbox.clone();
                let stale = state.removed.contains(id)
                    || state
                        .containers
                        .get(id)
                        .is_some_and(|known| rank(known.state) > rank(status.state));
                if !stale {
                    state.containers.insert(id.to_owned(), status);
                }
                state
                    .sandboxes
                    .get(&sandbox)
                    .map(|sandbox| sandbox.uid.clone())
            }
            Err(error) => {
                let known = state
                    .containers
                    .get(id)
                    .map(|container| container.sandbox.clone());
                if error.is_not_found() {
                    state.containers.remove(id);
                }
                known
                    .and_then(|sandbox| state.sandboxes.get(&sandbox))
                    .map(|sandbox| sandbox.uid.clone())
            }
        }
    }

    pub(crate) async fn refresh_sandbox(&self, id: &str) -> Option<String> {
        let answer = self.runtime.pod_sandbox_status(id).await;
        let mut state = self.lock();
        match answer {
            Ok(status) => {
                let uid = status.uid.clone();
                if !state.removed.contains(id) {
                    state.sandboxes.insert(id.to_owned(), status);
                }
                Some(uid)
            }
            Err(error) if error.is_not_found() => {
                state.sandboxes.remove(id).map(|sandbox| sandbox.uid)
            }
            Err(_) => state.sandboxes.get(id).map(|sandbox| sandbox.uid.clone()),
        }
    }

    pub(crate) fn forget_container(&self, id: &str) {
        let mut state = self.lock();
        state.containers.remove(id);
        state.removed.insert(id.to_owned());
    }

    pub(crate) fn forget_sandbox(&self, id: &str) {
        let mut state = self.lock();
        state
            .containers
            .retain(|_, container| container.sandbox != id);
        state.sandboxes.remove(id);
        state.removed.insert(id.to_owned());
    }

    pub(crate) fn pod(&self, uid: &str) -> RuntimePod {
        let state = self.lock();
        let mut sandboxes: Vec<PodSandboxStatus> = state
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.uid == uid)
            .cloned()
            .collect();
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.attempt, sandbox.created_at)));
        let containers = state
            .containers
            .values()
            .filter(|container| {
                sandboxes
                    .iter()
                    .any(|sandbox| sandbox.id == container.sandbox)
            })
            .cloned()
            .collect();
        RuntimePod {
            sandboxes,
            containers,
            replaced: BTreeSet::new(),
        }
    }

    /// Ids of images that some container was made of.
    pub(crate) fn images_in_use(&self) -> BTreeSet<String> {
        self.lock()
            .containers
            .values()
            .map(|container| container.image_id.clone())
            .collect()
    }

    pub(crate) fn running(&self) -> Vec<ContainerStatus> {
        self.lock()
            .containers
            .values()
            .filter(|container| container.state == ContainerState::Running)
            .cloned()
            .collect()
    }

    /// How many containers are in which state, by the words of metrics.
    pub(crate) fn container_states(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for container in self.lock().containers.values() {
            let state = match container.state {
                ContainerState::Created => "created",
                ContainerState::Running => "running",
                ContainerState::Exited => "exited",
                ContainerState::Unknown => "unknown",
            };
            *counts.entry(state).or_default() += 1;
        }
        counts
    }

    pub(crate) fn ready_sandboxes(&self) -> usize {
        let state = self.lock();
        let all = state.sandboxes.values();
        all.filter(|sandbox| sandbox.state == SandboxState::Ready)
            .count()
    }

    /// A container as it was seen last.
    pub(crate) fn container(&self, id: &str) -> Option<ContainerStatus> {
        self.lock().containers.get(id).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
