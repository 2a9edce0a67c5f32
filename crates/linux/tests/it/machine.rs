//! A runtime on this machine, with directories and cgroups of its own that go away again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ipnet::IpNet;
use keelson_linux::{
    LinuxCgroups, LinuxRuntime, LogLimits, Rootfs, RootfsSource, RuntimeConfig, purge,
};
use keelson_ports::*;

/// An image that holds the machine's static busybox and little else.
struct Busybox {
    layers: Vec<PathBuf>,
}

const IMAGE_ID: &str = "sha256:b0b0";

#[async_trait]
impl Images for Busybox {
    async fn resolve(&self, reference: &str) -> Result<Option<ImageInfo>> {
        Ok(
            (reference == "busybox" || reference == IMAGE_ID).then(|| ImageInfo {
                id: IMAGE_ID.to_owned(),
                repo_tags: vec!["busybox:latest".to_owned()],
                repo_digests: vec![],
                size_bytes: 0,
                user: ImageUser::Unset,
                entrypoint: vec![],
                cmd: vec!["sh".to_owned()],
                env: vec!["PATH=/bin".to_owned(), "FROM_IMAGE=yes".to_owned()],
                working_dir: String::new(),
                stop_signal: None,
                pinned: false,
                last_used_at: None,
            }),
        )
    }
    async fn pull(
        &self,
        _: &str,
        _: &[RegistryAuth],
        _: Option<Arc<dyn PullProgress>>,
    ) -> Result<ImageInfo> {
        Err(Error::Unsupported("pull".to_owned()))
    }
    async fn import(&self, _: &Path) -> Result<Vec<ImageInfo>> {
        Err(Error::Unsupported("import".to_owned()))
    }
    async fn list(&self) -> Result<Vec<ImageInfo>> {
        Ok(vec![])
    }
    async fn remove(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn fs_usage(&self) -> Result<ImageFsUsage> {
        Ok(ImageFsUsage::default())
    }
}

#[async_trait]
impl RootfsSource for Busybox {
    async fn hold(&self, _: &str, _: &str) -> Result<Rootfs> {
        Ok(Rootfs {
            layers: self.layers.clone(),
            user: String::new(),
        })
    }
    async fn release(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn retain(&self, _: Vec<String>) -> Result<()> {
        Ok(())
    }
}

/// Pods here have a loopback interface only.
struct NoNetwork;

#[async_trait]
impl PodNetwork for NoNetwork {
    async fn setup_node(&self, _: &[IpNet], _: &[IpNet]) -> Result<()> {
        Ok(())
    }
    async fn attach(&self, request: &PodNetworkRequest) -> Result<NetworkStatus> {
        assert!(request.netns.exists());
        Ok(NetworkStatus {
            ips: vec![[10, 0, 0, 9].into()],
            ..NetworkStatus::default()
        })
    }
    async fn detach(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn set_routes(&self, _: &[(IpNet, std::net::IpAddr)]) -> Result<()> {
        Ok(())
    }
    async fn retain(&self, _: &[String]) -> Result<()> {
        Ok(())
    }
    async fn teardown_node(&self) -> Result<()> {
        Ok(())
    }
}

pub(crate) struct Machine {
    pub(crate) directory: PathBuf,
    pub(crate) cgroups: LinuxCgroups,
    pub(crate) runtime: LinuxRuntime,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Machine {
    /// The machine of another process of these tests, which made its directories.
    pub(crate) async fn join(directory: PathBuf) -> Machine {
        let name = directory
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let cgroups = LinuxCgroups::open(&format!("/{name}")).unwrap();
        let runtime = start(&directory, &cgroups).await;
        Machine {
            directory,
            cgroups,
            runtime,
        }
    }

    async fn new() -> Machine {
        let name = format!(
            "keelson-it-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = PathBuf::from("/tmp").join(&name);
        let layer = directory.join("layer");
        for sub in ["bin", "etc", "tmp"] {
            std::fs::create_dir_all(layer.join(sub)).unwrap();
        }
        std::fs::create_dir_all(directory.join("lower")).unwrap();
        std::fs::copy("/usr/bin/busybox", layer.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "echo", "sleep", "id", "ls", "tail", "touch", "mount", "hostname", "ps",
            "nc", "stty", "tty", "env", "kill", "mkdir", "head", "wc", "grep", "unshare", "true",
            "false", "dd", "stat", "readlink", "chown",
        ] {
            std::os::unix::fs::symlink("busybox", layer.join("bin").join(applet)).unwrap();
        }
        std::fs::write(
            layer.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(layer.join("etc/group"), "root:x:0:\nlogs:x:50:web\n").unwrap();
        std::os::unix::fs::symlink("../run/resolv.conf", layer.join("etc/resolv.conf")).unwrap();
        let cgroups = LinuxCgroups::open(&format!("/{name}")).unwrap();
        let runtime = start(&directory, &cgroups).await;
        Machine {
            directory,
            cgroups,
            runtime,
        }
    }

    /// Forgets the runtime as a killed process would, and starts the next one.
    pub(crate) async fn restart(&mut self) {
        self.runtime = start(&self.directory, &self.cgroups).await;
    }

    pub(crate) async fn sandbox(&self, uid: &str) -> String {
        self.runtime.run_pod_sandbox(self.pod(uid)).await.unwrap()
    }

    pub(crate) fn pod(&self, uid: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            name: format!("pod-{uid}"),
            namespace: "default".to_owned(),
            uid: uid.to_owned(),
            hostname: format!("pod-{uid}"),
            cgroup_parent: format!("/kubepods/pod{uid}"),
            log_directory: self.directory.join("logs").join(uid),
            dns: DnsConfig {
                servers: vec!["10.96.0.10".to_owned()],
                ..DnsConfig::default()
            },
            ..PodSandboxConfig::default()
        }
    }

    pub(crate) async fn start(&self, sandbox: &str, config: ContainerConfig) -> String {
        let id = self
            .runtime
            .create_container(sandbox, config)
            .await
            .unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }

    /// Runs a container to its end: status and what it wrote, without the log's framing.
    pub(crate) async fn run(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> (ContainerStatus, String) {
        let id = self.start(sandbox, config).await;
        let status = self.ended(&id).await;
        let text = log_text(&status.log_path);
        (status, text)
    }

    pub(crate) async fn ended(&self, id: &str) -> ContainerStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.runtime.container_status(id).await.unwrap();
            if matches!(
                status.state,
                ContainerState::Exited | ContainerState::Unknown
            ) {
                return status;
            }
            assert!(Instant::now() < deadline, "{id} still runs: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn exec(&self, id: &str, script: &str) -> ExecOutput {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        self.runtime
            .exec_sync(id, command, Duration::from_secs(20))
            .await
            .unwrap()
    }
}

async fn start(directory: &Path, cgroups: &LinuxCgroups) -> LinuxRuntime {
    let busybox = Arc::new(Busybox {
        layers: vec![directory.join("lower"), directory.join("layer")],
    });
    let config = RuntimeConfig {
        state_dir: directory.join("runtime"),
        run_dir: directory.join("run"),
        shim_executable: Some(env!("CARGO_BIN_EXE_keelson-shim").into()),
        log_limits: LogLimits {
            max_bytes: 10 << 20,
            max_files: 5,
        },
    };
    let (images, network) = (Arc::clone(&busybox), Arc::new(NoNetwork));
    LinuxRuntime::open(config, cgroups.clone(), images, busybox, network)
        .await
        .unwrap()
}

/// A container that runs a shell script with one output, so that its lines keep their order.
pub(crate) fn joined(name: &str, text: &str) -> ContainerConfig {
    script(name, &format!("exec 2>&1; {text}"))
}

/// A container that runs a shell script.
pub(crate) fn script(name: &str, text: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.to_owned(),
        image: "busybox".to_owned(),
        user_image: "busybox".to_owned(),
        command: ["sh", "-c", text].map(str::to_owned).to_vec(),
        log_path: format!("{name}/0.log").into(),
        labels: BTreeMap::from([("name".to_owned(), name.to_owned())]),
        ..ContainerConfig::default()
    }
}

pub(crate) fn log_text(path: &Path) -> String {
    let mut out = String::new();
    for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
        let mut fields = line.splitn(4, ' ').skip(2);
        let tag = fields.next().unwrap_or_default();
        out.push_str(fields.next().unwrap_or_default());
        if tag == "F" {
            out.push('\n');
        }
    }
    out
}

/// Runs a test with a machine, and cleans up whatever it did.
pub(crate) fn with_machine<F>(test: impl FnOnce(Machine) -> F + Send + 'static)
where
    F: Future<Output = Machine> + Send + 'static,
{
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containers need root");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let machine = Machine::new().await;
        let (directory, cgroups) = (machine.directory.clone(), machine.cgroups.clone());
        let result = tokio::spawn(test(machine)).await;
        purge(&directory.join("run"), cgroups.prefix(), &directory)
            .await
            .unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        if let Err(error) = result {
            std::panic::resume_unwind(error.into_panic());
        }
    });
}
