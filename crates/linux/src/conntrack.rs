//! Forgets UDP flows that go where no rule leads any more.
//!
//! A TCP connection to a dead backend ends by itself; a UDP client that keeps its port keeps its
//! conntrack entry alive, and with it the old translation, or the lack of one, for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use keelson_ports::Protocol;

use crate::netlink::{NLM_F_DUMP, Reply, Socket, attribute};
use crate::network::local_addresses;
use crate::nft::{NETLINK_NETFILTER, protocol_number};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// What clients send to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Address(SocketAddr),
    /// A port on every address of the node.
    Local {
        ipv6: bool,
        port: u16,
    },
}

/// Where UDP goes, target by target. A target without backends is one that nothing serves, or
/// that was there before and is not any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Translations(BTreeMap<Target, BTreeSet<SocketAddr>>);

impl Translations {
    pub(crate) fn add(&mut self, target: Target, backends: impl IntoIterator<Item = SocketAddr>) {
        self.0.entry(target).or_default().extend(backends);
    }

    /// These, and the targets of `before` that have gone, with nothing behind them.
    fn with_gone(mut self, before: &Translations) -> Self {
        for target in before.0.keys() {
            self.0.entry(*target).or_default();
        }
        self
    }

    fn backends(&self, destination: SocketAddr, is_local: bool) -> Option<&BTreeSet<SocketAddr>> {
        let (ipv6, port) = (destination.is_ipv6(), destination.port());
        let exact = self.0.get(&Target::Address(destination));
        exact.or_else(|| {
            is_local
                .then(|| self.0.get(&Target::Local { ipv6, port }))
                .flatten()
        })
    }
}

/// The ends of a flow as the tracker has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    /// Where the client sent it.
    destination: SocketAddr,
    /// Who answers; the destination itself when nothing was translated.
    backend: SocketAddr,
}

/// `ranges` belong to Services alone: what is translated there without a target is stale too, such
/// as a flow to a Service that was deleted while this process was not there.
fn is_stale(flow: Flow, wanted: &Translations, ranges: &[IpNet], is_local: bool) -> bool {
    let is_translated = flow.backend != flow.destination;
    match wanted.backends(flow.destination, is_local) {
        Some(backends) if is_translated => !backends.contains(&flow.backend),
        // Made while there was no backend: it would never meet the rule that is there now.
        Some(backends) => !backends.is_empty(),
        None => is_translated && ranges.iter().any(|r| r.contains(&flow.destination.ip())),
    }
}

/// Removes what is stale after a change from `before` to `now`; the rules stand already.
pub(crate) fn reconcile(
    before: &Translations,
    now: &Translations,
    ranges: &[IpNet],
) -> io::Result<()> {
    let wanted = now.clone().with_gone(before);
    if wanted.0.is_empty() && ranges.is_empty() {
        return Ok(());
    }
    let local = local_addresses()?;
    let mut socket = Socket::open(NETLINK_NETFILTER)?;
    for entry in socket.query(GET, NLM_F_DUMP, |b| b.raw(&[0, 0, 0, 0]))? {
        let Some(flow) = udp_flow(&entry) else {
            continue;
        };
        let to = flow.destination.ip();
        if is_stale(
            flow,
            &wanted,
            ranges,
            to.is_loopback() || local.contains(&to),
        ) {
            delete(&mut socket, &entry)?;
        }
    }
    Ok(())
}

fn delete(socket: &mut Socket, entry: &Reply) -> io::Result<()> {
    let family = entry.payload.first().copied().unwrap_or(0);
    let body = entry.payload.get(4..).unwrap_or_default();
    let result = socket.request(DELETE, 0, |b| {
        b.raw(&[family, 0, 0, 0]);
        if let Some(original) = attribute(body, CTA_TUPLE_ORIG) {
            b.attr(CTA_TUPLE_ORIG | 0x8000, original);
        }
        for kind in [CTA_ID, CTA_ZONE] {
            if let Some(value) = attribute(body, kind) {
                b.attr(kind, value);
            }
        }
    });
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn udp_flow(entry: &Reply) -> Option<Flow> {
    let body = entry.payload.get(4..)?;
    let there = attribute(body, CTA_TUPLE_ORIG)?;
    let back = attribute(body, CTA_TUPLE_REPLY)?;
    let protocol = *attribute(attribute(there, CTA_TUPLE_PROTO)?, CTA_PROTO_NUM)?.first()?;
    if protocol != protocol_number(Protocol::Udp) {
        return None;
    }
    Some(Flow {
        destination: end(there, (2, 4), CTA_PROTO_DST_PORT)?,
        backend: end(back, (1, 3), CTA_PROTO_SRC_PORT)?,
    })
}

/// One end of a direction; `(v4, v6)` are the attributes of its address.
fn end(tuple: &[u8], (v4, v6): (u16, u16), port: u16) -> Option<SocketAddr> {
    let ip = attribute(tuple, CTA_TUPLE_IP)?;
    let address = match (attribute(ip, v4), attribute(ip, v6)) {
        (Some(bytes), _) => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        (None, bytes) => IpAddr::from(<[u8; 16]>::try_from(bytes?).ok()?),
    };
    let port = attribute(attribute(tuple, CTA_TUPLE_PROTO)?, port)?;
    Some(SocketAddr::new(
        address,
        u16::from_be_bytes(port.try_into().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn translations(rows: &[(Target, &[&str])]) -> Translations {
        let mut all = Translations::default();
        for (target, backends) in rows {
            all.add(*target, backends.iter().map(|b| address(b)));
        }
        all
    }

    #[test]
    fn flows_that_no_rule_makes_are_stale() {
        let service = Target::Address(address("10.96.0.53:53"));
        let removed = Target::Address(address("10.96.0.99:53"));
        let node_port = Target::Local {
            ipv6: false,
            port: 30053,
        };
        let host_port = Target::Address(address("192.0.2.1:5000"));
        let before = translations(&[(service, &["10.42.0.2:53"]), (removed, &["10.42.0.2:53"])]);
        let wanted = translations(&[
            (service, &["10.42.0.3:53"]),
            (node_port, &["10.42.0.3:53"]),
            (host_port, &[]),
        ])
        .with_gone(&before);
        let ranges = ["10.96.0.0/16".parse().unwrap()];
        let cases = [
            // (destination, backend, the destination is the node's, stale, what it is)
            (
                "10.96.0.53:53",
                "10.42.0.3:53",
                false,
                false,
                "as the rule says",
            ),
            (
                "10.96.0.53:53",
                "10.42.0.2:53",
                false,
                true,
                "another backend",
            ),
            (
                "10.96.0.53:53",
                "10.42.0.3:5353",
                false,
                true,
                "another port of the backend",
            ),
            (
                "10.96.0.53:53",
                "10.96.0.53:53",
                false,
                true,
                "from before there was a backend",
            ),
            (
                "10.96.0.53:54",
                "10.42.0.3:53",
                false,
                true,
                "a port that the Service lost",
            ),
            (
                "10.96.0.99:53",
                "10.42.0.2:53",
                false,
                true,
                "a Service that is gone",
            ),
            (
                "10.96.0.99:53",
                "10.96.0.99:53",
                false,
                false,
                "a Service that is gone, not translated",
            ),
            (
                "10.96.7.7:53",
                "10.42.0.2:53",
                false,
                true,
                "a Service from before the start",
            ),
            (
                "192.0.2.1:30053",
                "10.42.0.2:53",
                true,
                true,
                "a node port, another backend",
            ),
            (
                "192.0.2.1:30053",
                "192.0.2.1:30053",
                true,
                true,
                "a node port, not translated",
            ),
            (
                "192.0.2.9:30053",
                "192.0.2.9:30053",
                false,
                false,
                "another host's port of that number",
            ),
            (
                "192.0.2.1:5000",
                "10.42.0.2:53",
                true,
                true,
                "a host port without a pod",
            ),
            (
                "192.0.2.1:5000",
                "192.0.2.1:5000",
                true,
                false,
                "a host port without a pod, not translated",
            ),
            (
                "192.0.2.1:6000",
                "172.17.0.2:53",
                true,
                false,
                "somebody else's translation",
            ),
        ];
        for (destination, backend, is_local, stale, case) in cases {
            let flow = Flow {
                destination: address(destination),
                backend: address(backend),
            };
            assert_eq!(is_stale(flow, &wanted, &ranges, is_local), stale, "{case}");
        }
    }
}
