//! Sets of fields, as trees.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Deeper FieldsV1 are refused.
pub(super) const MAX_DEPTH: usize = 120;

/// A set of paths. A path may be a member without those below it, and the other way round.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldSet {
    pub(super) nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Node {
    pub(super) member: bool,
    pub(super) below: FieldSet,
}

impl Node {
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl FieldSet {
    /// From dotted paths of fields.
    pub fn of(paths: &[&str]) -> FieldSet {
        let mut out = FieldSet::default();
        for p in paths {
            let path: Vec<String> = p.split('.').map(super::path::field).collect();
            out.insert(&path);
        }
        out
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.values().all(Node::is_empty)
    }

    pub(super) fn insert(&mut self, path: &[String]) {
        if let Some((first, rest)) = path.split_first() {
            let node = self.nodes.entry(first.clone()).or_default();
            if rest.is_empty() {
                node.member = true;
            } else {
                node.below.insert(rest);
            }
        }
    }

    pub(super) fn has(&self, element: &str) -> bool {
        self.nodes.get(element).is_some_and(|n| n.member)
    }

    pub(super) fn has_path(&self, path: &[String]) -> bool {
        match path {
            [] => false,
            [last] => self.has(last),
            [first, rest @ ..] => self
                .nodes
                .get(first)
                .is_some_and(|n| n.below.has_path(rest)),
        }
    }

    pub(super) fn below(&self, element: &str) -> Option<&FieldSet> {
        self.nodes
            .get(element)
            .map(|n| &n.below)
            .filter(|s| !s.is_empty())
    }

    pub fn union(&self, other: &FieldSet) -> FieldSet {
        let mut out = self.clone();
        for (k, n) in &other.nodes {
            match out.nodes.get_mut(k) {
                Some(mine) => {
                    mine.member |= n.member;
                    mine.below = mine.below.union(&n.below);
                }
                None => {
                    out.nodes.insert(k.clone(), n.clone());
                }
            }
        }
        out
    }

    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a && b, false)
    }

    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        self.combine(other, |a, b| a && !b, true)
    }

    /// `keep_missing`: what the other set has no node for stays.
    fn combine(
        &self,
        other: &FieldSet,
        op: fn(bool, bool) -> bool,
        keep_missing: bool,
    ) -> FieldSet {
        let mut nodes = BTreeMap::new();
        for (k, n) in &self.nodes {
            let node = match other.nodes.get(k) {
                Some(o) => Node {
                    member: op(n.member, o.member),
                    below: n.below.combine(&o.below, op, keep_missing),
                },
                None if keep_missing => n.clone(),
                None => continue,
            };
            if !node.is_empty() {
                nodes.insert(k.clone(), node);
            }
        }
        FieldSet { nodes }
    }

    /// Without the other's members and everything below them.
    pub fn recursive_difference(&self, other: &FieldSet) -> FieldSet {
        let mut out = self.clone();
        out.cut(other);
        out
    }

    /// Removes the other's members. Costs what the other set is large, not this one.
    pub(super) fn subtract(&mut self, other: &FieldSet) {
        for (k, o) in &other.nodes {
            if let Some(mine) = self.nodes.get_mut(k) {
                mine.member &= !o.member;
                mine.below.subtract(&o.below);
                if mine.is_empty() {
                    self.nodes.remove(k);
                }
            }
        }
    }

    /// Removes the other's members and everything below them.
    pub(super) fn cut(&mut self, other: &FieldSet) {
        for (k, o) in &other.nodes {
            if o.member {
                self.nodes.remove(k);
            } else if let Some(mine) = self.nodes.get_mut(k) {
                mine.below.cut(&o.below);
                if mine.is_empty() {
                    self.nodes.remove(k);
                }
            }
        }
    }

    pub(super) fn absorb(&mut self, other: FieldSet) {
        for (k, n) in other.nodes {
            match self.nodes.get_mut(&k) {
                Some(mine) => {
                    mine.member |= n.member;
                    mine.below.absorb(n.below);
                }
                None => {
                    self.nodes.insert(k, n);
                }
            }
        }
    }

    pub(super) fn paths(&self) -> Vec<Vec<String>> {
        let mut out = Vec::new();
        self.collect(&mut Vec::new(), &mut out);
        out
    }

    fn collect(&self, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
        for (k, n) in &self.nodes {
            prefix.push(k.clone());
            if n.member {
                out.push(prefix.clone());
            }
            n.below.collect(prefix, out);
            prefix.pop();
        }
    }

    /// FieldsV1.
    pub fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (k, n) in &self.nodes {
            if n.is_empty() {
                continue;
            }
            let mut below = match n.below.to_value() {
                Value::Object(m) => m,
                _ => Map::new(),
            };
            if n.member && !below.is_empty() {
                below.insert(".".into(), Value::Object(Map::new()));
            }
            out.insert(k.clone(), Value::Object(below));
        }
        Value::Object(out)
    }

    /// From FieldsV1 in its canonical form.
    pub(super) fn from_map(map: &Map<String, Value>) -> FieldSet {
        let nodes = map
            .iter()
            .filter(|(k, _)| *k != ".")
            .filter_map(|(k, v)| {
                let below = v.as_object()?;
                let node = Node {
                    member: below.is_empty() || below.contains_key("."),
                    below: Self::from_map(below),
                };
                Some((k.clone(), node))
            })
            .collect();
        FieldSet { nodes }
    }

    /// From FieldsV1.
    pub fn from_value(v: &Value) -> Result<FieldSet, String> {
        Self::read(v, 0)
    }

    fn read(v: &Value, depth: usize) -> Result<FieldSet, String> {
        if depth > MAX_DEPTH {
            return Err("fieldsV1 is nested too deeply".into());
        }
        let map = v.as_object().ok_or("fieldsV1 must hold objects")?;
        let mut nodes = BTreeMap::new();
        for (k, below) in map {
            if k == "." {
                continue;
            }
            if !has_known_kind(k) {
                return Err(format!(
                    "missing colon or unknown kind in field {}",
                    crate::go::quote(k)
                ));
            }
            let members = below.as_object().ok_or("fieldsV1 must hold objects")?;
            let member = members.is_empty() || members.contains_key(".");
            nodes.insert(
                k.clone(),
                Node {
                    member,
                    below: Self::read(below, depth + 1)?,
                },
            );
        }
        Ok(FieldSet { nodes })
    }
}

/// Whether an element begins with the letter of one of the four kinds.
pub(super) fn has_known_kind(element: &str) -> bool {
    ["f:", "v:", "k:", "i:"]
        .iter()
        .any(|kind| element.starts_with(kind))
}
