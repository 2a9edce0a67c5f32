//! Which fields two objects differ in.

use super::field_set::FieldSet;
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
    let mut w = Walker {
        out: Comparison::default(),
        path: Vec::new(),
    };
    w.walk(Some(old), Some(new), Some(schema));
    w.out
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

struct Walker {
    out: Comparison,
    path: Vec<String>,
}

impl Walker {
    fn walk(&mut self, old: Option<&Value>, new: Option<&Value>, schema: Option<&Schema>) {
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
            Shape::Leaf => return self.leaf(old, new),
            Shape::Map => {
                let empty = Map::new();
                let o = old.and_then(Value::as_object).unwrap_or(&empty);
                let n = new.and_then(Value::as_object).unwrap_or(&empty);
                if o.is_empty() && n.is_empty() {
                    return self.leaf(old, new);
                }
                for (k, v) in o {
                    self.child(
                        path::field(k),
                        Some(v),
                        n.get(k),
                        schema.and_then(|s| s.property(k)),
                    );
                }
                for (k, v) in n.iter().filter(|(k, _)| !o.contains_key(*k)) {
                    self.child(
                        path::field(k),
                        None,
                        Some(v),
                        schema.and_then(|s| s.property(k)),
                    );
                }
            }
            Shape::List => {
                let o = old
                    .and_then(Value::as_array)
                    .map(Vec::as_slice)
                    .unwrap_or(&[]);
                let n = new
                    .and_then(Value::as_array)
                    .map(Vec::as_slice)
                    .unwrap_or(&[]);
                if o.is_empty() && n.is_empty() {
                    return self.leaf(old, new);
                }
                if let Some(s) = schema {
                    self.list(o, n, s);
                }
            }
        }
        match (old, new) {
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            _ => {}
        }
    }

    fn list(&mut self, old: &[Value], new: &[Value], schema: &Schema) {
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
            self.path.push(element);
            match (o.len(), n.len()) {
                (0 | 1, 0 | 1) => {
                    self.walk(o.first().copied(), n.first().copied(), schema.items());
                }
                (2.., 2..) => {
                    if o != n {
                        self.out.modified.insert(&self.path);
                    }
                }
                (2.., _) => {
                    if let Some(v) = n.first() {
                        self.walk(None, Some(v), schema.items());
                    }
                    self.out.removed.insert(&self.path);
                }
                (_, _) => {
                    if let Some(v) = o.first() {
                        self.walk(Some(v), None, schema.items());
                    }
                    self.out.added.insert(&self.path);
                }
            }
            self.path.pop();
        }
    }

    fn child(&mut self, e: String, old: Option<&Value>, new: Option<&Value>, s: Option<&Schema>) {
        self.path.push(e);
        self.walk(old, new, s);
        self.path.pop();
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            (o, n) if o != n => self.out.modified.insert(&self.path),
            _ => {}
        }
    }
}
