//! The node agent against an API server and a machine of memory.

#![allow(clippy::unwrap_used)]

mod fake_api;
mod pods;
mod streams;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fake_api::{FakeApi, FakeTransport};
use keelson_client::{Client, Informers};
use keelson_node::{NodeConfig, NodePorts, ServerConfig};
use keelson_testkit::{FakeImages, FakeKernel, FakeRuntime, RealClock};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Fixture {
    pub(crate) api: Arc<FakeApi>,
    pub(crate) runtime: Arc<FakeRuntime>,
    pub(crate) dir: PathBuf,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Fixture {
    pub(crate) fn start() -> Self {
        Self::start_with(None)
    }

    pub(crate) fn start_with(server: Option<ServerConfig>) -> Self {
        let dir = std::env::temp_dir().join(format!(
            "keelson-node-{}-{:x}",
            std::process::id(),
            rand::random::<u64>()
        ));
        let (api, runtime) = (FakeApi::new(), FakeRuntime::new());
        let (shutdown, task) = run(&api, &runtime, &dir, server);
        Self {
            api,
            runtime,
            dir,
            shutdown,
            task,
        }
    }

    /// The agent ends and another one takes over.
    pub(crate) async fn restart(&mut self) {
        self.shutdown.cancel();
        let _ = (&mut self.task).await;
        let (shutdown, task) = run(&self.api, &self.runtime, &self.dir, None);
        (self.shutdown, self.task) = (shutdown, task);
    }

    pub(crate) fn create(&self, name: &str, spec: Value) -> String {
        let path = format!("/api/v1/namespaces/ns/pods/{name}");
        let mut spec = spec;
        spec["nodeName"] = "n1".into();
        self.api.put(&path, json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec}));
        path
    }

    /// Waits until the object at `path` satisfies the condition.
    pub(crate) async fn until(&self, path: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let object = self.api.get(path);
            if let Some(object) = object.as_ref().filter(|object| condition(object)) {
                return object.clone();
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{path} stayed {object:#?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn until_true(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "waiting for: {what}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn run(
    api: &Arc<FakeApi>,
    runtime: &Arc<FakeRuntime>,
    dir: &std::path::Path,
    server: Option<ServerConfig>,
) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let informers = Informers::new(
        Client::new(Arc::new(FakeTransport(api.clone()))),
        shutdown.clone(),
    );
    let mut config = NodeConfig::new("n1", vec!["127.0.0.1".parse().unwrap()], dir);
    config.eviction_memory_available_bytes = 0;
    config.server = server;
    let ports = NodePorts {
        runtime: runtime.clone(),
        images: Arc::new(FakeImages),
        cgroups: Arc::new(FakeKernel),
        mounts: Arc::new(FakeKernel),
        clock: Arc::new(RealClock),
    };
    let stop = shutdown.clone();
    let task = tokio::spawn(async move {
        keelson_node::run(config, informers, ports, stop)
            .await
            .unwrap();
    });
    (shutdown, task)
}

pub(crate) fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .find(|c| c["type"] == kind)
        .and_then(|c| c["status"].as_str())
        .unwrap_or("absent")
}
