//! A machine of memory: containers that run until they are told to end. One whose command is
//! `exit N` ends with N as soon as it is started.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use keelson_ports::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;

#[derive(Default)]
struct State {
    next: u32,
    sandboxes: BTreeMap<String, PodSandboxStatus>,
    containers: BTreeMap<String, (ContainerStatus, ContainerConfig)>,
    stopped_with: BTreeMap<String, Duration>,
}

/// Remembers sandboxes and containers and runs nothing.
pub struct FakeRuntime {
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
}

impl FakeRuntime {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            events: broadcast::channel(64).0,
        })
    }

    /// The newest container of this name, as it was asked for.
    pub fn config(&self, name: &str) -> Option<ContainerConfig> {
        let state = self.state.lock().unwrap();
        state
            .containers
            .values()
            .filter(|(s, _)| s.name == name)
            .map(|(_, c)| c.clone())
            .next_back()
    }

    /// The id of a running container of this name.
    pub fn running(&self, name: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        let found = state
            .containers
            .values()
            .find(|(s, _)| s.name == name && s.state == ContainerState::Running);
        found.map(|(s, _)| s.id.clone())
    }

    /// How many sandboxes and containers there are.
    pub fn counts(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        (state.sandboxes.len(), state.containers.len())
    }

    /// The grace period that a container was stopped with.
    pub fn stopped_with(&self, id: &str) -> Option<Duration> {
        self.state.lock().unwrap().stopped_with.get(id).copied()
    }

    /// The container's process ends.
    pub fn end(&self, id: &str, code: i32) {
        let mut state = self.state.lock().unwrap();
        let Some((status, _)) = state.containers.get_mut(id) else {
            return;
        };
        if status.state != ContainerState::Running {
            return;
        }
        status.state = ContainerState::Exited;
        status.exit_code = Some(code);
        status.finished_at = Some(SystemTime::now());
        status.reason = if code == 0 { "Completed" } else { "Error" }.into();
        let event = RuntimeEvent::ContainerExited {
            sandbox: status.sandbox.clone(),
            container: id.to_owned(),
        };
        drop(state);
        let _ = self.events.send(event);
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn version(&self) -> (String, String) {
        ("fake".into(), "1".into())
    }

    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<SandboxId> {
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let id = format!("s{}", state.next);
        let status = PodSandboxStatus {
            id: id.clone(),
            name: config.name,
            namespace: config.namespace,
            uid: config.uid,
            attempt: config.attempt,
            state: SandboxState::Ready,
            created_at: SystemTime::now(),
            ips: vec!["127.0.0.1".parse().unwrap()],
            host_namespaces: config.host_namespaces,
            labels: config.labels,
            annotations: config.annotations,
        };
        state.sandboxes.insert(id.clone(), status);
        Ok(id)
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        if let Some(sandbox) = self.state.lock().unwrap().sandboxes.get_mut(id) {
            sandbox.state = SandboxState::NotReady;
        }
        Ok(())
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        state.sandboxes.remove(id);
        state
            .containers
            .retain(|_, (status, _)| status.sandbox != id);
        Ok(())
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        self.state
            .lock()
            .unwrap()
            .sandboxes
            .get(id)
            .cloned()
            .ok_or_else(|| Error::NotFound(id.into()))
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>> {
        Ok(self
            .state
            .lock()
            .unwrap()
            .sandboxes
            .values()
            .cloned()
            .collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<ContainerId> {
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let id = format!("c{:04}", state.next);
        let status = ContainerStatus {
            id: id.clone(),
            sandbox: sandbox.to_owned(),
            name: config.name.clone(),
            attempt: config.attempt,
            state: ContainerState::Created,
            created_at: SystemTime::now(),
            started_at: None,
            finished_at: None,
            exit_code: None,
            signal: None,
            oom_killed: false,
            reason: String::new(),
            message: String::new(),
            image_id: config.image.clone(),
            image: config.user_image.clone(),
            log_path: PathBuf::from("/nonexistent"),
            pid: None,
            user: None,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        };
        state.containers.insert(id.clone(), (status, config));
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let (status, config) = state
            .containers
            .get_mut(id)
            .ok_or_else(|| Error::NotFound(id.into()))?;
        status.state = ContainerState::Running;
        status.started_at = Some(SystemTime::now());
        let code = match config.command.as_slice() {
            [exit, code] if exit == "exit" => code.parse().ok(),
            _ => None,
        };
        drop(state);
        if let Some(code) = code {
            self.end(id, code);
        }
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.state
            .lock()
            .unwrap()
            .stopped_with
            .insert(id.to_owned(), grace);
        self.end(id, 0);
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.state.lock().unwrap().containers.remove(id);
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let state = self.state.lock().unwrap();
        state
            .containers
            .get(id)
            .map(|(s, _)| s.clone())
            .ok_or_else(|| Error::NotFound(id.into()))
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>> {
        Ok(self
            .state
            .lock()
            .unwrap()
            .containers
            .values()
            .map(|(s, _)| s.clone())
            .collect())
    }

    async fn update_container_resources(
        &self,
        _id: &str,
        _resources: CgroupResources,
    ) -> Result<()> {
        Ok(())
    }

    async fn reopen_container_log(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    async fn container_stats(&self, _id: &str) -> Result<ContainerStats> {
        Ok(ContainerStats::default())
    }

    async fn exec_sync(
        &self,
        _id: &str,
        command: Vec<String>,
        _timeout: Duration,
    ) -> Result<ExecOutput> {
        let code = command
            .get(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        Ok(ExecOutput {
            exit_code: code,
            ..ExecOutput::default()
        })
    }

    /// `cat` gives its input back; `exit N` ends with N after one line on standard error.
    async fn exec(&self, _id: &str, request: ExecRequest) -> Result<ExecSession> {
        let (outer_in, mut inner_in) = tokio::io::duplex(1024);
        let (outer_out, mut inner_out) = tokio::io::duplex(1024);
        let (outer_err, mut inner_err) = tokio::io::duplex(1024);
        let task = tokio::spawn(async move {
            if request.command[0] == "exit" {
                inner_err.write_all(b"bye\n").await.unwrap();
                return request.command[1].parse().unwrap();
            }
            let mut buffer = [0; 256];
            loop {
                match inner_in.read(&mut buffer).await {
                    Ok(0) | Err(_) => return 0,
                    Ok(count) => inner_out.write_all(&buffer[..count]).await.unwrap(),
                }
            }
        });
        Ok(ExecSession {
            stdin: Some(Box::new(outer_in)),
            stdout: Some(Box::new(outer_out)),
            stderr: Some(Box::new(outer_err)),
            resize: None,
            exit: Box::pin(
                async move { task.await.map_err(|error| Error::Failed(error.to_string())) },
            ),
        })
    }

    async fn attach(&self, _id: &str, _request: AttachRequest) -> Result<ExecSession> {
        Err(Error::Unsupported("attach".into()))
    }

    async fn port_forward(&self, _sandbox: &str, port: u16) -> Result<Box<dyn Duplex>> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
        stream
            .map(|stream| Box::new(stream) as Box<dyn Duplex>)
            .map_err(|error| Error::Failed(error.to_string()))
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        let receiver = self.events.subscribe();
        Box::pin(futures::stream::unfold(
            receiver,
            |mut receiver| async move {
                match receiver.recv().await {
                    Ok(event) => Some((event, receiver)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        Some((RuntimeEvent::Lost, receiver))
                    }
                    Err(broadcast::error::RecvError::Closed) => None,
                }
            },
        ))
    }
}

/// Holds one image, `img:1`.
pub struct FakeImages;

fn image() -> ImageInfo {
    ImageInfo {
        id: "sha256:1".into(),
        repo_tags: vec!["img:1".into()],
        repo_digests: vec!["img@sha256:2".into()],
        size_bytes: 10,
        user: ImageUser::Unset,
        entrypoint: vec![],
        cmd: vec![],
        env: vec![],
        working_dir: String::new(),
        stop_signal: None,
        pinned: false,
        last_used_at: None,
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn resolve(&self, reference: &str) -> Result<Option<ImageInfo>> {
        Ok((reference == "img:1" || reference == "sha256:1").then(image))
    }

    async fn pull(
        &self,
        reference: &str,
        _auth: &[RegistryAuth],
        _progress: Option<Arc<dyn PullProgress>>,
    ) -> Result<ImageInfo> {
        Err(Error::NotFound(format!("{reference}: not found")))
    }

    async fn import(&self, _archive: &Path) -> Result<Vec<ImageInfo>> {
        Ok(vec![])
    }

    async fn list(&self) -> Result<Vec<ImageInfo>> {
        Ok(vec![image()])
    }

    async fn remove(&self, _reference: &str) -> Result<()> {
        Ok(())
    }

    async fn fs_usage(&self) -> Result<ImageFsUsage> {
        Ok(ImageFsUsage::default())
    }
}

/// Accepts every order about cgroups and mounts and carries out none.
pub struct FakeKernel;

#[async_trait]
impl Cgroups for FakeKernel {
    fn version(&self) -> u8 {
        2
    }

    async fn ensure(&self, _path: &str, _resources: &CgroupResources) -> Result<()> {
        Ok(())
    }

    async fn remove(&self, _path: &str) -> Result<()> {
        Ok(())
    }

    async fn stats(&self, _path: &str) -> Result<CgroupStats> {
        Ok(CgroupStats::default())
    }

    async fn children(&self, _path: &str) -> Result<Vec<String>> {
        Ok(vec![])
    }
}

/// Mounts of memory are plain directories here.
#[async_trait]
impl Mounts for FakeKernel {
    async fn mount_tmpfs(
        &self,
        _target: &Path,
        _size_bytes: Option<u64>,
        _mode: u32,
    ) -> Result<()> {
        Ok(())
    }

    async fn bind(&self, _source: &Path, _target: &Path, _readonly: bool) -> Result<()> {
        Ok(())
    }

    async fn mount(
        &self,
        _fstype: &str,
        _source: &str,
        _target: &Path,
        _options: &[String],
    ) -> Result<()> {
        Ok(())
    }

    async fn unmount(&self, _target: &Path) -> Result<()> {
        Ok(())
    }

    async fn is_mount_point(&self, _path: &Path) -> Result<bool> {
        Ok(false)
    }

    async fn mounts_below(&self, _path: &Path) -> Result<Vec<PathBuf>> {
        Ok(vec![])
    }

    async fn open_in_root(&self, root: &Path, relative: &Path, _create: bool) -> Result<OwnedFd> {
        let file = std::fs::File::open(root.join(relative));
        file.map(OwnedFd::from)
            .map_err(|error| Error::Failed(error.to_string()))
    }

    async fn set_fs_group(&self, _path: &Path, _gid: u32, _readonly: bool) -> Result<()> {
        Ok(())
    }

    async fn tree_usage(&self, _path: &Path) -> Result<TreeUsage> {
        Ok(TreeUsage::default())
    }

    async fn fs_usage(&self, _path: &Path) -> Result<FsUsage> {
        Ok(FsUsage {
            capacity_bytes: 100 << 30,
            available_bytes: 90 << 30,
            used_bytes: 10 << 30,
            inodes: 100,
            inodes_free: 90,
        })
    }
}

/// The time of the machine that the test runs on.
pub struct RealClock;

impl Clock for RealClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}
