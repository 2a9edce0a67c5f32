//! A batch of nf_tables changes in the kernel's wire form.

use std::io;

use super::expr::{AnonymousSet, Data, Expr, Verdict, regs};
use super::{Base, FieldType, Set};
use crate::netlink::{Builder, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, Socket};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const FAMILY_INET: u8 = 1;
const FAMILY_UNSPEC: u8 = 0;

const NEW_TABLE: u16 = 0;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DEL_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DEL_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DEL_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const DEL_ELEMENT: u16 = 14;

const SET_ANONYMOUS: u32 = 0x1;
const SET_CONSTANT: u32 = 0x2;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const DYNAMIC_SET_SIZE: u32 = 65_536;

/// An attribute's length has 16 bits; this many elements of any size here stay below.
const ELEMENTS_PER_MESSAGE: usize = 256;
const LIST_ELEMENT: u16 = 1;

pub(super) struct Batch {
    table: String,
    out: Builder,
    /// What each message does, for the error that names it. Sequence numbers count from 1.
    labels: Vec<String>,
    next_set_id: u32,
}

impl Batch {
    pub(super) fn new(table: &str) -> Self {
        let mut out = Builder::new();
        out.begin(BATCH_BEGIN, NLM_F_REQUEST, 0);
        out.raw(&[FAMILY_UNSPEC, 0, 0, 10]);
        out.end();
        Batch {
            table: table.to_owned(),
            out,
            labels: Vec::new(),
            next_set_id: 1,
        }
    }

    /// Sends everything; the kernel takes all of it or nothing.
    pub(super) fn commit(mut self, socket: &mut Socket) -> io::Result<()> {
        if self.labels.is_empty() {
            return Ok(());
        }
        let last = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
        self.out.begin(BATCH_END, NLM_F_REQUEST, last + 1);
        self.out.raw(&[FAMILY_UNSPEC, 0, 0, 10]);
        self.out.end();
        let bytes = self.acknowledge_last(last);
        socket.send(&bytes)?;
        // The kernel answers before `send` returns: nothing to read means that it said nothing.
        socket.set_non_blocking(true)?;
        let mut failure: Option<io::Error> = None;
        let mut acknowledged = false;
        loop {
            let replies = match socket.receive() {
                Ok(replies) => replies,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            };
            for reply in replies {
                match reply.error() {
                    Some(Ok(())) => acknowledged |= reply.sequence == last,
                    Some(Err(e)) if failure.is_none() => {
                        let index = (reply.sequence as usize).wrapping_sub(1);
                        let label = self.labels.get(index).map_or("the batch", String::as_str);
                        failure = Some(io::Error::new(e.kind(), format!("{label}: {e}")));
                    }
                    _ => {}
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(io::Error::other(
                "the kernel did not confirm the packet rules",
            )),
        }
    }

    /// Asks for an acknowledgement of the last change alone: thousands would overflow the socket.
    fn acknowledge_last(&self, last: u32) -> Vec<u8> {
        let mut bytes = self.out.bytes().to_vec();
        let mut at = 0;
        while let Some(header) = bytes.get(at..at + 16) {
            let word = |i: usize| {
                u32::from_ne_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]])
            };
            let (length, sequence) = (word(0) as usize, word(8));
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            if sequence == last && kind >> 8 == SUBSYSTEM {
                let flags = u16::from_ne_bytes([header[6], header[7]]) | NLM_F_ACK;
                bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
            }
            at += length.next_multiple_of(4).max(16);
        }
        bytes
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        label: String,
        fill: impl FnOnce(&mut Builder, &str),
    ) {
        self.labels.push(label);
        let sequence = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
        self.out
            .begin(SUBSYSTEM << 8 | kind, flags | NLM_F_REQUEST, sequence);
        self.out.raw(&[FAMILY_INET, 0, 0, 0]);
        fill(&mut self.out, &self.table);
        self.out.end();
    }

    pub(super) fn new_table(&mut self) {
        self.message(
            NEW_TABLE,
            NLM_F_CREATE,
            "create the table".into(),
            |b, table| {
                b.string(1, table);
                b.be32(2, 0);
            },
        );
    }

    pub(super) fn delete_table(&mut self) {
        self.message(DEL_TABLE, 0, "delete the table".into(), |b, table| {
            b.string(1, table)
        });
    }

    pub(super) fn new_chain(&mut self, name: &str, base: Option<&Base>) {
        self.message(
            NEW_CHAIN,
            NLM_F_CREATE,
            format!("create chain {name}"),
            |b, table| {
                b.string(1, table);
                b.string(3, name);
                if let Some(base) = base {
                    b.nest(4, |b| {
                        b.be32(1, base.hook as u32);
                        b.attr(2, &base.priority.to_be_bytes());
                    });
                    b.string(7, base.kind);
                    b.be32(5, 1);
                }
            },
        );
    }

    pub(super) fn delete_chain(&mut self, name: &str) {
        self.message(DEL_CHAIN, 0, format!("delete chain {name}"), |b, table| {
            b.string(1, table);
            b.string(3, name);
        });
    }

    pub(super) fn flush_chain(&mut self, name: &str) {
        self.message(DEL_RULE, 0, format!("flush chain {name}"), |b, table| {
            b.string(1, table);
            b.string(2, name);
        });
    }

    pub(super) fn new_rule(&mut self, chain: &str, rule: &[Expr]) {
        let mut anonymous = Vec::new();
        for expr in rule {
            if let Expr::LookupIn { set, .. } = expr {
                anonymous.push(self.new_anonymous_set(set));
            }
        }
        let mut ids = anonymous.into_iter();
        self.message(
            NEW_RULE,
            NLM_F_CREATE | NLM_F_APPEND,
            format!("add a rule to chain {chain}"),
            |b, table| {
                b.string(1, table);
                b.string(2, chain);
                b.nest(4, |b| {
                    for expr in rule {
                        let id = matches!(expr, Expr::LookupIn { .. })
                            .then(|| ids.next())
                            .flatten();
                        b.nest(LIST_ELEMENT, |b| encode_expr(b, expr, id));
                    }
                });
            },
        );
    }

    fn new_anonymous_set(&mut self, set: &AnonymousSet) -> u32 {
        let id = self.set_id();
        let map = if set.data.is_some() { SET_MAP } else { 0 };
        let name = anonymous_name(set);
        self.message(
            NEW_SET,
            NLM_F_CREATE,
            "create an anonymous set".into(),
            |b, table| {
                b.string(1, table);
                b.string(2, name);
                b.be32(3, SET_ANONYMOUS | SET_CONSTANT | map);
                set_types(b, set.key, set.data);
                b.be32(10, id);
                b.nest(9, |b| {
                    b.be32(1, u32::try_from(set.elements.len()).unwrap_or(u32::MAX))
                });
            },
        );
        for chunk in set.elements.chunks(ELEMENTS_PER_MESSAGE) {
            let elements = chunk.iter().map(|(k, v)| (k, v));
            self.elements(NEW_ELEMENT, NLM_F_CREATE, name, Some(id), elements);
        }
        id
    }

    pub(super) fn new_set(&mut self, name: &str, set: &Set) {
        let id = self.set_id();
        let map = if set.data.is_some() { SET_MAP } else { 0 };
        let dynamic = if set.timeout_ms.is_some() {
            SET_TIMEOUT | SET_EVAL
        } else {
            0
        };
        self.message(
            NEW_SET,
            NLM_F_CREATE,
            format!("create set {name}"),
            |b, table| {
                b.string(1, table);
                b.string(2, name);
                b.be32(3, map | dynamic);
                set_types(b, set.key, set.data);
                b.be32(10, id);
                if let Some(timeout) = set.timeout_ms {
                    b.be64(11, timeout);
                    b.nest(9, |b| b.be32(1, DYNAMIC_SET_SIZE));
                }
            },
        );
    }

    pub(super) fn delete_set(&mut self, name: &str) {
        self.message(DEL_SET, 0, format!("delete set {name}"), |b, table| {
            b.string(1, table);
            b.string(2, name);
        });
    }

    pub(super) fn add_elements<'a>(
        &mut self,
        name: &str,
        _set: &Set,
        elements: impl Iterator<Item = (&'a Vec<u8>, &'a Data)>,
    ) {
        let all: Vec<_> = elements.collect();
        for chunk in all.chunks(ELEMENTS_PER_MESSAGE) {
            self.elements(NEW_ELEMENT, NLM_F_CREATE, name, None, chunk.iter().copied());
        }
    }

    pub(super) fn delete_elements<'a>(
        &mut self,
        name: &str,
        _set: &Set,
        elements: impl Iterator<Item = (&'a Vec<u8>, &'a Data)>,
    ) {
        let all: Vec<_> = elements.collect();
        for chunk in all.chunks(ELEMENTS_PER_MESSAGE) {
            self.elements(
                DEL_ELEMENT,
                0,
                name,
                None,
                chunk.iter().map(|(k, _)| (*k, &Data::None)),
            );
        }
    }

    fn elements<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        set: &str,
        id: Option<u32>,
        elements: impl Iterator<Item = (&'a Vec<u8>, &'a Data)>,
    ) {
        self.message(
            kind,
            flags,
            format!("change the elements of set {set}"),
            |b, table| {
                b.string(1, table);
                b.string(2, set);
                if let Some(id) = id {
                    b.be32(4, id);
                }
                b.nest(3, |b| {
                    for (key, data) in elements {
                        b.nest(LIST_ELEMENT, |b| {
                            b.nest(1, |b| b.attr(1, key));
                            match data {
                                Data::None => {}
                                Data::Value(value) => b.nest(2, |b| b.attr(1, value)),
                                Data::Verdict(verdict) => b.nest(2, |b| encode_verdict(b, verdict)),
                            }
                        });
                    }
                });
            },
        );
    }

    fn set_id(&mut self) -> u32 {
        self.next_set_id += 1;
        self.next_set_id
    }
}

fn anonymous_name(set: &AnonymousSet) -> &'static str {
    if set.data.is_some() {
        "__map%d"
    } else {
        "__set%d"
    }
}

fn set_types(b: &mut Builder, key: FieldType, data: Option<FieldType>) {
    b.be32(4, key.id);
    b.be32(5, key.bytes);
    if let Some(data) = data {
        b.be32(6, data.id);
        b.be32(7, data.bytes);
    }
}

fn encode_verdict(b: &mut Builder, verdict: &Verdict) {
    let (code, chain): (i32, Option<&String>) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    b.nest(2, |b| {
        b.attr(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            b.string(2, chain);
        }
    });
}

fn encode_expr(b: &mut Builder, expr: &Expr, set_id: Option<u32>) {
    let mut named = |name: &str, fill: &dyn Fn(&mut Builder)| {
        b.string(1, name);
        b.nest(2, |b| fill(b));
    };
    match expr {
        Expr::Network { offset, bytes, to } => {
            named("payload", &|b| encode_payload(b, 1, *offset, *bytes, *to))
        }
        Expr::Transport { offset, bytes, to } => {
            named("payload", &|b| encode_payload(b, 2, *offset, *bytes, *to))
        }
        Expr::Meta { key, to } => named("meta", &|b| {
            b.be32(1, *to);
            b.be32(2, *key as u32);
        }),
        Expr::SetMark { from } => named("meta", &|b| {
            b.be32(2, super::Meta::Mark as u32);
            b.be32(3, *from);
        }),
        Expr::CtState { to } => named("ct", &|b| {
            b.be32(1, *to);
            b.be32(2, 0);
        }),
        Expr::CtStatus { to } => named("ct", &|b| {
            b.be32(1, *to);
            b.be32(2, 2);
        }),
        Expr::Cmp { from, op, value } => named("cmp", &|b| {
            b.be32(1, *from);
            b.be32(2, *op as u32);
            b.nest(3, |b| b.attr(1, value));
        }),
        Expr::Bitwise {
            from,
            to,
            mask,
            xor,
        } => named("bitwise", &|b| {
            b.be32(1, *from);
            b.be32(2, *to);
            b.be32(3, u32::try_from(mask.len()).unwrap_or(0));
            b.nest(4, |b| b.attr(1, mask));
            b.nest(5, |b| b.attr(1, xor));
        }),
        Expr::Lookup { set, from, to } => {
            named("lookup", &|b| encode_lookup(b, set, None, *from, *to))
        }
        Expr::LookupIn { set, from, to } => {
            named("lookup", &|b| {
                encode_lookup(b, anonymous_name(set), set_id, *from, *to)
            });
        }
        Expr::Dynset {
            set,
            op,
            key,
            data,
            timeout_ms,
        } => named("dynset", &|b| {
            b.string(1, set);
            b.be32(3, *op as u32);
            b.be32(4, *key);
            if let Some(data) = data {
                b.be32(5, *data);
            }
            if let Some(timeout) = timeout_ms {
                b.be64(6, *timeout);
            }
        }),
        Expr::Random { modulus, to } => named("numgen", &|b| {
            b.be32(1, *to);
            b.be32(2, *modulus);
            b.be32(3, 1);
            b.be32(4, 0);
        }),
        Expr::DestinationType { to } => named("fib", &|b| {
            b.be32(1, *to);
            b.be32(2, 3);
            b.be32(3, 2);
        }),
        Expr::Dnat { v6, address, port } => named("nat", &|b| {
            b.be32(1, 1);
            b.be32(2, if *v6 { 10 } else { 2 });
            b.be32(3, *address);
            b.be32(5, *port);
        }),
        Expr::Masquerade { random } => named("masq", &|b| {
            if *random {
                b.be32(1, 0x10);
            }
        }),
        Expr::RejectTcp => named("reject", &|b| b.be32(1, 1)),
        Expr::RejectUnreachable => named("reject", &|b| {
            b.be32(1, 2);
            b.attr(2, &[1]);
        }),
        Expr::Verdict(verdict) => named("immediate", &|b| {
            b.be32(1, regs::VERDICT);
            b.nest(2, |b| encode_verdict(b, verdict));
        }),
    }
}

fn encode_payload(b: &mut Builder, base: u32, offset: u32, bytes: u32, to: u32) {
    b.be32(1, to);
    b.be32(2, base);
    b.be32(3, offset);
    b.be32(4, bytes);
}

fn encode_lookup(b: &mut Builder, set: &str, id: Option<u32>, from: u32, to: Option<u32>) {
    b.string(1, set);
    b.be32(2, from);
    if let Some(to) = to {
        b.be32(3, to);
    }
    if let Some(id) = id {
        b.be32(4, id);
    }
}
