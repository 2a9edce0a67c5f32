//! An nf_tables table as a value, and the transaction that turns one into another.
//!
//! Callers build the whole [`Table`] they want; [`Applier`] sends the kernel only what differs
//! from the table it sent last, in one atomic batch. After a failure, or in a new process, the
//! table is rebuilt from nothing, in one batch as well: packets never see half a table.

mod encode;
mod expr;

use std::collections::BTreeMap;
use std::io;

pub(crate) use expr::{
    AnonymousSet, Data, DynsetOp, Expr, Meta, Rule, Verdict, address_bytes, port_bytes,
    prefix_match, protocol_bytes, protocol_number, regs, types,
};

use crate::netlink::Socket;
use encode::Batch;

pub(crate) const NETLINK_NETFILTER: isize = 12;

/// A table of the `inet` family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) sets: BTreeMap<String, Set>,
    pub(crate) chains: BTreeMap<String, Chain>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// A regular chain has none; a base chain's never changes.
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) kind: &'static str,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A named set, or a map when it has data. Its shape never changes under one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) key: FieldType,
    pub(crate) data: Option<FieldType>,
    /// Set: packets add elements, which vanish after this time; `elements` stays empty.
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) elements: BTreeMap<Vec<u8>, Data>,
}

/// `id` is what `nft list` shows; the kernel goes by the length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FieldType {
    pub(crate) id: u32,
    pub(crate) bytes: u32,
}

impl Table {
    pub(crate) fn new(name: &str) -> Self {
        Table {
            name: name.to_owned(),
            ..Table::default()
        }
    }

    pub(crate) fn base_chain(
        &mut self,
        name: &str,
        kind: &'static str,
        hook: Hook,
        priority: i32,
        rules: Vec<Rule>,
    ) {
        let base = Some(Base {
            kind,
            hook,
            priority,
        });
        self.chains.insert(name.to_owned(), Chain { base, rules });
    }

    pub(crate) fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.chains
            .insert(name.to_owned(), Chain { base: None, rules });
    }

    pub(crate) fn set(&mut self, name: &str, key: FieldType, data: Option<FieldType>) -> &mut Set {
        let set = self.sets.entry(name.to_owned()).or_default();
        (set.key, set.data) = (key, data);
        set
    }
}

/// Keeps one table of the kernel equal to what the caller wants.
#[derive(Default)]
pub(crate) struct Applier {
    /// What the kernel has, as far as this process knows.
    current: Option<Table>,
}

impl Applier {
    /// In the network namespace of the calling thread.
    pub(crate) fn apply(&mut self, wanted: Table) -> io::Result<()> {
        if let Some(current) = &self.current {
            if *current == wanted {
                return Ok(());
            }
            let batch = difference(current, &wanted);
            match batch.commit(&mut Socket::open(NETLINK_NETFILTER)?) {
                Ok(()) => {
                    self.current = Some(wanted);
                    return Ok(());
                }
                // Somebody flushed the rules, say: start over.
                Err(error) => {
                    tracing::warn!(table = wanted.name, %error, "rebuilding the packet rules")
                }
            }
        }
        self.current = None;
        let mut batch = Batch::new(&wanted.name);
        batch.new_table();
        batch.delete_table();
        batch.new_table();
        fill(&mut batch, &Table::new(&wanted.name), &wanted);
        batch.commit(&mut Socket::open(NETLINK_NETFILTER)?)?;
        self.current = Some(wanted);
        Ok(())
    }

    /// Removes the table. Idempotent.
    pub(crate) fn clear(&mut self, name: &str) -> io::Result<()> {
        self.current = None;
        let mut batch = Batch::new(name);
        // Creating first makes deleting what is absent no error, on any kernel.
        batch.new_table();
        batch.delete_table();
        batch.commit(&mut Socket::open(NETLINK_NETFILTER)?)
    }
}

fn difference(old: &Table, new: &Table) -> Batch {
    let mut batch = Batch::new(&new.name);
    fill(&mut batch, old, new);
    batch
}

/// The order is what the kernel's reference counts ask for: things exist before they are named
/// and are no longer named when they go.
fn fill(batch: &mut Batch, old: &Table, new: &Table) {
    for (name, set) in new
        .sets
        .iter()
        .filter(|(name, _)| !old.sets.contains_key(*name))
    {
        batch.new_set(name, set);
    }
    for (name, chain) in new
        .chains
        .iter()
        .filter(|(name, _)| !old.chains.contains_key(*name))
    {
        batch.new_chain(name, chain.base.as_ref());
    }
    for (name, set) in &old.sets {
        let kept = new.sets.get(name);
        let gone = set
            .elements
            .iter()
            .filter(|(k, v)| kept.and_then(|s| s.elements.get(*k)) != Some(*v));
        batch.delete_elements(name, set, gone);
    }
    for (name, chain) in &old.chains {
        if new.chains.get(name).is_none_or(|c| c.rules != chain.rules) && !chain.rules.is_empty() {
            batch.flush_chain(name);
        }
    }
    for (name, chain) in &new.chains {
        if old.chains.get(name).is_none_or(|c| c.rules != chain.rules) {
            for rule in &chain.rules {
                batch.new_rule(name, rule);
            }
        }
    }
    for (name, set) in &new.sets {
        let had = old.sets.get(name);
        let fresh = set
            .elements
            .iter()
            .filter(|(k, v)| had.and_then(|s| s.elements.get(*k)) != Some(*v));
        batch.add_elements(name, set, fresh);
    }
    for name in old
        .chains
        .keys()
        .filter(|name| !new.chains.contains_key(*name))
    {
        batch.delete_chain(name);
    }
    for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
        batch.delete_set(name);
    }
}
