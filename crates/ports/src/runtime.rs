//! The container runtime, in CRI's words (`k8s.io/cri-api/pkg/apis/runtime/v1`): a pod sandbox
//! holds the namespaces, containers run inside it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{CgroupResources, CgroupStats, HostPort, Result};

pub type SandboxId = String;
pub type ContainerId = String;

/// A byte stream in both directions: a TCP connection into a pod.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Name and version, as in `ContainerRuntimeVersion` of a node: `keelson`, `0.1.0`.
    fn version(&self) -> (String, String);

    /// Creates and starts the sandbox with its network; on error nothing is left behind.
    /// A second call with the same uid and attempt is answered with the existing sandbox.
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<SandboxId>;
    /// Kills what still runs in the sandbox and releases its network. Idempotent.
    async fn stop_pod_sandbox(&self, id: &str) -> Result<()>;
    /// Removes the sandbox, its containers and its files. Idempotent.
    async fn remove_pod_sandbox(&self, id: &str) -> Result<()>;
    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus>;
    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>>;

    /// Prepares a container (root file system, mounts, log file); nothing of it runs yet.
    async fn create_container(&self, sandbox: &str, config: ContainerConfig)
    -> Result<ContainerId>;
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, waits at most `grace`, then kills. Returns when it is dead.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    /// Removes a container that does not run (a running one is killed first). Keeps its log.
    async fn remove_container(&self, id: &str) -> Result<()>;
    async fn container_status(&self, id: &str) -> Result<ContainerStatus>;
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>>;
    /// Changes the limits of a running container.
    async fn update_container_resources(&self, id: &str, resources: CgroupResources) -> Result<()>;
    /// Closes and opens the container's log file again, after it was rotated.
    async fn reopen_container_log(&self, id: &str) -> Result<()>;
    async fn container_stats(&self, id: &str) -> Result<ContainerStats>;

    /// Runs a command to its end; output beyond 16 KiB a stream is dropped (probes, hooks).
    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput>;
    /// Starts a command whose streams the caller drives.
    async fn exec(&self, id: &str, request: ExecRequest) -> Result<ExecSession>;
    /// Joins the streams of the container's own process, from now on.
    async fn attach(&self, id: &str, request: AttachRequest) -> Result<ExecSession>;
    /// Connects to `127.0.0.1:port` (then `[::1]`) inside the sandbox's network namespace.
    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>>;

    /// What changes from now on, so that nobody polls. A lagging reader gets [`RuntimeEvent::Lost`]
    /// and lists again.
    fn events(&self) -> BoxStream<'static, RuntimeEvent>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    ContainerStarted {
        sandbox: SandboxId,
        container: ContainerId,
    },
    ContainerExited {
        sandbox: SandboxId,
        container: ContainerId,
    },
    SandboxExited {
        sandbox: SandboxId,
    },
    Lost,
}

/// Which namespaces of the host a pod shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostNamespaces {
    pub network: bool,
    pub pid: bool,
    pub ipc: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PodSandboxConfig {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// Counts the sandboxes that one pod has had.
    pub attempt: u32,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub dns: DnsConfig,
    pub host_ports: Vec<HostPort>,
    pub host_namespaces: HostNamespaces,
    /// All containers share one PID namespace (`shareProcessNamespace`).
    pub share_process_namespace: bool,
    pub sysctls: BTreeMap<String, String>,
    /// The pod's cgroup, relative to the hierarchy's root (`/kubepods/burstable/pod<uid>`).
    pub cgroup_parent: String,
    /// Directory under which container logs are written (`/var/log/pods/<ns>_<name>_<uid>`).
    pub log_directory: PathBuf,
    /// `None` is the node's default handler.
    pub runtime_handler: Option<String>,
}

/// What goes into the pod's `/etc/resolv.conf`; empty leaves the host's in place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    Ready,
    NotReady,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodSandboxStatus {
    pub id: SandboxId,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
    pub state: SandboxState,
    pub created_at: SystemTime,
    /// Empty for a pod on the host's network.
    pub ips: Vec<IpAddr>,
    pub host_namespaces: HostNamespaces,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerConfig {
    pub name: String,
    /// Counts the restarts of this container within its pod.
    pub attempt: u32,
    /// What [`crate::Images::resolve`] gave: the image's id.
    pub image: String,
    /// What the user wrote, for display.
    pub user_image: String,
    /// Replaces the image's entry point; empty keeps it.
    pub command: Vec<String>,
    /// Replaces the image's arguments when either is set.
    pub args: Vec<String>,
    pub working_dir: String,
    /// In order; on top of the image's own.
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory: `<container>/<attempt>.log`.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub resources: CgroupResources,
    /// `-1000..=1000`; a kernel that refuses to lower it is obeyed.
    pub oom_score_adj: i32,
    pub security: SecurityContext,
    /// Overrides the image's stop signal (`SIGTERM` when neither says).
    pub stop_signal: Option<String>,
    /// A file on the host that is mounted at the termination message path and read at exit.
    pub termination_message_host_path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Mount {
    pub container_path: PathBuf,
    pub host_path: PathBuf,
    /// An image whose root is mounted instead of `host_path` (image volumes).
    pub image: Option<String>,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: MountPropagation,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Device {
    pub container_path: PathBuf,
    pub host_path: PathBuf,
    /// Some of `rwm`.
    pub permissions: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub enum SeccompProfile {
    #[default]
    Unconfined,
    RuntimeDefault,
    /// A profile in the OCI JSON form on the host.
    Localhost(PathBuf),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SecurityContext {
    pub privileged: bool,
    /// User and group ids; `None` keeps the image's.
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    /// A user name from the image, when no id is given.
    pub run_as_username: Option<String>,
    pub supplemental_groups: Vec<i64>,
    /// Do not add the groups that the image's `/etc/group` gives the user.
    pub supplemental_groups_strict: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub seccomp: SeccompProfile,
    /// `None` masks the runtime's default paths under `/proc` and `/sys`.
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,
    /// Share the PID namespace of this container (ephemeral debug containers).
    pub target_container: Option<ContainerId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    /// The runtime lost it (host restarted, shim killed); its exit code is unknown.
    Unknown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    pub name: String,
    pub attempt: u32,
    pub state: ContainerState,
    pub created_at: SystemTime,
    pub started_at: Option<SystemTime>,
    pub finished_at: Option<SystemTime>,
    pub exit_code: Option<i32>,
    /// The signal that ended it, if one did (`exit_code` is then 128 + signal).
    pub signal: Option<i32>,
    pub oom_killed: bool,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun`, `StartError`.
    pub reason: String,
    pub message: String,
    /// The image's id and what the user wrote.
    pub image_id: String,
    pub image: String,
    /// Absolute path of the log file.
    pub log_path: PathBuf,
    /// The first process, when it runs.
    pub pid: Option<u32>,
    /// User id, group id and supplemental groups of the first process.
    pub user: Option<(u32, u32, Vec<u32>)>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerStats {
    pub cgroup: CgroupStats,
    /// Bytes and inodes of the writable layer.
    pub writable_layer_bytes: u64,
    pub writable_layer_inodes: u64,
}

#[derive(Debug, Clone, Default)]
pub struct ExecOutput {
    pub exit_code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

#[derive(Debug, Clone, Default)]
pub struct AttachRequest {
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// The streams of a running command. Dropping it closes them; a command does not die of that
/// unless it reads its standard input.
pub struct ExecSession {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal sizes to apply: columns, rows.
    pub resize: Option<tokio::sync::mpsc::Sender<(u16, u16)>>,
    /// Ends with the exit code. For attach: when the container ends.
    pub exit: futures::future::BoxFuture<'static, Result<i32>>,
}
