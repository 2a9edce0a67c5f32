//! Rules of the schemas in definitions: what OpenAPI v3 forbids here, and that they are
//! structural, so that every field of an object is known from the schema alone.

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

use super::validations::{self, Before};
use crate::check::At;
use crate::tree::Tree;

/// A schema nested deeper than this is refused rather than walked.
const MAX_DEPTH: usize = 64;

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

/// Where in a structural schema a node is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    Field,
    Item,
    /// Under allOf, anyOf, oneOf or not: only value rules are allowed.
    Junctor,
}

/// Checks the schema of a version named `version`.
pub(super) fn validate_root(
    root: &At,
    version: &str,
    structural: bool,
    before: &Before,
    e: &mut ErrorList,
) {
    let errors_before = e.len();
    if root.has("nullable") && root.value.flag("nullable") {
        e.push(
            root.at("nullable")
                .forbidden("nullable cannot be true at the root"),
        );
    }
    let kind = root.at("type");
    if structural && kind.text() != "object" {
        if kind.is_empty() {
            e.push(kind.required("must not be empty at the root"));
        } else {
            e.push(kind.invalid("must be object at the root"));
        }
    }
    node(root, Place::Root, structural, 0, e);
    // Expressions about a schema that is not sound would only add what nobody can act on.
    if structural && e.len() == errors_before {
        validations::validate(root, before, before.had(version, root.value), e);
    }
}

fn node(s: &At, place: Place, structural: bool, depth: usize, e: &mut ErrorList) {
    if depth > MAX_DEPTH {
        return e.push(s.forbidden("schema is nested too deeply"));
    }
    forbidden_keywords(s, e);
    types(s, place, structural, e);
    extensions(s, place, structural, e);
    lists(s, e);
    if s.has("default") && place == Place::Junctor {
        e.push(
            s.at("default")
                .forbidden("must be undefined to be structural"),
        );
    }
    children(s, place, structural, depth, e);
}

fn forbidden_keywords(s: &At, e: &mut ErrorList) {
    for (field, detail) in [
        ("definitions", "definitions is not supported"),
        ("dependencies", "dependencies is not supported"),
        ("discriminator", "discriminator is not supported"),
        ("readOnly", "readOnly is not supported"),
        ("writeOnly", "writeOnly is not supported"),
        ("xml", "xml is not supported"),
        ("deprecated", "deprecated is not supported"),
        ("id", "id is not supported"),
        ("additionalItems", "additionalItems is not supported"),
        ("patternProperties", "patternProperties is not supported"),
        ("$ref", "$ref is not supported"),
    ] {
        if s.value.get(field).is_some_and(|v| !v.is_null()) {
            e.push(FieldError::forbidden(&s.path.child(field), detail));
        }
    }
    if s.value.flag("uniqueItems") {
        e.push(s.at("uniqueItems").forbidden(
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
    let additional = s.at("additionalProperties");
    if additional.value == &Value::Bool(false) {
        e.push(additional.forbidden("additionalProperties cannot be set to false"));
    }
    if additional.exists() && !s.at("properties").is_empty() {
        e.push(additional.forbidden("additionalProperties and properties are mutual exclusive"));
    }
    let pattern = s.at("pattern");
    if !pattern.is_empty() && regex::Regex::new(pattern.text()).is_err() {
        e.push(pattern.invalid("must be a valid regular expression"));
    }
}

fn types(s: &At, place: Place, structural: bool, e: &mut ErrorList) {
    let kind = s.at("type");
    if !kind.is_empty() && !TYPES.contains(&kind.text()) {
        e.push(kind.not_supported(TYPES));
    }
    if kind.text() == "array" && s.at("items").is_empty() && place != Place::Junctor {
        e.push(s.at("items").required("must be specified"));
    }
    if !structural {
        return;
    }
    let either = flag(s, "x-kubernetes-int-or-string");
    let open = flag(s, "x-kubernetes-preserve-unknown-fields");
    match place {
        Place::Field | Place::Item if kind.is_empty() && !either && !open => {
            let what = if place == Place::Item {
                "must not be empty for specified array items"
            } else {
                "must not be empty for specified object fields"
            };
            e.push(kind.required(what));
        }
        Place::Junctor => {
            for field in ["type", "nullable", "default", "additionalProperties"] {
                let at = s.at(field);
                let set = at.exists() && at.value != &Value::Bool(false);
                if set && !(field == "type" && either_branch(s)) {
                    e.push(at.forbidden("must be empty to be structural"));
                }
            }
        }
        _ => {}
    }
}

/// The branches of an int-or-string may name their types.
fn either_branch(s: &At) -> bool {
    matches!(s.value.text("type"), "integer" | "string")
        && s.value.as_object().is_some_and(|o| o.len() == 1)
}

fn flag(s: &At, key: &str) -> bool {
    s.value.get(key) == Some(&Value::Bool(true))
}

fn extensions(s: &At, place: Place, structural: bool, e: &mut ErrorList) {
    let preserve = "x-kubernetes-preserve-unknown-fields";
    if s.value.get(preserve) == Some(&Value::Bool(false)) {
        let path = s.path.child(preserve);
        e.push(FieldError::invalid(
            &path,
            false,
            "must be true or undefined",
        ));
    }
    let kind = s.value.text("type");
    if flag(s, "x-kubernetes-embedded-resource") {
        let path = s.path.child("x-kubernetes-embedded-resource");
        if kind != "object" {
            e.push(FieldError::invalid(
                &s.path.child("type"),
                kind,
                "must be object if x-kubernetes-embedded-resource is true",
            ));
        }
        if place == Place::Root && structural {
            e.push(FieldError::forbidden(&path, "must not be used at the root"));
        }
        if s.at("properties").is_empty() && !flag(s, preserve) {
            e.push(FieldError::required(&s.path.child("properties"), "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"));
        }
    }
    if flag(s, "x-kubernetes-int-or-string") && !kind.is_empty() {
        e.push(FieldError::invalid(
            &s.path.child("type"),
            kind,
            "must be empty if x-kubernetes-int-or-string is true",
        ));
    }
    validations::texts(s, e);
}

fn lists(s: &At, e: &mut ErrorList) {
    let (kind, keys) = (
        s.at("x-kubernetes-list-type"),
        s.at("x-kubernetes-list-map-keys"),
    );
    if kind.exists() {
        if s.value.text("type") != "array" {
            let path = s.path.child("type");
            if s.value.has("type") {
                e.push(FieldError::invalid(
                    &path,
                    s.value.text("type"),
                    "must be array if x-kubernetes-list-type is specified",
                ));
            } else {
                e.push(FieldError::required(
                    &path,
                    "must be array if x-kubernetes-list-type is specified",
                ));
            }
        }
        if !matches!(kind.text(), "atomic" | "set" | "map") {
            e.push(kind.not_supported(&["atomic", "map", "set"]));
        }
    }
    let items = s.value.at("items");
    if kind.text() == "map" {
        if keys.is_empty() {
            e.push(keys.required("must not be empty if x-kubernetes-list-type is map"));
        }
        if items.text("type") != "object" {
            let path = s.path.child("items").child("type");
            e.push(FieldError::invalid(
                &path,
                items.text("type"),
                "must be object if parent array's x-kubernetes-list-type is map",
            ));
        }
        for key in keys.each() {
            if !items.map("properties").contains_key(key.text()) {
                e.push(key.invalid(
                    "entries in x-kubernetes-list-map-keys must all be names of item properties",
                ));
            }
        }
    } else if !keys.is_empty() {
        e.push(keys.forbidden("must not be set if x-kubernetes-list-type is not map"));
    }
    let map = s.at("x-kubernetes-map-type");
    if map.exists() {
        if s.value.text("type") != "object" {
            let path = s.path.child("type");
            e.push(FieldError::invalid(
                &path,
                s.value.text("type"),
                "must be object if x-kubernetes-map-type is specified",
            ));
        }
        if !matches!(map.text(), "atomic" | "granular") {
            e.push(map.not_supported(&["atomic", "granular"]));
        }
    }
}

fn children(s: &At, place: Place, structural: bool, depth: usize, e: &mut ErrorList) {
    let inner = if place == Place::Junctor {
        Place::Junctor
    } else {
        Place::Field
    };
    let items_place = if place == Place::Junctor {
        Place::Junctor
    } else {
        Place::Item
    };
    for (name, child) in s.at("properties").entries() {
        if place == Place::Root && name == "metadata" {
            let only_names = child.value.as_object().is_none_or(|o| {
                o.keys()
                    .all(|k| matches!(k.as_str(), "type" | "description" | "properties"))
            });
            if structural && !only_names {
                e.push(child.forbidden("must not specify anything other than name and generateName, but metadata is implicitly specified"));
            }
        }
        node(&child, inner, structural, depth + 1, e);
    }
    let additional = s.at("additionalProperties");
    if additional.value.is_object() {
        if place == Place::Root {
            e.push(additional.forbidden("must not be used at the root"));
        }
        node(&additional, inner, structural, depth + 1, e);
    }
    let items = s.at("items");
    if items.value.is_object() {
        node(&items, items_place, structural, depth + 1, e);
    } else if items.value.is_array() {
        e.push(items.forbidden("items must be a schema object and not an array"));
    }
    for list in ["allOf", "anyOf", "oneOf"] {
        for child in s.at(list).each() {
            node(&child, Place::Junctor, structural, depth + 1, e);
        }
    }
    let not = s.at("not");
    if not.value.is_object() {
        node(&not, Place::Junctor, structural, depth + 1, e);
    }
}
