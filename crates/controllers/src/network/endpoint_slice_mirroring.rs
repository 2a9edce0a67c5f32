//! Mirrors hand-made Endpoints of Services without a selector into EndpointSlices, which is all
//! that the service proxy reads.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_client::{
    Client, Controller, ControllerContext, DeleteOptions, Informer, Key, Outcome, ReconcileError,
    Watches,
};

use super::address::{self, MANAGED_BY, Port, SERVICE_NAME};
use super::endpoint_slice::{Frame, index_slices, managed_slices, slice_keys};
use super::slice_plan::{self, Groups};
use crate::pod;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Addresses mirrored per subset; the rest is left out.
const MAX_PER_SUBSET: usize = 1000;

pub(crate) struct EndpointSliceMirroringController {
    client: Client,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
}

impl EndpointSliceMirroringController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            client: context.client.clone(),
            services: context.informer(),
            endpoints: context.informer(),
            slices: context.informer(),
        };
        index_slices(&this.slices);
        this
    }
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    pod::label(meta, SKIP) != Some("true")
        && pod::annotation(meta, LEADER).is_none()
        && meta.deletion_timestamp.is_none()
}

/// The slices' content by address family and ports. Pure.
fn desired(endpoints: &Endpoints) -> BTreeMap<String, Groups> {
    let mut desired: BTreeMap<String, Groups> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut ports: Vec<Port> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| Port {
                name: p.name.clone().unwrap_or_default(),
                port: p.port,
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
                app_protocol: p.app_protocol.clone(),
            })
            .collect();
        ports.sort();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let not_ready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready).take(MAX_PER_SUBSET) {
            let family = address::family_of(&address.ip).to_owned();
            let group = desired
                .entry(family)
                .or_default()
                .entry(ports.clone())
                .or_default();
            group.push(endpoint(address, ready));
        }
    }
    desired
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[async_trait]
impl Controller for EndpointSliceMirroringController {
    fn name(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.endpoints);
        watches.primary(&self.services);
        watches.mapped(&self.slices, |change| slice_keys(change, MANAGER));
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let service = self.services.get(&key.namespace, &key.name);
        let manual = service.is_some_and(|s| {
            s.spec
                .as_ref()
                .and_then(|s| s.selector.as_ref())
                .is_none_or(BTreeMap::is_empty)
        });
        let existing = managed_slices(&self.slices, key, MANAGER);
        let endpoints = self
            .endpoints
            .get(&key.namespace, &key.name)
            .filter(|e| manual && is_mirrored(e));
        let Some(endpoints) = endpoints else {
            for slice in existing {
                let options = DeleteOptions::default().uid(pod::uid(&slice.metadata));
                match self
                    .client
                    .delete::<EndpointSlice>(&key.namespace, pod::name(&slice.metadata), &options)
                    .await
                {
                    Err(error) if !error.is_not_found() => return Err(error.into()),
                    _ => {}
                }
            }
            return Ok(Outcome::Done);
        };
        let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
        labels.insert(SERVICE_NAME.into(), key.name.clone());
        labels.insert(MANAGED_BY.into(), MANAGER.into());
        let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
        annotations.remove(LAST_APPLIED);
        let frame = Frame {
            namespace: key.namespace.clone(),
            generate_name: format!("{}-", key.name),
            labels,
            annotations,
            owner: OwnerReference {
                api_version: "v1".into(),
                kind: "Endpoints".into(),
                name: key.name.clone(),
                uid: pod::uid(&endpoints.metadata).to_owned(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            },
        };
        let plan = slice_plan::plan(&desired(&endpoints), &existing, |s| {
            s.metadata.labels.as_ref() == Some(&frame.labels)
        });
        frame.apply(&self.client, plan).await?;
        Ok(Outcome::Done)
    }
}
