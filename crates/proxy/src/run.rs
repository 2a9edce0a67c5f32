//! Gathers, plans, applies; at most so often.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::{Informer, InformerOptions, Informers};
use keelson_ports::PacketRules;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::health::HealthServers;
use crate::plan::{NodeFacts, plan};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    pub node_name: String,
    /// Where pods of the whole cluster live.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses on which node ports answer; empty means all.
    pub node_port_addresses: Vec<IpNet>,
    /// The least time between two applications. The first change is applied at once; what comes
    /// in a burst after it, together.
    pub min_interval: Duration,
}

impl ProxyConfig {
    pub fn new(node_name: impl Into<String>) -> Self {
        ProxyConfig {
            node_name: node_name.into(),
            pod_cidrs: Vec::new(),
            node_port_addresses: Vec::new(),
            min_interval: Duration::from_millis(30),
        }
    }
}

struct Sources {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
}

/// Runs until the informers are shut down. The rules stay: connections outlive the process.
pub async fn run(informers: Informers, packets: Arc<dyn PacketRules>, config: ProxyConfig) {
    let shutdown = informers.shutdown().clone();
    let sources = Sources {
        services: informers.informer(),
        slices: informers.informer(),
        nodes: informers.informer_with(InformerOptions {
            field_selector: format!("metadata.name={}", config.node_name),
            ..InformerOptions::default()
        }),
    };
    let changed = Arc::new(Notify::new());
    sources.subscribe(&changed);
    let synced = async {
        sources.services.synced().await;
        sources.slices.synced().await;
        sources.nodes.synced().await;
    };
    // Planning from half of the facts would cut services off.
    if shutdown.run_until_cancelled(synced).await.is_none() {
        return;
    }
    changed.notify_one();
    let mut health = HealthServers::default();
    let mut retry = FIRST_RETRY;
    loop {
        if shutdown
            .run_until_cancelled(changed.notified())
            .await
            .is_none()
        {
            return;
        }
        let began = Instant::now();
        let plan = plan(
            &sources.services.list(),
            &sources.slices.list(),
            &sources.node_facts(&config),
        );
        let applied = packets.apply(&plan.rules).await;
        health.serve(&plan.health_checks, applied.is_ok());
        let pause = match applied {
            Ok(()) => {
                tracing::debug!(services = plan.rules.services.len(), took = ?began.elapsed(), "packet rules applied");
                retry = FIRST_RETRY;
                config.min_interval.saturating_sub(began.elapsed())
            }
            Err(error) => {
                tracing::warn!(%error, retry_in = ?retry, "cannot apply the packet rules");
                changed.notify_one();
                let pause = retry;
                retry = (retry * 2).min(LAST_RETRY);
                pause
            }
        };
        if shutdown
            .run_until_cancelled(tokio::time::sleep(pause).boxed())
            .await
            .is_none()
        {
            return;
        }
    }
}

impl Sources {
    fn subscribe(&self, changed: &Arc<Notify>) {
        let notify = |changed: &Arc<Notify>| {
            let changed = Arc::clone(changed);
            move || changed.notify_one()
        };
        let tell = notify(changed);
        self.services.subscribe(move |_| tell());
        let tell = notify(changed);
        self.slices.subscribe(move |_| tell());
        let tell = notify(changed);
        // A node's status changes every few seconds; only its zone matters here.
        let zone = |node: &Node| {
            node.metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(ZONE_LABEL))
                .cloned()
        };
        self.nodes.subscribe(move |change| {
            if change
                .old()
                .is_none_or(|old| zone(old) != zone(change.object()))
            {
                tell();
            }
        });
    }

    fn node_facts(&self, config: &ProxyConfig) -> NodeFacts {
        let node = self.nodes.get("", &config.node_name);
        let labels = node.as_ref().and_then(|n| n.metadata.labels.as_ref());
        NodeFacts {
            name: config.node_name.clone(),
            zone: labels
                .and_then(|l| l.get(ZONE_LABEL))
                .cloned()
                .unwrap_or_default(),
            pod_cidrs: config.pod_cidrs.clone(),
            node_port_addresses: config.node_port_addresses.clone(),
        }
    }
}
