//! Forgets UDP flows whose backend went away.
//!
//! A TCP connection to a dead backend ends by itself; a UDP client that keeps its port keeps its
//! conntrack entry alive, and with it the old translation, for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use keelson_ports::{Frontend, Protocol, ServiceRules};

use super::plan::frontend_key;
use crate::netlink::{NLM_F_DUMP, Socket, attribute};
use crate::nft::{NETLINK_NETFILTER, address_bytes, protocol_number};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// By frontend: the backends whose flows must go. The frontend's own address among them stands
/// for flows that were never translated, made while there was no backend.
pub(super) type Stale = BTreeMap<(Option<IpAddr>, u16), BTreeSet<IpAddr>>;

pub(super) fn stale(old: &ServiceRules, new: &ServiceRules) -> Stale {
    let udp = |rules: &ServiceRules| -> BTreeMap<Frontend, BTreeSet<IpAddr>> {
        rules
            .services
            .iter()
            .filter(|s| frontend_key(&s.frontend).1 == Protocol::Udp)
            .map(|s| {
                (
                    s.frontend,
                    s.backends.iter().map(|b| b.address.ip()).collect(),
                )
            })
            .collect()
    };
    let (old, new) = (udp(old), udp(new));
    let mut stale = Stale::new();
    for (frontend, backends) in &old {
        let now = new.get(frontend);
        let gone: BTreeSet<IpAddr> = backends
            .iter()
            .filter(|b| now.is_none_or(|n| !n.contains(b)))
            .copied()
            .collect();
        if !gone.is_empty() {
            let (ip, _, port) = frontend_key(frontend);
            stale.entry((ip, port)).or_default().extend(gone);
        }
    }
    for (frontend, backends) in &new {
        let had = old.get(frontend).is_some_and(|b| !b.is_empty());
        if let ((Some(ip), _, port), false, false) =
            (frontend_key(frontend), had, backends.is_empty())
        {
            stale.entry((Some(ip), port)).or_default().insert(ip);
        }
    }
    stale
}

/// One direction of a flow.
struct Tuple {
    source: Vec<u8>,
    destination: Vec<u8>,
    protocol: u8,
    destination_port: u16,
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let ip = attribute(bytes, 1)?;
    let proto = attribute(bytes, 2)?;
    let address = |v4, v6| {
        attribute(ip, v4)
            .or_else(|| attribute(ip, v6))
            .map(<[u8]>::to_vec)
    };
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol: *attribute(proto, 1)?.first()?,
        destination_port: u16::from_be_bytes(attribute(proto, 3)?.try_into().ok()?),
    })
}

pub(super) fn forget(stale: &Stale) -> io::Result<()> {
    if stale.is_empty() {
        return Ok(());
    }
    let wanted: BTreeMap<(Option<Vec<u8>>, u16), BTreeSet<Vec<u8>>> = stale
        .iter()
        .map(|((ip, port), gone)| {
            (
                (ip.map(address_bytes), *port),
                gone.iter().copied().map(address_bytes).collect(),
            )
        })
        .collect();
    let mut socket = Socket::open(NETLINK_NETFILTER)?;
    for entry in socket.query(GET, NLM_F_DUMP, |b| b.raw(&[0, 0, 0, 0]))? {
        let Some(body) = entry.payload.get(4..) else {
            continue;
        };
        let (Some(original), Some(reply)) = (
            attribute(body, CTA_TUPLE_ORIG),
            attribute(body, CTA_TUPLE_REPLY),
        ) else {
            continue;
        };
        let (Some(there), Some(back)) = (tuple(original), tuple(reply)) else {
            continue;
        };
        if there.protocol != protocol_number(Protocol::Udp) {
            continue;
        }
        let dead = |key: (Option<Vec<u8>>, u16)| {
            wanted
                .get(&key)
                .is_some_and(|gone| gone.contains(&back.source))
        };
        if !dead((Some(there.destination.clone()), there.destination_port))
            && !dead((None, there.destination_port))
        {
            continue;
        }
        let family = entry.payload.first().copied().unwrap_or(0);
        let result = socket.request(DELETE, 0, |b| {
            b.raw(&[family, 0, 0, 0]);
            b.attr(CTA_TUPLE_ORIG | 0x8000, original);
            for kind in [CTA_ID, CTA_ZONE] {
                if let Some(value) = attribute(body, kind) {
                    b.attr(kind, value);
                }
            }
        });
        match result {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
