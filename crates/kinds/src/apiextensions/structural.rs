//! Structural schemas: every field of an object is known from the properties and items alone, and
//! what stands under allOf, anyOf, oneOf or not only narrows their values.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::{Value, json};

use super::schema::{MAX_DEPTH, flag, is_set};
use crate::check::At;
use crate::tree::Tree;

/// Where a node is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Why a schema has no structural form at all; the first reason from the outside in.
pub(super) fn unconvertible(schema: &Value, depth: usize) -> Option<String> {
    const UNKNOWN: &[&str] = &[
        "id",
        "$schema",
        "$ref",
        "patternProperties",
        "dependencies",
        "additionalItems",
        "definitions",
    ];
    if depth > MAX_DEPTH {
        return Some("OpenAPIV3Schema is nested too deeply".to_owned());
    }
    if let Some(name) = UNKNOWN.iter().find(|name| is_set(schema, name)) {
        let shown = name.strip_prefix("$s").map_or(*name, |_| "schema");
        return Some(format!("OpenAPIV3Schema '{shown}' is not supported"));
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        return Some(
            "internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined"
                .to_owned(),
        );
    }
    if schema["items"].is_array() {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
    }
    let lists = ["allOf", "anyOf", "oneOf"].iter();
    let listed = lists.flat_map(|name| schema.list(name));
    let single = ["not", "items", "additionalProperties"].iter();
    let single = single.map(|name| schema.at(name));
    listed
        .chain(single)
        .chain(schema.map("properties").values())
        .filter(|child| child.is_object())
        .find_map(|child| unconvertible(child, depth + 1))
}

/// Everything that keeps the schema from being structural, in the order of its text.
pub(super) fn validate(root: &At) -> ErrorList {
    let mut e = ErrorList::new();
    invariants(root, Level::Root, 0, &mut e);
    completeness(root, root.value, &root.path, 0, &mut e);
    e.sort_by_cached_key(ToString::to_string);
    e
}

fn invariants(s: &At, level: Level, depth: usize, e: &mut ErrorList) {
    if depth > MAX_DEPTH {
        return;
    }
    let kind = s.at("type");
    let (either, open, embedded) = (
        flag(s.value, "x-kubernetes-int-or-string"),
        flag(s.value, "x-kubernetes-preserve-unknown-fields"),
        flag(s.value, "x-kubernetes-embedded-resource"),
    );
    let (items, additional) = (s.at("items"), s.at("additionalProperties"));
    if items.value.is_object() {
        invariants(&items, Level::Item, depth + 1, e);
    } else if kind.text() == "array" {
        e.push(items.required("must be specified"));
    }
    for (_, property) in s.at("properties").entries() {
        invariants(&property, Level::Field, depth + 1, e);
    }
    if additional.exists() && level == Level::Root {
        e.push(additional.forbidden("must not be used at the root"));
    }
    if additional.value.is_object() {
        invariants(&additional, Level::Field, depth + 1, e);
    }
    for (key, with) in [
        ("x-kubernetes-preserve-unknown-fields", open),
        ("x-kubernetes-embedded-resource", embedded),
    ] {
        if either && with {
            let detail = "must be false if x-kubernetes-int-or-string is true";
            e.push(FieldError::invalid(&s.path.child(key), true, detail));
        }
    }
    values(
        s,
        either_branches(s.value),
        either_branches(s.value.list("allOf").first().unwrap_or(&Value::Null)),
        depth,
        e,
    );
    if embedded && kind.text() != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        e.push(if kind.is_empty() {
            kind.required(detail)
        } else {
            kind.invalid(detail)
        });
    } else if kind.is_empty() && !either && !open {
        e.push(kind.required(match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        }));
    }
    if embedded && additional.exists() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        e.push(additional.forbidden(detail));
    }
    if level == Level::Root && !kind.is_empty() && kind.text() != "object" {
        e.push(kind.invalid("must be object at the root"));
    }
    of_every_object(s, level, embedded, e);
    if embedded && !open && s.at("properties").is_empty() {
        e.push(s.at("properties").required("must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"));
    }
}

/// What may be said of the fields that every object has.
fn of_every_object(s: &At, level: Level, embedded: bool, e: &mut ErrorList) {
    let of_object = level == Level::Root || embedded;
    let property = |name: &str| At {
        value: s.at("properties").at(name).value,
        path: s.path.child("properties").key(name),
    };
    for name in ["kind", "apiVersion"] {
        let field = property(name);
        if of_object && field.exists() && field.value.text("type") != "string" {
            e.push(field.at("type").invalid_text("must be string"));
        }
    }
    let metadata = property("metadata");
    if !metadata.exists() {
        return;
    }
    if of_object && metadata.value.text("type") != "object" {
        e.push(metadata.at("type").invalid_text("must be object"));
    }
    let names = ["name", "generateName"];
    let more = metadata
        .value
        .as_object()
        .into_iter()
        .flat_map(|map| map.keys())
        .any(|key| match key.as_str() {
            "type" | "default" => false,
            "properties" => {
                let mut keys = metadata.value.map(key).keys();
                keys.any(|k| !names.contains(&k.as_str()))
            }
            _ => is_set(metadata.value, key),
        });
    if level == Level::Root && more {
        e.push(metadata.forbidden("must not specify anything other than name and generateName, but metadata is implicitly specified"));
    }
}

/// `anyOf: [{type: integer}, {type: string}]` and nothing more in it.
fn either_branches(schema: &Value) -> bool {
    schema["anyOf"] == json!([{"type": "integer"}, {"type": "string"}])
}

/// The junctors of a node. `either`: its anyOf is the one of an int-or-string; `either_first`: that
/// of its first allOf is.
fn values(s: &At, either: bool, either_first: bool, depth: usize, e: &mut ErrorList) {
    if !either {
        for branch in s.at("anyOf").each() {
            nested(&branch, false, depth + 1, e);
        }
    }
    for (i, branch) in s.at("allOf").each().enumerate() {
        nested(&branch, either_first && i == 0, depth + 1, e);
    }
    for branch in s.at("oneOf").each() {
        nested(&branch, false, depth + 1, e);
    }
    if s.has("not") {
        nested(&s.at("not"), false, depth + 1, e);
    }
    let pattern = s.at("pattern");
    if let Err(problem) = keelson_cel::regular_expression(pattern.text()) {
        e.push(pattern.invalid(format!(
            "must be a valid regular expression, but isn't: {problem}"
        )));
    }
}

/// A node under a junctor narrows values and says nothing of the shape.
fn nested(s: &At, either: bool, depth: usize, e: &mut ErrorList) {
    if depth > MAX_DEPTH {
        return;
    }
    values(s, either, false, depth, e);
    if s.at("items").value.is_object() {
        nested(&s.at("items"), false, depth + 1, e);
    }
    for (_, property) in s.at("properties").entries() {
        nested(&property, false, depth + 1, e);
    }
    for (key, detail) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        (
            "x-kubernetes-preserve-unknown-fields",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-embedded-resource",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-int-or-string",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-list-map-keys",
            "must be empty to be structural",
        ),
        (
            "x-kubernetes-list-type",
            "must be undefined to be structural",
        ),
        (
            "x-kubernetes-map-type",
            "must be undefined to be structural",
        ),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ] {
        if is_set(s.value, key) {
            e.push(FieldError::forbidden(&s.path.child(key), detail));
        }
    }
    let properties = s.at("properties");
    if properties.has("metadata") {
        let path = properties.path.key("metadata");
        e.push(FieldError::forbidden(
            &path,
            "must not be specified in a nested context",
        ));
    }
}

/// What junctors speak of is declared outside of them. `s` is the declared node, `v` the one that
/// narrows it.
fn completeness(s: &At, v: &Value, v_path: &Path, depth: usize, e: &mut ErrorList) {
    if depth > MAX_DEPTH {
        return;
    }
    if v["not"].is_object() {
        narrowed(s, &v["not"], &v_path.child("not"), depth + 1, e);
    }
    for junctor in ["allOf", "anyOf", "oneOf"] {
        for (i, branch) in v.list(junctor).iter().enumerate() {
            let path = v_path.child(junctor).index(i);
            narrowed(s, branch, &path, depth + 1, e);
        }
    }
}

fn narrowed(s: &At, v: &Value, v_path: &Path, depth: usize, e: &mut ErrorList) {
    if depth > MAX_DEPTH {
        return;
    }
    completeness(s, v, v_path, depth, e);
    let mut child = |declared: At, v: &Value, v_path: &Path| {
        if declared.value.is_object() {
            narrowed(&declared, v, v_path, depth + 1, e);
        } else {
            e.push(declared.required(&format!("because it is defined in {v_path}")));
        }
    };
    if v["items"].is_object() {
        child(s.at("items"), &v["items"], &v_path.child("items"));
    }
    for (name, property) in v.map("properties") {
        let declared = At {
            value: s.at("properties").at(name).value,
            path: s.path.child("properties").key(name),
        };
        child(declared, property, &v_path.child("properties").key(name));
    }
}
