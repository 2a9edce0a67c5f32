//! The node agent: runs the pods that the API assigns to this machine and reports on them.
//!
//! It decides and sees only `keelson_ports`; somebody else acts. Each pod has a worker that
//! gathers what is wanted and what is there, plans (a pure function) and applies. Nothing polls:
//! API watches, runtime events and probe results wake the workers.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admission;
mod agent;
mod config;
mod events;
mod eviction;
mod hooks;
mod images;
mod local_storage;
mod logs;
mod machine;
mod metrics;
mod node;
mod node_status;
mod objects;
mod plan;
mod pod;
mod probes;
mod runtime_state;
mod server;
mod start;
mod status;
mod stop;
mod sysctls;
mod volumes;
mod worker;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as ApiNode, Pod, Service};
use keelson_client::{EventRecorder, InformerOptions, Informers};
use keelson_ports::{Cgroups, Clock, Images, Mounts, Runtime};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

pub use config::{NodeCertificate, NodeConfig, PodCidrs, ServerConfig};
pub use sysctls::{UnknownSysctl, UnsafeSysctls};

#[derive(Debug, Error)]
pub enum Error {
    #[error("preparing {path}")]
    Directory {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("reading the disk's size")]
    Disk(#[source] keelson_ports::Error),
    #[error("preparing the cgroups of pods")]
    Cgroups(#[source] keelson_ports::Error),
    #[error("the node's HTTP server cannot listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the node's HTTP server: {0}")]
    Server(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What carries out the node's decisions.
#[derive(Clone)]
pub struct NodePorts {
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn Images>,
    pub cgroups: Arc<dyn Cgroups>,
    pub mounts: Arc<dyn Mounts>,
    pub clock: Arc<dyn Clock>,
}

impl NodePorts {
    /// The same, with what they do counted.
    fn measured(self, metrics: &Arc<metrics::Metrics>) -> Self {
        Self {
            runtime: Arc::new(metrics::MeasuredRuntime {
                inner: self.runtime,
                metrics: metrics.clone(),
            }),
            images: Arc::new(metrics::MeasuredImages {
                inner: self.images,
                metrics: metrics.clone(),
            }),
            cgroups: Arc::new(metrics::MeasuredCgroups {
                inner: self.cgroups,
                metrics: metrics.clone(),
            }),
            ..self
        }
    }
}

/// Runs the node until `shutdown`. Pods keep running when it returns, and are found again.
pub async fn run(
    config: NodeConfig,
    informers: Informers,
    ports: NodePorts,
    shutdown: CancellationToken,
) -> Result<()> {
    for dir in [config.data_dir.join("pods"), config.log_dir.join("pods")] {
        std::fs::create_dir_all(&dir).map_err(|source| Error::Directory {
            path: dir.display().to_string(),
            source,
        })?;
    }
    let disk = ports
        .mounts
        .fs_usage(&config.data_dir)
        .await
        .map_err(Error::Disk)?;
    let metrics = Arc::new(metrics::Metrics::default());
    let ports = ports.measured(&metrics);
    let client = informers.client().clone();
    let workers = agent::Workers::default();
    let poke = {
        let workers = workers.clone();
        Arc::new(move |uid: &str| workers.refresh(uid))
    };
    let events = events::Events::new(
        EventRecorder::new(client.clone(), "kubelet", &config.node_name),
        &config.node_name,
    );
    let objects = Arc::new(objects::Objects::new(
        client.clone(),
        shutdown.clone(),
        poke,
    ));
    let pods = informers.informer_with::<Pod>(InformerOptions {
        field_selector: format!("spec.nodeName={}", config.node_name),
        ..InformerOptions::default()
    });
    let this_node = informers.informer_with::<ApiNode>(InformerOptions {
        field_selector: format!("metadata.name={}", config.node_name),
        ..InformerOptions::default()
    });
    let node = Arc::new(node::Node {
        machine: machine::Machine::read(disk.capacity_bytes),
        volumes: volumes::VolumeServices {
            client: client.clone(),
            objects: objects.clone(),
            mounts: ports.mounts.clone(),
            images: ports.images.clone(),
            clock: ports.clock.clone(),
            tokens: volumes::Tokens::default(),
        },
        puller: images::ImagePuller::new(ports.images.clone(), ports.clock.clone(), events.clone()),
        state: runtime_state::RuntimeState::new(ports.runtime.clone()),
        services: informers.informer::<Service>(),
        digests: std::sync::Mutex::default(),
        metrics,
        client,
        runtime: ports.runtime,
        images: ports.images,
        cgroups: ports.cgroups,
        mounts: ports.mounts,
        clock: ports.clock,
        events,
        objects,
        pods,
        this_node,
        config,
        shutdown: shutdown.clone(),
    });
    node.cgroups
        .ensure(pod::qos::ROOT, &keelson_ports::CgroupResources::default())
        .await
        .map_err(Error::Cgroups)?;
    agent::ensure_qos(&node, 0).await;
    let agent = agent::Agent::new(node.clone(), workers);
    let mut tasks = tokio::task::JoinSet::new();
    let port = match node.config.server.clone() {
        Some(server) => {
            let (port, serving) = server::start(agent.clone(), &server, shutdown.clone()).await?;
            tasks.spawn(serving);
            port
        }
        None => 0,
    };
    node.events.node("Normal", "Starting", "Starting kubelet.");
    let (pressure, seen) = tokio::sync::watch::channel(node_status::Pressure::default());
    tasks.spawn(agent.clone().run());
    tasks.spawn(eviction::watch(agent.clone(), pressure));
    let presence = {
        let node = node.clone();
        async move {
            let registered = node_status::register(&node, port).await;
            tokio::join!(
                node_status::keep_status(node.clone(), port, seen),
                node_status::keep_lease(node, registered)
            );
        }
    };
    tasks.spawn(presence);
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        Some(ended) = tasks.join_next() => Err(Error::Server(match ended {
            Ok(()) => "a part of the node agent ended".to_owned(),
            Err(error) => format!("a part of the node agent failed: {error}"),
        })),
    }
}
