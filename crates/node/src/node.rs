//! What all parts of the agent share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node as ApiNode, Pod, Service};
use keelson_client::{Client, Informer};
use keelson_ports::{Cgroups, Clock, Images, Mounts, Runtime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::NodeConfig;
use crate::events::Events;
use crate::images::ImagePuller;
use crate::machine::Machine;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::pod::dns::{DnsContext, parse_resolv_conf};
use crate::pod::fields::Facts;
use crate::runtime_state::RuntimeState;
use crate::volumes::VolumeServices;

pub(crate) struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) shutdown: CancellationToken,
    pub(crate) machine: Machine,
    pub(crate) client: Client,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) cgroups: Arc<dyn Cgroups>,
    pub(crate) mounts: Arc<dyn Mounts>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: Events,
    pub(crate) state: RuntimeState,
    pub(crate) objects: Arc<Objects>,
    pub(crate) volumes: VolumeServices,
    pub(crate) puller: ImagePuller,
    pub(crate) pods: Informer<Pod>,
    /// The Node object of this machine alone.
    pub(crate) this_node: Informer<ApiNode>,
    pub(crate) services: Informer<Service>,
    /// Repository digests by image id, for statuses.
    pub(crate) digests: Mutex<BTreeMap<String, String>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Node {
    pub(crate) fn host_ips(&self) -> Vec<String> {
        let ips = self.config.node_ips.borrow();
        ips.iter().map(ToString::to_string).collect()
    }

    /// Waits for other addresses; for ever where they do not change.
    pub(crate) async fn host_ips_changed(ips: &mut watch::Receiver<Vec<IpAddr>>) {
        if ips.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The downward API's view of a pod with these addresses.
    pub(crate) fn facts(&self, pod_ips: Vec<String>) -> Facts {
        let allocatable = self.machine.allocatable(&self.config);
        Facts {
            node_name: self.config.node_name.clone(),
            host_ips: self.host_ips(),
            pod_ips,
            allocatable_cpu_milli: allocatable.cpu_milli,
            allocatable_memory_bytes: allocatable.memory_bytes,
            allocatable_storage_bytes: allocatable.storage_bytes,
        }
    }

    pub(crate) fn dns(&self) -> DnsContext {
        let host = std::fs::read_to_string(&self.config.resolv_conf).unwrap_or_default();
        DnsContext {
            cluster_dns: self
                .config
                .cluster_dns
                .iter()
                .map(ToString::to_string)
                .collect(),
            cluster_domain: self.config.cluster_domain.clone(),
            host: parse_resolv_conf(&host),
        }
    }

    /// Remembers what to call an image in statuses.
    pub(crate) async fn learn_digest(&self, image_id: &str) {
        if self.digests().contains_key(image_id) {
            return;
        }
        if let Ok(Some(image)) = self.images.resolve(image_id).await {
            let shown = image
                .repo_digests
                .first()
                .cloned()
                .unwrap_or_else(|| image.id.clone());
            self.digests().insert(image_id.to_owned(), shown);
        }
    }

    pub(crate) fn digests(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
