//! The packet rules of the pod network: masquerading towards the outside, host ports, and a guard
//! for the loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use keelson_ports::{HostPort, Protocol};

use super::ipam::Facts;
use crate::conntrack::{Target, Translations};
use crate::nft::{
    Data, Expr, Hook, Meta, Rule, Table, Verdict, address_bytes, port_bytes, prefix_match,
    protocol_bytes, regs, types,
};

/// After the services' rules, which have the first say.
const PRIORITY_DNAT: i32 = -99;
const PRIORITY_SNAT: i32 = 101;
/// Before connection tracking.
const PRIORITY_RAW: i32 = -300;
const CT_STATUS_DNAT: u32 = 32;
const ROUTE_LOCAL: u32 = 2;
const LOOPBACK_INDEX: u32 = 1;

pub(super) fn table(name: &str, facts: &Facts) -> Table {
    let mut table = Table::new(name);
    let mut host_ports = Vec::new();
    let mut postrouting = Vec::new();
    for v6 in [false, true] {
        add_host_port_sets(&mut table, facts, v6);
        host_ports.extend(host_port_rules(v6));
        postrouting.extend(hairpin_rules(v6));
        table.chain(&format!("egress-{}", family(v6)), egress_rules(facts, v6));
        let mut rule = Expr::family(v6).to_vec();
        rule.push(Expr::goto(format!("egress-{}", family(v6))));
        postrouting.push(rule);
    }
    table.chain("host-ports", host_ports);
    let jump = || vec![vec![Expr::jump("host-ports")]];
    table.base_chain(
        "nat-prerouting",
        "nat",
        Hook::Prerouting,
        PRIORITY_DNAT,
        jump(),
    );
    table.base_chain("nat-output", "nat", Hook::Output, PRIORITY_DNAT, jump());
    table.base_chain(
        "nat-postrouting",
        "nat",
        Hook::Postrouting,
        PRIORITY_SNAT,
        postrouting,
    );
    table.base_chain(
        "guard",
        "filter",
        Hook::Prerouting,
        PRIORITY_RAW,
        vec![loopback_guard()],
    );
    table
}

fn family(v6: bool) -> &'static str {
    if v6 { "6" } else { "4" }
}

/// `route_localnet` would let neighbours of the node reach what listens on 127.0.0.1.
fn loopback_guard() -> Rule {
    let mut rule = Expr::family(false).to_vec();
    rule.extend([
        Expr::Meta {
            key: Meta::Iif,
            to: regs::R0,
        },
        Expr::ne(regs::R0, LOOPBACK_INDEX.to_ne_bytes()),
    ]);
    rule.extend(prefix_match(&loopback(), false));
    rule.push(Expr::Verdict(Verdict::Drop));
    rule
}

fn loopback() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8))
}

fn add_host_port_sets(table: &mut Table, facts: &Facts, v6: bool) {
    let f = family(v6);
    let (any, exact, hairpin) = (
        format!("any-{f}"),
        format!("exact-{f}"),
        format!("hairpin-{f}"),
    );
    table.set(&any, types::PROTOCOL_PORT, Some(types::ip_port(v6)));
    table.set(
        &exact,
        types::ip_protocol_port(v6),
        Some(types::ip_port(v6)),
    );
    table.set(&hairpin, types::ip_ip(v6), None);
    for (pod, on, port) in host_ports(facts, v6) {
        let mut to = address_bytes(pod);
        to.extend(port_bytes(port.container_port));
        let mut key = protocol_bytes(port.protocol).to_vec();
        key.extend(port_bytes(port.host_port));
        let set = match on {
            Some(ip) => {
                key = [address_bytes(ip), key].concat();
                &exact
            }
            None => &any,
        };
        if let Some(set) = table.sets.get_mut(set) {
            set.elements.insert(key, Data::Value(to));
        }
        if let Some(set) = table.sets.get_mut(&hairpin) {
            set.elements.insert(
                [address_bytes(pod), address_bytes(pod)].concat(),
                Data::None,
            );
        }
    }
}

/// The host ports of a family: the pod's address, the one address of the host if the port is only
/// there, and the port.
fn host_ports(
    facts: &Facts,
    v6: bool,
) -> impl Iterator<Item = (IpAddr, Option<IpAddr>, &HostPort)> {
    facts.attachments.values().flat_map(move |attachment| {
        let pod = attachment.ips.iter().copied().find(|ip| ip.is_ipv6() == v6);
        let ports = attachment.host_ports.iter();
        ports.filter_map(move |port| {
            let on = port.host_ip.filter(|ip| !ip.is_unspecified());
            on.is_none_or(|ip| ip.is_ipv6() == v6)
                .then_some((pod?, on, port))
        })
    })
}

/// Where host ports lead UDP.
pub(super) fn udp_host_ports(facts: &Facts) -> Translations {
    let mut all = Translations::default();
    for v6 in [false, true] {
        for (pod, on, port) in host_ports(facts, v6) {
            if port.protocol != Protocol::Udp {
                continue;
            }
            let target = match on {
                Some(ip) => Target::Address(SocketAddr::new(ip, port.host_port)),
                None => Target::Local {
                    ipv6: v6,
                    port: port.host_port,
                },
            };
            all.add(target, [SocketAddr::new(pod, port.container_port)]);
        }
    }
    all
}

fn host_port_rules(v6: bool) -> Vec<Rule> {
    let f = family(v6);
    let after_address = if v6 { regs::R4 } else { regs::R1 };
    // What the look-up found takes the place of the key.
    let dnat = || Expr::Dnat {
        v6,
        address: regs::R0,
        port: after_address,
    };
    let mut exact = Expr::family(v6).to_vec();
    exact.extend([
        Expr::destination(v6, regs::R0),
        Expr::Meta {
            key: Meta::L4Proto,
            to: after_address,
        },
        Expr::destination_port(after_address + 1),
        Expr::Lookup {
            set: format!("exact-{f}"),
            from: regs::R0,
            to: Some(regs::R0),
        },
        dnat(),
    ]);
    let mut any = Expr::family(v6).to_vec();
    if v6 {
        // Nothing sends packets with the source ::1 off the loopback.
        any.extend([
            Expr::destination(true, regs::R0),
            Expr::ne(regs::R0, address_bytes(IpAddr::V6(Ipv6Addr::LOCALHOST))),
        ]);
    }
    any.extend([
        Expr::DestinationType { to: regs::R0 },
        Expr::eq(regs::R0, ROUTE_LOCAL.to_ne_bytes()),
        Expr::Meta {
            key: Meta::L4Proto,
            to: regs::R0,
        },
        Expr::destination_port(regs::R1),
        Expr::Lookup {
            set: format!("any-{f}"),
            from: regs::R0,
            to: Some(regs::R0),
        },
        dnat(),
    ]);
    vec![exact, any]
}

/// What a pod sent to its own host port, and what came from the node's loopback, must be
/// answered through the node.
fn hairpin_rules(v6: bool) -> Vec<Rule> {
    let translated = || {
        let [bits, some] = Expr::any_bit(regs::R0, CT_STATUS_DNAT);
        let mut rule = Expr::family(v6).to_vec();
        rule.extend([Expr::CtStatus { to: regs::R0 }, bits, some]);
        rule
    };
    let mut hairpin = translated();
    hairpin.extend([
        Expr::source(v6, regs::R0),
        Expr::destination(v6, if v6 { regs::R4 } else { regs::R1 }),
        Expr::Lookup {
            set: format!("hairpin-{}", family(v6)),
            from: regs::R0,
            to: None,
        },
        Expr::Masquerade { random: true },
    ]);
    let mut rules = vec![hairpin];
    if !v6 {
        let mut local = translated();
        local.extend(prefix_match(&loopback(), true));
        local.push(Expr::Masquerade { random: true });
        rules.push(local);
    }
    rules
}

/// Pods keep their addresses within the cluster and take the node's towards the rest of the world.
fn egress_rules(facts: &Facts, v6: bool) -> Vec<Rule> {
    let of_family = |n: &&IpNet| matches!(n, IpNet::V6(_)) == v6;
    let multicast = if v6 {
        IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
            8,
        ))
    } else {
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4))
    };
    let inside = facts
        .cluster_cidrs
        .iter()
        .chain(&facts.pod_cidrs)
        .chain([&multicast])
        .filter(of_family);
    let mut rules: Vec<Rule> = Vec::new();
    for net in inside {
        let mut rule = prefix_match(net, false);
        rule.push(Expr::Verdict(Verdict::Return));
        rules.push(rule);
    }
    for net in facts.pod_cidrs.iter().filter(of_family) {
        let mut rule = prefix_match(net, true);
        rule.push(Expr::Masquerade { random: true });
        rules.push(rule);
    }
    rules
}
