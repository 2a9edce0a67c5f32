//! VXLAN to nodes that are behind a router.
//!
//! Nothing is learnt and nothing is flooded: a node's tunnel address follows from its pod range,
//! so that every node can say where every other one is.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::NetworkConfig;
use super::ipam::gateway;
use super::links::{Links, Mac, ROUTE_PROTOCOL, Route};

/// What the outer headers take.
const OVERHEAD_BYTES: u32 = 50;

pub(super) fn name(config: &NetworkConfig) -> String {
    format!("{}vx", config.link_prefix())
}

fn mac_of(range: &IpNet) -> Option<Mac> {
    let [_, _, tail @ ..] = super::mac_of(gateway(range)?);
    let [a, b, c, d] = tail;
    Some([0x0e, 0x58, a, b, c, d])
}

/// Makes this node's end, if it is not there, and tells the link's index.
pub(super) fn ensure(links: &mut Links, config: &NetworkConfig, own: &IpNet) -> io::Result<u32> {
    let name = name(config);
    if links.find(&name)?.is_none() {
        let bridge = links.find(&config.bridge)?;
        let mtu = bridge.map_or(super::DEFAULT_MTU, |b| b.mtu) - OVERHEAD_BYTES;
        let mac =
            mac_of(own).ok_or_else(|| io::Error::other("the node's pod range is too small"))?;
        links.create_vxlan(&name, config.tunnel_id, config.tunnel_port, mac, mtu)?;
        links.set_up(&name)?;
    }
    links.index(&name)
}

/// Enters a node: where its tunnel ends, and that the route to its pods goes there.
pub(super) fn add_node(
    links: &mut Links,
    link: u32,
    own: &[IpNet],
    range: &IpNet,
    node: IpAddr,
) -> io::Result<Route> {
    let unfit = || io::Error::other(format!("the pod range {range} is too small"));
    let (peer, mac) = (
        gateway(range).ok_or_else(unfit)?,
        mac_of(range).ok_or_else(unfit)?,
    );
    links.set_tunnel_end(link, mac, node)?;
    links.set_neighbour(link, peer, mac)?;
    let route = Route {
        destination: range.trunc(),
        gateway: Some(peer),
        link,
        protocol: ROUTE_PROTOCOL,
    };
    // From its uplink's address the node's own packets would be answered outside of the tunnel.
    let source = own
        .iter()
        .filter_map(gateway)
        .find(|ip| ip.is_ipv4() == peer.is_ipv4());
    links.set_route(&route, true, source)?;
    Ok(route)
}
