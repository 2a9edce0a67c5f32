//! What the Service API says about which packet goes where.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use keelson_ports::{Backend, Frontend, Protocol, ServiceRule, ServiceRules, SourcePolicy};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

/// What the plan has to know of the node it is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub name: String,
    /// The label `topology.kubernetes.io/zone`; empty when the node has none.
    pub zone: String,
    /// Where pods of the whole cluster live.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses on which node ports answer; empty means all.
    pub node_port_addresses: Vec<IpNet>,
}

/// A port on which load balancers ask whether this node has endpoints of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HealthCheck {
    pub port: u16,
    pub namespace: String,
    pub name: String,
    pub local_endpoints: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub rules: ServiceRules,
    pub health_checks: Vec<HealthCheck>,
}

/// The endpoints of one service port, in the order of their addresses.
#[derive(Debug, Clone)]
struct Candidate<'a> {
    address: SocketAddr,
    endpoint: &'a Endpoint,
}

impl Candidate<'_> {
    fn condition(
        &self,
        of: impl Fn(&k8s_openapi::api::discovery::v1::EndpointConditions) -> Option<bool>,
    ) -> Option<bool> {
        self.endpoint.conditions.as_ref().and_then(of)
    }

    fn is_ready(&self) -> bool {
        self.condition(|c| c.ready).unwrap_or(true)
    }

    fn is_serving_terminating(&self) -> bool {
        let serving = self
            .condition(|c| c.serving)
            .unwrap_or_else(|| self.is_ready());
        serving && self.condition(|c| c.terminating).unwrap_or(false)
    }

    fn is_local(&self, node: &str) -> bool {
        self.endpoint.node_name.as_deref() == Some(node)
    }

    fn hints_at_node(&self, node: &str) -> Option<bool> {
        let hints = self.endpoint.hints.as_ref()?.for_nodes.as_ref()?;
        (!hints.is_empty()).then(|| hints.iter().any(|h| h.name == node))
    }

    fn hints_at_zone(&self, zone: &str) -> Option<bool> {
        let hints = self.endpoint.hints.as_ref()?.for_zones.as_ref()?;
        (!hints.is_empty()).then(|| hints.iter().any(|h| h.name == zone))
    }
}

/// Turns the cluster's services into this node's packet rules.
pub fn plan(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>], node: &NodeFacts) -> Plan {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let labels = slice.metadata.labels.as_ref();
        let service = labels.and_then(|l| l.get(SERVICE_NAME_LABEL));
        let foreign = labels
            .is_some_and(|l| l.contains_key(PROXY_NAME_LABEL) || l.contains_key(HEADLESS_LABEL));
        if let (Some(service), false) = (service, foreign) {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            by_service
                .entry((namespace, service))
                .or_default()
                .push(slice);
        }
    }
    let mut sorted: Vec<&Arc<Service>> = services.iter().collect();
    // Two services may claim one external IP: the older one keeps it, on every node alike.
    sorted.sort_by_key(|s| {
        let m = &s.metadata;
        (
            m.creation_timestamp.as_ref().map(|t| t.0),
            m.namespace.clone(),
            m.name.clone(),
        )
    });
    let mut rules: BTreeMap<Frontend, ServiceRule> = BTreeMap::new();
    let mut health_checks = Vec::new();
    for service in sorted {
        let (Some(spec), Some(name)) = (proxied_spec(service), service.metadata.name.as_deref())
        else {
            continue;
        };
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let slices = by_service
            .get(&(namespace, name))
            .map(Vec::as_slice)
            .unwrap_or_default();
        for port in spec.ports.as_deref().unwrap_or_default() {
            let label = match port.name.as_deref() {
                Some(port) if !port.is_empty() => format!("{namespace}/{name}:{port}"),
                _ => format!("{namespace}/{name}"),
            };
            for rule in port_rules(service, spec, port, slices, node, &label) {
                rules.entry(rule.frontend).or_insert(rule);
            }
        }
        if let Some(port) = spec
            .health_check_node_port
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p > 0)
        {
            health_checks.push(HealthCheck {
                port,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                local_endpoints: local_ready(slices, node),
            });
        }
    }
    health_checks.sort();
    health_checks.dedup_by_key(|h| h.port);
    let rules = ServiceRules {
        services: rules.into_values().collect(),
        pod_cidrs: node.pod_cidrs.clone(),
        node_port_addresses: node.node_port_addresses.clone(),
    };
    Plan {
        rules,
        health_checks,
    }
}

/// Headless services and names of other hosts need no proxy; some leave it to another one.
fn proxied_spec(service: &Service) -> Option<&ServiceSpec> {
    let spec = service.spec.as_ref()?;
    let foreign = service
        .metadata
        .labels
        .as_ref()
        .is_some_and(|l| l.contains_key(PROXY_NAME_LABEL));
    let headless = matches!(spec.cluster_ip.as_deref(), None | Some("" | "None"));
    (!foreign && !headless && spec.type_.as_deref() != Some("ExternalName")).then_some(spec)
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

fn candidates<'a>(
    slices: &[&'a EndpointSlice],
    port: &ServicePort,
    v6: bool,
) -> Vec<Candidate<'a>> {
    let wanted = protocol(port.protocol.as_deref());
    let family = if v6 { "IPv6" } else { "IPv4" };
    let mut found: BTreeMap<SocketAddr, Candidate<'a>> = BTreeMap::new();
    for slice in slices.iter().filter(|s| s.address_type == family) {
        let fits = |p: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && protocol(p.protocol.as_deref()) == wanted
        };
        let number = slice
            .ports
            .as_deref()
            .unwrap_or_default()
            .iter()
            .find(fits)
            .and_then(|p| p.port);
        let Some(number) = number.and_then(|p| u16::try_from(p).ok()) else {
            continue;
        };
        for endpoint in slice.endpoints.as_deref().unwrap_or_default() {
            // Only the first address counts: the API gives the others no meaning.
            let address = endpoint
                .addresses
                .first()
                .and_then(|a| a.parse::<IpAddr>().ok());
            let Some(address) = address.filter(|a| a.is_ipv6() == v6) else {
                continue;
            };
            let address = SocketAddr::new(address, number);
            let candidate = Candidate { address, endpoint };
            // While a pod moves between slices it may stand in two; the ready one counts.
            match found.get(&address) {
                Some(had) if had.is_ready() || !candidate.is_ready() => {}
                _ => drop(found.insert(address, candidate)),
            }
        }
    }
    found.into_values().collect()
}

/// Where traffic goes under the two traffic policies.
struct Targets {
    cluster: Vec<Backend>,
    local: Vec<Backend>,
    /// All that take traffic, wherever they are.
    serving: Vec<Backend>,
}

fn targets(candidates: &[Candidate<'_>], node: &NodeFacts) -> Targets {
    let pick = |keep: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<Backend> {
        candidates
            .iter()
            .filter(|c| keep(c))
            .map(|c| Backend { address: c.address })
            .collect()
    };
    let near = topology(candidates, node);
    let mut cluster = pick(&|c| c.is_ready() && near(c));
    if cluster.is_empty() {
        // Better a pod that is about to end than none: a rolling update must not drop anything.
        cluster = pick(&|c| c.is_serving_terminating());
    }
    let mut local = pick(&|c| c.is_ready() && c.is_local(&node.name));
    if local.is_empty() {
        local = pick(&|c| c.is_serving_terminating() && c.is_local(&node.name));
    }
    Targets {
        cluster,
        local,
        serving: pick(&|c| c.is_ready() || c.is_serving_terminating()),
    }
}

/// Hints count only if every ready endpoint has one and some point here; else all are alike.
fn topology<'a>(
    candidates: &[Candidate<'_>],
    node: &'a NodeFacts,
) -> Box<dyn Fn(&Candidate<'_>) -> bool + 'a> {
    let usable = |hint: &dyn Fn(&Candidate<'_>) -> Option<bool>| {
        let mut ready = candidates.iter().filter(|c| c.is_ready()).peekable();
        let mut here = false;
        ready.peek().is_some() && ready.all(|c| hint(c).inspect(|h| here |= h).is_some()) && here
    };
    if usable(&|c| c.hints_at_node(&node.name)) {
        return Box::new(|c| c.hints_at_node(&node.name) == Some(true));
    }
    if !node.zone.is_empty() && usable(&|c| c.hints_at_zone(&node.zone)) {
        return Box::new(|c| c.hints_at_zone(&node.zone) == Some(true));
    }
    Box::new(|_| true)
}

fn local_ready(slices: &[&EndpointSlice], node: &NodeFacts) -> usize {
    let mut addresses = BTreeSet::new();
    for endpoint in slices
        .iter()
        .flat_map(|s| s.endpoints.as_deref().unwrap_or_default())
    {
        let ready = endpoint
            .conditions
            .as_ref()
            .and_then(|c| c.ready)
            .unwrap_or(true);
        if ready && endpoint.node_name.as_deref() == Some(node.name.as_str()) {
            addresses.extend(endpoint.addresses.first());
        }
    }
    addresses.len()
}

fn port_rules(
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    slices: &[&EndpointSlice],
    node: &NodeFacts,
    label: &str,
) -> Vec<ServiceRule> {
    let (Some(protocol), Ok(number)) =
        (protocol(port.protocol.as_deref()), u16::try_from(port.port))
    else {
        return Vec::new();
    };
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let affinity = affinity(spec);
    let addresses = Addresses::of(service, spec);
    let mut rules = Vec::new();
    for v6 in [false, true] {
        let targets = targets(&candidates(slices, port, v6), node);
        let rule = |frontend, local: bool, source, allowed_sources: &[IpNet]| ServiceRule {
            frontend,
            name: label.to_owned(),
            backends: if local {
                targets.local.clone()
            } else {
                targets.cluster.clone()
            },
            serving: match protocol {
                Protocol::Udp => targets.serving.clone(),
                Protocol::Tcp | Protocol::Sctp => Vec::new(),
            },
            // Another node has endpoints: whoever chose this one shall try again, not give up.
            drop_if_empty: local && !targets.serving.is_empty(),
            affinity,
            source,
            allowed_sources: allowed_sources.to_vec(),
        };
        let external = if external_local {
            SourcePolicy::Preserve
        } else {
            SourcePolicy::MasqueradeAll
        };
        let at = |ip: &IpAddr| Frontend::Address {
            ip: *ip,
            protocol,
            port: number,
        };
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6;
        for ip in addresses.cluster.iter().filter(of_family) {
            rules.push(rule(
                at(ip),
                internal_local,
                SourcePolicy::MasqueradeOffCluster,
                &[],
            ));
        }
        for ip in addresses.external.iter().filter(of_family) {
            rules.push(rule(at(ip), external_local, external, &[]));
        }
        for ip in addresses.load_balancer.iter().filter(of_family) {
            rules.push(rule(
                at(ip),
                external_local,
                external,
                &addresses.source_ranges,
            ));
        }
        let node_port = port
            .node_port
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p > 0);
        if let Some(port) =
            node_port.filter(|_| addresses.cluster.iter().any(|ip| ip.is_ipv6() == v6))
        {
            rules.push(rule(
                Frontend::NodePort {
                    ipv6: v6,
                    protocol,
                    port,
                },
                external_local,
                external,
                &[],
            ));
        }
    }
    rules
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec
            .session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref());
        let seconds = config
            .and_then(|c| c.timeout_seconds)
            .and_then(|s| u64::try_from(s).ok());
        seconds
            .filter(|s| *s > 0)
            .map_or(DEFAULT_AFFINITY, Duration::from_secs)
    })
}

/// The addresses a service answers on.
struct Addresses {
    cluster: Vec<IpAddr>,
    external: Vec<IpAddr>,
    load_balancer: Vec<IpAddr>,
    source_ranges: Vec<IpNet>,
}

impl Addresses {
    fn of(service: &Service, spec: &ServiceSpec) -> Self {
        let parse = |list: &[String]| {
            list.iter()
                .filter_map(|ip| ip.parse().ok())
                .collect::<Vec<IpAddr>>()
        };
        let mut cluster = parse(spec.cluster_ips.as_deref().unwrap_or_default());
        if cluster.is_empty() {
            cluster.extend(
                spec.cluster_ip
                    .as_deref()
                    .and_then(|ip| ip.parse::<IpAddr>().ok()),
            );
        }
        let is_balanced = spec.type_.as_deref() == Some("LoadBalancer");
        let balancer = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref());
        let ingress = balancer
            .and_then(|b| b.ingress.as_deref())
            .unwrap_or_default();
        let load_balancer = ingress
            .iter()
            // A balancer in `Proxy` mode wants its traffic to pass through it, from inside too.
            .filter(|i| is_balanced && i.ip_mode.as_deref().unwrap_or("VIP") == "VIP")
            .filter_map(|i| i.ip.as_deref()?.parse().ok())
            .collect();
        let ranges = spec
            .load_balancer_source_ranges
            .as_deref()
            .unwrap_or_default();
        Addresses {
            cluster,
            external: parse(spec.external_ips.as_deref().unwrap_or_default()),
            load_balancer,
            source_ranges: ranges
                .iter()
                .filter_map(|r| r.trim().parse::<IpNet>().ok())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests;
