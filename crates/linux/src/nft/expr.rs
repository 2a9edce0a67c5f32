//! The expressions of rules that this project uses, as values that can be compared.

use std::net::IpAddr;

use ipnet::IpNet;

pub(crate) type Rule = Vec<Expr>;

/// The 32-bit registers; a value of more bytes takes the following ones too.
pub(crate) mod regs {
    pub(crate) const R0: u32 = 8;
    pub(crate) const R1: u32 = 9;
    pub(crate) const R4: u32 = 12;
    pub(crate) const R5: u32 = 13;
    pub(crate) const R8: u32 = 16;
    pub(crate) const VERDICT: u32 = 0;
}

/// Data types by the numbers that `nft` gives them; a concatenation packs six bits each.
pub(crate) mod types {
    use crate::nft::FieldType;

    const IPV4: u32 = 7;
    const IPV6: u32 = 8;
    const PROTOCOL: u32 = 12;
    const SERVICE: u32 = 13;
    const INTEGER: u32 = 4;

    const fn address(v6: bool) -> (u32, u32) {
        if v6 { (IPV6, 16) } else { (IPV4, 4) }
    }

    pub(crate) const VERDICT: FieldType = FieldType {
        id: 0xffff_ff00,
        bytes: 16,
    };
    pub(crate) const NUMBER: FieldType = FieldType {
        id: INTEGER,
        bytes: 4,
    };
    pub(crate) const PROTOCOL_PORT: FieldType = FieldType {
        id: PROTOCOL << 6 | SERVICE,
        bytes: 8,
    };

    pub(crate) const fn ip(v6: bool) -> FieldType {
        let (id, bytes) = address(v6);
        FieldType { id, bytes }
    }

    pub(crate) const fn ip_port(v6: bool) -> FieldType {
        let (id, bytes) = address(v6);
        FieldType {
            id: id << 6 | SERVICE,
            bytes: bytes + 4,
        }
    }

    pub(crate) const fn ip_ip(v6: bool) -> FieldType {
        let (id, bytes) = address(v6);
        FieldType {
            id: id << 6 | id,
            bytes: bytes * 2,
        }
    }

    pub(crate) const fn ip_protocol_port(v6: bool) -> FieldType {
        let (id, bytes) = address(v6);
        FieldType {
            id: id << 12 | PROTOCOL << 6 | SERVICE,
            bytes: bytes + 8,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// What an element maps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    None,
    Value(Vec<u8>),
    Verdict(Verdict),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    Mark = 3,
    Iif = 4,
    NfProto = 15,
    L4Proto = 16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CmpOp {
    Eq = 0,
    Ne = 1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DynsetOp {
    Update = 1,
    Delete = 2,
}

/// A set or map that belongs to the one rule that looks it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnonymousSet {
    pub(crate) key: super::FieldType,
    pub(crate) data: Option<super::FieldType>,
    pub(crate) elements: Vec<(Vec<u8>, Data)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    /// Bytes of the network header into registers.
    Network {
        offset: u32,
        bytes: u32,
        to: u32,
    },
    /// Bytes of the transport header into registers.
    Transport {
        offset: u32,
        bytes: u32,
        to: u32,
    },
    Meta {
        key: Meta,
        to: u32,
    },
    SetMark {
        from: u32,
    },
    CtState {
        to: u32,
    },
    CtStatus {
        to: u32,
    },
    Cmp {
        from: u32,
        op: CmpOp,
        value: Vec<u8>,
    },
    /// `to = from & mask ^ xor`.
    Bitwise {
        from: u32,
        to: u32,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Lookup {
        set: String,
        from: u32,
        to: Option<u32>,
    },
    LookupIn {
        set: AnonymousSet,
        from: u32,
        to: Option<u32>,
    },
    Dynset {
        set: String,
        op: DynsetOp,
        key: u32,
        data: Option<u32>,
        timeout_ms: Option<u64>,
    },
    /// A random number below `modulus`.
    Random {
        modulus: u32,
        to: u32,
    },
    /// The type of route the destination address has (`2` is local).
    DestinationType {
        to: u32,
    },
    Dnat {
        v6: bool,
        address: u32,
        port: u32,
    },
    Masquerade {
        random: bool,
    },
    RejectTcp,
    RejectUnreachable,
    Verdict(Verdict),
}

impl Expr {
    pub(crate) fn goto(chain: impl Into<String>) -> Self {
        Expr::Verdict(Verdict::Goto(chain.into()))
    }

    pub(crate) fn jump(chain: impl Into<String>) -> Self {
        Expr::Verdict(Verdict::Jump(chain.into()))
    }

    pub(crate) fn eq(from: u32, value: impl Into<Vec<u8>>) -> Self {
        Expr::Cmp {
            from,
            op: CmpOp::Eq,
            value: value.into(),
        }
    }

    pub(crate) fn ne(from: u32, value: impl Into<Vec<u8>>) -> Self {
        Expr::Cmp {
            from,
            op: CmpOp::Ne,
            value: value.into(),
        }
    }

    /// Continues only for packets of this address family.
    pub(crate) fn family(v6: bool) -> [Self; 2] {
        let number = if v6 { 10u8 } else { 2 };
        [
            Expr::Meta {
                key: Meta::NfProto,
                to: regs::R0,
            },
            Expr::eq(regs::R0, [number]),
        ]
    }

    pub(crate) fn source(v6: bool, to: u32) -> Self {
        let (offset, bytes) = if v6 { (8, 16) } else { (12, 4) };
        Expr::Network { offset, bytes, to }
    }

    pub(crate) fn destination(v6: bool, to: u32) -> Self {
        let (offset, bytes) = if v6 { (24, 16) } else { (16, 4) };
        Expr::Network { offset, bytes, to }
    }

    pub(crate) fn destination_port(to: u32) -> Self {
        Expr::Transport {
            offset: 2,
            bytes: 2,
            to,
        }
    }

    /// Continues only where some of `bits` are set in the register.
    pub(crate) fn any_bit(from: u32, bits: u32) -> [Self; 2] {
        [
            Expr::Bitwise {
                from,
                to: from,
                mask: bits.to_ne_bytes().to_vec(),
                xor: vec![0; 4],
            },
            Expr::ne(from, [0; 4]),
        ]
    }
}

/// Continues only where the source (or destination) address lies in the range.
pub(crate) fn prefix_match(net: &IpNet, source: bool) -> Rule {
    let v6 = matches!(net, IpNet::V6(_));
    let load = if source {
        Expr::source(v6, regs::R0)
    } else {
        Expr::destination(v6, regs::R0)
    };
    let (mask, address) = match net {
        IpNet::V4(n) => (n.netmask().octets().to_vec(), n.network().octets().to_vec()),
        IpNet::V6(n) => (n.netmask().octets().to_vec(), n.network().octets().to_vec()),
    };
    let xor = vec![0; mask.len()];
    vec![
        load,
        Expr::Bitwise {
            from: regs::R0,
            to: regs::R0,
            mask,
            xor,
        },
        Expr::eq(regs::R0, address),
    ]
}

/// Fields of set keys, each padded to whole registers.
pub(crate) fn address_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub(crate) fn port_bytes(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}

pub(crate) fn protocol_bytes(protocol: keelson_ports::Protocol) -> [u8; 4] {
    [protocol_number(protocol), 0, 0, 0]
}

pub(crate) fn protocol_number(protocol: keelson_ports::Protocol) -> u8 {
    match protocol {
        keelson_ports::Protocol::Tcp => 6,
        keelson_ports::Protocol::Udp => 17,
        keelson_ports::Protocol::Sctp => 132,
    }
}
