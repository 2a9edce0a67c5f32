//! Links, addresses and routes over rtnetlink, in the namespace where the socket was opened.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use ipnet::IpNet;

use crate::netlink::{
    Builder, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Reply, Socket, attribute,
    attributes,
};
use crate::nft::address_bytes;

const NETLINK_ROUTE: isize = 0;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const RTM_NEWNEIGH: u16 = 28;

const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const AF_BRIDGE: u8 = 7;
const NTF_SELF: u8 = 2;
const NUD_PERMANENT: u16 = 0x80;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTN_UNICAST: u8 = 1;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const RTNH_F_ONLINK: u32 = 4;
const IFA_F_NODAD: u32 = 2;
/// Who made a route; tells ours from everybody else's.
pub(super) const ROUTE_PROTOCOL: u8 = 75;

pub(crate) type Mac = [u8; 6];

pub(crate) struct Links(Socket);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) link: u32,
    pub(crate) protocol: u8,
}

struct Address {
    link: u32,
    ip: IpAddr,
    prefix: u8,
    is_global: bool,
}

pub(crate) struct VethPair<'a> {
    pub(crate) host_name: &'a str,
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_namespace: &'a OwnedFd,
    pub(crate) peer_mac: Mac,
}

fn link_header(b: &mut Builder, index: u32, flags: u32) {
    b.raw(&[0; 4]);
    b.raw(&index.to_ne_bytes());
    b.raw(&flags.to_ne_bytes());
    b.raw(&flags.to_ne_bytes());
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)?
        .try_into()
        .map(u32::from_ne_bytes)
        .ok()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn ignore(kind: io::ErrorKind) -> impl Fn(io::Result<()>) -> io::Result<()> {
    move |result| match result {
        Err(e) if e.kind() == kind => Ok(()),
        other => other,
    }
}

impl Links {
    pub(crate) fn open() -> io::Result<Self> {
        Socket::open(NETLINK_ROUTE).map(Links)
    }

    pub(crate) fn find(&mut self, name: &str) -> io::Result<Option<Link>> {
        let result = self.0.query(RTM_GETLINK, 0, |b| {
            link_header(b, 0, 0);
            b.string(IFLA_IFNAME, name);
        });
        match result {
            Ok(replies) => Ok(replies.iter().find_map(parse_link)),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn list(&mut self) -> io::Result<Vec<Link>> {
        let replies = self
            .0
            .query(RTM_GETLINK, NLM_F_DUMP, |b| link_header(b, 0, 0))?;
        Ok(replies.iter().filter_map(parse_link).collect())
    }

    pub(crate) fn index(&mut self, name: &str) -> io::Result<u32> {
        let missing = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("there is no interface {name}"),
            )
        };
        self.find(name)?.map(|l| l.index).ok_or_else(missing)
    }

    /// Creates a bridge that is down. One of that name may exist.
    pub(crate) fn create_bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> io::Result<()> {
        let result = self.0.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |b| {
            link_header(b, 0, 0);
            b.string(IFLA_IFNAME, name);
            // A bridge without an address of its own takes the lowest of its ports', and so
            // changes it under its neighbours' feet.
            b.attr(IFLA_ADDRESS, &mac);
            b.u32(IFLA_MTU, mtu);
            b.nest(IFLA_LINKINFO, |b| b.string(IFLA_INFO_KIND, "bridge"));
        });
        ignore(io::ErrorKind::AlreadyExists)(result)
    }

    /// Creates both ends at once, the host's on the bridge, the other in its namespace.
    pub(crate) fn create_veth(&mut self, pair: &VethPair<'_>) -> io::Result<()> {
        self.0.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |b| {
            link_header(b, 0, IFF_UP);
            b.string(IFLA_IFNAME, pair.host_name);
            b.u32(IFLA_MTU, pair.mtu);
            b.u32(IFLA_MASTER, pair.bridge);
            b.nest(IFLA_LINKINFO, |b| {
                b.string(IFLA_INFO_KIND, "veth");
                b.nest(IFLA_INFO_DATA, |b| {
                    b.nest(VETH_INFO_PEER, |b| {
                        link_header(b, 0, 0);
                        b.string(IFLA_IFNAME, pair.peer_name);
                        b.u32(IFLA_MTU, pair.mtu);
                        b.attr(IFLA_ADDRESS, &pair.peer_mac);
                        b.attr(
                            IFLA_NET_NS_FD,
                            &pair.peer_namespace.as_raw_fd().to_ne_bytes(),
                        );
                    });
                });
            });
        })
    }

    /// Creates a VXLAN link that is down and learns nothing by itself.
    pub(crate) fn create_vxlan(
        &mut self,
        name: &str,
        id: u32,
        port: u16,
        mac: Mac,
        mtu: u32,
    ) -> io::Result<()> {
        self.0.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |b| {
            link_header(b, 0, 0);
            b.string(IFLA_IFNAME, name);
            b.attr(IFLA_ADDRESS, &mac);
            b.u32(IFLA_MTU, mtu);
            b.nest(IFLA_LINKINFO, |b| {
                b.string(IFLA_INFO_KIND, "vxlan");
                b.nest(IFLA_INFO_DATA, |b| {
                    b.u32(IFLA_VXLAN_ID, id);
                    b.attr(IFLA_VXLAN_LEARNING, &[0]);
                    b.attr(IFLA_VXLAN_PORT, &port.to_be_bytes());
                });
            });
        })
    }

    /// Says which node the tunnel carries frames for `mac` to.
    pub(crate) fn set_tunnel_end(&mut self, link: u32, mac: Mac, node: IpAddr) -> io::Result<()> {
        self.neighbour(link, AF_BRIDGE, NTF_SELF, node, mac)
    }

    /// Says which link-layer address a neighbour has.
    pub(crate) fn set_neighbour(&mut self, link: u32, ip: IpAddr, mac: Mac) -> io::Result<()> {
        self.neighbour(link, family(ip), 0, ip, mac)
    }

    fn neighbour(
        &mut self,
        link: u32,
        family: u8,
        flags: u8,
        ip: IpAddr,
        mac: Mac,
    ) -> io::Result<()> {
        self.0
            .request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, |b| {
                b.raw(&[family, 0, 0, 0]);
                b.raw(&link.to_ne_bytes());
                let [low, high] = NUD_PERMANENT.to_ne_bytes();
                b.raw(&[low, high, flags, 0]);
                b.attr(1, &address_bytes(ip));
                b.attr(2, &mac);
            })
    }

    /// Lets the bridge send a frame back through the port it came from. Where `br_netfilter` is
    /// active the bridge itself forwards what was translated to its sender's own address.
    pub(crate) fn set_hairpin(&mut self, name: &str) -> io::Result<()> {
        self.0.request(RTM_NEWLINK, 0, |b| {
            link_header(b, 0, 0);
            b.string(IFLA_IFNAME, name);
            b.nest(IFLA_LINKINFO, |b| {
                b.string(IFLA_INFO_SLAVE_KIND, "bridge");
                b.nest(IFLA_INFO_SLAVE_DATA, |b| b.attr(IFLA_BRPORT_MODE, &[1]));
            });
        })
    }

    /// Removes a link by name, a veth with its peer. Idempotent.
    pub(crate) fn delete(&mut self, name: &str) -> io::Result<()> {
        let result = self.0.request(RTM_DELLINK, 0, |b| {
            link_header(b, 0, 0);
            b.string(IFLA_IFNAME, name);
        });
        match result {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn set_up(&mut self, name: &str) -> io::Result<()> {
        self.0.request(RTM_NEWLINK, 0, |b| {
            link_header(b, 0, IFF_UP);
            b.string(IFLA_IFNAME, name);
        })
    }

    /// Adds an address; having it already is no error.
    pub(crate) fn add_address(&mut self, link: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let result = self.0.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, |b| {
            b.raw(&[family(ip), prefix, 0, SCOPE_UNIVERSE]);
            b.raw(&link.to_ne_bytes());
            let bytes = address_bytes(ip);
            b.attr(2, &bytes);
            b.attr(1, &bytes);
            if ip.is_ipv6() {
                // Detecting duplicates takes a second in which the address does not work.
                b.u32(8, IFA_F_NODAD);
            }
        });
        ignore(io::ErrorKind::AlreadyExists)(result)
    }

    pub(crate) fn delete_address(&mut self, link: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        let result = self.0.request(RTM_DELADDR, 0, |b| {
            b.raw(&[family(ip), prefix, 0, SCOPE_UNIVERSE]);
            b.raw(&link.to_ne_bytes());
            b.attr(2, &address_bytes(ip));
        });
        ignore(io::ErrorKind::AddrNotAvailable)(result)
    }

    /// Every address of this host.
    pub(crate) fn all_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let all = self.dump_addresses()?;
        Ok(all.into_iter().map(|a| a.ip).collect())
    }

    /// The global addresses with their links, in the kernel's order.
    pub(crate) fn global_addresses(&mut self) -> io::Result<Vec<(u32, IpAddr)>> {
        let all = self.dump_addresses()?.into_iter();
        Ok(all
            .filter(|a| a.is_global)
            .map(|a| (a.link, a.ip))
            .collect())
    }

    fn dump_addresses(&mut self) -> io::Result<Vec<Address>> {
        let replies = self.0.query(RTM_GETADDR, NLM_F_DUMP, |b| b.raw(&[0; 8]))?;
        let parse = |r: &Reply| {
            let rest = r.payload.get(8..)?;
            Some(Address {
                link: word(&r.payload, 4)?,
                ip: address(attribute(rest, 2).or_else(|| attribute(rest, 1))?)?,
                prefix: *r.payload.get(1)?,
                is_global: *r.payload.get(3)? == SCOPE_UNIVERSE,
            })
        };
        Ok(replies.iter().filter_map(parse).collect())
    }

    /// Global addresses of a link with their prefix lengths.
    pub(crate) fn addresses(&mut self, link: u32) -> io::Result<Vec<(IpAddr, u8)>> {
        let all = self.dump_addresses()?.into_iter();
        Ok(all
            .filter(|a| a.link == link && a.is_global)
            .map(|a| (a.ip, a.prefix))
            .collect())
    }

    /// Adds or replaces a route. Without a gateway the destination is on the link; with one that
    /// no other route leads to, `onlink` says that it is a neighbour all the same.
    pub(crate) fn set_route(
        &mut self,
        route: &Route,
        onlink: bool,
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        self.0
            .request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, |b| {
                let scope = if route.gateway.is_some() {
                    SCOPE_UNIVERSE
                } else {
                    SCOPE_LINK
                };
                route_header(b, route, scope, if onlink { RTNH_F_ONLINK } else { 0 });
                if let Some(source) = source {
                    b.attr(RTA_PREFSRC, &address_bytes(source));
                }
            })
    }

    pub(crate) fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        let result = self.0.request(RTM_DELROUTE, 0, |b| {
            route_header(
                b,
                route,
                if route.gateway.is_some() {
                    SCOPE_UNIVERSE
                } else {
                    SCOPE_LINK
                },
                0,
            );
        });
        match result {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// The routes of the main table.
    pub(crate) fn routes(&mut self) -> io::Result<Vec<Route>> {
        let replies = self
            .0
            .query(RTM_GETROUTE, NLM_F_DUMP, |b| b.raw(&[0; 12]))?;
        Ok(replies.iter().filter_map(parse_route).collect())
    }

    /// The link and the source address that the host would take to reach an address.
    pub(crate) fn way_to(&mut self, ip: IpAddr) -> io::Result<Option<(u32, IpAddr)>> {
        let replies = match self.route_to(ip) {
            Ok(replies) => replies,
            Err(e) => match e.raw_os_error() {
                Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EAFNOSUPPORT) => {
                    return Ok(None);
                }
                _ => return Err(e),
            },
        };
        let parse = |r: &Reply| {
            let rest = r.payload.get(12..)?;
            let source = address(attribute(rest, RTA_PREFSRC)?)?;
            Some((word(attribute(rest, RTA_OIF)?, 0)?, source))
        };
        Ok(replies.iter().find_map(parse))
    }

    fn route_to(&mut self, ip: IpAddr) -> io::Result<Vec<Reply>> {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        self.0.query(RTM_GETROUTE, 0, |b| {
            b.raw(&[family(ip), bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            b.attr(RTA_DST, &address_bytes(ip));
        })
    }

    /// The link that a neighbour on the same wire is reached by; `None` when a router is between.
    pub(crate) fn link_to(&mut self, ip: IpAddr) -> io::Result<Option<u32>> {
        let replies = self.route_to(ip)?;
        let found = replies.iter().find_map(|r| {
            let rest = r.payload.get(12..)?;
            Some((
                attribute(rest, RTA_GATEWAY).is_some(),
                word(attribute(rest, RTA_OIF)?, 0)?,
            ))
        });
        Ok(found.and_then(|(routed, link)| (!routed).then_some(link)))
    }
}

fn route_header(b: &mut Builder, route: &Route, scope: u8, flags: u32) {
    let destination = route.destination;
    let family = family(destination.addr());
    b.raw(&[
        family,
        destination.prefix_len(),
        0,
        0,
        RT_TABLE_MAIN,
        route.protocol,
        scope,
        RTN_UNICAST,
    ]);
    b.raw(&flags.to_ne_bytes());
    if destination.prefix_len() > 0 {
        b.attr(RTA_DST, &address_bytes(destination.network()));
    }
    if let Some(gateway) = route.gateway {
        b.attr(RTA_GATEWAY, &address_bytes(gateway));
    }
    b.u32(RTA_OIF, route.link);
}

fn parse_link(reply: &Reply) -> Option<Link> {
    let rest = reply.payload.get(16..)?;
    let mut link = Link {
        index: word(&reply.payload, 4)?,
        name: String::new(),
        mtu: 0,
        up: word(&reply.payload, 8)? & IFF_UP != 0,
        kind: String::new(),
    };
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes)
            .trim_end_matches('\0')
            .to_owned()
    };
    for (kind, value) in attributes(rest) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = word(value, 0)?,
            IFLA_LINKINFO => {
                link.kind = attribute(value, IFLA_INFO_KIND)
                    .map(text)
                    .unwrap_or_default()
            }
            _ => {}
        }
    }
    Some(link)
}

fn parse_route(reply: &Reply) -> Option<Route> {
    let header = reply.payload.get(..12)?;
    let (family, prefix, table, protocol, kind) =
        (header[0], header[1], header[4], header[5], header[7]);
    if table != RT_TABLE_MAIN || kind != RTN_UNICAST || !matches!(family, 2 | 10) {
        return None;
    }
    let rest = reply.payload.get(12..)?;
    let any: IpAddr = if family == 2 {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let destination = attribute(rest, RTA_DST).and_then(address).unwrap_or(any);
    Some(Route {
        destination: IpNet::new(destination, prefix).ok()?,
        gateway: attribute(rest, RTA_GATEWAY).and_then(address),
        link: word(attribute(rest, RTA_OIF)?, 0)?,
        protocol,
    })
}
