//! Service rules → the nf_tables table that carries them out.

use std::net::SocketAddr;

use ipnet::IpNet;
use keelson_ports::{Backend, Frontend, Protocol, ServiceRule, ServiceRules, SourcePolicy};

use super::PacketRulesConfig;
use crate::conntrack::{Target, Translations};
use crate::nft::{
    AnonymousSet, Data, DynsetOp, Expr, Hook, Meta, Rule, Table, Verdict, address_bytes,
    port_bytes, prefix_match, protocol_bytes, regs, types,
};

const PRIORITY_DNAT: i32 = -100;
const PRIORITY_SNAT: i32 = 100;
/// Before anybody's NAT: the rejected packet still has the service's address.
const PRIORITY_REJECT: i32 = -110;
const CT_STATE_NEW: u32 = 8;
const CT_STATUS_DNAT: u32 = 32;
const ROUTE_LOCAL: u32 = 2;

pub(super) fn table(config: &PacketRulesConfig, rules: &ServiceRules) -> Table {
    let mut table = Table::new(&config.table);
    skeleton(&mut table, config, rules);
    for service in &rules.services {
        add_service(&mut table, service);
    }
    table
}

fn family(v6: bool) -> &'static str {
    if v6 { "6" } else { "4" }
}

fn skeleton(table: &mut Table, config: &PacketRulesConfig, rules: &ServiceRules) {
    for v6 in [false, true] {
        let f = family(v6);
        for prefix in ["", "no-endpoint-"] {
            table.set(
                &format!("{prefix}service-ips-{f}"),
                types::ip_protocol_port(v6),
                Some(types::VERDICT),
            );
            table.set(
                &format!("{prefix}node-ports-{f}"),
                types::PROTOCOL_PORT,
                Some(types::VERDICT),
            );
        }
        table.set(&format!("hairpin-{f}"), types::ip_ip(v6), None);
        table.chain(
            &format!("mark-off-cluster-{f}"),
            off_cluster_rules(config, rules, v6),
        );
    }
    table.chain("mark", vec![set_mark(config.masquerade_mark)]);
    table.chain("services", dispatch("", &rules.node_port_addresses));
    table.chain(
        "no-endpoints",
        dispatch("no-endpoint-", &rules.node_port_addresses),
    );
    let is_tcp = [
        Expr::Meta {
            key: Meta::L4Proto,
            to: regs::R0,
        },
        Expr::eq(regs::R0, [6u8]),
    ];
    let [load, is_tcp] = is_tcp;
    table.chain(
        "reject",
        vec![
            vec![load, is_tcp, Expr::RejectTcp],
            vec![Expr::RejectUnreachable],
        ],
    );
    table.chain("drop", vec![vec![Expr::Verdict(Verdict::Drop)]]);

    let services = || vec![vec![Expr::jump("services")]];
    table.base_chain(
        "nat-prerouting",
        "nat",
        Hook::Prerouting,
        PRIORITY_DNAT,
        services(),
    );
    table.base_chain("nat-output", "nat", Hook::Output, PRIORITY_DNAT, services());
    table.base_chain(
        "nat-postrouting",
        "nat",
        Hook::Postrouting,
        PRIORITY_SNAT,
        masquerade_rules(config),
    );
    let [bits, some] = Expr::any_bit(regs::R0, CT_STATE_NEW);
    let reject = vec![vec![
        Expr::CtState { to: regs::R0 },
        bits,
        some,
        Expr::jump("no-endpoints"),
    ]];
    for (name, hook) in [
        ("filter-input", Hook::Input),
        ("filter-forward", Hook::Forward),
        ("filter-output", Hook::Output),
    ] {
        table.base_chain(name, "filter", hook, PRIORITY_REJECT, reject.clone());
    }
}

fn set_mark(mark: u32) -> Rule {
    vec![
        Expr::Meta {
            key: Meta::Mark,
            to: regs::R0,
        },
        Expr::Bitwise {
            from: regs::R0,
            to: regs::R0,
            mask: (!mark).to_ne_bytes().to_vec(),
            xor: mark.to_ne_bytes().to_vec(),
        },
        Expr::SetMark { from: regs::R0 },
    ]
}

/// Marks what no pod sent. Without any pod range nobody is known to be a pod, and all is marked.
fn off_cluster_rules(config: &PacketRulesConfig, rules: &ServiceRules, v6: bool) -> Vec<Rule> {
    let mut out = Vec::new();
    for net in rules
        .pod_cidrs
        .iter()
        .filter(|n| matches!(n, IpNet::V6(_)) == v6)
    {
        let mut rule = prefix_match(net, true);
        rule.push(Expr::Verdict(Verdict::Return));
        out.push(rule);
    }
    out.push(set_mark(config.masquerade_mark));
    out
}

/// From a packet to its service. The maps' names begin with `prefix`.
fn dispatch(prefix: &str, node_port_addresses: &[IpNet]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for v6 in [false, true] {
        let f = family(v6);
        // The key's fields lie in consecutive registers.
        let after_address = if v6 { regs::R4 } else { regs::R1 };
        let mut rule = Expr::family(v6).to_vec();
        rule.extend([
            Expr::destination(v6, regs::R0),
            Expr::Meta {
                key: Meta::L4Proto,
                to: after_address,
            },
            Expr::destination_port(after_address + 1),
            Expr::Lookup {
                set: format!("{prefix}service-ips-{f}"),
                from: regs::R0,
                to: Some(regs::VERDICT),
            },
        ]);
        rules.push(rule);
        if v6 {
            // Nothing sends packets with the source ::1 off the loopback, as route_localnet does.
            let mut rule = Expr::family(true).to_vec();
            let mut localhost = vec![0u8; 15];
            localhost.push(1);
            rule.extend([
                Expr::destination(true, regs::R0),
                Expr::eq(regs::R0, localhost),
                Expr::Verdict(Verdict::Return),
            ]);
            rules.push(rule);
        }
        let mut places: Vec<Rule> = node_port_addresses
            .iter()
            .filter(|n| matches!(n, IpNet::V6(_)) == v6)
            .map(|net| prefix_match(net, false))
            .collect();
        if node_port_addresses.is_empty() {
            places.push(Vec::new());
        }
        for place in places {
            let mut rule = Expr::family(v6).to_vec();
            rule.extend(place);
            rule.extend([
                Expr::DestinationType { to: regs::R0 },
                Expr::eq(regs::R0, ROUTE_LOCAL.to_ne_bytes()),
                Expr::Meta {
                    key: Meta::L4Proto,
                    to: regs::R0,
                },
                Expr::destination_port(regs::R1),
                Expr::Lookup {
                    set: format!("{prefix}node-ports-{f}"),
                    from: regs::R0,
                    to: Some(regs::VERDICT),
                },
            ]);
            rules.push(rule);
        }
    }
    rules
}

fn masquerade_rules(config: &PacketRulesConfig) -> Vec<Rule> {
    let mark = config.masquerade_mark;
    let zero = || vec![0u8; 4];
    let mut rules = vec![vec![
        Expr::Meta {
            key: Meta::Mark,
            to: regs::R0,
        },
        Expr::Bitwise {
            from: regs::R0,
            to: regs::R1,
            mask: mark.to_ne_bytes().to_vec(),
            xor: zero(),
        },
        Expr::ne(regs::R1, [0; 4]),
        // A tunnel would carry the mark on and have the outer packet masqueraded too.
        Expr::Bitwise {
            from: regs::R0,
            to: regs::R0,
            mask: (!mark).to_ne_bytes().to_vec(),
            xor: zero(),
        },
        Expr::SetMark { from: regs::R0 },
        Expr::Masquerade { random: true },
    ]];
    for v6 in [false, true] {
        let [bits, some] = Expr::any_bit(regs::R0, CT_STATUS_DNAT);
        let mut rule = Expr::family(v6).to_vec();
        rule.extend([
            Expr::CtStatus { to: regs::R0 },
            bits,
            some,
            Expr::source(v6, regs::R0),
            Expr::destination(v6, if v6 { regs::R4 } else { regs::R1 }),
            Expr::Lookup {
                set: format!("hairpin-{}", family(v6)),
                from: regs::R0,
                to: None,
            },
            Expr::Masquerade { random: true },
        ]);
        rules.push(rule);
    }
    rules
}

fn add_service(table: &mut Table, service: &ServiceRule) {
    let (v6, set, key, name) = match service.frontend {
        Frontend::Address { ip, protocol, port } => {
            let mut key = address_bytes(ip);
            key.extend(protocol_bytes(protocol));
            key.extend(port_bytes(port));
            let name = format!(
                "svc-{}-{}-{port}",
                ip.to_string().replace(':', "."),
                protocol_name(protocol)
            );
            (ip.is_ipv6(), "service-ips", key, name)
        }
        Frontend::NodePort {
            ipv6,
            protocol,
            port,
        } => {
            let mut key = protocol_bytes(protocol).to_vec();
            key.extend(port_bytes(port));
            (
                ipv6,
                "node-ports",
                key,
                format!("node{}-{}-{port}", family(ipv6), protocol_name(protocol)),
            )
        }
    };
    // A backend of the other family cannot be reached from this frontend.
    let backends: Vec<Backend> = service
        .backends
        .iter()
        .copied()
        .filter(|b| b.address.is_ipv6() == v6)
        .collect();
    let f = family(v6);
    if backends.is_empty() {
        let target = if service.drop_if_empty {
            "drop"
        } else {
            "reject"
        };
        insert(
            table,
            &format!("no-endpoint-{set}-{f}"),
            key,
            Data::Verdict(Verdict::Goto(target.into())),
        );
        return;
    }
    insert(
        table,
        &format!("{set}-{f}"),
        key,
        Data::Verdict(Verdict::Goto(name.clone())),
    );
    for backend in &backends {
        let ip = address_bytes(backend.address.ip());
        insert(
            table,
            &format!("hairpin-{f}"),
            [ip.clone(), ip].concat(),
            Data::None,
        );
    }
    let mut rules = Vec::new();
    match service.source {
        SourcePolicy::MasqueradeOffCluster => {
            rules.push(vec![Expr::jump(format!("mark-off-cluster-{f}"))])
        }
        SourcePolicy::MasqueradeAll => rules.push(vec![Expr::jump("mark")]),
        SourcePolicy::Preserve => {}
    }
    match service.affinity {
        Some(timeout) => {
            let timeout_ms = u64::try_from(timeout.as_millis())
                .unwrap_or(u64::MAX)
                .max(1);
            // The time is part of the name: a set's time-out cannot be changed.
            let map = format!("affinity-{name}-{timeout_ms}");
            table
                .set(&map, types::ip(v6), Some(types::ip_port(v6)))
                .timeout_ms = Some(timeout_ms);
            rules.extend(affinity_rules(v6, &backends, &map, timeout_ms));
        }
        None => rules.push(pick_and_translate(v6, &backends, Vec::new())),
    }
    if service.allowed_sources.is_empty() {
        table.chain(&name, rules);
        return;
    }
    let inner = format!("{name}-allowed");
    let mut gate: Vec<Rule> = Vec::new();
    for net in service
        .allowed_sources
        .iter()
        .filter(|n| matches!(n, IpNet::V6(_)) == v6)
    {
        let mut rule = prefix_match(net, true);
        rule.push(Expr::goto(inner.clone()));
        gate.push(rule);
    }
    gate.push(vec![Expr::Verdict(Verdict::Drop)]);
    table.chain(&inner, rules);
    table.chain(&name, gate);
}

fn insert(table: &mut Table, set: &str, key: Vec<u8>, data: Data) {
    if let Some(set) = table.sets.get_mut(set) {
        set.elements.insert(key, data);
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// Where a backend's address and port are loaded: above the client's address, which is in `R0`.
fn port_register(v6: bool) -> u32 {
    if v6 { regs::R8 } else { regs::R5 }
}

fn backend_bytes(backend: &Backend) -> Vec<u8> {
    let mut bytes = address_bytes(backend.address.ip());
    bytes.extend(port_bytes(backend.address.port()));
    bytes
}

/// Loads a random backend, does `then`, and rewrites the destination.
fn pick_and_translate(v6: bool, backends: &[Backend], then: Rule) -> Rule {
    let elements = (0u32..)
        .zip(backends)
        .map(|(i, b)| (i.to_ne_bytes().to_vec(), Data::Value(backend_bytes(b))));
    let map = AnonymousSet {
        key: types::NUMBER,
        data: Some(types::ip_port(v6)),
        elements: elements.collect(),
    };
    let modulus = u32::try_from(backends.len()).unwrap_or(u32::MAX);
    let mut rule = vec![
        Expr::Random {
            modulus,
            to: regs::R4,
        },
        Expr::LookupIn {
            set: map,
            from: regs::R4,
            to: Some(regs::R4),
        },
    ];
    rule.extend(then);
    rule.push(Expr::Dnat {
        v6,
        address: regs::R4,
        port: port_register(v6),
    });
    rule
}

/// First the backend remembered for the client, if it still is one; else a new one, remembered.
fn affinity_rules(v6: bool, backends: &[Backend], map: &str, timeout_ms: u64) -> Vec<Rule> {
    let client = Expr::source(v6, regs::R0);
    let remember = Expr::Dynset {
        set: map.to_owned(),
        op: DynsetOp::Update,
        key: regs::R0,
        data: Some(regs::R4),
        timeout_ms: Some(timeout_ms),
    };
    let mut live: Vec<(Vec<u8>, Data)> = backends
        .iter()
        .map(|b| (backend_bytes(b), Data::None))
        .collect();
    live.sort_by(|a, b| a.0.cmp(&b.0));
    live.dedup_by(|a, b| a.0 == b.0);
    let live = AnonymousSet {
        key: types::ip_port(v6),
        data: None,
        elements: live,
    };
    let known = vec![
        client.clone(),
        Expr::Lookup {
            set: map.to_owned(),
            from: regs::R0,
            to: Some(regs::R4),
        },
        Expr::LookupIn {
            set: live,
            from: regs::R4,
            to: None,
        },
        remember.clone(),
        Expr::Dnat {
            v6,
            address: regs::R4,
            port: port_register(v6),
        },
    ];
    // Updating keeps an element's old data: a memory of a dead backend has to go first. Deleting
    // goes by the key, but the kernel wants to see data wherever it sees a map.
    let forget = Expr::Dynset {
        set: map.to_owned(),
        op: DynsetOp::Delete,
        key: regs::R0,
        data: Some(regs::R4),
        timeout_ms: None,
    };
    vec![
        known,
        pick_and_translate(v6, backends, vec![client, forget, remember]),
    ]
}

/// The address of a frontend, for those that have one.
/// Where these rules lead UDP. A flow stays with a backend that serves, also when no new ones go
/// there any more.
pub(super) fn udp_translations(rules: &ServiceRules) -> Translations {
    let mut all = Translations::default();
    for rule in &rules.services {
        let target = match rule.frontend {
            Frontend::Address {
                ip,
                protocol: Protocol::Udp,
                port,
            } => Target::Address(SocketAddr::new(ip, port)),
            Frontend::NodePort {
                ipv6,
                protocol: Protocol::Udp,
                port,
            } => Target::Local { ipv6, port },
            _ => continue,
        };
        let backends = rule.backends.iter().chain(&rule.serving);
        all.add(target, backends.map(|b| b.address));
    }
    all
}
