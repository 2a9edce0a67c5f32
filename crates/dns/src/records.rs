//! Which records a name of the cluster has. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// What the answers are made of.
pub trait Source: Send + Sync {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    /// The slices of a Service.
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    fn namespace_exists(&self, namespace: &str) -> bool;
    /// The Service that has this cluster IP.
    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>>;
    /// Slices with an endpoint at this address.
    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>>;
}

/// One record; names are lower case, absolute, without the trailing dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Address {
        name: String,
        ip: IpAddr,
    },
    Alias {
        name: String,
        target: String,
    },
    Server {
        name: String,
        port: u16,
        target: String,
    },
    Pointer {
        name: String,
        target: String,
    },
    Text {
        name: String,
        text: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name exists; it may have no record of the type that was asked for.
    Records(Vec<Record>),
    NoSuchName,
    /// Not a name of this cluster.
    Elsewhere,
}

/// Every record of a name, of all types; the server picks those asked for.
pub fn resolve(name: &str, domain: &str, source: &dyn Source) -> Answer {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(ip) = address_of_reverse_name(&name) {
        return reverse(&name, ip, domain, source);
    }
    let Some(inside) = inside(&name, domain) else {
        return Answer::Elsewhere;
    };
    let labels: Vec<&str> = if inside.is_empty() {
        Vec::new()
    } else {
        inside.rsplit('.').collect()
    };
    match labels.as_slice() {
        [] | ["svc"] | ["pod"] => Answer::Records(Vec::new()),
        ["dns-version"] => Answer::Records(vec![Record::Text {
            name: name.clone(),
            text: "1.1.0".to_owned(),
        }]),
        ["svc" | "pod", namespace] => exists(source.namespace_exists(namespace), Vec::new()),
        ["pod", namespace, pod] => match address_of_pod_name(pod) {
            Some(ip) if source.namespace_exists(namespace) => {
                Answer::Records(vec![Record::Address { name, ip }])
            }
            _ => Answer::NoSuchName,
        },
        ["svc", namespace, service, rest @ ..] => {
            let Some(service) = source.service(namespace, service) else {
                return Answer::NoSuchName;
            };
            of_service(&name, domain, &service, rest, source)
        }
        _ => Answer::NoSuchName,
    }
}

fn exists(exists: bool, records: Vec<Record>) -> Answer {
    if exists {
        Answer::Records(records)
    } else {
        Answer::NoSuchName
    }
}

/// The part of a name before the cluster's domain.
fn inside<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_suffix('.')
    }
}

fn of_service(
    name: &str,
    domain: &str,
    service: &Service,
    rest: &[&str],
    source: &dyn Source,
) -> Answer {
    let spec = service.spec.clone().unwrap_or_default();
    let own = service_name(service, domain);
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.unwrap_or_default().to_ascii_lowercase();
        let alias = Record::Alias {
            name: name.to_owned(),
            target: target.trim_end_matches('.').to_owned(),
        };
        return exists(rest.is_empty(), vec![alias]);
    }
    let cluster_ips: Vec<IpAddr> = spec
        .cluster_ips
        .iter()
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let headless = cluster_ips.is_empty();
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    match rest {
        [] if headless => {
            let mut ips: Vec<IpAddr> = endpoints(service, publish_all, source)
                .into_iter()
                .flat_map(|endpoint| endpoint.ips)
                .collect();
            ips.sort();
            ips.dedup();
            Answer::Records(
                ips.into_iter()
                    .map(|ip| Record::Address {
                        name: name.to_owned(),
                        ip,
                    })
                    .collect(),
            )
        }
        [] => {
            let address = |ip| Record::Address {
                name: name.to_owned(),
                ip,
            };
            Answer::Records(cluster_ips.into_iter().map(address).collect())
        }
        // `_port._protocol`, read from the right.
        [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
            let (protocol, port) = (&protocol[1..], &port[1..]);
            let records = if headless {
                headless_servers(name, &own, service, publish_all, protocol, port, source)
            } else {
                spec.ports
                    .iter()
                    .flatten()
                    .filter(|candidate| {
                        candidate.name.as_deref() == Some(port)
                            && candidate
                                .protocol
                                .as_deref()
                                .unwrap_or("TCP")
                                .eq_ignore_ascii_case(protocol)
                    })
                    .filter_map(|candidate| {
                        let port = u16::try_from(candidate.port).ok()?;
                        Some(Record::Server {
                            name: name.to_owned(),
                            port,
                            target: own.clone(),
                        })
                    })
                    .collect()
            };
            exists(!records.is_empty(), records)
        }
        ["_tcp" | "_udp" | "_sctp"] => Answer::Records(Vec::new()),
        [host] => {
            let records: Vec<Record> = endpoints(service, publish_all, source)
                .into_iter()
                .filter(|endpoint| endpoint.host == *host)
                .flat_map(|endpoint| endpoint.ips)
                .map(|ip| Record::Address {
                    name: name.to_owned(),
                    ip,
                })
                .collect();
            exists(!records.is_empty(), records)
        }
        _ => Answer::NoSuchName,
    }
}

struct Host {
    host: String,
    ips: Vec<IpAddr>,
}

/// Endpoints that may be published, each under its host name or its address with dashes.
fn endpoints(service: &Service, publish_all: bool, source: &dyn Source) -> Vec<Host> {
    let (namespace, name) = identity(service);
    source
        .slices(namespace, name)
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .filter(|endpoint| publish_all || ready(endpoint))
        .map(host)
        .collect()
}

fn host(endpoint: &Endpoint) -> Host {
    let ips: Vec<IpAddr> = endpoint
        .addresses
        .iter()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let host = endpoint.hostname.clone().filter(|host| !host.is_empty());
    Host {
        host: host.unwrap_or_else(|| ips.first().map(dashed).unwrap_or_default()),
        ips,
    }
}

fn headless_servers(
    name: &str,
    own: &str,
    service: &Service,
    publish_all: bool,
    protocol: &str,
    port: &str,
    source: &dyn Source,
) -> Vec<Record> {
    let (namespace, service_name) = identity(service);
    let mut records = Vec::new();
    for slice in source.slices(namespace, service_name) {
        let ports = slice.ports.iter().flatten().filter(|candidate| {
            candidate.name.as_deref() == Some(port)
                && candidate
                    .protocol
                    .as_deref()
                    .unwrap_or("TCP")
                    .eq_ignore_ascii_case(protocol)
        });
        for port in ports.filter_map(|port| u16::try_from(port.port?).ok()) {
            let published = slice
                .endpoints
                .iter()
                .flatten()
                .filter(|endpoint| publish_all || ready(endpoint));
            records.extend(published.map(|endpoint| {
                let target = format!("{}.{own}", host(endpoint).host);
                Record::Server {
                    name: name.to_owned(),
                    port,
                    target,
                }
            }));
        }
    }
    records
}

fn ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready)
        != Some(false)
}

fn identity(service: &Service) -> (&str, &str) {
    let meta = &service.metadata;
    (
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

fn service_name(service: &Service, domain: &str) -> String {
    let (namespace, name) = identity(service);
    format!("{name}.{namespace}.svc.{domain}")
}

/// `10.1.2.3` as `10-1-2-3`, `fd00::1` as `fd00--1`.
fn dashed(ip: &IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

fn address_of_pod_name(label: &str) -> Option<IpAddr> {
    let candidate: Result<IpAddr, _> = label.replace('-', ".").parse();
    candidate.or_else(|_| label.replace('-', ":").parse()).ok()
}

fn address_of_reverse_name(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<&str> = octets.split('.').rev().collect();
        return octets.join(".").parse().ok().map(IpAddr::V4);
    }
    let nibbles: String = name.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    if nibbles.len() != 32 {
        return None;
    }
    u128::from_str_radix(&nibbles, 16)
        .ok()
        .map(|bits| IpAddr::V6(bits.into()))
}

fn reverse(name: &str, ip: IpAddr, domain: &str, source: &dyn Source) -> Answer {
    if let Some(service) = source.service_by_ip(ip) {
        return Answer::Records(vec![Record::Pointer {
            name: name.to_owned(),
            target: service_name(&service, domain),
        }]);
    }
    let mut targets: Vec<String> = source
        .slices_by_ip(ip)
        .iter()
        .filter_map(|slice| {
            let service = slice
                .metadata
                .labels
                .as_ref()?
                .get("kubernetes.io/service-name")?;
            let namespace = slice.metadata.namespace.as_deref()?;
            let endpoint = slice
                .endpoints
                .iter()
                .flatten()
                .find(|endpoint| host(endpoint).ips.contains(&ip))?;
            Some(format!(
                "{}.{service}.{namespace}.svc.{domain}",
                host(endpoint).host
            ))
        })
        .collect();
    targets.sort();
    targets.dedup();
    if targets.is_empty() {
        return Answer::Elsewhere;
    }
    Answer::Records(
        targets
            .into_iter()
            .map(|target| Record::Pointer {
                name: name.to_owned(),
                target,
            })
            .collect(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Cluster {
        services: Vec<Arc<Service>>,
        slices: Vec<Arc<EndpointSlice>>,
    }

    impl Source for Cluster {
        fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
            self.services
                .iter()
                .find(|service| identity(service) == (namespace, name))
                .cloned()
        }
        fn slices(&self, _: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
            let of = |slice: &&Arc<EndpointSlice>| {
                slice
                    .metadata
                    .labels
                    .as_ref()
                    .is_some_and(|l| l["kubernetes.io/service-name"] == service)
            };
            self.slices.iter().filter(of).cloned().collect()
        }
        fn namespace_exists(&self, namespace: &str) -> bool {
            namespace == "default"
        }
        fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>> {
            let has = |service: &&Arc<Service>| {
                service
                    .spec
                    .as_ref()
                    .unwrap()
                    .cluster_ips
                    .iter()
                    .flatten()
                    .any(|own| *own == ip.to_string())
            };
            self.services.iter().find(has).cloned()
        }
        fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
            let has = |slice: &&Arc<EndpointSlice>| {
                slice
                    .endpoints
                    .iter()
                    .flatten()
                    .any(|endpoint| endpoint.addresses.contains(&ip.to_string()))
            };
            self.slices.iter().filter(has).cloned().collect()
        }
    }

    fn cluster() -> Cluster {
        let service = |json: serde_json::Value| Arc::new(serde_json::from_value(json).unwrap());
        let slice = |json: serde_json::Value| Arc::new(serde_json::from_value(json).unwrap());
        Cluster {
            services: vec![
                service(
                    serde_json::json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {
                    "clusterIPs": ["10.96.0.7"], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}),
                ),
                service(
                    serde_json::json!({"metadata": {"name": "db", "namespace": "default"}, "spec": {
                    "clusterIPs": ["None"], "ports": [{"name": "sql", "port": 5432}]}}),
                ),
                service(
                    serde_json::json!({"metadata": {"name": "out", "namespace": "default"}, "spec": {
                    "type": "ExternalName", "externalName": "Example.org."}}),
                ),
            ],
            slices: vec![slice(serde_json::json!({
                "addressType": "IPv4",
                "metadata": {"name": "db-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "db"}},
                "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                    {"addresses": ["10.244.0.6"], "conditions": {"ready": false}},
                    {"addresses": ["10.244.0.7"], "conditions": {}}]}))],
        }
    }

    fn addresses(name: &str) -> Option<Vec<String>> {
        match resolve(name, "cluster.local", &cluster()) {
            Answer::Records(records) => Some(
                records
                    .into_iter()
                    .map(|record| match record {
                        Record::Address { ip, .. } => ip.to_string(),
                        Record::Alias { target, .. } | Record::Pointer { target, .. } => target,
                        Record::Server { port, target, .. } => format!("{port} {target}"),
                        Record::Text { text, .. } => text,
                    })
                    .collect(),
            ),
            Answer::NoSuchName => None,
            Answer::Elsewhere => Some(vec!["elsewhere".to_owned()]),
        }
    }

    #[test]
    fn names_of_the_specification() {
        for (name, expected) in [
            ("web.default.svc.cluster.local.", Some(vec!["10.96.0.7"])),
            ("WEB.default.svc.Cluster.local", Some(vec!["10.96.0.7"])),
            (
                "_http._tcp.web.default.svc.cluster.local",
                Some(vec!["80 web.default.svc.cluster.local"]),
            ),
            ("_http._udp.web.default.svc.cluster.local", None),
            (
                "db.default.svc.cluster.local",
                Some(vec!["10.244.0.5", "10.244.0.7"]),
            ),
            (
                "db-0.db.default.svc.cluster.local",
                Some(vec!["10.244.0.5"]),
            ),
            (
                "10-244-0-7.db.default.svc.cluster.local",
                Some(vec!["10.244.0.7"]),
            ),
            ("db-1.db.default.svc.cluster.local", None),
            (
                "_sql._tcp.db.default.svc.cluster.local",
                Some(vec![
                    "5432 db-0.db.default.svc.cluster.local",
                    "5432 10-244-0-7.db.default.svc.cluster.local",
                ]),
            ),
            ("out.default.svc.cluster.local", Some(vec!["example.org"])),
            (
                "10-244-0-5.default.pod.cluster.local",
                Some(vec!["10.244.0.5"]),
            ),
            ("x.default.pod.cluster.local", None),
            ("none.default.svc.cluster.local", None),
            ("default.svc.cluster.local", Some(vec![])),
            ("nowhere.svc.cluster.local", None),
            ("dns-version.cluster.local", Some(vec!["1.1.0"])),
            (
                "7.0.96.10.in-addr.arpa",
                Some(vec!["web.default.svc.cluster.local"]),
            ),
            (
                "5.0.244.10.in-addr.arpa",
                Some(vec!["db-0.db.default.svc.cluster.local"]),
            ),
            ("9.9.9.9.in-addr.arpa", Some(vec!["elsewhere"])),
            ("example.org", Some(vec!["elsewhere"])),
            ("notcluster.local", Some(vec!["elsewhere"])),
        ] {
            let expected =
                expected.map(|list| list.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(addresses(name), expected, "{name}");
        }
    }
}
