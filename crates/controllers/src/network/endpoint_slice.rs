//! EndpointSlices of Services with a selector.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::{
    Change, Client, Controller, ControllerContext, DeleteOptions, Informer, Key, Outcome,
    ReconcileError, Watches,
};
use keelson_semantics::label_selector;

use super::address::{self, HEADLESS, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME};
use super::slice_plan::{self, Draft, Groups, Plan};
use crate::pod;

const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) struct EndpointSliceController {
    context: ControllerContext,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
}

impl EndpointSliceController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            context: context.clone(),
            services: context.informer(),
            pods: context.informer(),
            nodes: context.informer(),
            slices: context.informer(),
        };
        index_slices(&this.slices);
        this
    }
}

/// Slices by `namespace/service`.
pub(crate) fn index_slices(slices: &Informer<EndpointSlice>) {
    slices.add_index("service", |slice| {
        pod::label(&slice.metadata, SERVICE_NAME)
            .map(|service| format!("{}/{service}", pod::namespace(&slice.metadata)))
            .into_iter()
            .collect()
    });
}

/// The slices of a Service that `manager` writes.
pub(crate) fn managed_slices(
    slices: &Informer<EndpointSlice>,
    key: &Key,
    manager: &str,
) -> Vec<Arc<EndpointSlice>> {
    slices
        .by_index("service", &key.to_string())
        .into_iter()
        .filter(|s| {
            pod::label(&s.metadata, MANAGED_BY) == Some(manager)
                && s.metadata.deletion_timestamp.is_none()
        })
        .collect()
}

/// Enqueues the Service of a changed slice that `manager` writes: somebody may have tampered.
pub(crate) fn slice_keys(change: &Change<EndpointSlice>, manager: &str) -> Vec<Key> {
    let meta = &change.object().metadata;
    if pod::label(meta, MANAGED_BY) != Some(manager) {
        return Vec::new();
    }
    pod::label(meta, SERVICE_NAME)
        .map(|service| Key::new(pod::namespace(meta), service))
        .into_iter()
        .collect()
}

fn endpoint(service: &Service, pod: &Pod, ip: &str, zone: Option<&str>) -> Endpoint {
    let serving = pod::is_ready(pod);
    let terminating = pod::is_terminating(pod);
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(address::publishes_not_ready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: hints(service, pod, zone),
        hostname: address::hostname(service, pod),
        node_name: pod::node_name(pod).map(str::to_owned),
        target_ref: Some(address::target_ref(pod)),
        zone: zone.map(str::to_owned),
        deprecated_topology: None,
    }
}

fn hints(service: &Service, pod: &Pod, zone: Option<&str>) -> Option<EndpointHints> {
    let policy = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    if !pod::is_ready(pod) || pod::is_terminating(pod) {
        return None;
    }
    let for_zones = zone.map(|name| {
        vec![ForZone {
            name: name.to_owned(),
        }]
    });
    match policy {
        "PreferClose" | "PreferSameZone" => for_zones.is_some().then_some(EndpointHints {
            for_zones,
            for_nodes: None,
        }),
        "PreferSameNode" => Some(EndpointHints {
            for_zones,
            for_nodes: pod::node_name(pod).map(|name| {
                vec![ForNode {
                    name: name.to_owned(),
                }]
            }),
        }),
        _ => None,
    }
}

/// The endpoints of a Service by address family and ports. Pure.
pub(crate) fn desired(
    service: &Service,
    pods: &[Arc<Pod>],
    zone_of: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, Groups> {
    let mut desired: BTreeMap<String, Groups> = BTreeMap::new();
    for family in address::families(service) {
        let groups = desired.entry(family.clone()).or_default();
        for pod in pods.iter().filter(|p| !pod::is_terminal(p)) {
            let Some(ip) = address::address(pod, &family) else {
                continue;
            };
            let zone = pod::node_name(pod).and_then(&zone_of);
            let mut ports = address::ports(service, pod);
            ports.sort();
            groups
                .entry(ports)
                .or_default()
                .push(endpoint(service, pod, ip, zone.as_deref()));
        }
    }
    desired
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), pod::name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if address::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

/// Everything that all slices of one object share.
pub(crate) struct Frame {
    pub namespace: String,
    pub generate_name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub owner: OwnerReference,
}

impl Frame {
    fn fill(&self, slice: &mut EndpointSlice, draft: &Draft) {
        slice.address_type.clone_from(&draft.address_type);
        slice.ports = Some(slice_plan::slice_ports(&draft.ports));
        slice.endpoints = Some(draft.endpoints.clone());
        slice.metadata.labels = Some(self.labels.clone());
        let annotations = slice.metadata.annotations.get_or_insert_default();
        annotations.extend(self.annotations.clone());
    }

    pub(crate) async fn apply(&self, client: &Client, plan: Plan) -> Result<(), ReconcileError> {
        for draft in &plan.create {
            let mut slice = EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(self.generate_name.clone()),
                    namespace: Some(self.namespace.clone()),
                    owner_references: Some(vec![self.owner.clone()]),
                    ..ObjectMeta::default()
                },
                ..EndpointSlice::default()
            };
            self.fill(&mut slice, draft);
            match client.create(&slice).await {
                Ok(_) => {}
                Err(error) if error.is_namespace_terminating() => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        for (known, draft) in &plan.update {
            let mut slice = EndpointSlice::clone(known);
            self.fill(&mut slice, draft);
            client.update(&slice).await?;
        }
        for slice in &plan.delete {
            let options = DeleteOptions::default().uid(pod::uid(&slice.metadata));
            match client
                .delete::<EndpointSlice>(&self.namespace, pod::name(&slice.metadata), &options)
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Controller for EndpointSliceController {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn workers(&self) -> usize {
        5
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.services);
        let services = self.services.clone();
        watches.mapped(&self.pods, move |change| {
            address::services_of(&services, change)
        });
        watches.mapped(&self.slices, |change| slice_keys(change, MANAGER));
        let services = self.services.clone();
        watches.mapped(&self.nodes, move |change| {
            // Only a node's zone shows in slices.
            let zone = |n: &Node| pod::label(&n.metadata, ZONE).map(str::to_owned);
            let moved = match change {
                Change::Updated { old, new } => zone(old) != zone(new),
                Change::Added(node) | Change::Deleted(node) => zone(node).is_some(),
            };
            if !moved {
                return Vec::new();
            }
            services
                .list()
                .iter()
                .map(|s| Key::of(&s.metadata))
                .collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        // The slices of a deleted Service are collected as its dependents.
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        if !address::is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let wanted = service
            .spec
            .as_ref()
            .and_then(|s| s.selector.clone())
            .unwrap_or_default();
        let pods: Vec<Arc<Pod>> = self
            .pods
            .list_in(&key.namespace)
            .into_iter()
            .filter(|p| label_selector::map_matches(&wanted, p.metadata.labels.as_ref()))
            .collect();
        let desired = desired(&service, &pods, |node| {
            pod::label(&self.nodes.get("", node)?.metadata, ZONE).map(str::to_owned)
        });
        let existing = managed_slices(&self.slices, key, MANAGER);
        let frame = Frame {
            namespace: key.namespace.clone(),
            generate_name: format!("{}-", key.name),
            labels: labels(&service),
            annotations: address::trigger_time(&service, &pods)
                .map(|t| (TRIGGER_TIME.to_owned(), t))
                .into_iter()
                .collect(),
            owner: OwnerReference {
                api_version: "v1".into(),
                kind: "Service".into(),
                name: key.name.clone(),
                uid: pod::uid(&service.metadata).to_owned(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            },
        };
        let plan = slice_plan::plan(&desired, &existing, |s| {
            s.metadata.labels.as_ref() == Some(&frame.labels)
        });
        frame.apply(&self.context.client, plan).await?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn readiness_serving_and_terminating() {
        let service = |publish: bool| -> Service {
            serde_json::from_value(json!({
                "metadata": {"name": "s"},
                "spec": {"selector": {"a": "b"}, "publishNotReadyAddresses": publish,
                    "ports": [{"port": 80, "targetPort": "web"}]}
            }))
            .unwrap()
        };
        let pod = |ready: bool, deleting: bool| -> Arc<Pod> {
            let mut pod = json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"nodeName": "node", "hostname": "h", "subdomain": "s",
                    "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                    "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}
            });
            if deleting {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let cases = [
            (false, true, false, (true, true, false)),
            (false, false, false, (false, false, false)),
            (false, true, true, (false, true, true)),
            (true, false, false, (true, false, false)),
            (true, true, true, (true, true, true)),
        ];
        for (publish, ready, deleting, wanted) in cases {
            let groups = desired(&service(publish), &[pod(ready, deleting)], |_| {
                Some("z".into())
            });
            let (ports, endpoints) = groups["IPv4"].iter().next().unwrap();
            assert_eq!(ports[0].port, 8080);
            let endpoint = &endpoints[0];
            let c = endpoint.conditions.as_ref().unwrap();
            assert_eq!(
                (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap()),
                wanted
            );
            assert_eq!(endpoint.hostname.as_deref(), Some("h"));
            assert_eq!(endpoint.zone.as_deref(), Some("z"));
        }
    }
}
