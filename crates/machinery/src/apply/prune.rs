//! Removing what a manager applied before and applies no more.

use super::compare::{Shape, shape};
use super::field_set::{FieldSet, Node};
use super::managed::ManagedFields;
use super::merge::field_set;
use super::path;
use keelson_api::Schema;
use serde_json::{Map, Value};

/// `merged` without the fields of `last` that nobody owns any more. `managed` already holds what
/// the manager applies now.
pub(super) fn prune(
    merged: Value,
    last: &FieldSet,
    managed: &ManagedFields,
    schema: &Schema,
) -> Value {
    let last = with_named(last, Some(schema));
    let pruned = remove(&merged, &last, schema);
    let merged_set = with_named(&field_set(&merged, schema), Some(schema));
    // What others own, or the manager still does, comes back.
    let owned = managed
        .sets()
        .fold(FieldSet::default(), |all, s| all.union(&s));
    let kept = with_named(&field_set(&pruned, schema), Some(schema))
        .union(&with_named(&owned, Some(schema)));
    let pruned = remove(&merged, &merged_set.difference(&kept), schema);
    // So does what the manager never owned but lost together with its parent.
    let pruned_set = with_named(&field_set(&pruned, schema), Some(schema));
    remove(
        &merged,
        &merged_set.difference(&pruned_set).intersection(&last),
        schema,
    )
}

/// Marks the named fields on the way to a member as members too.
fn with_named(set: &FieldSet, schema: Option<&Schema>) -> FieldSet {
    let mut out = FieldSet::default();
    for (element, node) in &set.nodes {
        let (named, below) = match element.strip_prefix("f:") {
            Some(name) => (
                schema.is_some_and(|s| s.field(name).is_some()),
                schema.and_then(|s| s.property(name)),
            ),
            None => (false, schema.and_then(Schema::items)),
        };
        let member = node.member || (named && !node.below.is_empty());
        out.nodes.insert(
            element.clone(),
            Node {
                member,
                below: with_named(&node.below, below),
            },
        );
    }
    out
}

fn remove(v: &Value, gone: &FieldSet, schema: &Schema) -> Value {
    without(v, gone, Some(schema)).unwrap_or_else(|| Value::Object(Map::new()))
}

/// `None` when nothing is left that was worth keeping.
fn without(v: &Value, gone: &FieldSet, schema: Option<&Schema>) -> Option<Value> {
    match (shape(v, schema), v) {
        (Shape::Map, Value::Object(map)) => {
            let mut out = Map::new();
            let mut touched = false;
            for (k, item) in map {
                let element = path::field(k);
                if gone.has(&element) {
                    continue;
                }
                let kept = match gone.below(&element) {
                    Some(below) => {
                        touched = true;
                        without(item, below, schema.and_then(|s| s.property(k)))
                            .unwrap_or_else(|| empty_like(item))
                    }
                    None => item.clone(),
                };
                out.insert(k.clone(), kept);
            }
            (!out.is_empty() || touched).then_some(Value::Object(out))
        }
        (Shape::List, Value::Array(items)) => {
            let mut out = Vec::new();
            let mut touched = false;
            for item in items {
                let element = schema.and_then(|s| path::item(item, s)).unwrap_or_default();
                if gone.has(&element) {
                    continue;
                }
                let kept = match gone.below(&element) {
                    Some(below) => {
                        touched = true;
                        without(item, below, schema.and_then(Schema::items))
                            .unwrap_or_else(|| empty_like(item))
                    }
                    None => item.clone(),
                };
                out.push(kept);
            }
            (!out.is_empty() || touched).then_some(Value::Array(out))
        }
        (_, Value::Object(_) | Value::Array(_)) => None,
        _ => Some(v.clone()),
    }
}

fn empty_like(v: &Value) -> Value {
    match v {
        Value::Object(_) => Value::Object(Map::new()),
        Value::Array(_) => Value::Array(Vec::new()),
        _ => Value::Null,
    }
}
