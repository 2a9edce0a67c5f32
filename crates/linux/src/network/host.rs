//! The address that others reach this machine by, and its changes.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::links::{Link, Links};
use crate::netlink::Socket;
use crate::sys::watch_readiness;

const NETLINK_ROUTE: isize = 0;
/// Changes of addresses and routes of both families.
const GROUPS: u32 = 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10;
/// A change comes in many messages, and an address that is replaced goes before the next one comes.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(300);
/// Addresses of documentation: nobody's, so that the way there is the way to the world.
const FAR: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// Follows the address until `shutdown`. `fallback` stands in while the machine has none, and when it
/// loses its last one, that one stays.
pub async fn follow_host_address(
    fallback: IpAddr,
    shutdown: CancellationToken,
) -> keelson_ports::Result<watch::Receiver<IpAddr>> {
    let failed = |error: io::Error| {
        keelson_ports::Error::Failed(format!("cannot read the machine's addresses: {error}"))
    };
    // Heard from before the first look, so that no change falls in between.
    let events = Socket::subscribe(NETLINK_ROUTE, GROUPS).map_err(failed)?;
    let readiness = events
        .as_fd()
        .try_clone_to_owned()
        .and_then(watch_readiness)
        .map_err(failed)?;
    let first = look().map_err(failed)?.unwrap_or(fallback);
    let (sender, receiver) = watch::channel(first);
    let following = async move {
        loop {
            let Ok(mut ready) = readiness.readable().await else {
                return;
            };
            tokio::time::sleep(SETTLE).await;
            // What they say is looked up; a full buffer is a change like another.
            while !matches!(events.receive(), Err(e) if e.kind() == io::ErrorKind::WouldBlock) {}
            ready.clear_ready();
            match look() {
                Ok(Some(now)) => {
                    let changed =
                        sender.send_if_modified(|known| std::mem::replace(known, now) != now);
                    if changed {
                        tracing::info!(address = %now, "the machine has another address");
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "the machine's addresses cannot be read"),
            }
        }
    };
    tokio::spawn(shutdown.run_until_cancelled_owned(following));
    Ok(receiver)
}

fn look() -> io::Result<Option<IpAddr>> {
    let mut links = Links::open()?;
    let all = links.list()?;
    for far in FAR.iter().filter_map(|far| far.parse().ok()) {
        if let Some((link, source)) = links.way_to(far)?
            && all
                .iter()
                .any(|known| known.index == link && !is_ours(known))
            && is_usable(source)
        {
            return Ok(Some(source));
        }
    }
    let addresses = links.global_addresses()?;
    Ok(without_a_way_out(&all, &addresses))
}

/// The first address of the likeliest link, when no route leads out: a network card before the
/// loopback, where some set-ups have the machine's address, before a bridge of somebody's.
fn without_a_way_out(links: &[Link], addresses: &[(u32, IpAddr)]) -> Option<IpAddr> {
    let rank = |link: &Link| match (link.name.as_str(), link.kind.as_str()) {
        ("lo", _) => 1,
        (_, "bridge") => 2,
        _ => 0,
    };
    let candidates = addresses
        .iter()
        .filter(|(_, ip)| is_usable(*ip))
        .filter_map(|(index, ip)| {
            let link = links.iter().find(|link| link.index == *index)?;
            (link.up && !is_ours(link)).then_some((ip.is_ipv6(), rank(link), *index, *ip))
        });
    // Stable: a link's first address is its primary one.
    candidates
        .min_by_key(|(v6, rank, index, _)| (*v6, *rank, *index))
        .map(|(.., ip)| ip)
}

fn is_usable(ip: IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !ip.is_loopback() && !ip.is_unspecified() && !is_link_local
}

/// Devices that an instance of Keelson makes, this one or another on the machine.
fn is_ours(link: &Link) -> bool {
    let hex = |prefix: &str, suffix: &str, digits: usize| {
        let rest = link.name.strip_prefix(prefix);
        rest.and_then(|rest| rest.strip_suffix(suffix))
            .is_some_and(|id| id.len() == digits && id.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    match link.kind.as_str() {
        "bridge" => hex("kl", "", 8),
        "veth" => hex("k", "", 12),
        "vxlan" => hex("k", "vx", 4),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::netns::isolated;
    use super::*;

    fn link(index: u32, name: &str, kind: &str, up: bool) -> Link {
        Link {
            index,
            name: name.into(),
            mtu: 1500,
            up,
            kind: kind.into(),
        }
    }

    #[test]
    fn a_machine_without_a_default_route_has_the_address_of_its_card() {
        let links = [
            link(1, "lo", "", true),
            link(2, "docker0", "bridge", true),
            link(3, "kl0123abcd", "bridge", true),
            link(4, "k12ab0123abcd", "veth", true),
            link(5, "k12abvx", "vxlan", true),
            link(6, "eth1", "", false),
            link(7, "eth0", "", true),
        ];
        let at = |index: u32, ip: &str| (index, ip.parse::<IpAddr>().unwrap());
        let cases: [(&[(u32, IpAddr)], Option<&str>); 6] = [
            (
                &[at(3, "10.244.0.1"), at(4, "10.1.1.1"), at(5, "10.1.1.2")],
                None,
            ),
            (
                &[at(2, "172.17.0.1"), at(3, "10.244.0.1")],
                Some("172.17.0.1"),
            ),
            (
                &[at(1, "192.0.2.9"), at(2, "172.17.0.1"), at(3, "10.244.0.1")],
                Some("192.0.2.9"),
            ),
            (
                &[
                    at(2, "172.17.0.1"),
                    at(6, "192.0.2.8"),
                    at(7, "192.0.2.7"),
                    at(7, "192.0.2.6"),
                ],
                Some("192.0.2.7"),
            ),
            (
                &[at(7, "2001:db8::7"), at(2, "172.17.0.1")],
                Some("172.17.0.1"),
            ),
            (
                &[at(7, "169.254.1.1"), at(7, "2001:db8::7")],
                Some("2001:db8::7"),
            ),
        ];
        for (addresses, expected) in cases {
            let expected = expected.map(|ip| ip.parse().unwrap());
            assert_eq!(
                without_a_way_out(&links, addresses),
                expected,
                "{addresses:?}"
            );
        }
    }

    #[test]
    fn a_changed_address_is_told() {
        isolated(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let mut links = Links::open().unwrap();
            links
                .create_bridge("kl0123abcd", [2, 0, 0, 0, 0, 1], 1500)
                .unwrap();
            links
                .create_bridge("card", [2, 0, 0, 0, 0, 2], 1500)
                .unwrap();
            for name in ["kl0123abcd", "card"] {
                links.set_up(name).unwrap();
            }
            let (own, card) = (
                links.index("kl0123abcd").unwrap(),
                links.index("card").unwrap(),
            );
            links
                .add_address(own, "10.244.0.1".parse().unwrap(), 24)
                .unwrap();
            runtime.block_on(async {
                let fallback = "10.244.0.1".parse().unwrap();
                let stop = CancellationToken::new();
                let mut address = follow_host_address(fallback, stop.clone()).await.unwrap();
                assert_eq!(*address.borrow(), fallback);
                for (ip, before) in [("192.0.2.7", None), ("192.0.2.8", Some("192.0.2.7"))] {
                    if let Some(before) = before {
                        links
                            .delete_address(card, before.parse().unwrap(), 24)
                            .unwrap();
                    }
                    let ip: IpAddr = ip.parse().unwrap();
                    links.add_address(card, ip, 24).unwrap();
                    let told = address.wait_for(|now| *now == ip);
                    tokio::time::timeout(std::time::Duration::from_secs(60), told)
                        .await
                        .unwrap()
                        .unwrap();
                }
                stop.cancel();
            });
        });
    }
}
