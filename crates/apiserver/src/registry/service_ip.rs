//! Cluster IPs of Services: which are chosen. An address is taken when there is an IPAddress of its
//! name (see [`super::service_claim`]) or a write in flight that was given it. Specified as
//! upstream's ipallocator does it.

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
use super::service_claim::is_owner;
use super::service_families;
use super::service_port::PortRound;
use crate::cache::{Caches, WatchCache};

/// Random picks before the range is searched in order.
const RANDOM_ATTEMPTS: usize = 32;

/// From where Services are given addresses and ports.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// One for each family; the first is the family of single-stack Services.
    pub cidrs: Vec<IpNet>,
    pub node_ports: RangeInclusive<u16>,
}

impl ServiceConfig {
    pub fn new(cidrs: &[IpNet]) -> Self {
        Self {
            cidrs: cidrs.to_vec(),
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
pub(super) struct Taken {
    pub(super) addresses: HashSet<IpAddr>,
    /// One Service may have a number in several protocols, two may not share it.
    pub(super) ports: HashSet<u16>,
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
    /// What the object did not have before.
    pub(super) fn taken(&self) -> &Taken {
        &self.taken
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

    pub(super) fn config(&self) -> &ServiceConfig {
        &self.config
    }

    /// Whether a write of this Service may take node ports.
    pub(super) fn may_need_ports(&self, object: &Value, old: Option<&Value>) -> bool {
        matches!(service_type(object), "NodePort" | "LoadBalancer")
            && old.is_none_or(|old| {
                [
                    "type",
                    "ports",
                    "externalTrafficPolicy",
                    "healthCheckNodePort",
                ]
                .iter()
                .any(|field| object["spec"][field] != old["spec"][field])
            })
    }

    /// Completes a Service that is about to be written. `ports` are claimed. With `shared` a claim
    /// of an address in the name of this very Service is no obstacle: servers that start together
    /// all make the one Service that leads to them.
    pub(super) fn reserve(
        &self,
        object: &mut Value,
        old: Option<&Value>,
        shared: bool,
        ports: &HashSet<u16>,
    ) -> Result<Reservation, Status> {
        // One allocation at a time: what is taken may not change between looking and taking.
        let mut in_flight = self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut round = Round {
            config: &self.config,
            ranges: self.ranges(),
            known: self.caches.get("networking.k8s.io", "ipaddresses"),
            sharer: shared.then(|| {
                let name = meta::name(object).to_owned();
                (meta::namespace(object).to_owned(), name)
            }),
            taken: &in_flight.addresses,
            given: HashSet::new(),
        };
        let taken: HashSet<u16> = ports.union(&in_flight.ports).copied().collect();
        let mut port_round = PortRound {
            range: &self.config.node_ports,
            taken: &taken,
            given: HashSet::new(),
        };
        if object["spec"].is_object() {
            round
                .addresses(object, old)
                .and_then(|()| port_round.fill(object, old))
                .map_err(|error| {
                    let name = meta::name(object).to_owned();
                    match error {
                        Refused::Invalid(error) => {
                            Status::invalid("", "Service", &name, &vec![*error])
                        }
                        Refused::All(errors) => Status::invalid("", "Service", &name, &errors),
                        Refused::Failed(message) => Status::internal(message),
                        Refused::Unclassified(message) => Status::unclassified(message),
                    }
                })?;
        }
        let given = Taken {
            addresses: round.given,
            ports: port_round.given,
        };
        in_flight.addresses.extend(given.addresses.iter().copied());
        in_flight.ports.extend(given.ports.iter().copied());
        Ok(Reservation {
            taken: given,
            in_flight: Arc::clone(&self.in_flight),
        })
    }

    /// The ranges of the ServiceCIDRs that are ready and stay, those of this server first; its own
    /// as long as it has not published them.
    fn ranges(&self) -> Vec<IpNet> {
        let own = &self.config.cidrs;
        let published = self.service_cidrs();
        if published.is_empty() {
            return own.clone();
        }
        let mut ranges: Vec<IpNet> = Vec::new();
        for cidr in published
            .iter()
            .filter(|range| is_ready(range))
            .flat_map(|range| cidrs_of(range))
        {
            if !ranges.contains(&cidr) {
                ranges.push(cidr);
            }
        }
        ranges.sort_by_key(|cidr| own.iter().position(|own| own == cidr).unwrap_or(own.len()));
        ranges
    }

    fn service_cidrs(&self) -> Vec<Arc<Value>> {
        let cache = self.caches.get("networking.k8s.io", "servicecidrs");
        cache.map_or_else(Vec::new, |cache| {
            let objects = cache.list("");
            objects.iter().map(|object| cache.decode(object)).collect()
        })
    }

    /// Whether any ServiceCIDR has the address, be it ready or not.
    pub(super) fn is_in_a_range(&self, address: IpAddr) -> bool {
        let published = self.service_cidrs();
        let mut published = published.iter().flat_map(|range| cidrs_of(range));
        let mut own = self.config.cidrs.iter();
        published.any(|cidr| is_host_of(&cidr, address))
            || own.any(|cidr| is_host_of(cidr, address))
    }
}

fn cidrs_of(range: &Value) -> impl Iterator<Item = IpNet> {
    let cidrs = range["spec"]["cidrs"].as_array().into_iter().flatten();
    cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok())
}

/// A range that nobody has said anything of is ready, since there may be no controller to say it.
fn is_ready(range: &Value) -> bool {
    let conditions = range["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready");
    meta::deletion_timestamp(range).is_none()
        && ready.is_none_or(|condition| condition["status"] == "True")
}

pub(super) enum Refused {
    Invalid(Box<FieldError>),
    All(ErrorList),
    /// No fault of the request's.
    Failed(String),
    /// An error that upstream gives no reason.
    Unclassified(String),
}

struct Round<'a> {
    config: &'a ServiceConfig,
    ranges: Vec<IpNet>,
    /// IPAddress objects, by name.
    known: Option<Arc<WatchCache>>,
    /// Namespace and name of the Service whose claims are no obstacle.
    sharer: Option<(String, String)>,
    taken: &'a HashSet<IpAddr>,
    given: HashSet<IpAddr>,
}

impl Round<'_> {
    fn is_taken(&self, address: IpAddr) -> bool {
        self.taken.contains(&address)
            || self.given.contains(&address)
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
        let mut given = texts(&object["spec"]["clusterIPs"]);
        let single = text(&object["spec"]["clusterIP"]);
        if given.is_empty() && !single.is_empty() {
            given.push(single.to_owned());
        }
        let before = old.filter(|old| needs_address(old));
        let first = match before {
            _ if given.first().is_some_and(|first| first == "None") => {
                object["spec"]["clusterIP"] = "None".into();
                object["spec"]["clusterIPs"] = json!(["None"]);
                return Ok(());
            }
            None => 0,
            // Of a second family the Service has no address yet.
            Some(old) if texts(&old["spec"]["ipFamilies"]).len() == 1 && families.len() == 2 => 1,
            // What it has does not change, and when it does, the validation says so.
            Some(_) => return Ok(()),
        };
        let name = meta::name(object).to_owned();
        let mut asked = given.clone();
        asked.resize(given.len().max(families.len()), String::new());
        for (index, family) in families.iter().enumerate().skip(first) {
            let Some(wanted) = given.get(index).cloned() else {
                let address = self.any_address(family, &name)?;
                given.push(address.to_string());
                continue;
            };
            // What is no address is the validation's to refuse.
            let Ok(address) = wanted.parse::<IpAddr>() else {
                return Ok(());
            };
            self.this_address(address, &asked)?;
        }
        object["spec"]["clusterIP"] = given.first().cloned().unwrap_or_default().into();
        object["spec"]["clusterIPs"] = json!(given);
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
        self.given.insert(address);
        Ok(())
    }

    /// From the upper part of the range while it lasts: the lower part is for addresses that
    /// people choose.
    fn any_address(&mut self, family: &str, service: &str) -> Result<IpAddr, Refused> {
        let own = self
            .ranges
            .iter()
            .filter(|cidr| family_of(cidr.addr()) == family);
        match own.into_iter().find_map(|cidr| self.free_in(cidr)) {
            Some(address) => {
                self.given.insert(address);
                Ok(address)
            }
            None => Err(Refused::Failed(format!(
                "failed to allocate a serviceIP for Service {service:?}: range is full"
            ))),
        }
    }

    fn free_in(&self, cidr: &IpNet) -> Option<IpAddr> {
        let size = usable(cidr);
        let reserved = match size + if cidr.addr().is_ipv4() { 2 } else { 1 } {
            0..=16 => 0,
            all => (all / 16).clamp(16, 256).min(size),
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
}

pub(super) fn text(value: &Value) -> &str {
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

pub(super) fn service_type(service: &Value) -> &str {
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
