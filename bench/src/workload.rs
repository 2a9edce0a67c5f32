//! Deployments, from the outside: created, seen ready, deleted, seen gone.

use std::time::{Duration, Instant};

use http::Method;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{Client, DeleteOptions, Informer, InformerOptions, Informers};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "bench";
/// In the node's image store from the start, so that no registry is measured.
const IMAGE: &str = "localhost/keelson/hello";

pub(crate) struct Workloads {
    client: Client,
    deployments: Informer<Deployment>,
    pods: Informer<Pod>,
    changed: watch::Receiver<()>,
    patience: Duration,
    shutdown: CancellationToken,
}

impl Drop for Workloads {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Workloads {
    /// Makes the namespace and watches it.
    pub(crate) async fn open(client: Client, patience: Duration) -> Result<Self, String> {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        client
            .request(Method::POST, "/api/v1/namespaces", Some(&namespace))
            .await
            .map_err(|error| format!("creating namespace {NAMESPACE}: {error}"))?;
        let shutdown = CancellationToken::new();
        let informers = Informers::new(client.clone(), shutdown.clone());
        let options = InformerOptions {
            namespace: NAMESPACE.to_owned(),
            ..InformerOptions::default()
        };
        let deployments = informers.informer_with::<Deployment>(options.clone());
        let pods = informers.informer_with::<Pod>(options);
        let (sender, changed) = watch::channel(());
        let other = sender.clone();
        deployments.subscribe(move |_| sender.send_replace(()));
        pods.subscribe(move |_| other.send_replace(()));
        deployments.synced().await;
        pods.synced().await;
        Ok(Self {
            client,
            deployments,
            pods,
            changed,
            patience,
            shutdown,
        })
    }

    /// From the request to the status that says that every replica is available.
    pub(crate) async fn start(&mut self, name: &str, replicas: i32) -> Result<Duration, String> {
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "main", "image": IMAGE}]},
                },
            },
        });
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
        let started = Instant::now();
        self.client
            .request(Method::POST, &path, Some(&deployment))
            .await
            .map_err(|error| format!("creating deployment {name}: {error}"))?;
        let deployments = self.deployments.clone();
        self.until(&format!("{replicas} replicas of {name}"), || {
            let deployment = deployments.get(NAMESPACE, name);
            let status = deployment
                .as_ref()
                .and_then(|deployment| deployment.status.as_ref());
            status.and_then(|status| status.available_replicas) == Some(replicas)
        })
        .await?;
        Ok(started.elapsed())
    }

    /// From the request until the last of its pods is gone from the API.
    pub(crate) async fn delete(&mut self, name: &str) -> Result<Duration, String> {
        let started = Instant::now();
        self.client
            .delete::<Deployment>(NAMESPACE, name, &DeleteOptions::background())
            .await
            .map_err(|error| format!("deleting deployment {name}: {error}"))?;
        let pods = self.pods.clone();
        self.until(&format!("the end of the pods of {name}"), || {
            pods.list().iter().all(|pod| {
                let labels = pod.metadata.labels.as_ref();
                labels
                    .and_then(|labels| labels.get("app"))
                    .map(String::as_str)
                    != Some(name)
            })
        })
        .await?;
        Ok(started.elapsed())
    }

    async fn until(&mut self, what: &str, condition: impl Fn() -> bool) -> Result<(), String> {
        let changed = &mut self.changed;
        let waiting = async {
            while !condition() {
                // The sender lives in the informers, which live as long as this.
                if changed.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        match tokio::time::timeout(self.patience, waiting).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("waiting for {what}: the watch ended")),
            Err(_) => Err(format!(
                "waiting for {what}: not within {} s; {} pods are there",
                self.patience.as_secs(),
                self.pods.len()
            )),
        }
    }
}
