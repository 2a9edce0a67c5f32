//! The older Endpoints object of a Service, which some clients still read.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    Controller, ControllerContext, DeleteOptions, Informer, Key, Outcome, ReconcileError, Watches,
};
use keelson_semantics::label_selector;

use super::address::{self, HEADLESS, Port, TRIGGER_TIME};
use crate::pod;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// More addresses than this make the object too large; the rest is cut off and said so.
const CAPACITY: usize = 1000;

pub(crate) struct EndpointsController {
    context: ControllerContext,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

impl EndpointsController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            context: context.clone(),
            services: context.informer(),
            pods: context.informer(),
            endpoints: context.informer(),
        }
    }
}

/// Subsets in canonical order; the flag says whether addresses had to be left out. Pure.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let family = address::families(service)
        .into_iter()
        .next()
        .unwrap_or_default();
    let publish = address::publishes_not_ready(service);
    let mut groups: BTreeMap<Vec<Port>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> =
        BTreeMap::new();
    let mut total = 0;
    for pod in pods {
        if pod::is_terminal(pod) || (pod::is_terminating(pod) && !publish) {
            continue;
        }
        let Some(ip) = address::address(pod, &family) else {
            continue;
        };
        let mut ports = address::ports(service, pod);
        ports.sort();
        let has_ports = service
            .spec
            .as_ref()
            .and_then(|s| s.ports.as_ref())
            .is_some_and(|p| !p.is_empty());
        if ports.is_empty() && has_ports {
            continue;
        }
        total += 1;
        if total > CAPACITY {
            continue;
        }
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: address::hostname(service, pod),
            node_name: pod::node_name(pod).map(str::to_owned),
            target_ref: Some(address::target_ref(pod)),
        };
        let group = groups.entry(ports).or_default();
        if publish || pod::is_ready(pod) {
            group.0.push(address)
        } else {
            group.1.push(address)
        }
    }
    let order = |mut list: Vec<EndpointAddress>| {
        list.sort_by(|a, b| (&a.ip, target_uid(a)).cmp(&(&b.ip, target_uid(b))));
        Some(list).filter(|l| !l.is_empty())
    };
    let subsets = groups
        .into_iter()
        .map(|(ports, (ready, not_ready))| EndpointSubset {
            addresses: order(ready),
            not_ready_addresses: order(not_ready),
            ports: Some(ports.into_iter().map(endpoint_port).collect::<Vec<_>>())
                .filter(|p| !p.is_empty()),
        })
        .collect();
    (subsets, total > CAPACITY)
}

fn target_uid(address: &EndpointAddress) -> Option<&str> {
    address.target_ref.as_ref()?.uid.as_deref()
}

fn endpoint_port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name).filter(|n| !n.is_empty()),
        port: port.port,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

#[async_trait]
impl Controller for EndpointsController {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn workers(&self) -> usize {
        5
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.services);
        watches.primary(&self.endpoints);
        let services = self.services.clone();
        watches.mapped(&self.pods, move |change| {
            address::services_of(&services, change)
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let known = self.endpoints.get(&key.namespace, &key.name);
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            return self.remove(key, known).await;
        };
        if !address::is_selecting(&service) {
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
        let (subsets, truncated) = subsets(&service, &pods);
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
        if address::is_headless(&service) {
            labels.insert(HEADLESS.into(), String::new());
        } else {
            labels.remove(HEADLESS);
        }
        if let Some(known) = &known {
            let over = pod::annotation(&known.metadata, OVER_CAPACITY).is_some();
            let same = known.subsets.as_deref().unwrap_or_default() == subsets
                && known.metadata.labels.as_ref() == Some(&labels)
                && over == truncated;
            if same {
                return Ok(Outcome::Done);
            }
        }
        let mut next = match &known {
            Some(known) => Endpoints::clone(known),
            None => Endpoints {
                metadata: ObjectMeta {
                    name: Some(key.name.clone()),
                    namespace: Some(key.namespace.clone()),
                    ..ObjectMeta::default()
                },
                subsets: None,
            },
        };
        next.metadata.labels = Some(labels);
        next.subsets = Some(subsets).filter(|s| !s.is_empty());
        let annotations = next.metadata.annotations.get_or_insert_default();
        if let Some(time) = address::trigger_time(&service, &pods) {
            annotations.insert(TRIGGER_TIME.into(), time);
        }
        if truncated {
            annotations.insert(OVER_CAPACITY.into(), "truncated".into());
        } else {
            annotations.remove(OVER_CAPACITY);
        }
        let result = match known {
            Some(_) => self.context.client.update(&next).await,
            None => self.context.client.create(&next).await,
        };
        match result {
            Ok(_) => Ok(Outcome::Done),
            Err(error) if error.is_namespace_terminating() => Ok(Outcome::Done),
            Err(error) => Err(error.into()),
        }
    }
}

impl EndpointsController {
    /// The Service is gone: so goes what this controller made for it. Endpoints that somebody
    /// made by hand stay.
    async fn remove(
        &self,
        key: &Key,
        known: Option<Arc<Endpoints>>,
    ) -> Result<Outcome, ReconcileError> {
        let Some(known) = known else {
            return Ok(Outcome::Done);
        };
        if pod::label(&known.metadata, MANAGED_BY) != Some("endpoint-controller") {
            return Ok(Outcome::Done);
        }
        let options = DeleteOptions::default().uid(pod::uid(&known.metadata));
        match self
            .context
            .client
            .delete::<Endpoints>(&key.namespace, &key.name, &options)
            .await
        {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_and_unready_share_a_subset() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "s"},
            "spec": {"selector": {"a": "b"}, "ports": [{"name": "web", "port": 80}]}
        }))
        .unwrap();
        let pod = |n: u8, ready: bool| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": format!("p{n}"), "uid": format!("u{n}")},
                    "spec": {"containers": []},
                    "status": {"phase": "Running", "podIP": format!("10.0.0.{n}"),
                        "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}
                }))
                .unwrap(),
            )
        };
        let (subsets, truncated) = subsets(&service, &[pod(2, true), pod(1, true), pod(3, false)]);
        assert!(!truncated);
        assert_eq!(subsets.len(), 1);
        let ips: Vec<_> = subsets[0]
            .addresses
            .iter()
            .flatten()
            .map(|a| a.ip.as_str())
            .collect();
        assert_eq!(ips, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(
            subsets[0].not_ready_addresses.as_ref().unwrap()[0].ip,
            "10.0.0.3"
        );
        assert_eq!(subsets[0].ports.as_ref().unwrap()[0].port, 80);
    }
}
