//! Cluster IPs and node ports of Services: which are chosen. An address is taken when there is an
//! IPAddress of its name (see [`super::service_address`]) or a write in flight that was given it;
//! ports follow from the Services there are. Specified as upstream's ipallocator and
//! portallocator do it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::resources::ResourceEntry;
use super::service_address::is_owner;
use super::service_families;
use crate::cache::{Caches, WatchCache};

/// Random picks before the range is searched in order.
const RANDOM_ATTEMPTS: usize = 32;

/// From where Services are given addresses and ports.
#[derive(Debug, Clone)]
pub(crate) struct ServiceConfig {
    /// The first is the family of single-stack Services.
    pub(crate) cidrs: Vec<IpNet>,
    pub(crate) node_ports: RangeInclusive<u16>,
}

impl ServiceConfig {
    pub(crate) fn new(cidr: IpNet) -> Self {
        Self {
            cidrs: vec![cidr],
            node_ports: 30000..=32767,
        }
    }
}

pub(crate) struct Services {
    config: ServiceConfig,
    caches: Arc<Caches>,
    in_flight: Arc<Mutex<Taken>>,
}

#[derive(Debug, Clone, Default)]
struct Taken {
    addresses: HashSet<IpAddr>,
    /// One Service may have a number in several protocols, two may not share it.
    ports: HashSet<u16>,
}

/// Holds what a write was given until the write can be seen in the cache, or failed.
pub(crate) struct Reservation {
    taken: Taken,
    in_flight: Arc<Mutex<Taken>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut in_flight = self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for address in &self.taken.addresses {
            in_flight.addresses.remove(address);
        }
        for port in &self.taken.ports {
            in_flight.ports.remove(port);
        }
    }
}

impl Reservation {
    /// The addresses that the object did not have before.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.taken.addresses.iter().copied()
    }
}

impl Services {
    pub(crate) fn new(config: ServiceConfig, caches: Arc<Caches>) -> Self {
        Self {
            config,
            caches,
            in_flight: Arc::default(),
        }
    }

    /// Completes a Service that is about to be written; other kinds pass untouched. With `shared`
    /// a claim in the name of this very Service is no obstacle: servers that start together all
    /// make the one Service that leads to them.
    pub(crate) fn reserve(
        &self,
        entry: &ResourceEntry,
        object: &mut Value,
        old: Option<&Value>,
        shared: bool,
    ) -> Result<Option<Reservation>, Status> {
        if !is_service(entry) || !object["spec"].is_object() {
            return Ok(None);
        }
        if let Some(old) = old {
            keep_allocated(object, old);
        }
        release(object, old);
        // One allocation at a time: what is taken may not change between looking and taking.
        let mut in_flight = self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut taken = Taken {
            addresses: in_flight.addresses.clone(),
            ports: in_flight.ports.clone(),
        };
        if needs_node_ports(object) || needs_health_check_port(object) {
            taken.ports.extend(self.ports_of_others(object));
        }
        let mut round = Round {
            config: &self.config,
            ranges: self.ranges(),
            known: self.caches.get("networking.k8s.io", "ipaddresses"),
            sharer: shared.then(|| {
                let name = meta::name(object).to_owned();
                (meta::namespace(object).to_owned(), name)
            }),
            taken,
            given: Taken::default(),
        };
        round
            .addresses(object, old)
            .and_then(|()| round.ports(object, old))
            .map_err(|error| {
                let name = meta::name(object).to_owned();
                match error {
                    Refused::Invalid(error) => Status::invalid("", "Service", &name, &vec![*error]),
                    Refused::All(errors) => Status::invalid("", "Service", &name, &errors),
                    Refused::Exhausted(message) => Status::internal(message),
                }
            })?;
        in_flight
            .addresses
            .extend(round.given.addresses.iter().copied());
        in_flight.ports.extend(round.given.ports.iter().copied());
        Ok(Some(Reservation {
            taken: round.given,
            in_flight: Arc::clone(&self.in_flight),
        }))
    }

    /// The ranges of all ServiceCIDRs that are not going away, those of this server first.
    fn ranges(&self) -> Vec<IpNet> {
        let mut ranges = self.config.cidrs.clone();
        let Some(cache) = self.caches.get("networking.k8s.io", "servicecidrs") else {
            return ranges;
        };
        for object in cache.list("") {
            let value = cache.decode(&object);
            if meta::deletion_timestamp(&value).is_some() {
                continue;
            }
            let cidrs = texts(&value["spec"]["cidrs"]);
            for cidr in cidrs.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()) {
                if !ranges.contains(&cidr) {
                    ranges.push(cidr);
                }
            }
        }
        ranges
    }

    fn ports_of_others(&self, object: &Value) -> HashSet<u16> {
        let Some(cache) = self.caches.get("", "services") else {
            return HashSet::new();
        };
        let (namespace, name) = (meta::namespace(object), meta::name(object));
        let others = cache.list("");
        let others = others
            .iter()
            .filter(|other| other.namespace() != namespace || other.name() != name);
        others
            .flat_map(|other| ports_of(&cache.decode(other)))
            .map(|(_, port)| port)
            .collect()
    }
}

enum Refused {
    Invalid(Box<FieldError>),
    All(ErrorList),
    Exhausted(String),
}

struct Round<'a> {
    config: &'a ServiceConfig,
    ranges: Vec<IpNet>,
    /// IPAddress objects, by name.
    known: Option<Arc<WatchCache>>,
    /// Namespace and name of the Service whose claims are no obstacle.
    sharer: Option<(String, String)>,
    taken: Taken,
    given: Taken,
}

impl Round<'_> {
    fn is_taken(&self, address: IpAddr) -> bool {
        self.taken.addresses.contains(&address)
            || self.given.addresses.contains(&address)
            || self.known.as_ref().is_some_and(|known| {
                let claim = known.get("", &address.to_string());
                claim.is_some_and(|claim| match &self.sharer {
                    Some((namespace, name)) => !is_owner(&known.decode(&claim), namespace, name),
                    None => true,
                })
            })
    }

    fn addresses(&mut self, object: &mut Value, old: Option<&Value>) -> Result<(), Refused> {
        if !needs_address(object) {
            return Ok(());
        }
        let families = self.families(object, old)?;
        let held: HashSet<IpAddr> = old
            .map(addresses_of)
            .unwrap_or_default()
            .into_iter()
            .collect();
        let mut given = texts(&object["spec"]["clusterIPs"]);
        let single = text(&object["spec"]["clusterIP"]);
        if given.is_empty() && !single.is_empty() {
            given.push(single.to_owned());
        }
        if given.first().is_some_and(|first| first == "None") {
            object["spec"]["clusterIP"] = "None".into();
            object["spec"]["clusterIPs"] = json!(["None"]);
            object["spec"]["ipFamilies"] = json!(families);
            return Ok(());
        }
        for (index, family) in families.iter().enumerate() {
            let Some(wanted) = given.get(index).cloned() else {
                let address = self.any_address(family)?;
                given.push(address.to_string());
                continue;
            };
            // What is no address is the validation's to refuse.
            let Ok(address) = wanted.parse::<IpAddr>() else {
                return Ok(());
            };
            if held.contains(&address) {
                continue;
            }
            self.this_address(address, &given)?;
        }
        object["spec"]["clusterIP"] = given.first().cloned().unwrap_or_default().into();
        object["spec"]["clusterIPs"] = json!(given);
        object["spec"]["ipFamilies"] = json!(families);
        Ok(())
    }

    /// The families of the Service's addresses, filled as upstream fills them.
    fn families(&self, object: &mut Value, old: Option<&Value>) -> Result<Vec<String>, Refused> {
        let configured: Vec<&str> = self
            .config
            .cidrs
            .iter()
            .map(|cidr| family_of(cidr.addr()))
            .collect();
        service_families::fill(object, old, &configured).map_err(Refused::All)?;
        Ok(texts(&object["spec"]["ipFamilies"]))
    }

    fn this_address(&mut self, address: IpAddr, given: &[String]) -> Result<(), Refused> {
        let refuse = |reason: String| {
            let path = Path::new("spec").child("clusterIPs");
            let detail = format!("failed to allocate IP {address}: {reason}");
            Err(Refused::Invalid(Box::new(FieldError::invalid(
                &path,
                json!(given),
                detail,
            ))))
        };
        if !self.ranges.iter().any(|cidr| is_host_of(cidr, address)) {
            return refuse("the provided network does not match the current range".to_owned());
        }
        if self.is_taken(address) {
            return refuse("provided IP is already allocated".to_owned());
        }
        self.given.addresses.insert(address);
        Ok(())
    }

    /// From the upper part of the range while it lasts: the lower part is for addresses that
    /// people choose.
    fn any_address(&mut self, family: &str) -> Result<IpAddr, Refused> {
        let own = self
            .ranges
            .iter()
            .filter(|cidr| family_of(cidr.addr()) == family);
        match own.into_iter().find_map(|cidr| self.free_in(cidr)) {
            Some(address) => {
                self.given.addresses.insert(address);
                Ok(address)
            }
            None => Err(Refused::Exhausted(
                "failed to allocate a serviceIP: range is full".to_owned(),
            )),
        }
    }

    fn free_in(&self, cidr: &IpNet) -> Option<IpAddr> {
        let size = usable(cidr);
        let reserved = if size < 32 {
            0
        } else {
            (size / 16).clamp(16, 256)
        };
        let is_own = self.config.cidrs.contains(cidr);
        let free = |offset: u64| {
            let address = nth(cidr, offset)?;
            // The first address is the API server's own Service.
            let used = is_own && offset == 1 || self.is_taken(address);
            (!used).then_some(address)
        };
        let random = (0..RANDOM_ATTEMPTS)
            .find_map(|_| free(rand::random_range(reserved + 1..=size.max(reserved + 1))));
        random
            .or_else(|| (reserved + 1..=size).find_map(free))
            .or_else(|| (1..=reserved).find_map(free))
    }

    fn ports(&mut self, object: &mut Value, old: Option<&Value>) -> Result<(), Refused> {
        if !needs_node_ports(object) {
            return Ok(());
        }
        let held: HashSet<(String, u16)> =
            old.map(ports_of).unwrap_or_default().into_iter().collect();
        let had: HashSet<u16> = held.iter().map(|(_, port)| *port).collect();
        let mut own: HashSet<(String, u16)> = HashSet::new();
        let Some(ports) = object["spec"]["ports"].as_array_mut() else {
            return Ok(());
        };
        for (index, port) in ports.iter_mut().enumerate() {
            let Some(wanted) = port["nodePort"].as_u64().filter(|port| *port != 0) else {
                continue;
            };
            let Ok(wanted) = u16::try_from(wanted) else {
                continue;
            };
            let path = Path::new("spec")
                .child("ports")
                .index(index)
                .child("nodePort");
            let again = !own.insert((protocol_of(port), wanted));
            if again || !had.contains(&wanted) && !self.given.ports.contains(&wanted) {
                self.this_port(wanted, again, &path)?;
            }
        }
        let mut ports_before: Vec<(Value, u16)> = ports
            .iter()
            .filter_map(|port| {
                let chosen = u16::try_from(port["nodePort"].as_u64()?).ok()?;
                (chosen != 0).then(|| (port["port"].clone(), chosen))
            })
            .collect();
        for port in ports.iter_mut() {
            if port["nodePort"].as_u64().unwrap_or(0) != 0 {
                continue;
            }
            // A Service with one port in two protocols gets one number for both.
            let protocol = protocol_of(port);
            let sibling = ports_before
                .iter()
                .filter(|(number, _)| *number == port["port"])
                .find_map(|(_, chosen)| {
                    (!own.contains(&(protocol.clone(), *chosen))).then_some(*chosen)
                });
            let chosen = match sibling {
                Some(port) => port,
                None => self.any_port()?,
            };
            self.given.ports.insert(chosen);
            own.insert((protocol, chosen));
            ports_before.push((port["port"].clone(), chosen));
            port["nodePort"] = chosen.into();
        }
        self.health_check_port(object, &had)
    }

    fn this_port(&mut self, port: u16, again: bool, path: &Path) -> Result<(), Refused> {
        let refuse = |reason: String| {
            Err(Refused::Invalid(Box::new(FieldError::invalid(
                path, port, reason,
            ))))
        };
        if !self.config.node_ports.contains(&port) {
            return refuse(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.config.node_ports.start(),
                self.config.node_ports.end()
            ));
        }
        if again || self.taken.ports.contains(&port) || !self.given.ports.insert(port) {
            return refuse("provided port is already allocated".to_owned());
        }
        Ok(())
    }

    /// From the upper part of the range while it lasts, as with addresses.
    fn any_port(&self) -> Result<u16, Refused> {
        let range = self.config.node_ports.clone();
        let size = u16::try_from(range.len()).unwrap_or(u16::MAX);
        let reserved = if size < 32 {
            0
        } else {
            (size / 32).clamp(16, 128)
        };
        let dynamic = range.start() + reserved..=*range.end();
        let free =
            |port: &u16| !self.taken.ports.contains(port) && !self.given.ports.contains(port);
        (0..RANDOM_ATTEMPTS)
            .map(|_| rand::random_range(dynamic.clone()))
            .find(free)
            .or_else(|| dynamic.clone().find(free))
            .or_else(|| range.clone().find(free))
            .ok_or_else(|| {
                Refused::Exhausted("failed to allocate a nodePort: range is full".to_owned())
            })
    }

    fn health_check_port(&mut self, object: &mut Value, had: &HashSet<u16>) -> Result<(), Refused> {
        if !needs_health_check_port(object) {
            return Ok(());
        }
        let asked = object["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0);
        let range = &self.config.node_ports;
        let wanted = u16::try_from(asked).unwrap_or(0);
        if asked != 0 && !range.contains(&wanted) {
            return Err(Refused::Exhausted(format!(
                "failed to allocate requested HealthCheck NodePort {asked}: provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            )));
        }
        if wanted == 0 {
            let port = self.any_port()?;
            self.given.ports.insert(port);
            object["spec"]["healthCheckNodePort"] = port.into();
            return Ok(());
        }
        if had.contains(&wanted) {
            return Ok(());
        }
        let path = Path::new("spec").child("healthCheckNodePort");
        self.this_port(wanted, false, &path)
    }
}

/// An update that leaves out what the server allocated keeps it.
fn keep_allocated(object: &mut Value, old: &Value) {
    if needs_address(object) && needs_address(old) && text(&object["spec"]["clusterIP"]).is_empty()
    {
        let empty = texts(&object["spec"]["clusterIPs"]).is_empty();
        object["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        if empty {
            object["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        }
    }
    if needs_node_ports(object) && needs_node_ports(old) {
        let known = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let used: HashSet<(String, u16)> = ports_of(object).into_iter().collect();
        for port in object["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_u64().unwrap_or(0) != 0 {
                continue;
            }
            let same = known
                .iter()
                .find(|k| protocol_of(k) == protocol_of(port) && k["port"] == port["port"]);
            let kept = same.and_then(|same| u16::try_from(same["nodePort"].as_u64()?).ok());
            if let Some(kept) =
                kept.filter(|kept| *kept != 0 && !used.contains(&(protocol_of(port), *kept)))
            {
                port["nodePort"] = kept.into();
            }
        }
    }
    if needs_health_check_port(object)
        && needs_health_check_port(old)
        && object["spec"]["healthCheckNodePort"].as_u64().unwrap_or(0) == 0
    {
        object["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

/// A change of type gives back what the new type does not have, unless the client changed it.
fn release(object: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    if needs_address(old)
        && !needs_address(object)
        && object["spec"]["clusterIP"] == old["spec"]["clusterIP"]
        && let Some(spec) = object["spec"].as_object_mut()
    {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
    // A load balancer that stops asking for node ports keeps those it has.
    let of_nodes = |service| matches!(service_type(service), "NodePort" | "LoadBalancer");
    if of_nodes(old) && !of_nodes(object) {
        let before: HashSet<(String, u16)> = ports_of(old).into_iter().collect();
        for port in object["spec"]["ports"].as_array_mut().into_iter().flatten() {
            let number = port["nodePort"]
                .as_u64()
                .and_then(|p| u16::try_from(p).ok())
                .unwrap_or(0);
            if before.contains(&(protocol_of(port), number))
                && let Some(port) = port.as_object_mut()
            {
                port.remove("nodePort");
            }
        }
    }
    if needs_health_check_port(old)
        && !needs_health_check_port(object)
        && object["spec"]["healthCheckNodePort"] == old["spec"]["healthCheckNodePort"]
        && let Some(spec) = object["spec"].as_object_mut()
    {
        spec.remove("healthCheckNodePort");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn service_type(service: &Value) -> &str {
    match text(&service["spec"]["type"]) {
        "" => "ClusterIP",
        kind => kind,
    }
}

fn needs_address(service: &Value) -> bool {
    matches!(
        service_type(service),
        "ClusterIP" | "NodePort" | "LoadBalancer"
    )
}

fn needs_node_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn needs_health_check_port(service: &Value) -> bool {
    service_type(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

pub(crate) fn is_service(entry: &ResourceEntry) -> bool {
    entry.storage_group.is_empty() && entry.resource == "services"
}

pub(crate) fn addresses_of(service: &Value) -> Vec<IpAddr> {
    let mut all = texts(&service["spec"]["clusterIPs"]);
    all.push(text(&service["spec"]["clusterIP"]).to_owned());
    all.iter()
        .filter_map(|address| address.parse().ok())
        .collect()
}

fn ports_of(service: &Value) -> Vec<(String, u16)> {
    let mut all = Vec::new();
    for port in service["spec"]["ports"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
    {
        if let Some(number) = port["nodePort"]
            .as_u64()
            .and_then(|p| u16::try_from(p).ok())
            .filter(|p| *p != 0)
        {
            all.push((protocol_of(port), number));
        }
    }
    let health = service["spec"]["healthCheckNodePort"]
        .as_u64()
        .and_then(|p| u16::try_from(p).ok());
    if let Some(number) = health.filter(|p| *p != 0) {
        all.push(("TCP".to_owned(), number));
    }
    all
}

fn protocol_of(port: &Value) -> String {
    match text(&port["protocol"]) {
        "" => "TCP",
        protocol => protocol,
    }
    .to_owned()
}

pub(crate) fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// How many addresses can be given out; bounded, since nobody fills a /64.
fn usable(cidr: &IpNet) -> u64 {
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    let all = 1u64 << bits.min(20);
    // IPv4 ranges lose the broadcast address, both the network's own.
    all.saturating_sub(if cidr.addr().is_ipv4() { 2 } else { 1 })
}

fn nth(cidr: &IpNet, offset: u64) -> Option<IpAddr> {
    match cidr.network() {
        IpAddr::V4(network) => {
            let address = u32::from(network).checked_add(u32::try_from(offset).ok()?)?;
            Some(IpAddr::V4(address.into()))
        }
        IpAddr::V6(network) => Some(IpAddr::V6(
            u128::from(network).checked_add(u128::from(offset))?.into(),
        )),
    }
}

fn is_host_of(cidr: &IpNet, address: IpAddr) -> bool {
    let broadcast = cidr.addr().is_ipv4() && cidr.prefix_len() < 31 && address == cidr.broadcast();
    cidr.contains(&address) && address != cidr.network() && !broadcast
}
