//! The pod network of a node: a bridge, a veth pair and an address per pod, routes between nodes.
//!
//! Pods have host addresses (`/32`, `/128`) and reach everything, their neighbours on the bridge
//! too, by way of the bridge's own address. So every packet passes the host's IP layer, where
//! services are translated there and back, without `br_netfilter`, which a kernel may not have.

mod host;
mod ipam;
mod links;
pub(crate) mod netns;
mod rules;
mod tunnel;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use ipnet::IpNet;
use keelson_ports::{Error, NetworkStatus, PodNetwork, PodNetworkRequest, Result};
use thiserror::Error as ThisError;

pub use host::follow_host_address;

use crate::conntrack::{self, Translations};
use crate::nft::Applier;
use ipam::{Attachment, Ipam, gateway};
use links::{Links, Mac, ROUTE_PROTOCOL, Route, VethPair};

const POD_LINK: &str = "eth0";
const DEFAULT_MTU: u32 = 1500;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The bridge's name, at most 15 bytes; instances in one network namespace have different ones.
    pub bridge: String,
    /// The nf_tables table for masquerading and host ports.
    pub table: String,
    /// Where the addresses in use are remembered; gone after a reboot, as the interfaces are.
    pub run_dir: PathBuf,
    /// `None` takes that of the interface of the default route.
    pub mtu: Option<u32>,
    /// Service addresses; a route leads them to the packet rules on a host without default route.
    pub service_cidrs: Vec<IpNet>,
    /// VXLAN identifier and UDP port of the tunnels to nodes behind routers; the same on all nodes.
    pub tunnel_id: u32,
    pub tunnel_port: u16,
}

impl NetworkConfig {
    pub fn new(run_dir: PathBuf) -> Self {
        NetworkConfig {
            bridge: "kl0".into(),
            table: "keelson-pods".into(),
            run_dir,
            mtu: None,
            service_cidrs: Vec::new(),
            tunnel_id: 0x4b4c,
            tunnel_port: 8472,
        }
    }

    fn facts_path(&self) -> PathBuf {
        self.run_dir.join(format!("network-{}.json", self.bridge))
    }

    /// Names of the host's ends begin so; it tells this instance's from another's.
    fn link_prefix(&self) -> String {
        format!("k{:04x}", fnv(self.bridge.as_bytes()) & 0xffff)
    }

    fn link_name(&self, sandbox: &str) -> String {
        format!(
            "{}{:08x}",
            self.link_prefix(),
            fnv(sandbox.as_bytes()) & 0xffff_ffff
        )
    }
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[derive(Debug, ThisError)]
enum Failure {
    #[error("cannot {operation}: {source}")]
    Kernel {
        operation: String,
        source: io::Error,
    },
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unsupported(String),
}

fn kernel(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let operation = operation.into();
    move |source| Failure::Kernel { operation, source }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        match failure {
            Failure::Kernel { .. } => Error::Failed(text),
            Failure::Invalid(_) => Error::Invalid(text),
            Failure::Unsupported(_) => Error::Unsupported(text),
        }
    }
}

struct State {
    ipam: Ipam,
    applier: Applier,
    /// Where the host ports of the rules that stand lead UDP; `None` before the first.
    udp: Option<Translations>,
}

/// [`PodNetwork`] in the network namespace of the process.
#[derive(Clone)]
pub struct BridgeNetwork {
    config: Arc<NetworkConfig>,
    state: Arc<Mutex<State>>,
}

impl BridgeNetwork {
    /// Takes up where an earlier process left off: pods that run keep their addresses.
    pub fn open(config: NetworkConfig) -> Result<Self> {
        if config.bridge.is_empty()
            || config.bridge.len() > 15
            || config.bridge.contains(['/', ' '])
        {
            return Err(Error::Invalid(format!(
                "{:?} cannot name an interface",
                config.bridge
            )));
        }
        fs::create_dir_all(&config.run_dir).map_err(|e| {
            Error::Failed(format!("cannot create {}: {e}", config.run_dir.display()))
        })?;
        let path = config.facts_path();
        let ipam = Ipam::open(path.clone())
            .map_err(|e| Error::Failed(format!("cannot read {}: {e}", path.display())))?;
        let state = State {
            ipam,
            applier: Applier::default(),
            udp: None,
        };
        Ok(BridgeNetwork {
            config: Arc::new(config),
            state: Arc::new(Mutex::new(state)),
        })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&NetworkConfig, &Mutex<State>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || work(&this.config, &this.state)).await {
            Ok(result) => Ok(result?),
            Err(e) => Err(Error::Failed(format!("a network operation failed: {e}"))),
        }
    }
}

#[async_trait]
impl PodNetwork for BridgeNetwork {
    async fn setup_node(&self, pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) -> Result<()> {
        let (pods, cluster) = (pod_cidrs.to_vec(), cluster_cidrs.to_vec());
        self.blocking(move |config, state| setup_node(config, &mut lock(state), pods, cluster))
            .await
    }

    async fn attach(&self, request: &PodNetworkRequest) -> Result<NetworkStatus> {
        if request.ingress_bps.is_some() || request.egress_bps.is_some() {
            tracing::warn!(pod = request.pod_name, "bandwidth limits are not enforced");
        }
        let request = request.clone();
        self.blocking(move |config, state| attach(config, state, &request))
            .await
    }

    async fn detach(&self, sandbox: &str) -> Result<()> {
        let sandbox = sandbox.to_owned();
        self.blocking(move |config, state| detach(config, &mut lock(state), &[sandbox]))
            .await
    }

    async fn set_routes(&self, routes: &[(IpNet, IpAddr)]) -> Result<()> {
        let routes = routes.to_vec();
        self.blocking(move |config, state| set_routes(config, &mut lock(state), &routes))
            .await
    }

    async fn retain(&self, live: &[String]) -> Result<()> {
        let live = live.to_vec();
        self.blocking(move |config, state| {
            let mut state = lock(state);
            let known = state.ipam.facts.attachments.keys();
            let dead: Vec<String> = known.filter(|s| !live.contains(s)).cloned().collect();
            if dead.is_empty() {
                Ok(())
            } else {
                detach(config, &mut state, &dead)
            }
        })
        .await
    }

    async fn teardown_node(&self) -> Result<()> {
        self.blocking(|config, state| teardown(config, &mut lock(state)))
            .await
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_links() -> Result<Links, Failure> {
    Links::open().map_err(kernel("open a netlink socket"))
}

/// A locally administered address made of the IP address, so that a reused IP has no stale
/// neighbour entries.
fn mac_of(ip: IpAddr) -> Mac {
    let tail = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let o = ip.octets();
            [o[12], o[13], o[14], o[15]]
        }
    };
    [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
}

fn setup_node(
    config: &NetworkConfig,
    state: &mut State,
    pod_cidrs: Vec<IpNet>,
    cluster_cidrs: Vec<IpNet>,
) -> Result<(), Failure> {
    let pod_cidrs: Vec<IpNet> = pod_cidrs.iter().map(IpNet::trunc).collect();
    let Some(first) = pod_cidrs.first().and_then(gateway) else {
        return Err(Failure::Invalid("the node has no pod range".into()));
    };
    if let Some(small) = pod_cidrs
        .iter()
        .find(|c| c.max_prefix_len() - c.prefix_len() < 2)
    {
        return Err(Failure::Invalid(format!(
            "the pod range {small} is too small"
        )));
    }
    set_sysctls(config, state, &pod_cidrs)?;
    let mut links = open_links()?;
    // It is down in a network namespace made a moment ago, and node ports answer on it.
    links.set_up("lo").map_err(kernel("set up the loopback"))?;
    let mtu = match config.mtu {
        Some(mtu) => mtu,
        None => uplink_mtu(&mut links).map_err(kernel("find the uplink's MTU"))?,
    };
    let name = &config.bridge;
    links
        .create_bridge(name, mac_of(first), mtu)
        .map_err(kernel(format!("create the bridge {name}")))?;
    set_bridge_sysctls(name)?;
    links
        .set_up(name)
        .map_err(kernel(format!("set up the bridge {name}")))?;
    let bridge = links
        .index(name)
        .map_err(kernel(format!("find the bridge {name}")))?;
    let wanted: Vec<(IpAddr, u8)> = pod_cidrs
        .iter()
        .filter_map(|c| gateway(c).map(|ip| (ip, c.prefix_len())))
        .collect();
    for (ip, prefix) in links
        .addresses(bridge)
        .map_err(kernel("list the bridge's addresses"))?
    {
        if !wanted.contains(&(ip, prefix)) {
            links
                .delete_address(bridge, ip, prefix)
                .map_err(kernel(format!("remove {ip} from {name}")))?;
        }
    }
    for (ip, prefix) in wanted {
        links
            .add_address(bridge, ip, prefix)
            .map_err(kernel(format!("add {ip} to {name}")))?;
    }
    for range in &config.service_cidrs {
        let source = pod_cidrs
            .iter()
            .filter_map(gateway)
            .find(|ip| ip.is_ipv4() == range.addr().is_ipv4());
        if source.is_some() {
            let route = Route {
                destination: range.trunc(),
                gateway: None,
                link: bridge,
                protocol: ROUTE_PROTOCOL,
            };
            links
                .set_route(&route, false, source)
                .map_err(kernel(format!("route {range} to {name}")))?;
        }
    }
    state.ipam.facts.pod_cidrs = pod_cidrs;
    state.ipam.facts.cluster_cidrs = cluster_cidrs;
    state
        .ipam
        .save()
        .map_err(kernel("save the network's state"))?;
    apply_rules(config, state)
}

fn apply_rules(config: &NetworkConfig, state: &mut State) -> Result<(), Failure> {
    let table = rules::table(&config.table, &state.ipam.facts);
    state
        .applier
        .apply(table)
        .map_err(kernel("program the pod network's packet rules"))?;
    let now = rules::udp_host_ports(&state.ipam.facts);
    if state.udp.as_ref() != Some(&now) {
        let before = state.udp.take().unwrap_or_default();
        if let Err(error) = conntrack::reconcile(&before, &now, &[]) {
            // The rules stand; old UDP flows last until they time out.
            tracing::warn!(%error, "cannot remove stale connection tracking entries");
        }
        state.udp = Some(now);
    }
    Ok(())
}

pub(crate) fn local_addresses() -> io::Result<BTreeSet<IpAddr>> {
    Links::open()?.all_addresses()
}

fn uplink_mtu(links: &mut Links) -> io::Result<u32> {
    let routes = links.routes()?;
    let default = routes.iter().find(|r| r.destination.prefix_len() == 0);
    let all = links.list()?;
    let mtu = default
        .and_then(|r| all.iter().find(|l| l.index == r.link))
        .map(|l| l.mtu);
    Ok(mtu
        .filter(|m| (1280..=65_535).contains(m))
        .unwrap_or(DEFAULT_MTU))
}

fn write_sysctl(key: &str, value: &str) -> Result<(), Failure> {
    fs::write(format!("/proc/sys/{key}"), value).map_err(kernel(format!("set {key} to {value}")))
}

/// Settings of the whole host; what they were is remembered and put back at the end.
fn set_sysctls(
    config: &NetworkConfig,
    state: &mut State,
    pod_cidrs: &[IpNet],
) -> Result<(), Failure> {
    let mut wanted = vec![
        ("net/ipv4/ip_forward", "1"),
        // Node ports and host ports on 127.0.0.1; strangers are kept out by the rules.
        ("net/ipv4/conf/all/route_localnet", "1"),
        // Telling pods of a shorter way would lead them round the translation of services.
        ("net/ipv4/conf/all/send_redirects", "0"),
    ];
    if pod_cidrs.iter().any(|c| matches!(c, IpNet::V6(_))) {
        wanted.push(("net/ipv6/conf/all/forwarding", "1"));
    }
    let _ = config;
    for (key, value) in wanted {
        let old = fs::read_to_string(format!("/proc/sys/{key}"))
            .map_err(kernel(format!("read {key}")))?;
        if old.trim() != value {
            write_sysctl(key, value)?;
            state
                .ipam
                .facts
                .sysctls
                .entry(key.to_owned())
                .or_insert_with(|| old.trim().to_owned());
        }
    }
    Ok(())
}

fn set_bridge_sysctls(bridge: &str) -> Result<(), Failure> {
    for (key, value) in [
        ("route_localnet", "1"),
        ("send_redirects", "0"),
        ("rp_filter", "0"),
    ] {
        write_sysctl(&format!("net/ipv4/conf/{bridge}/{key}"), value)?;
    }
    skip_duplicate_detection(bridge);
    Ok(())
}

/// The link-local address is unusable while it is checked, and neighbours are asked from it: a
/// new pod would be unreachable for its first second.
fn skip_duplicate_detection(link: &str) {
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{link}/accept_dad"), "0");
}

fn status(ips: &[IpAddr], pod_cidrs: &[IpNet], mtu: u32) -> NetworkStatus {
    NetworkStatus {
        ips: ips.to_vec(),
        gateway: pod_cidrs.first().and_then(gateway),
        mtu,
    }
}

fn attach(
    config: &NetworkConfig,
    state: &Mutex<State>,
    request: &PodNetworkRequest,
) -> Result<NetworkStatus, Failure> {
    let mut links = open_links()?;
    let bridge = links
        .find(&config.bridge)
        .map_err(kernel("look for the bridge"))?
        .ok_or_else(|| Failure::Invalid("the pod network is not set up on this node yet".into()))?;
    let link = config.link_name(&request.sandbox);
    let (ips, pod_cidrs) = {
        let mut state = lock(state);
        let pod_cidrs = state.ipam.facts.pod_cidrs.clone();
        if let Some(had) = state.ipam.facts.attachments.get(&request.sandbox) {
            let complete = links
                .find(&had.link)
                .map_err(kernel("look for the pod's interface"))?
                .is_some();
            if complete {
                return Ok(status(&had.ips, &pod_cidrs, bridge.mtu));
            }
            // The process died in between, or somebody removed the interface: make it again.
            (had.ips.clone(), pod_cidrs)
        } else {
            let ips = state
                .ipam
                .allocate()
                .map_err(kernel("allocate an address"))?;
            let attachment = Attachment {
                ips: ips.clone(),
                link: link.clone(),
                host_ports: request.host_ports.clone(),
            };
            state
                .ipam
                .facts
                .attachments
                .insert(request.sandbox.clone(), attachment);
            state
                .ipam
                .save()
                .map_err(kernel("save the network's state"))?;
            (ips, pod_cidrs)
        }
    };
    let result = connect(&mut links, &bridge, &link, request, &ips, &pod_cidrs).and_then(|()| {
        if request.host_ports.is_empty() {
            Ok(())
        } else {
            apply_rules(config, &mut lock(state))
        }
    });
    if let Err(failure) = result {
        let _ = detach(
            config,
            &mut lock(state),
            std::slice::from_ref(&request.sandbox),
        );
        return Err(failure);
    }
    Ok(status(&ips, &pod_cidrs, bridge.mtu))
}

fn connect(
    links: &mut Links,
    bridge: &links::Link,
    link: &str,
    request: &PodNetworkRequest,
    ips: &[IpAddr],
    pod_cidrs: &[IpNet],
) -> Result<(), Failure> {
    let path = request.netns.display().to_string();
    let namespace = netns::open(&request.netns)
        .map_err(kernel(format!("open the network namespace {path}")))?;
    let first = ips
        .first()
        .copied()
        .ok_or_else(|| Failure::Invalid("the node has no pod range".into()))?;
    links
        .delete(link)
        .map_err(kernel(format!("remove the old interface {link}")))?;
    let pair = VethPair {
        host_name: link,
        bridge: bridge.index,
        mtu: bridge.mtu,
        peer_name: POD_LINK,
        peer_namespace: &namespace,
        peer_mac: mac_of(first),
    };
    links
        .create_veth(&pair)
        .map_err(kernel(format!("create the pod's interface {link}")))?;
    links
        .set_hairpin(link)
        .map_err(kernel(format!("set the bridge port of {link}")))?;
    configure_pod(&namespace, ips, pod_cidrs)
        .map_err(kernel(format!("configure the interface in {path}")))
}

/// The pod's side: loopback, addresses, and the way out.
fn configure_pod(namespace: &OwnedFd, ips: &[IpAddr], pod_cidrs: &[IpNet]) -> io::Result<()> {
    netns::run_in(namespace, || {
        let mut links = Links::open()?;
        links.set_up("lo")?;
        let link = links.index(POD_LINK)?;
        // A direct way to a neighbour, once learnt, would bypass the translation of services.
        for scope in ["all", POD_LINK] {
            fs::write(
                format!("/proc/sys/net/ipv4/conf/{scope}/accept_redirects"),
                "0",
            )?;
        }
        for ip in ips {
            if ip.is_ipv6() {
                let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{POD_LINK}/accept_ra"), "0");
                skip_duplicate_detection(POD_LINK);
            }
            links.add_address(link, *ip, if ip.is_ipv4() { 32 } else { 128 })?;
        }
        links.set_up(POD_LINK)?;
        for ip in ips {
            let range = pod_cidrs.iter().find(|c| c.contains(ip));
            let Some(gateway) = range.and_then(gateway) else {
                continue;
            };
            let any: IpNet = IpNet::from(gateway).supernet_all();
            let near = Route {
                destination: IpNet::from(gateway),
                gateway: None,
                link,
                protocol: ROUTE_PROTOCOL,
            };
            links.set_route(&near, false, Some(*ip))?;
            let out = Route {
                destination: any,
                gateway: Some(gateway),
                link,
                protocol: ROUTE_PROTOCOL,
            };
            links.set_route(&out, ip.is_ipv4(), None)?;
        }
        Ok(())
    })
}

/// The whole address family of a network.
trait SupernetAll {
    fn supernet_all(&self) -> IpNet;
}

impl SupernetAll for IpNet {
    fn supernet_all(&self) -> IpNet {
        match self {
            IpNet::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpNet::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }
}

fn detach(config: &NetworkConfig, state: &mut State, sandboxes: &[String]) -> Result<(), Failure> {
    let mut links = open_links()?;
    let (mut changed, mut had_ports) = (false, false);
    for sandbox in sandboxes {
        links
            .delete(&config.link_name(sandbox))
            .map_err(kernel("remove a pod's interface"))?;
        if let Some(gone) = state.ipam.facts.attachments.remove(sandbox) {
            changed = true;
            had_ports |= !gone.host_ports.is_empty();
        }
    }
    if changed {
        state
            .ipam
            .save()
            .map_err(kernel("save the network's state"))?;
    }
    if had_ports {
        apply_rules(config, state)
    } else {
        Ok(())
    }
}

fn set_routes(
    config: &NetworkConfig,
    state: &mut State,
    routes: &[(IpNet, IpAddr)],
) -> Result<(), Failure> {
    let mut links = open_links()?;
    let before = state.ipam.facts.routes.clone();
    let mut wanted = Vec::new();
    let mut distant = Vec::new();
    for (range, node) in routes {
        match links.link_to(*node) {
            Ok(Some(link)) => wanted.push(Route {
                destination: range.trunc(),
                gateway: Some(*node),
                link,
                protocol: ROUTE_PROTOCOL,
            }),
            Ok(None) | Err(_) => distant.push((range, *node)),
        }
    }
    remove_routes(&mut links, &before, |r| {
        let near = wanted.iter().any(|w| w.destination == r.destination);
        near || distant
            .iter()
            .any(|(range, _)| range.trunc() == r.destination)
    })?;
    for route in &wanted {
        links
            .set_route(route, false, None)
            .map_err(kernel(format!("add the route to {}", route.destination)))?;
    }
    let unsupported = distant.iter().find(|(_, node)| node.is_ipv6());
    if let Some((range, node)) = unsupported {
        return Err(Failure::Unsupported(format!(
            "the node {node} with the pods {range} is behind a router, and tunnels go over IPv4 only"
        )));
    }
    let own = state.ipam.facts.pod_cidrs.clone();
    if let (Some(first), false) = (own.first(), distant.is_empty()) {
        let link =
            tunnel::ensure(&mut links, config, first).map_err(kernel("create the tunnel"))?;
        for (range, node) in distant {
            let route = tunnel::add_node(&mut links, link, &own, range, node)
                .map_err(kernel(format!("add the tunnel to {node}")))?;
            wanted.push(route);
        }
    }
    let now: Vec<IpNet> = wanted.iter().map(|r| r.destination).collect();
    if now != before {
        state.ipam.facts.routes = now;
        state
            .ipam
            .save()
            .map_err(kernel("save the network's state"))?;
    }
    Ok(())
}

/// Removes the routes to `ranges` that carry our mark; another instance's ranges are others.
fn remove_routes(
    links: &mut Links,
    ranges: &[IpNet],
    keep: impl Fn(&Route) -> bool,
) -> Result<(), Failure> {
    for route in links.routes().map_err(kernel("list routes"))? {
        let ours = route.protocol == ROUTE_PROTOCOL && ranges.contains(&route.destination);
        if ours && !keep(&route) {
            links
                .delete_route(&route)
                .map_err(kernel(format!("remove the route to {}", route.destination)))?;
        }
    }
    Ok(())
}

fn teardown(config: &NetworkConfig, state: &mut State) -> Result<(), Failure> {
    let mut links = open_links()?;
    let ranges = std::mem::take(&mut state.ipam.facts.routes);
    remove_routes(&mut links, &ranges, |_| false)?;
    let prefix = config.link_prefix();
    for link in links.list().map_err(kernel("list interfaces"))? {
        let ours = link.kind == "veth"
            && link.name.len() == prefix.len() + 8
            && link.name.starts_with(&prefix);
        if ours || link.name == config.bridge || link.name == tunnel::name(config) {
            links
                .delete(&link.name)
                .map_err(kernel(format!("remove {}", link.name)))?;
        }
    }
    state
        .applier
        .clear(&config.table)
        .map_err(kernel("remove the pod network's packet rules"))?;
    for (key, value) in std::mem::take(&mut state.ipam.facts.sysctls) {
        write_sysctl(&key, &value)?;
    }
    state.ipam.facts = ipam::Facts::default();
    match fs::remove_file(state.ipam.path()) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(kernel("remove the network's state")(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
