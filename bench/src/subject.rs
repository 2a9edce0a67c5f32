//! The binary under measurement: a copy of it, its directory, its life.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use keelson_client::{Client, Kubeconfig};

use crate::processes;

/// Started and not yet cleaned away. Dropping it stops it and removes all it made.
pub(crate) struct Subject {
    binary: PathBuf,
    dir: PathBuf,
    server: Option<Child>,
}

/// When `keelson up` said what, after it was executed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    pub(crate) api: Duration,
    pub(crate) node: Duration,
    pub(crate) dns: Duration,
}

impl Subject {
    /// Copies the binary, so that its pages are shared with no other instance and its processes are
    /// told by their file.
    pub(crate) fn new(binary: &Path) -> Result<Self, String> {
        let dir = std::env::temp_dir().join(format!("keelson-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let copy = dir.join("keelson");
        std::fs::copy(binary, &copy).map_err(|error| format!("{}: {error}", binary.display()))?;
        Ok(Self {
            binary: copy,
            dir,
            server: None,
        })
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub(crate) fn server(&self) -> Result<u32, String> {
        let server = self.server.as_ref();
        server
            .map(Child::id)
            .ok_or_else(|| "the server does not run".to_owned())
    }

    /// `keelson up` until it says that the cluster is ready. Its lines are timed as they arrive.
    pub(crate) fn up(&mut self, patience: Duration) -> Result<Start, String> {
        let log = self.dir.join("log");
        let errors =
            std::fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let started = Instant::now();
        let mut server = Command::new(&self.binary)
            .args(["up", "--node-name", "bench", "--data-dir"])
            .arg(self.data_dir())
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("starting {}: {error}", self.binary.display()))?;
        let output = server.stdout.take();
        self.server = Some(server);
        let (sender, lines) = mpsc::channel();
        // Reads on after the start, for a full pipe would stop the server.
        std::thread::spawn(move || {
            for line in output
                .into_iter()
                .flat_map(|output| BufReader::new(output).lines())
                .map_while(Result::ok)
            {
                let _ = sender.send((started.elapsed(), line));
            }
        });
        let (mut api, mut node, mut dns) = (None, None, None);
        loop {
            let left = patience.saturating_sub(started.elapsed());
            let Ok((at, line)) = lines.recv_timeout(left) else {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("`keelson up` did not become ready\n{log}"));
            };
            for (mark, slot) in [
                ("API server answers", &mut api),
                ("is Ready", &mut node),
                ("DNS answers", &mut dns),
            ] {
                if line.contains(mark) {
                    slot.get_or_insert(at);
                }
            }
            if line.starts_with("The cluster is ready") {
                break;
            }
        }
        match (api, node, dns) {
            (Some(api), Some(node), Some(dns)) => Ok(Start { api, node, dns }),
            _ => Err("`keelson up` did not say when its parts were ready".to_owned()),
        }
    }

    pub(crate) fn client(&self) -> Result<Client, String> {
        let path = self.kubeconfig();
        let config = Kubeconfig::read(&path)
            .and_then(|file| file.client_config(None, &self.dir))
            .and_then(|config| Client::https(&config));
        config.map_err(|error| format!("{}: {error}", path.display()))
    }

    /// SIGKILL to the server alone; pods stay.
    pub(crate) fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// `keelson down --purge`. Returns how long it took.
    pub(crate) fn down(&mut self) -> Result<Duration, String> {
        let started = Instant::now();
        let output = Command::new(&self.binary)
            .args(["down", "--purge", "--data-dir"])
            .arg(self.data_dir())
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("`keelson down`: {error}"))?;
        let took = started.elapsed();
        if let Some(mut server) = self.server.take() {
            if output.status.success() {
                let _ = server.wait();
            } else {
                let _ = server.kill();
                let _ = server.wait();
            }
        }
        if output.status.success() {
            Ok(took)
        } else {
            let errors = String::from_utf8_lossy(&output.stderr);
            Err(format!("`keelson down`: {}", errors.trim()))
        }
    }

    /// Processes of this instance that run now.
    pub(crate) fn processes(&self) -> usize {
        processes::running(&self.binary)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // A second time is harmless; after a failure it is the first.
        if let Err(error) = self.down() {
            eprintln!("keelson-bench: cleaning up: {error}");
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("keelson-bench: {}: {error}", self.dir.display());
        }
    }
}
