//! Cluster IPs and node ports of Services. What is taken follows from the Services there are and
//! from the writes in flight; nothing is stored beside them that could disagree.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use keelson_machinery::field::{FieldError, Path};
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::resources::ResourceEntry;
use crate::cache::Caches;

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
    ports: HashSet<(String, u16)>,
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

impl Services {
    pub(crate) fn new(config: ServiceConfig, caches: Arc<Caches>) -> Self {
        Self {
            config,
            caches,
            in_flight: Arc::default(),
        }
    }

    /// Completes a Service that is about to be written; other kinds pass untouched.
    pub(crate) fn reserve(
        &self,
        entry: &ResourceEntry,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<Reservation>, Status> {
        let is_service = entry.storage_group.is_empty() && entry.resource == "services";
        if !is_service || !object["spec"].is_object() {
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
        let mut taken = self.taken_by_others(object);
        taken.addresses.extend(in_flight.addresses.iter().copied());
        taken.ports.extend(in_flight.ports.iter().cloned());
        let mut round = Round {
            config: &self.config,
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
                    Refused::Exhausted(message) => Status::internal(message),
                }
            })?;
        in_flight
            .addresses
            .extend(round.given.addresses.iter().copied());
        in_flight.ports.extend(round.given.ports.iter().cloned());
        Ok(Some(Reservation {
            taken: round.given,
            in_flight: Arc::clone(&self.in_flight),
        }))
    }

    fn taken_by_others(&self, object: &Value) -> Taken {
        let mut taken = Taken::default();
        let Some(cache) = self.caches.get("", "services") else {
            return taken;
        };
        let (namespace, name) = (meta::namespace(object), meta::name(object));
        for other in cache.list("") {
            if other.namespace() == namespace && other.name() == name {
                continue;
            }
            let service = cache.decode(&other);
            taken.addresses.extend(addresses_of(&service));
            taken.ports.extend(ports_of(&service));
        }
        taken
    }
}

enum Refused {
    Invalid(Box<FieldError>),
    Exhausted(String),
}

struct Round<'a> {
    config: &'a ServiceConfig,
    taken: Taken,
    given: Taken,
}

impl Round<'_> {
    fn addresses(&mut self, object: &mut Value, old: Option<&Value>) -> Result<(), Refused> {
        if !needs_address(object) {
            return Ok(());
        }
        let families = self.families(object)?;
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
    fn families(&self, object: &mut Value) -> Result<Vec<String>, Refused> {
        let spec = &mut object["spec"];
        let policy = match text(&spec["ipFamilyPolicy"]) {
            "" => {
                let two =
                    texts(&spec["ipFamilies"]).len() > 1 || texts(&spec["clusterIPs"]).len() > 1;
                if two {
                    "RequireDualStack"
                } else {
                    "SingleStack"
                }
                .to_owned()
            }
            policy => policy.to_owned(),
        };
        spec["ipFamilyPolicy"] = policy.as_str().into();
        let mut families = texts(&spec["ipFamilies"]);
        for address in texts(&spec["clusterIPs"])
            .iter()
            .chain([&text(&spec["clusterIP"]).to_owned()])
        {
            if let Ok(address) = address.parse::<IpAddr>() {
                let family = family_of(address).to_owned();
                if !families.contains(&family) {
                    families.push(family);
                }
            }
        }
        let configured: Vec<&str> = self
            .config
            .cidrs
            .iter()
            .map(|cidr| family_of(cidr.addr()))
            .collect();
        if families.is_empty() {
            families.extend(configured.first().map(|family| (*family).to_owned()));
        }
        if policy != "SingleStack" {
            for family in &configured {
                if !families.iter().any(|known| known == family) {
                    families.push((*family).to_owned());
                }
            }
        }
        let path = Path::new("spec").child("ipFamilies");
        for (index, family) in families.iter().enumerate() {
            if !configured.contains(&family.as_str()) {
                let error = FieldError::invalid(
                    &path.index(index),
                    family.as_str(),
                    "not configured on this cluster",
                );
                return Err(Refused::Invalid(Box::new(error)));
            }
        }
        if policy == "RequireDualStack" && configured.len() < 2 {
            let error = FieldError::invalid(
                &Path::new("spec").child("ipFamilyPolicy"),
                "RequireDualStack",
                "this cluster is not configured for dual-stack services",
            );
            return Err(Refused::Invalid(Box::new(error)));
        }
        Ok(families)
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
        let cidr = self
            .config
            .cidrs
            .iter()
            .find(|cidr| family_of(cidr.addr()) == family_of(address));
        let Some(cidr) = cidr.filter(|cidr| is_host_of(cidr, address)) else {
            let ranges: Vec<String> = self.config.cidrs.iter().map(ToString::to_string).collect();
            return refuse(format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                ranges.join(",")
            ));
        };
        debug_assert!(cidr.contains(&address));
        if self.taken.addresses.contains(&address) || !self.given.addresses.insert(address) {
            return refuse("provided IP is already allocated".to_owned());
        }
        Ok(())
    }

    /// From the upper part of the range while it lasts: the lower part is for addresses that
    /// people choose.
    fn any_address(&mut self, family: &str) -> Result<IpAddr, Refused> {
        let Some(cidr) = self
            .config
            .cidrs
            .iter()
            .find(|cidr| family_of(cidr.addr()) == family)
        else {
            return Err(Refused::Exhausted(format!(
                "no service range of family {family}"
            )));
        };
        let size = usable(cidr);
        let reserved = if size < 32 {
            0
        } else {
            (size / 16).clamp(16, 256)
        };
        let free = |this: &Self, offset: u64| {
            // The first address is the API server's own Service.
            let address = nth(cidr, offset)?;
            let used = offset == 1
                || this.taken.addresses.contains(&address)
                || this.given.addresses.contains(&address);
            (!used).then_some(address)
        };
        let random = (0..RANDOM_ATTEMPTS).find_map(|_| {
            free(
                self,
                rand::random_range(reserved + 1..=size.max(reserved + 1)),
            )
        });
        let found = random
            .or_else(|| (reserved + 1..=size).find_map(|offset| free(self, offset)))
            .or_else(|| (1..=reserved).find_map(|offset| free(self, offset)));
        match found {
            Some(address) => {
                self.given.addresses.insert(address);
                Ok(address)
            }
            None => Err(Refused::Exhausted(
                "failed to allocate a serviceIP: range is full".to_owned(),
            )),
        }
    }

    fn ports(&mut self, object: &mut Value, old: Option<&Value>) -> Result<(), Refused> {
        if !needs_node_ports(object) {
            return Ok(());
        }
        let held: HashSet<(String, u16)> =
            old.map(ports_of).unwrap_or_default().into_iter().collect();
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
            let key = (protocol_of(port), wanted);
            if held.contains(&key) {
                self.given.ports.insert(key);
                continue;
            }
            let path = Path::new("spec")
                .child("ports")
                .index(index)
                .child("nodePort");
            self.this_port(key, &path)?;
        }
        for port in ports.iter_mut() {
            if port["nodePort"].as_u64().unwrap_or(0) != 0 {
                continue;
            }
            let protocol = protocol_of(port);
            let sibling = self.sibling(&protocol);
            let chosen = match sibling {
                Some(port) => port,
                None => self.any_port(&protocol)?,
            };
            self.given.ports.insert((protocol, chosen));
            port["nodePort"] = chosen.into();
        }
        self.health_check_port(object, &held)
    }

    fn this_port(&mut self, key: (String, u16), path: &Path) -> Result<(), Refused> {
        let port = key.1;
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
        if self.taken.ports.contains(&key) || !self.given.ports.insert(key) {
            return refuse("provided port is already allocated".to_owned());
        }
        Ok(())
    }

    /// A Service with one port in two protocols gets one number for both.
    fn sibling(&self, protocol: &str) -> Option<u16> {
        let other = self.given.ports.iter().map(|(_, port)| *port);
        let mut free = other.filter(|port| {
            let key = (protocol.to_owned(), *port);
            !self.given.ports.contains(&key) && !self.taken.ports.contains(&key)
        });
        free.next()
    }

    fn any_port(&self, protocol: &str) -> Result<u16, Refused> {
        let range = self.config.node_ports.clone();
        let free = |port: &u16| {
            let key = (protocol.to_owned(), *port);
            !self.taken.ports.contains(&key) && !self.given.ports.contains(&key)
        };
        (0..RANDOM_ATTEMPTS)
            .map(|_| rand::random_range(range.clone()))
            .find(free)
            .or_else(|| range.clone().find(free))
            .ok_or_else(|| {
                Refused::Exhausted("failed to allocate a nodePort: range is full".to_owned())
            })
    }

    fn health_check_port(
        &mut self,
        object: &mut Value,
        held: &HashSet<(String, u16)>,
    ) -> Result<(), Refused> {
        if !needs_health_check_port(object) {
            return Ok(());
        }
        let wanted = object["spec"]["healthCheckNodePort"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(0);
        if wanted == 0 {
            let port = self.any_port("TCP")?;
            self.given.ports.insert(("TCP".into(), port));
            object["spec"]["healthCheckNodePort"] = port.into();
            return Ok(());
        }
        let key = ("TCP".to_owned(), wanted);
        if held.contains(&key) {
            return Ok(());
        }
        self.this_port(key, &Path::new("spec").child("healthCheckNodePort"))
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
    if needs_node_ports(old) && !needs_node_ports(object) {
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

fn addresses_of(service: &Value) -> Vec<IpAddr> {
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

fn family_of(address: IpAddr) -> &'static str {
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
