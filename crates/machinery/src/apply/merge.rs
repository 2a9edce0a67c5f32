//! Merging a configuration into an object, and the fields a configuration names.

use super::compare::{Shape, shape};
use super::field_set::{FieldSet, Node};
use super::path;
use crate::go;
use keelson_api::{Additional, ListType, Schema, Type};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// The fields `config` sets.
pub(super) fn field_set(config: &Value, schema: &Schema) -> FieldSet {
    let mut out = Node::default();
    collect(config, Some(schema), &mut out);
    out.below
}

/// What the value says of its own place, and what is below it.
fn collect(v: &Value, schema: Option<&Schema>, out: &mut Node) {
    match (shape(v, schema), v) {
        (Shape::Map, Value::Object(map)) => {
            for (k, item) in map {
                let node = out.below.nodes.entry(path::field(k)).or_default();
                collect(item, schema.and_then(|s| s.property(k)), node);
                let named = schema.is_some_and(|s| s.field(k).is_some());
                node.member |= !named || item.as_object().is_some_and(Map::is_empty);
            }
        }
        (Shape::List, Value::Array(items)) => {
            let Some(s) = schema else { return };
            for item in items {
                let Some(e) = path::item(item, s) else {
                    continue;
                };
                let node = out.below.nodes.entry(e).or_default();
                collect(item, s.items(), node);
                node.member = true;
            }
        }
        _ => out.member = true,
    }
}

/// `config` over `live`: scalars, atomic lists and maps are replaced, the rest is merged. Items
/// of keyed lists stand in the configuration's order, the others keep their place.
pub(super) fn merge(live: &Value, config: &Value, schema: &Schema) -> Value {
    join(Some(live), Some(config), Some(schema)).unwrap_or(Value::Null)
}

fn join(live: Option<&Value>, config: Option<&Value>, schema: Option<&Schema>) -> Option<Value> {
    let (Some(l), Some(c)) = (live, config) else {
        return config.or(live).cloned();
    };
    match (shape(c, schema), l, c) {
        (Shape::Map, Value::Object(l), Value::Object(c)) => {
            let mut out = Map::new();
            for (k, v) in l {
                let s = schema.and_then(|s| s.property(k));
                if let Some(v) = join(Some(v), c.get(k), s) {
                    out.insert(k.clone(), v);
                }
            }
            for (k, v) in c.iter().filter(|(k, _)| !l.contains_key(*k)) {
                out.insert(k.clone(), v.clone());
            }
            Some(Value::Object(out))
        }
        (Shape::List, Value::Array(l), Value::Array(c)) => match schema {
            Some(s) => Some(Value::Array(join_lists(l, c, s))),
            None => Some(config?.clone()),
        },
        _ => Some(c.clone()),
    }
}

fn join_lists(live: &[Value], config: &[Value], schema: &Schema) -> Vec<Value> {
    let keys = |list: &[Value]| -> Vec<String> {
        list.iter()
            .map(|v| path::item(v, schema).unwrap_or_default())
            .collect()
    };
    let (l_keys, c_keys) = (keys(live), keys(config));
    let mut in_live: HashMap<&str, Option<&Value>> = HashMap::new();
    for (k, v) in l_keys.iter().zip(live) {
        // A key that stands there twice merges with nothing.
        in_live
            .entry(k)
            .and_modify(|e| *e = None)
            .or_insert(Some(v));
    }
    let in_config: HashSet<&str> = c_keys.iter().map(String::as_str).collect();
    let mut shared = c_keys
        .iter()
        .filter(|k| in_live.contains_key(k.as_str()))
        .peekable();
    let mut done: HashSet<&str> = HashSet::new();
    let mut out = Vec::with_capacity(live.len().max(config.len()));
    let both =
        |key: &str, v: &Value| join(in_live.get(key).copied().flatten(), Some(v), schema.items());
    let (mut l, mut c) = (0, 0);
    while l < live.len() || c < config.len() {
        if l < live.len() && c < config.len() {
            if l_keys[l] == c_keys[c] {
                done.insert(&c_keys[c]);
                out.extend(both(&c_keys[c], &config[c]));
                l += 1;
                c += 1;
                shared.next();
                continue;
            }
            let waits = shared.peek().is_some_and(|k| **k != l_keys[l]);
            if in_config.contains(l_keys[l].as_str()) && waits {
                // Shared, but its turn by the configuration's order is another.
                l += 1;
                continue;
            }
        }
        if l < live.len() {
            if !in_config.contains(l_keys[l].as_str()) {
                out.push(live[l].clone());
                l += 1;
                continue;
            } else if done.contains(l_keys[l].as_str()) {
                l += 1;
            }
        }
        if c < config.len() {
            done.insert(&c_keys[c]);
            out.extend(both(&c_keys[c], &config[c]));
            if shared.peek().is_some_and(|k| **k == c_keys[c]) {
                shared.next();
            }
            c += 1;
        } else if l < live.len() && in_config.contains(l_keys[l].as_str()) {
            l += 1;
        }
    }
    out
}

/// What in a configuration the schema does not allow, with its path.
pub(super) fn check(config: &Value, schema: &Schema) -> Result<(), String> {
    let mut errs = Vec::new();
    walk(config, schema, &mut Vec::new(), &mut errs);
    match errs.len() {
        0 => Ok(()),
        1 => Err(errs.remove(0)),
        _ => Err(format!("errors:\n  {}", errs.join("\n  "))),
    }
}

/// Errors beyond this many are not reported.
const MAX_ERRORS: usize = 50;

fn fail(at: &[String], message: &str, errs: &mut Vec<String>) {
    if errs.len() < MAX_ERRORS {
        errs.push(format!("{}: {message}", path::display(at)));
    }
}

fn walk(v: &Value, s: &Schema, at: &mut Vec<String>, errs: &mut Vec<String>) {
    if v.is_null() {
        return;
    }
    let ok = match s.kind() {
        Type::Any => return,
        Type::Object => v.is_object(),
        Type::Array => v.is_array(),
        Type::String | Type::Bytes | Type::Time | Type::MicroTime => v.is_string(),
        Type::Integer | Type::Number => v.is_number(),
        Type::Boolean => v.is_boolean(),
        Type::IntOrString | Type::Quantity => v.is_string() || v.is_number(),
    };
    if !ok {
        let wanted = match s.kind() {
            Type::Object => "map",
            Type::Array => "list",
            Type::Integer | Type::Number => "numeric (int or float)",
            Type::Boolean => "boolean",
            _ => "string",
        };
        // Go prints its wrapper of a value with the verb that each message chose.
        let plain = crate::go::plain(v);
        let got = match s.kind() {
            Type::Integer | Type::Number => go::dynamic_type(v).to_owned(),
            Type::Object | Type::Array | Type::Boolean => format!("&{{{plain}}}"),
            _ if v.is_object() || v.is_array() => {
                let literal = format!("{}{{...}}", go::dynamic_type(v));
                format!("&value.valueUnstructured{{Value:{literal}}}")
            }
            _ => format!("&value.valueUnstructured{{Value:{plain}}}"),
        };
        return fail(at, &format!("expected {wanted}, got {got}"), errs);
    }
    match v {
        Value::Object(map) => {
            for (k, item) in map {
                at.push(path::field(k));
                match s.property(k) {
                    Some(f) => walk(item, f, at, errs),
                    None if s.keeps_unknown() || matches!(s.additional(), Additional::Open) => {}
                    None => fail(at, "field not declared in schema", errs),
                }
                at.pop();
            }
        }
        Value::Array(items) => {
            let Some(of) = s.items() else { return };
            let mut seen = HashSet::new();
            for (i, item) in items.iter().enumerate() {
                let element = match s.list_type() {
                    ListType::Atomic => format!("i:{i}"),
                    ListType::Set | ListType::Map => match path::item(item, s) {
                        Some(e) => {
                            if !seen.insert(e.clone()) {
                                let shown = path::display_element(&e);
                                fail(at, &format!("duplicate entries for key {shown}"), errs);
                                continue;
                            }
                            e
                        }
                        None => {
                            let keys: Vec<String> =
                                s.list_keys().iter().map(|k| crate::go::quote(k)).collect();
                            fail(
                                at,
                                &format!(
                                    "element {i}: associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                                    keys.join(" ")
                                ),
                                errs,
                            );
                            continue;
                        }
                    },
                };
                at.push(element);
                walk(item, of, at, errs);
                at.pop();
            }
        }
        _ => {}
    }
}

/// Where a configuration names atomic lists, maps and structs: `.spec.containers[0].args`.
pub(super) fn atomics(config: &Value, schema: &Schema) -> Vec<String> {
    let mut out = Vec::new();
    find_atomics(config, schema, &mut String::new(), &mut out);
    out
}

fn find_atomics(v: &Value, s: &Schema, at: &mut String, out: &mut Vec<String>) {
    let length = at.len();
    match v {
        Value::Object(map) if matches!(s.kind(), Type::Object) => {
            if shape(v, Some(s)) == Shape::Leaf {
                out.push(at.clone());
            }
            for (name, value) in map {
                if let Some(of) = s.property(name) {
                    at.push('.');
                    at.push_str(name);
                    find_atomics(value, of, at, out);
                    at.truncate(length);
                }
            }
        }
        Value::Array(items) if matches!(s.kind(), Type::Array | Type::Any) => {
            if shape(v, Some(s)) == Shape::Leaf {
                out.push(at.clone());
            }
            for (index, item) in items.iter().enumerate() {
                if let Some(of) = s.items() {
                    at.push_str(&format!("[{index}]"));
                    find_atomics(item, of, at, out);
                    at.truncate(length);
                }
            }
        }
        _ => {}
    }
}
