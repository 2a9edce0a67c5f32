//! Which fields two objects differ in.

use super::field_set::{FieldSet, Node};
use super::path;
use keelson_api::{ListType, MapType, Schema, Type};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    /// Forgets everything at and below the given fields.
    pub(super) fn filter(&mut self, out: &FieldSet) {
        static MANAGED: LazyLock<FieldSet> =
            LazyLock::new(|| FieldSet::of(&["metadata.managedFields"]));
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            set.cut(out);
            set.cut(&MANAGED);
        }
    }

    /// What is new or different, and what is gone.
    pub(super) fn split(self) -> (FieldSet, FieldSet) {
        let mut changed = self.modified;
        changed.absorb(self.added);
        (changed, self.removed)
    }
}

pub(super) fn compare(old: &Value, new: &Value, schema: &Schema) -> Comparison {
    let mut found = Found::default();
    walk(Some(old), Some(new), Some(schema), &mut found);
    Comparison {
        added: found.added.below,
        modified: found.modified.below,
        removed: found.removed.below,
    }
}

/// How ownership treats a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Owned as a whole.
    Leaf,
    List,
    Map,
}

pub(super) fn shape(v: &Value, schema: Option<&Schema>) -> Shape {
    match (v, schema) {
        (Value::Array(_), Some(s)) if s.kind() == Type::Array => match s.list_type() {
            ListType::Atomic => Shape::Leaf,
            ListType::Set | ListType::Map => Shape::List,
        },
        (Value::Object(_), Some(s)) => {
            let raw = !s.type_name().is_empty() && (s.kind() == Type::Any || s.keeps_unknown());
            if s.map_type() == MapType::Atomic || raw {
                Shape::Leaf
            } else {
                Shape::Map
            }
        }
        (Value::Object(_), None) => Shape::Map,
        _ => Shape::Leaf,
    }
}

/// What was found at a value and below it.
#[derive(Default)]
struct Found {
    added: Node,
    modified: Node,
    removed: Node,
}

impl Found {
    /// Compares what is below under `element`, whose text is only made when something differs.
    fn child(
        &mut self,
        element: impl FnOnce() -> String,
        old: Option<&Value>,
        new: Option<&Value>,
        schema: Option<&Schema>,
    ) {
        let mut found = Found::default();
        walk(old, new, schema, &mut found);
        self.take(element, found);
    }

    fn take(&mut self, element: impl FnOnce() -> String, found: Found) {
        let parts = [
            (&mut self.added, found.added),
            (&mut self.modified, found.modified),
            (&mut self.removed, found.removed),
        ];
        let mut parts = parts.into_iter().filter(|(_, node)| !node.is_empty());
        let Some((first, node)) = parts.next() else {
            return;
        };
        let element = element();
        for (into, node) in parts {
            into.below.nodes.insert(element.clone(), node);
        }
        first.below.nodes.insert(element, node);
    }
}

fn walk(old: Option<&Value>, new: Option<&Value>, schema: Option<&Schema>, found: &mut Found) {
    // Most of an object does not change; equal parts have nothing to report.
    if let (Some(o), Some(n)) = (old, new)
        && o == n
    {
        return;
    }
    let shape_of = |v: Option<&Value>| v.filter(|v| !v.is_null()).map(|v| shape(v, schema));
    let shape = match (shape_of(old), shape_of(new)) {
        (Some(a), Some(b)) if a != b => Shape::Leaf,
        (a, b) => b.or(a).unwrap_or(Shape::Leaf),
    };
    match shape {
        Shape::Leaf => return leaf(old, new, found),
        Shape::Map => {
            let empty = Map::new();
            let o = old.and_then(Value::as_object).unwrap_or(&empty);
            let n = new.and_then(Value::as_object).unwrap_or(&empty);
            if o.is_empty() && n.is_empty() {
                return leaf(old, new, found);
            }
            let of = |k: &str| schema.and_then(|s| s.property(k));
            for (k, v) in o {
                found.child(|| path::field(k), Some(v), n.get(k), of(k));
            }
            for (k, v) in n.iter().filter(|(k, _)| !o.contains_key(*k)) {
                found.child(|| path::field(k), None, Some(v), of(k));
            }
        }
        Shape::List => {
            let (o, n) = (items(old), items(new));
            if o.is_empty() && n.is_empty() {
                return leaf(old, new, found);
            }
            if let Some(s) = schema {
                list(o, n, s, found);
            }
        }
    }
    match (old, new) {
        (None, _) => found.added.member = true,
        (_, None) => found.removed.member = true,
        _ => {}
    }
}

fn items(v: Option<&Value>) -> &[Value] {
    v.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn list(old: &[Value], new: &[Value], schema: &Schema, found: &mut Found) {
    type Pair<'v> = (Vec<&'v Value>, Vec<&'v Value>);
    let mut items: BTreeMap<String, Pair<'_>> = BTreeMap::new();
    for v in old {
        if let Some(e) = path::item(v, schema) {
            items.entry(e).or_default().0.push(v);
        }
    }
    for v in new {
        if let Some(e) = path::item(v, schema) {
            items.entry(e).or_default().1.push(v);
        }
    }
    for (element, (o, n)) in items {
        // Items with the same key cannot be told apart: they are owned as one leaf.
        let mut below = Found::default();
        match (o.len(), n.len()) {
            (0 | 1, 0 | 1) => {
                let (o, n) = (o.first().copied(), n.first().copied());
                walk(o, n, schema.items(), &mut below);
            }
            (2.., 2..) => below.modified.member = o != n,
            (2.., _) => {
                if let Some(v) = n.first() {
                    walk(None, Some(v), schema.items(), &mut below);
                }
                below.removed.member = true;
            }
            (_, _) => {
                if let Some(v) = o.first() {
                    walk(Some(v), None, schema.items(), &mut below);
                }
                below.added.member = true;
            }
        }
        found.take(|| element, below);
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>, found: &mut Found) {
    match (old, new) {
        (None, _) => found.added.member = true,
        (_, None) => found.removed.member = true,
        (o, n) if o != n => found.modified.member = true,
        _ => {}
    }
}
