//! The machine under test: a network namespace, a data directory, the binary, kubectl.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything should take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    /// Keeps the network namespace alive.
    holder: Mutex<Child>,
    server: Mutex<Option<Child>>,
}

const BINARY: &str = env!("CARGO_BIN_EXE_keelson");

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("keelson-e2e-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .spawn()
            .unwrap();
        let lab = Self {
            dir,
            holder: Mutex::new(holder),
            server: Mutex::new(None),
        };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        wait_for("the network namespace", || {
            std::fs::read_link(lab.netns()).is_ok_and(|theirs| theirs != own)
        });
        lab
    }

    pub(crate) fn netns(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.lock().unwrap().id()))
    }

    /// A program inside the network namespace.
    pub(crate) fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.netns().display()))
            .arg(program);
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", &self.dir);
        command
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What this instance's names on the machine carry: a hash of its data directory.
    pub(crate) fn id(&self) -> String {
        let path = self.data_dir();
        let bytes = path.as_os_str().as_encoded_bytes();
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        format!("{hash:08x}")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// `keelson up`; returns when it says that the cluster is ready.
    pub(crate) fn up(&self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let mark = std::fs::metadata(self.log_file()).unwrap().len() as usize;
        let child = self
            .inside(BINARY)
            .args(["up", "--log-level", "info", "--node-name", "node-1"])
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        *self.server.lock().unwrap() = Some(child);
        let started = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
            if log
                .get(mark..)
                .is_some_and(|log| log.contains("The cluster is ready"))
            {
                return;
            }
            let ended = self
                .server
                .lock()
                .unwrap()
                .as_mut()
                .unwrap()
                .try_wait()
                .unwrap();
            assert!(ended.is_none(), "keelson up ended: {}", self.log_tail());
            assert!(
                started.elapsed() < PATIENCE,
                "keelson up is not ready: {}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// `keelson up` that refuses; what it says.
    pub(crate) fn up_fails(&self) -> String {
        let output = self
            .inside(BINARY)
            .args(["up", "--node-name", "node-1", "--data-dir"])
            .arg(self.data_dir())
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// SIGKILL to the server alone.
    pub(crate) fn kill_server(&self) {
        let mut server = self.server.lock().unwrap().take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub(crate) fn down(&self) {
        let output = self.keelson(&["down", "--data-dir", self.data_dir().to_str().unwrap()]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        if let Some(mut server) = self.server.lock().unwrap().take() {
            server.wait().unwrap();
        }
    }

    pub(crate) fn keelson(&self, arguments: &[&str]) -> Output {
        self.inside(BINARY).args(arguments).output().unwrap()
    }

    /// The built-in image's program, run on the host of the namespace.
    pub(crate) fn hello(&self, arguments: &[&str]) -> Output {
        self.inside(BINARY)
            .arg("__hello")
            .args(arguments)
            .output()
            .unwrap()
    }

    pub(crate) fn namespace(&self, scenario: &str) -> Namespace<'_> {
        let name = scenario.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let name = name
            .trim_matches('-')
            .chars()
            .take(50)
            .collect::<String>()
            .to_lowercase();
        let namespace = Namespace { lab: self, name };
        namespace
            .raw(&["create", "namespace", &namespace.name], "")
            .unwrap();
        namespace
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.lock().unwrap().take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        let data_dir = self.data_dir();
        let _ = self
            .inside(BINARY)
            .args(["down", "--data-dir"])
            .arg(data_dir)
            .output();
        let mut holder = self.holder.lock().unwrap();
        let _ = holder.kill();
        let _ = holder.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A Kubernetes namespace and kubectl in it.
pub(crate) struct Namespace<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) name: String,
}

impl Namespace<'_> {
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = if Path::new("/usr/bin/kubectl").exists() {
            self.lab.inside("kubectl")
        } else {
            let mut command = self.lab.inside(BINARY);
            command.arg("kubectl");
            command
        };
        command.args(["--namespace", &self.name]).args(arguments);
        command
    }

    /// Standard output, or standard error of a failure.
    pub(crate) fn raw(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.raw(arguments, "")
            .unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    pub(crate) fn kubectl_fails(&self, arguments: &[&str]) -> String {
        self.raw(arguments, "")
            .expect_err(&format!("kubectl {} must fail", arguments.join(" ")))
    }

    pub(crate) fn apply(&self, manifest: &Value) {
        self.raw(&["apply", "-f", "-"], &manifest.to_string())
            .unwrap_or_else(|error| panic!("apply {manifest}: {error}"));
    }

    pub(crate) fn get(&self, what: &str) -> Value {
        let (kind, name) = what.split_once('/').unwrap_or((what, ""));
        let mut arguments = vec!["get", kind];
        if !name.is_empty() {
            arguments.push(name);
        }
        arguments.extend(["-o", "json"]);
        serde_json::from_str(&self.kubectl(&arguments)).unwrap()
    }

    /// Repeats until the closure gives something.
    pub(crate) fn until<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = probe() {
                return found;
            }
            if started.elapsed() > PATIENCE {
                let pods = self.raw(&["get", "pods", "-o", "wide"], "");
                let events = self.raw(&["get", "events"], "");
                panic!(
                    "waiting for {what}:\n{}\n{}",
                    pods.unwrap_or_default(),
                    events.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn wait_ready(&self, pod: &str) {
        let outcome = self.raw(
            &[
                "wait",
                "--for=condition=Ready",
                &format!("pod/{pod}"),
                "--timeout=90s",
            ],
            "",
        );
        if let Err(error) = outcome {
            panic!(
                "{error}\n{}",
                self.raw(&["describe", "pod", pod], "").unwrap_or_default()
            );
        }
    }

    /// A pod of the built-in image; `extra` is merged into its specification.
    pub(crate) fn pod(&self, name: &str, arguments: &[&str], extra: Value) -> Value {
        let mut spec = serde_json::json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": "localhost/keelson/hello", "args": arguments}],
        });
        merge(&mut spec, extra);
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": spec,
        })
    }

    pub(crate) fn delete(&self) {
        self.kubectl(&[
            "delete",
            "namespace",
            &self.name,
            "--wait=true",
            "--timeout=90s",
        ]);
    }
}

/// Objects key by key, lists item by item, everything else replaced.
pub(crate) fn merge(target: &mut Value, extra: Value) {
    match (target, extra) {
        (Value::Object(target), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(target), Value::Array(extra)) => {
            for (index, value) in extra.into_iter().enumerate() {
                match target.get_mut(index) {
                    Some(item) => merge(item, value),
                    None => target.push(value),
                }
            }
        }
        (target, extra) => *target = extra,
    }
}

pub(crate) fn wait_for(what: &str, mut probe: impl FnMut() -> bool) {
    let started = Instant::now();
    while !probe() {
        assert!(started.elapsed() < PATIENCE, "waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
