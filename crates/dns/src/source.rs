//! The cluster as informers know it.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::{Informer, Informers};

use crate::records::Source;

const BY_IP: &str = "dns-ip";
const BY_SERVICE: &str = "dns-service";

pub struct InformerSource {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    namespaces: Informer<Namespace>,
}

impl InformerSource {
    pub fn new(informers: &Informers) -> Self {
        let services = informers.informer::<Service>();
        services.add_index(BY_IP, |service| {
            service
                .spec
                .as_ref()
                .and_then(|spec| spec.cluster_ips.clone())
                .unwrap_or_default()
        });
        let slices = informers.informer::<EndpointSlice>();
        slices.add_index(BY_IP, |slice| {
            slice
                .endpoints
                .iter()
                .flatten()
                .flat_map(|endpoint| endpoint.addresses.clone())
                .collect()
        });
        slices.add_index(BY_SERVICE, |slice| {
            let meta = &slice.metadata;
            let service = meta
                .labels
                .as_ref()
                .and_then(|labels| labels.get("kubernetes.io/service-name"));
            service
                .map(|service| key(meta.namespace.as_deref().unwrap_or_default(), service))
                .into_iter()
                .collect()
        });
        Self {
            services,
            slices,
            namespaces: informers.informer(),
        }
    }

    /// Returns when answers are complete.
    pub async fn synced(&self) {
        self.services.synced().await;
        self.slices.synced().await;
        self.namespaces.synced().await;
    }
}

fn key(namespace: &str, service: &str) -> String {
    format!("{namespace}/{service}")
}

impl Source for InformerSource {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(namespace, name)
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &key(namespace, service))
    }

    fn namespace_exists(&self, namespace: &str) -> bool {
        self.namespaces.get("", namespace).is_some()
    }

    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>> {
        self.services
            .by_index(BY_IP, &ip.to_string())
            .into_iter()
            .next()
    }

    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_IP, &ip.to_string())
    }
}
