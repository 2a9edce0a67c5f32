//! Defaults in the schemas of definitions: each has only fields that its schema knows, and keeps
//! that schema's rules, those written as expressions too.

use keelson_api::Schema;
use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::Value;

use super::schema::{MAX_DEPTH, flag};
use crate::check::At;
use crate::custom::{self, Expressions};
use crate::tree::Tree;

/// Every error of every default below `root`.
pub(super) fn validate(root: &At) -> ErrorList {
    let mut e = ErrorList::new();
    node(root, true, false, 0, &mut e);
    e
}

fn node(s: &At, is_resource: bool, in_metadata: bool, depth: usize, e: &mut ErrorList) {
    if depth > MAX_DEPTH {
        return;
    }
    let embedded = is_resource || flag(s.value, "x-kubernetes-embedded-resource");
    let in_metadata = in_metadata && !embedded;
    if s.has("default") {
        default(s, embedded, in_metadata, e);
    }
    if s.at("items").value.is_object() {
        node(&s.at("items"), false, in_metadata, depth + 1, e);
    }
    for (name, property) in s.at("properties").entries() {
        let of_object = embedded && matches!(name, "metadata" | "apiVersion" | "kind");
        node(&property, false, in_metadata || of_object, depth + 1, e);
    }
}

fn default(s: &At, embedded: bool, in_metadata: bool, e: &mut ErrorList) {
    let at = s.at("default");
    if !in_metadata && has_unknown(s.value, at.value, embedded) {
        e.push(at.invalid("must not have unknown fields"));
    }
    // What has no structural form was refused before.
    let Ok(schema) = Schema::from_openapi(s.value) else {
        return;
    };
    let below = |errors: ErrorList| errors.into_iter().map(|error| moved(error, &at.path));
    if !in_metadata {
        let found = custom::embedded(&schema, at.value);
        if !found.is_empty() {
            return e.extend(below(found));
        }
    }
    let found = custom::validate(&schema, at.value, None);
    if !found.is_empty() {
        return e.extend(below(found));
    }
    let Some(expressions) = Expressions::of_part(s.value) else {
        return;
    };
    // As an update that changes nothing, and as something new.
    for old in [Some(at.value), None] {
        let found = expressions.validate_strictly(at.value, old);
        if !found.is_empty() {
            return e.extend(below(found));
        }
    }
}

/// An error of a value, told of the place where that value stands.
fn moved(mut error: FieldError, at: &Path) -> FieldError {
    error.field = match error.field.as_str() {
        "<nil>" => at.to_string(),
        field if field.starts_with('[') => format!("{at}{field}"),
        field => at.child(field).to_string(),
    };
    error
}

/// Whether pruning by the schema would take something away.
fn has_unknown(schema: &Value, value: &Value, embedded: bool) -> bool {
    let open = flag(schema, "x-kubernetes-preserve-unknown-fields");
    let inside = |child: &Value, value: &Value| {
        has_unknown(child, value, flag(child, "x-kubernetes-embedded-resource"))
    };
    match value {
        Value::Object(map) => map.iter().any(|(name, value)| {
            if embedded && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
                return false;
            }
            let additional = &schema["additionalProperties"];
            match schema.map("properties").get(name) {
                Some(property) => inside(property, value),
                None if additional.is_object() => inside(additional, value),
                None if additional == &Value::Bool(true) => has_fields(value),
                None => !open,
            }
        }),
        Value::Array(items) => items.iter().any(|item| {
            let of = &schema["items"];
            (!open || of.is_object()) && inside(of, item)
        }),
        _ => false,
    }
}

/// Under a schema that says nothing no field is known.
fn has_fields(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => items.iter().any(has_fields),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(schema: Value) -> Vec<String> {
        let holder = json!({ "openAPIV3Schema": schema });
        let found = validate(&At::new(&holder, "openAPIV3Schema"));
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_keep_the_rules_of_their_schema() {
        let spec = |properties: Value| json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}});
        let at = "openAPIV3Schema.properties[spec].properties";
        for (properties, expected) in [
            (json!({"a": {"type": "integer", "default": 3}}), None),
            (
                json!({"a": {"type": "integer", "default": "x"}}),
                Some(format!(
                    "{at}[a].default: Invalid value: \"string\": <nil> in body must be of type integer: \"string\""
                )),
            ),
            (
                json!({"a": {"type": "object", "default": {"b": 1}, "properties": {"c": {"type": "integer"}}}}),
                Some(format!(
                    "{at}[a].default: Invalid value: {{\"b\":1}}: must not have unknown fields"
                )),
            ),
            (
                json!({"a": {"type": "integer", "default": 0, "x-kubernetes-validations": [{"rule": "self > 0", "message": "more"}]}}),
                Some(format!("{at}[a].default: Invalid value: 0: more")),
            ),
        ] {
            let found = errors(spec(properties));
            assert_eq!(
                found.first().cloned(),
                expected.map(|e| e.replace("<nil>", "")),
                "{found:?}"
            );
        }
    }
}
