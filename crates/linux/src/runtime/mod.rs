//! The container runtime: sandboxes and containers as processes of this machine.
//!
//! The runtime decides and remembers; what runs belongs to the shims, so this process may end at
//! any time. Nothing here clones a process: this one has threads.

mod container;
mod plan;
pub(crate) mod purge;
mod records;
mod recovery;
mod rootfs;
mod sandbox;
mod shim_client;
mod streams;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use keelson_ports::{
    AttachRequest, CgroupResources, ContainerConfig, ContainerId, ContainerStats, ContainerStatus,
    Duplex, Error, ExecOutput, ExecRequest, ExecSession, Images, PodNetwork, PodSandboxConfig,
    PodSandboxStatus, Result, Runtime, RuntimeEvent, SandboxId,
};
use rand::Rng;
use tokio::sync::{broadcast, watch};

use self::records::{ContainerRecord, Paths, SandboxRecord};
pub use self::rootfs::{Rootfs, RootfsSource};
use self::shim_client::Launcher;
use crate::LinuxCgroups;
use crate::shim::LogLimits;
use crate::shim::protocol::{Phase, RunState};

/// Events that a slow reader may be behind before it has to list again.
const EVENT_BACKLOG: usize = 1024;
/// The group of the shims, below the instance's root.
const SHIM_CGROUP: &str = "/system/shims";

#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Records and writable layers; survives a reboot.
    pub state_dir: PathBuf,
    /// Sockets; its path must be short (below 80 bytes).
    pub run_dir: PathBuf,
    /// The program that becomes a shim; `None` is this one. It must call
    /// [`crate::shim_main`] when its first argument is [`crate::SHIM_ARGUMENT`].
    pub shim_executable: Option<PathBuf>,
    /// Of every container that is started from now on.
    pub log_limits: LogLimits,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct LinuxRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    paths: Paths,
    cgroups: LinuxCgroups,
    images: Arc<dyn Images>,
    rootfs: Arc<dyn RootfsSource>,
    network: Arc<dyn PodNetwork>,
    launcher: Launcher,
    log_limits: LogLimits,
    sandboxes: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    containers: Mutex<HashMap<ContainerId, Arc<Container>>>,
    /// One creation at a time for each pod, so that a repeated call finds the first one's result.
    creating: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    events: broadcast::Sender<RuntimeEvent>,
}

struct Sandbox {
    id: SandboxId,
    record: Mutex<SandboxRecord>,
    /// Whether its shim lives.
    alive: watch::Sender<bool>,
    /// Stopping and removing exclude each other.
    ending: tokio::sync::Mutex<()>,
}

struct Container {
    record: ContainerRecord,
    state: watch::Sender<Known>,
    ending: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct Known {
    run: RunState,
    /// The shim died, so how the process ended is not known.
    lost: bool,
}

impl Known {
    fn has_ended(&self) -> bool {
        self.lost || self.run.phase == Phase::Exited
    }

    fn is_running(&self) -> bool {
        !self.lost && self.run.phase == Phase::Running
    }
}

/// A panic while a lock is held leaves plain data behind, which is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = format!("{what} {}", path.display());
    move |error| Error::Failed(format!("{what}: {error}"))
}

/// File-system work that may take long, kept off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Failed(format!("the runtime's work was interrupted: {error}")))?
}

fn new_id() -> String {
    let bytes: [u8; 32] = rand::rng().random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl LinuxRuntime {
    /// Opens the runtime and finds what an earlier one left running.
    pub async fn open(
        config: RuntimeConfig,
        cgroups: LinuxCgroups,
        images: Arc<dyn Images>,
        rootfs: Arc<dyn RootfsSource>,
        network: Arc<dyn PodNetwork>,
    ) -> Result<LinuxRuntime> {
        let paths = Paths {
            state: config.state_dir,
            run: config.run_dir,
        };
        for directory in [paths.sandboxes(), paths.containers(), paths.run.clone()] {
            make_private_directory(&directory)?;
        }
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let inner = Arc::new(Inner {
            paths,
            cgroups,
            images,
            rootfs,
            network,
            launcher: Launcher::new(config.shim_executable),
            log_limits: config.log_limits,
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            creating: Mutex::default(),
            events,
        });
        inner.recover().await?;
        Ok(LinuxRuntime { inner })
    }
}

fn make_private_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("creating", path))
}

impl Inner {
    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        let found = lock(&self.sandboxes).get(id).cloned();
        found.ok_or_else(|| Error::NotFound(format!("sandbox {id} does not exist")))
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = lock(&self.containers).get(id).cloned();
        found.ok_or_else(|| Error::NotFound(format!("container {id} does not exist")))
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        lock(&self.containers)
            .values()
            .filter(|container| container.record.sandbox == sandbox)
            .cloned()
            .collect()
    }

    fn emit(&self, event: RuntimeEvent) {
        // Without readers there is nobody to tell.
        let _ = self.events.send(event);
    }
}

#[async_trait]
impl Runtime for LinuxRuntime {
    fn version(&self) -> (String, String) {
        ("keelson".to_owned(), env!("CARGO_PKG_VERSION").to_owned())
    }

    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<SandboxId> {
        Arc::clone(&self.inner).run_sandbox(config).await
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        self.inner.stop_sandbox(id).await
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        self.inner.remove_sandbox(id).await
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        Ok(self.inner.sandbox(id)?.status())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>> {
        Ok(lock(&self.inner.sandboxes)
            .values()
            .map(|sandbox| sandbox.status())
            .collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<ContainerId> {
        self.inner.create_container(sandbox, config).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.inner.start_container(id).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.inner.stop_container(id, grace).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.inner.remove_container(id).await
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        Ok(self.inner.container(id)?.status())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>> {
        let containers: Vec<_> = lock(&self.inner.containers).values().cloned().collect();
        Ok(containers
            .iter()
            .map(|container| container.status())
            .collect())
    }

    async fn update_container_resources(&self, id: &str, resources: CgroupResources) -> Result<()> {
        self.inner.update_resources(id, &resources).await
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        self.inner.reopen_log(id).await
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        self.inner.container_stats(id).await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput> {
        self.inner.exec_sync(id, command, timeout).await
    }

    async fn exec(&self, id: &str, request: ExecRequest) -> Result<ExecSession> {
        self.inner.exec(id, request).await
    }

    async fn attach(&self, id: &str, request: AttachRequest) -> Result<ExecSession> {
        self.inner.attach(id, request).await
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>> {
        self.inner.port_forward(sandbox, port).await
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        let receiver = self.inner.events.subscribe();
        futures::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((RuntimeEvent::Lost, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
        .boxed()
    }
}
