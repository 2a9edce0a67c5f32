//! Sandboxes: creating, watching, ending and finding them again.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use keelson_ports::{
    CgroupResources, Cgroups, Error, PodNetworkRequest, PodSandboxConfig, PodSandboxStatus, Result,
    RuntimeEvent, SandboxState,
};
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::sync::watch;

use super::records::{self, SandboxRecord};
use super::shim_client::{self, Connection};
use super::{Inner, SHIM_CGROUP, Sandbox, blocking, io_error, lock, new_id, plan};
use crate::shim::protocol::{Phase, Reply, Request, RunState, ShimConfig};
use crate::sys;

const MAX_HOSTNAME_BYTES: usize = 64;
const SHM_OPTIONS: &str = "mode=1777,size=65536k";
/// A shim that lives but dropped the subscription (this reader was behind) is asked again.
const RESUBSCRIBE_DELAY: Duration = Duration::from_millis(50);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a directory that somebody still writes into is removed again.
const REMOVALS: usize = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

impl Sandbox {
    pub(super) fn new(record: SandboxRecord, alive: bool) -> Sandbox {
        Sandbox {
            id: record.id.clone(),
            record: Mutex::new(record),
            alive: watch::Sender::new(alive),
            ending: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn config(&self) -> PodSandboxConfig {
        lock(&self.record).config.clone()
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.alive.borrow() && !lock(&self.record).stopped
    }

    pub(super) fn status(&self) -> PodSandboxStatus {
        let record = lock(&self.record).clone();
        let ready = *self.alive.borrow() && !record.stopped;
        let config = record.config;
        PodSandboxStatus {
            id: record.id,
            name: config.name,
            namespace: config.namespace,
            uid: config.uid,
            attempt: config.attempt,
            state: if ready {
                SandboxState::Ready
            } else {
                SandboxState::NotReady
            },
            created_at: records::time(record.created_at_ns),
            ips: record.ips,
            host_namespaces: config.host_namespaces,
            labels: config.labels,
            annotations: config.annotations,
        }
    }
}

/// The name a pod sees as its own.
pub(super) fn hostname(config: &PodSandboxConfig) -> String {
    if !config.host_namespaces.network && !config.hostname.is_empty() {
        return config.hostname.clone();
    }
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

impl Inner {
    pub(super) async fn run_sandbox(self: Arc<Inner>, config: PodSandboxConfig) -> Result<String> {
        if config.hostname.len() > MAX_HOSTNAME_BYTES {
            return Err(Error::Invalid(format!(
                "hostname {:?} is longer than 64 bytes",
                config.hostname
            )));
        }
        if let Some(handler) = config
            .runtime_handler
            .as_deref()
            .filter(|handler| !handler.is_empty())
        {
            return Err(Error::Invalid(format!(
                "no runtime for {handler:?} is configured"
            )));
        }
        let sysctls = plan::sysctls(&config)?;
        let gate = Arc::clone(lock(&self.creating).entry(config.uid.clone()).or_default());
        let result = {
            let _creating = gate.lock().await;
            match self.find_sandbox(&config) {
                Some(id) => Ok(id),
                None => self.make_sandbox(config.clone(), sysctls).await,
            }
        };
        drop(gate);
        lock(&self.creating).retain(|_, gate| Arc::strong_count(gate) > 1);
        result
    }

    fn find_sandbox(&self, config: &PodSandboxConfig) -> Option<String> {
        let sandboxes: Vec<_> = lock(&self.sandboxes).values().cloned().collect();
        sandboxes
            .into_iter()
            .find(|sandbox| {
                let record = lock(&sandbox.record);
                record.config.uid == config.uid && record.config.attempt == config.attempt
            })
            .filter(|sandbox| sandbox.is_ready())
            .map(|sandbox| sandbox.id.clone())
    }

    async fn make_sandbox(
        self: &Arc<Inner>,
        config: PodSandboxConfig,
        sysctls: Vec<(String, String)>,
    ) -> Result<String> {
        let id = new_id();
        let mut record = SandboxRecord {
            id: id.clone(),
            config,
            created_at_ns: records::now_ns(),
            shim_pid: None,
            shim_start_time: None,
            boot_id: records::boot_id(),
            ips: Vec::new(),
            stopped: false,
            unfinished: true,
        };
        let made = self.build_sandbox(&mut record, sysctls).await;
        match made {
            Ok(connection) => {
                let sandbox = Arc::new(Sandbox::new(record, true));
                lock(&self.sandboxes).insert(id.clone(), Arc::clone(&sandbox));
                tokio::spawn(watch_shim(Arc::downgrade(self), sandbox, connection));
                Ok(id)
            }
            Err(error) => {
                if !record.config.host_namespaces.network {
                    let _ = self.network.detach(&id).await;
                }
                self.end_shim(&record).await;
                self.remove_sandbox_files(&id).await?;
                Err(error)
            }
        }
    }

    async fn build_sandbox(
        &self,
        record: &mut SandboxRecord,
        sysctls: Vec<(String, String)>,
    ) -> Result<Connection> {
        let id = record.id.clone();
        let directory = self.paths.sandbox(&id);
        self.write_sandbox_files(record, &directory)?;
        self.cgroups
            .ensure(SHIM_CGROUP, &CgroupResources::default())
            .await?;
        if !record.config.cgroup_parent.is_empty() {
            self.cgroups
                .ensure(&record.config.cgroup_parent, &CgroupResources::default())
                .await?;
        }
        let config = &record.config;
        let host = config.host_namespaces;
        let shim = ShimConfig {
            sandbox: id.clone(),
            socket: self.paths.socket(&id),
            procs: self.cgroups.procs_files(SHIM_CGROUP)?,
            own_network: !host.network,
            own_ipc: !host.ipc,
            own_hostname: (!host.network).then(|| hostname(config)),
            share_pid: config.share_process_namespace && !host.pid,
            sysctls,
        };
        let shim_path = directory.join("shim.json");
        records::write(&shim_path, &shim).map_err(io_error("writing", &shim_path))?;
        self.save_sandbox(record)?;
        let pid = self
            .launcher
            .start(&shim_path, &directory.join("shim.log"))
            .await?;
        record.shim_pid = Some(pid);
        record.shim_start_time = sys::start_time(pid);
        if !record.config.host_namespaces.network {
            let request = network_request(record, pid);
            record.ips = self.network.attach(&request).await?.ips;
        }
        record.unfinished = false;
        self.save_sandbox(record)?;
        let (connection, _) = subscribe(&self.paths.socket(&id)).await?;
        Ok(connection)
    }

    fn save_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        let path = self.paths.sandbox(&record.id).join("record.json");
        records::write(&path, record).map_err(io_error("writing", &path))
    }

    fn write_sandbox_files(&self, record: &SandboxRecord, directory: &Path) -> Result<()> {
        let config = &record.config;
        let shm = self.paths.shm(&record.id);
        std::fs::create_dir_all(&shm).map_err(io_error("creating", &shm))?;
        let write = |name: &str, text: &[u8]| {
            let path = directory.join(name);
            std::fs::write(&path, text)
                .and_then(|()| {
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
                })
                .map_err(io_error("writing", &path))
        };
        write("hostname", format!("{}\n", hostname(config)).as_bytes())?;
        match plan::resolv_conf(&config.dns) {
            Some(text) => write("resolv.conf", text.as_bytes())?,
            None => write(
                "resolv.conf",
                &std::fs::read("/etc/resolv.conf").unwrap_or_default(),
            )?,
        }
        if !config.log_directory.as_os_str().is_empty() {
            std::fs::create_dir_all(&config.log_directory)
                .map_err(io_error("creating", &config.log_directory))?;
        }
        if !config.host_namespaces.ipc {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            let options =
                sys::c_string(SHM_OPTIONS.as_ref()).map_err(io_error("mounting", &shm))?;
            rustix::mount::mount("shm", &shm, "tmpfs", flags, options.as_c_str())
                .map_err(io::Error::from)
                .map_err(io_error("mounting", &shm))?;
        }
        Ok(())
    }

    pub(super) async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let _ending = sandbox.ending.lock().await;
        let mut record = lock(&sandbox.record).clone();
        if record.stopped {
            return Ok(());
        }
        let containers = self.containers_of(id);
        let kills = containers
            .iter()
            .map(|container| self.kill_container(container));
        for result in futures::future::join_all(kills).await {
            result?;
        }
        if !record.config.host_namespaces.network {
            self.network.detach(id).await?;
        }
        record.stopped = true;
        lock(&sandbox.record).stopped = true;
        self.end_shim(&record).await;
        self.save_sandbox(&record)?;
        let shm = self.paths.shm(id);
        blocking(move || unmount(&shm)).await?;
        if sandbox.alive.send_replace(false) {
            self.emit(RuntimeEvent::SandboxExited {
                sandbox: id.to_owned(),
            });
        }
        Ok(())
    }

    /// Ends a sandbox's shim, nicely if it answers.
    async fn end_shim(&self, record: &SandboxRecord) {
        let socket = self.paths.socket(&record.id);
        let asked = tokio::time::timeout(
            SHUTDOWN_TIMEOUT,
            shim_client::call(&socket, &Request::Shutdown),
        )
        .await;
        if matches!(asked, Ok(Ok(_))) {
            return;
        }
        if let Some(pid) = shim_pid(record) {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        let _ = std::fs::remove_file(socket);
    }

    pub(super) async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        self.stop_sandbox(id).await?;
        let containers = self.containers_of(id);
        let removals = containers
            .iter()
            .map(|container| self.remove_container(&container.record.id));
        futures::future::try_join_all(removals).await?;
        let _ending = sandbox.ending.lock().await;
        self.remove_sandbox_files(id).await?;
        lock(&self.sandboxes).remove(id);
        Ok(())
    }

    pub(super) async fn remove_sandbox_files(&self, id: &str) -> Result<()> {
        let (directory, shm, socket) = (
            self.paths.sandbox(id),
            self.paths.shm(id),
            self.paths.socket(id),
        );
        blocking(move || {
            unmount(&shm)?;
            let _ = std::fs::remove_file(socket);
            remove_directory(&directory)
        })
        .await
    }

    /// Takes a container's new state, if it is newer than what is known.
    pub(super) fn apply(&self, state: RunState) {
        let Ok(container) = self.container(&state.container) else {
            return;
        };
        let phase = state.phase;
        let changed = container.state.send_if_modified(|known| {
            let newer = phase > known.run.phase || (phase == known.run.phase && state != known.run);
            let advanced = phase > known.run.phase;
            if newer {
                known.run = state;
                known.lost = false;
            }
            advanced
        });
        if !changed {
            return;
        }
        let (sandbox, id) = (
            container.record.sandbox.clone(),
            container.record.id.clone(),
        );
        match phase {
            Phase::Created => {}
            Phase::Running => self.emit(RuntimeEvent::ContainerStarted {
                sandbox,
                container: id,
            }),
            Phase::Exited => self.emit(RuntimeEvent::ContainerExited {
                sandbox,
                container: id,
            }),
        }
    }

    /// The shim is gone: whatever it started is killed, and how it ended is not known.
    pub(super) async fn lose(&self, sandbox: &Sandbox) {
        for container in self.containers_of(&sandbox.id) {
            if let Err(error) = self.cgroups.kill(&container.record.cgroup).await {
                tracing::warn!(%error, container = container.record.id, "killing what a dead shim left");
            }
            // The shim may have noted the end before it went.
            let directory = self.paths.container(&container.record.id);
            self.apply(records::read_state(&directory, &container.record.id));
            let lost = container.state.send_if_modified(|known| {
                let running = known.is_running();
                if running {
                    known.lost = true;
                    known.run.finished_at_ns = Some(records::now_ns());
                }
                running
            });
            if lost {
                let (sandbox, id) = (sandbox.id.clone(), container.record.id.clone());
                self.emit(RuntimeEvent::ContainerExited {
                    sandbox,
                    container: id,
                });
            }
        }
        if sandbox.alive.send_replace(false) {
            self.emit(RuntimeEvent::SandboxExited {
                sandbox: sandbox.id.clone(),
            });
        }
    }
}

/// The shim's pid, unless another process has it by now.
pub(super) fn shim_pid(record: &SandboxRecord) -> Option<i32> {
    let pid = record
        .shim_pid
        .filter(|_| record.boot_id == records::boot_id())?;
    (record.shim_start_time.is_some() && sys::start_time(pid) == record.shim_start_time)
        .then_some(pid)
}

fn network_request(record: &SandboxRecord, pid: i32) -> PodNetworkRequest {
    let config = &record.config;
    let bandwidth = |name: &str| {
        config
            .annotations
            .get(&format!("kubernetes.io/{name}-bandwidth"))
            .and_then(|text| bits_per_second(text))
    };
    PodNetworkRequest {
        sandbox: record.id.clone(),
        pod_namespace: config.namespace.clone(),
        pod_name: config.name.clone(),
        pod_uid: config.uid.clone(),
        netns: PathBuf::from(format!("/proc/{pid}/ns/net")),
        host_ports: config.host_ports.clone(),
        ingress_bps: bandwidth("ingress"),
        egress_bps: bandwidth("egress"),
    }
}

/// A quantity with a decimal or binary suffix, as the bandwidth annotations have it.
fn bits_per_second(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let text = text.trim();
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
        .unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(factor)
}

pub(super) async fn subscribe(socket: &Path) -> Result<(Connection, Vec<RunState>)> {
    let mut connection = Connection::open(socket)
        .await
        .map_err(|error| shim_client::gone(&error))?;
    connection
        .send(&Request::Subscribe, &[])
        .await
        .map_err(|error| shim_client::gone(&error))?;
    match connection.answer().await? {
        (Reply::Snapshot(states), _) => Ok((connection, states)),
        _ => Err(Error::Failed(
            "the pod's shim gave an unexpected answer".to_owned(),
        )),
    }
}

/// Follows a shim until it, or the runtime, is gone.
pub(super) async fn watch_shim(
    inner: Weak<Inner>,
    sandbox: Arc<Sandbox>,
    mut connection: Connection,
) {
    loop {
        let received = connection.receive().await;
        let Some(inner) = inner.upgrade() else { return };
        if let Ok(Some((Reply::Changed(state), _))) = received {
            inner.apply(state);
            continue;
        }
        let record = lock(&sandbox.record).clone();
        if record.stopped {
            return;
        }
        tokio::time::sleep(RESUBSCRIBE_DELAY).await;
        match subscribe(&inner.paths.socket(&sandbox.id)).await {
            Ok((again, states)) => {
                connection = again;
                states.into_iter().for_each(|state| inner.apply(state));
            }
            Err(error) => {
                if lock(&sandbox.record).stopped {
                    return;
                }
                tracing::warn!(%error, sandbox = sandbox.id, "a pod's shim is gone");
                if let Some(pid) = shim_pid(&record) {
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
                inner.lose(&sandbox).await;
                return;
            }
        }
    }
}

pub(super) fn unmount(path: &Path) -> Result<()> {
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // One below the other, if it was mounted twice.
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(io_error("unmounting", path)(error.into())),
        }
    }
}

pub(super) fn remove_directory(path: &Path) -> Result<()> {
    for _ in 0..REMOVALS {
        match std::fs::remove_dir_all(path) {
            // A shim in the making has just opened its log in it.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                std::thread::sleep(REMOVAL_PAUSE);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("removing", path)(error));
            }
            _ => return Ok(()),
        }
    }
    Err(io_error("removing", path)(
        io::ErrorKind::DirectoryNotEmpty.into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_have_suffixes() {
        assert_eq!(bits_per_second("10M"), Some(10_000_000));
        assert_eq!(bits_per_second("1Gi"), Some(1 << 30));
        assert_eq!(bits_per_second("512"), Some(512));
        assert_eq!(bits_per_second("fast"), None);
    }
}
