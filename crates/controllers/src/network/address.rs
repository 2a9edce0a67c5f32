//! Which pods stand behind a Service, and with which ports: what Endpoints and EndpointSlices
//! have in common. Pure.

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::{Change, Informer, Key};
use keelson_semantics::label_selector;

use crate::pod;

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A port as both kinds of endpoints write it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Port {
    pub name: String,
    pub port: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|s| s.publish_not_ready_addresses)
        == Some(true)
}

/// Whether endpoints of this Service are derived from pods at all.
pub(crate) fn is_selecting(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| {
        s.selector.as_ref().is_some_and(|l| !l.is_empty())
            && s.type_.as_deref() != Some("ExternalName")
    })
}

/// `IPv4` and `IPv6`, in the Service's order.
pub(crate) fn families(service: &Service) -> Vec<String> {
    let listed = service
        .spec
        .as_ref()
        .and_then(|s| s.ip_families.clone())
        .unwrap_or_default();
    if listed.is_empty() {
        vec!["IPv4".to_owned()]
    } else {
        listed
    }
}

pub(crate) fn family_of(address: &str) -> &'static str {
    if address.contains(':') {
        "IPv6"
    } else {
        "IPv4"
    }
}

/// The pod's address in a family.
pub(crate) fn address<'a>(pod: &'a Pod, family: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let many = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    many.chain(status.pod_ip.as_deref())
        .find(|ip| !ip.is_empty() && family_of(ip) == family)
}

/// The ports of a Service as this pod serves them; a named target that the pod does not have is
/// left out.
pub(crate) fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    service
        .spec
        .iter()
        .flat_map(|s| s.ports.iter().flatten())
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                port: target(port, pod)?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| {
                    p.name.as_ref() == Some(name)
                        && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
        }
    }
}

pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|h| !h.is_empty())?;
    (spec.subdomain.as_deref() == service.metadata.name.as_deref()).then_some(hostname)
}

pub(crate) fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The Services that a pod's change concerns: none when nothing about it shows in endpoints.
pub(crate) fn services_of(services: &Informer<Service>, change: &Change<Pod>) -> Vec<Key> {
    let new = change.object();
    let old = match change {
        Change::Updated { old, .. } if !shows(old, new) => return Vec::new(),
        Change::Updated { old, .. } => Some(old),
        _ => None,
    };
    let concerns = |service: &Service| {
        let wanted = service
            .spec
            .as_ref()
            .and_then(|s| s.selector.as_ref())
            .filter(|s| !s.is_empty());
        wanted.is_some_and(|wanted| {
            label_selector::map_matches(wanted, new.metadata.labels.as_ref())
                || old.is_some_and(|old| {
                    label_selector::map_matches(wanted, old.metadata.labels.as_ref())
                })
        })
    };
    services
        .list_in(pod::namespace(&new.metadata))
        .iter()
        .filter(|s| concerns(s))
        .map(|s| Key::of(&s.metadata))
        .collect()
}

/// Whether two forms of a pod differ in anything that endpoints tell.
fn shows(old: &Pod, new: &Pod) -> bool {
    let ips = |p: &Pod| {
        p.status
            .as_ref()
            .map(|s| (s.pod_ip.clone(), s.pod_ips.clone()))
    };
    let host = |p: &Pod| {
        p.spec
            .as_ref()
            .map(|s| (s.hostname.clone(), s.subdomain.clone()))
    };
    pod::is_ready(old) != pod::is_ready(new)
        || pod::is_terminal(old) != pod::is_terminal(new)
        || pod::is_terminating(old) != pod::is_terminating(new)
        || pod::node_name(old) != pod::node_name(new)
        || old.metadata.labels != new.metadata.labels
        || ips(old) != ips(new)
        || host(old) != host(new)
}

/// When the newest pod of a Service last became what it is: kube-proxy measures its lag from it.
pub(crate) fn trigger_time(service: &Service, pods: &[std::sync::Arc<Pod>]) -> Option<String> {
    let service_created = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
    pods.iter()
        .filter_map(|p| {
            pod::condition(p, "Ready")?
                .last_transition_time
                .as_ref()
                .map(|t| t.0)
        })
        .max()
        .max(service_created)
        .map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
