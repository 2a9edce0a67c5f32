//! Rules of the schemas in definitions: what of OpenAPI v3 is not for custom resources, that they
//! are structural, and that their defaults keep the rules.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::Value;

use super::validations::{self, Before};
use super::{defaults, structural};
use crate::check::At;
use crate::tree::Tree;

/// A schema nested deeper than this is refused rather than walked.
pub(super) const MAX_DEPTH: usize = 64;

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
const METADATA: &[&str] = &["apiVersion", "kind", "metadata"];

/// Whether a keyword says anything: what is empty, false or null does not.
pub(super) fn is_set(schema: &Value, key: &str) -> bool {
    match schema.get(key) {
        None | Some(Value::Null) => false,
        Some(_) if key == "default" => true,
        Some(Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(_)) if matches!(key, "not" | "items" | "additionalProperties") => true,
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    }
}

pub(super) fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

/// Checks the schema at `at` (of the version named `version`, or of all of them).
pub(super) fn validate(
    at: &At,
    version: &str,
    has_status: bool,
    is_structural: bool,
    before: &Before,
    e: &mut ErrorList,
) {
    let root = at.at("openAPIV3Schema");
    if !root.exists() {
        return;
    }
    let errors_before = e.len();
    if has_status {
        only_what_status_bears(&root, e);
    }
    if flag(root.value, "nullable") {
        e.push(
            root.at("nullable")
                .forbidden("nullable cannot be true at the root"),
        );
    }
    let mut sound = false;
    let mut unconvertible = None;
    if is_structural {
        unconvertible = structural::unconvertible(root.value, 0);
        if unconvertible.is_none() {
            let mut found = structural::validate(&root);
            if found.is_empty() {
                found = defaults::validate(&root);
            }
            sound = found.is_empty();
            e.append(&mut found);
        }
    }
    let before_walk = e.len();
    node(&root, Inside::default(), true, 0, e);
    if e.len() == errors_before
        && let Some(reason) = unconvertible
    {
        e.push(FieldError::invalid(&root.path, "", reason));
    }
    // Expressions about a schema that is not sound would only add what nobody can act on.
    if sound && e.len() == before_walk {
        validations::validate(&root, before, before.had(version, root.value), e);
    }
}

/// With a `status` of its own a version's schema is taken apart, so that only some keywords may
/// stand at its root.
fn only_what_status_bears(root: &At, e: &mut ErrorList) {
    const FIRST: &[&str] = &["id", "$schema", "$ref"];
    const NOT: &[&str] = &[
        "nullable",
        "default",
        "enum",
        "maxProperties",
        "minProperties",
        "allOf",
        "oneOf",
        "anyOf",
        "not",
        "additionalProperties",
        "patternProperties",
        "dependencies",
        "additionalItems",
        "definitions",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-map-type",
    ];
    const DETAIL: &str = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";
    let any = |keys: &[&str]| keys.iter().any(|key| is_set(root.value, key));
    let kind = root.at("type");
    if any(FIRST) {
        e.push(root.invalid(DETAIL));
    } else if !kind.is_empty() && kind.text() != "object" {
        e.push(kind.invalid("only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled"));
    } else if any(NOT) {
        e.push(root.invalid(DETAIL));
    }
}

/// What surrounds a node.
#[derive(Clone, Copy, Default)]
struct Inside<'a> {
    /// The type or the metadata of an object.
    metadata: bool,
    /// Why there may be no default here.
    no_default: Option<&'a str>,
}

fn node(s: &At, inside: Inside, is_root: bool, depth: usize, e: &mut ErrorList) {
    if depth > MAX_DEPTH {
        return e.push(s.forbidden("schema is nested too deeply"));
    }
    keywords(s, inside, e);
    let additional = s.at("additionalProperties");
    let both = additional.exists() && !s.at("properties").is_empty();
    if both && additional.value != &Value::Bool(true) {
        e.push(additional.forbidden("additionalProperties and properties are mutual exclusive"));
    }
    if additional.value.is_object() {
        let mut below = inside;
        if inside.metadata {
            below.no_default = Some("inside additionalProperties applying to object metadata");
        }
        node(&additional, below, false, depth + 1, e);
    }
    for (name, property) in s.at("properties").entries() {
        let mut below = inside;
        let reason = format!("in top-level {name}");
        if METADATA.contains(&name) {
            below.metadata |= is_root || flag(s.value, "x-kubernetes-embedded-resource");
            if is_root {
                below.no_default = Some(&reason);
            }
        }
        node(&property, below, false, depth + 1, e);
    }
    if s.at("not").value.is_object() {
        node(&s.at("not"), inside, false, depth + 1, e);
    }
    for list in ["allOf", "oneOf", "anyOf", "items"] {
        for child in s.at(list).each() {
            node(&child, inside, false, depth + 1, e);
        }
    }
    if s.at("items").value.is_object() {
        node(&s.at("items"), inside, false, depth + 1, e);
    }
    for map in ["definitions", "dependencies"] {
        for (_, child) in s.at(map).entries().filter(|(_, c)| c.value.is_object()) {
            node(&child, inside, false, depth + 1, e);
        }
    }
    extensions(s, e);
    keyed_items(s, e);
    validations::texts(s, e);
}

fn keywords(s: &At, inside: Inside, e: &mut ErrorList) {
    let kind = s.at("type");
    if !kind.is_empty() && !TYPES.contains(&kind.text()) {
        e.push(kind.not_supported(TYPES));
    }
    if let Some(reason) = inside.no_default.filter(|_| s.has("default")) {
        e.push(
            s.at("default")
                .forbidden(format!("must not be set {reason}")),
        );
    }
    for name in [
        "id",
        "additionalItems",
        "patternProperties",
        "definitions",
        "dependencies",
        "$ref",
    ] {
        if s.value.get(name).is_some_and(|v| !v.is_null()) {
            let detail = format!("{name} is not supported");
            e.push(FieldError::forbidden(&s.path.child(name), detail));
        }
    }
    if kind.text() == "null" {
        e.push(kind.forbidden("type cannot be set to null, use nullable as an alternative"));
    }
    if s.at("items").value.is_array() {
        e.push(
            s.at("items")
                .forbidden("items must be a schema object and not an array"),
        );
    }
    if inside.metadata && flag(s.value, "x-kubernetes-embedded-resource") {
        let path = s.path.child("x-kubernetes-embedded-resource");
        e.push(FieldError::forbidden(
            &path,
            "must not be used inside of resource meta",
        ));
    }
    if s.value.flag("uniqueItems") {
        e.push(s.at("uniqueItems").forbidden(
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ));
    }
}

fn extensions(s: &At, e: &mut ErrorList) {
    let preserve = s.at("x-kubernetes-preserve-unknown-fields");
    if preserve.value == &Value::Bool(false) {
        e.push(preserve.invalid("must be true or undefined"));
    }
    let (map, list) = (
        s.at("x-kubernetes-map-type"),
        s.at("x-kubernetes-list-type"),
    );
    let typed = |at: &At, wanted: &str, e: &mut ErrorList| {
        let kind = s.at("type");
        if !at.exists() || kind.text() == wanted {
            return false;
        }
        let key = if wanted == "object" { "map" } else { "list" };
        let detail = format!("must be {wanted} if x-kubernetes-{key}-type is specified");
        e.push(if kind.is_empty() {
            kind.required(&detail)
        } else {
            kind.invalid(detail)
        });
        true
    };
    typed(&map, "object", e);
    map.one_of(e, &["atomic", "granular"]);
    if !typed(&list, "array", e) && list.text() == "set" {
        let items = s.at("items");
        let atomic = |key: &str| items.value[key] == "atomic";
        let wrong = match items.value.text("type") {
            "array" if items.has("x-kubernetes-list-type") && !atomic("x-kubernetes-list-type") => {
                Some("x-kubernetes-list-type")
            }
            "object" if !atomic("x-kubernetes-map-type") => Some("x-kubernetes-map-type"),
            _ => None,
        };
        if let Some(key) = wrong {
            // Upstream shows the type of the list in both cases.
            let shown = items.at("x-kubernetes-list-type").value.clone();
            let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
            e.push(FieldError::invalid(&items.at(key).path, shown, detail));
        }
    }
    // Upstream names them in this order.
    if list.exists() && !matches!(list.text(), "atomic" | "set" | "map") {
        e.push(list.not_supported(&["atomic", "set", "map"]));
    }
}

/// Lists whose items are told apart, and what that asks of the items.
fn keyed_items(s: &At, e: &mut ErrorList) {
    let (list, keys, items) = (
        s.at("x-kubernetes-list-type"),
        s.at("x-kubernetes-list-map-keys"),
        s.at("items"),
    );
    let kind = list.text();
    if !keys.is_empty() && kind != "map" {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        e.push(if list.exists() {
            list.invalid(detail)
        } else {
            list.required(detail)
        });
    }
    if kind == "map" {
        if keys.is_empty() {
            e.push(keys.required("must not be empty if x-kubernetes-list-type is map"));
        }
        if !items.exists() {
            e.push(items.required("must have a schema if x-kubernetes-list-type is map"));
        } else if !items.value.is_object() {
            let detail = "must only have a single schema if x-kubernetes-list-type is map";
            e.push(items.invalid(detail));
        } else if items.value.text("type") != "object" {
            let detail = "must be object if parent array's x-kubernetes-list-type is map";
            e.push(items.at("type").invalid_text(detail));
        } else {
            item_keys(&keys, &items, e);
        }
    }
    if !matches!(kind, "map" | "set") || !items.value.is_object() {
        return;
    }
    if flag(items.value, "nullable") {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {kind}");
        e.push(items.at("nullable").forbidden(detail));
    }
    if kind != "map" {
        return;
    }
    for (key, property) in declared_keys(&keys, &items) {
        let is_required = items.value.list("required").iter().any(|r| r == key);
        let path = items.path.child("properties").key(key);
        if !is_required && !property.has("default") {
            e.push(FieldError::required(&path.child("default"), "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"));
        }
        if flag(property, "nullable") {
            e.push(FieldError::forbidden(
                &path.child("nullable"),
                "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
            ));
        }
    }
}

fn declared_keys<'a>(keys: &At<'a>, items: &At<'a>) -> Vec<(&'a str, &'a Value)> {
    let properties = items.value.map("properties");
    let found = keys.each().filter_map(|key| {
        let name = key.value.as_str()?;
        Some((name, properties.get(name)?))
    });
    found.collect()
}

fn item_keys(keys: &At, items: &At, e: &mut ErrorList) {
    let mut seen = std::collections::BTreeSet::new();
    for key in keys.each() {
        let name = key.text();
        match items.value.map("properties").get(name) {
            Some(property) if matches!(property.text("type"), "array" | "object") => {
                let path: Path = items.path.child("properties").key(name).child("type");
                e.push(FieldError::invalid(
                    &path,
                    items.value.text("type"),
                    "must be a scalar type if parent array's x-kubernetes-list-type is map",
                ));
            }
            Some(_) => {}
            None => e.push(keys.invalid("entries must all be names of item properties")),
        }
        if !seen.insert(name) {
            e.push(keys.invalid("must not contain duplicate entries"));
        }
    }
}
