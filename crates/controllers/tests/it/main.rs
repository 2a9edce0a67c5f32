//! The controllers in their world: an API server over a store in memory, the scheduler, and a node
//! agent on a machine of memory. Requests of the controllers get lost now and then.

#![allow(clippy::unwrap_used)]

mod cleaning;
mod workloads;

use std::sync::Arc;

use keelson_controllers::{CONTROLLERS, Config, MANAGER};
use keelson_node::{NodeConfig, NodePorts};
use keelson_testkit::{Cluster, FakeImages, FakeKernel, FakeRuntime, Faults, RealClock, UserInfo};
use serde_json::{Value, json};

/// The usual share of requests of controllers and scheduler that get lost.
pub(crate) const LOST_PERCENT: u32 = 10;

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    /// What the node believes to run.
    pub(crate) runtime: Arc<FakeRuntime>,
}

impl World {
    pub(crate) async fn start(seed: u64, lost_percent: u32) -> Self {
        let cluster = Cluster::start().await;
        let faults = Faults::new(seed, lost_percent);
        eprintln!("seed {}", faults.seed());
        let runtime = FakeRuntime::new();
        run_controllers(&cluster, &faults);
        let (client, informers) = (
            faults.over(cluster.client(control_plane("system:kube-scheduler"))),
            cluster.informers().clone(),
        );
        cluster.spawn(async move {
            keelson_scheduler::run(client, &informers, Default::default()).await;
        });
        run_node(&cluster, &runtime);
        let world = Self { cluster, runtime };
        world
            .cluster
            .until("/api/v1/nodes/node-1", |node| {
                condition(node, "Ready") == "True"
            })
            .await;
        world
    }

    /// A namespace that pods can be created in: its service account is there.
    pub(crate) async fn namespace(&self, name: &str) {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.cluster.create("/api/v1/namespaces", namespace).await;
        let account = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
        self.cluster.until(&account, |_| true).await;
    }

    pub(crate) async fn items(&self, path: &str) -> Vec<Value> {
        let list = self.cluster.get(path).await.unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    pub(crate) async fn delete(&self, path: &str, propagation: &str) {
        let options =
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation});
        let deleted = self
            .cluster
            .admin()
            .request(http::Method::DELETE, path, Some(&options))
            .await;
        deleted.unwrap_or_else(|error| panic!("deleting {path}: {error}"));
    }
}

fn run_controllers(cluster: &Cluster, faults: &Faults) {
    let config = Config {
        root_ca: cluster.root_ca(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        ..Config::default()
    };
    let mut clients: Vec<_> = CONTROLLERS
        .iter()
        .map(|row| {
            let user = UserInfo::service_account("kube-system", row.service_account);
            (row.service_account, faults.over(cluster.client(user)))
        })
        .collect();
    let manager = faults.over(cluster.client(control_plane(MANAGER)));
    clients.push((MANAGER, manager));
    let informers = cluster.informers().clone();
    cluster.spawn(async move {
        let client_for = |account: &str| {
            let found = clients.iter().find(|(name, _)| *name == account);
            found.map(|(_, client)| client.clone()).unwrap()
        };
        keelson_controllers::run_all(informers, client_for, &config).await;
    });
}

fn run_node(cluster: &Cluster, runtime: &Arc<FakeRuntime>) {
    let user = UserInfo::new(
        "system:node:node-1",
        &["system:nodes", "system:authenticated"],
    );
    let mut config = NodeConfig::new(
        "node-1",
        vec!["127.0.0.1".parse().unwrap()],
        cluster.dir().join("node"),
    );
    config.eviction_memory_available_bytes = 0;
    let ports = NodePorts {
        runtime: runtime.clone(),
        images: Arc::new(FakeImages),
        cgroups: Arc::new(FakeKernel),
        mounts: Arc::new(FakeKernel),
        clock: Arc::new(RealClock),
    };
    let informers = cluster.informers_of(user);
    let shutdown = cluster.shutdown_token();
    cluster.spawn(async move {
        keelson_node::run(config, informers, ports, shutdown)
            .await
            .unwrap();
    });
}

fn control_plane(name: &str) -> UserInfo {
    UserInfo::new(name, &["system:authenticated"])
}

/// The status of a condition.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind)
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or("absent")
}

/// A pod template on the only image there is; containers run until they are stopped.
pub(crate) fn template(app: &str, generation: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": "img:1",
                "env": [{"name": "GENERATION", "value": generation}],
            }],
        },
    })
}

pub(crate) fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template(name, "1"),
        },
    })
}
