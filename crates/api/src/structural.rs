//! Schemas of CustomResourceDefinitions, from their OpenAPI v3 form.

use crate::schema::{Additional, CelRule, Field, ListType, MapType, Rules, Schema, Type};
use serde_json::Value;
use std::borrow::Cow;

/// Deeper schemas are refused.
const MAX_DEPTH: usize = 128;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StructuralError {
    #[error("{0}: must be an object")]
    NotAnObject(String),
    #[error("{0}: unknown type {1}")]
    Type(String, String),
    #[error("{0}: nested too deeply")]
    Depth(String),
    #[error("{0}: $ref is not allowed")]
    Reference(String),
}

impl Schema {
    /// The schema of a custom resource: the declared one with apiVersion, kind and metadata made
    /// those of every object.
    pub fn custom_resource(openapi: &Value) -> Result<Schema, StructuralError> {
        let mut s = Schema::from_openapi(openapi)?;
        s.ty = Type::Object;
        s.set_object_fields();
        Ok(s)
    }

    /// A schema as written in `openAPIV3Schema`.
    pub fn from_openapi(openapi: &Value) -> Result<Schema, StructuralError> {
        build(openapi, "", 0)
    }

    fn set_object_fields(&mut self) {
        let text = |name: &'static str| Field {
            name: Cow::Borrowed(name),
            schema: Schema {
                ty: Type::String,
                ..Schema::default()
            },
            omit_empty: true,
            ..Field::default()
        };
        let metadata = Field {
            name: Cow::Borrowed("metadata"),
            schema: Schema::of_type(OBJECT_META).unwrap_or_else(Schema::any),
            ..Field::default()
        };
        self.fields
            .retain(|f| !matches!(&*f.name, "apiVersion" | "kind" | "metadata"));
        self.fields
            .extend([text("apiVersion"), text("kind"), metadata]);
        self.fields.sort_by(|a, b| a.name.cmp(&b.name));
    }
}

fn owned(v: &Value, key: &str) -> Cow<'static, str> {
    v.get(key)
        .and_then(Value::as_str)
        .map(|s| Cow::Owned(s.to_owned()))
        .unwrap_or_default()
}

fn flag(v: &Value, key: &str) -> bool {
    v.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn strings(v: &Value, key: &str) -> Vec<String> {
    v.get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|s| s.as_str().map(str::to_owned))
        .collect()
}

fn build(v: &Value, at: &str, depth: usize) -> Result<Schema, StructuralError> {
    let map = v
        .as_object()
        .ok_or_else(|| StructuralError::NotAnObject(at.to_owned()))?;
    if depth > MAX_DEPTH {
        return Err(StructuralError::Depth(at.to_owned()));
    }
    if map.contains_key("$ref") {
        return Err(StructuralError::Reference(at.to_owned()));
    }
    let ty = match map.get("type").and_then(Value::as_str).unwrap_or("") {
        _ if flag(v, "x-kubernetes-int-or-string") => Type::IntOrString,
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        "" if map.contains_key("properties") => Type::Object,
        "" => Type::Any,
        other => return Err(StructuralError::Type(at.to_owned(), other.to_owned())),
    };
    let required = strings(v, "required");
    let mut fields = Vec::new();
    for (name, p) in map
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        fields.push(Field {
            name: Cow::Owned(name.clone()),
            schema: build(p, &format!("{at}.properties[{name}]"), depth + 1)?,
            required: required.contains(name),
            pointer: true,
            ..Field::default()
        });
    }
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    let preserve_unknown = flag(v, "x-kubernetes-preserve-unknown-fields");
    let additional = match map.get("additionalProperties") {
        Some(Value::Bool(true)) => Additional::Open,
        Some(s @ Value::Object(_)) => Additional::Of(Box::new(build(
            s,
            &format!("{at}.additionalProperties"),
            depth + 1,
        )?)),
        _ => Additional::Closed,
    };
    let items = match map.get("items") {
        Some(i @ Value::Object(_)) => Some(Box::new(build(i, &format!("{at}.items"), depth + 1)?)),
        _ => None,
    };
    let mut s = Schema {
        ty,
        fields,
        items,
        additional,
        list_type: match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("map") => Some(ListType::Map),
            Some("set") => Some(ListType::Set),
            Some(_) => Some(ListType::Atomic),
            None => None,
        },
        map_type: match map.get("x-kubernetes-map-type").and_then(Value::as_str) {
            Some("atomic") => Some(MapType::Atomic),
            Some(_) => Some(MapType::Granular),
            None => None,
        },
        list_keys: strings(v, "x-kubernetes-list-map-keys")
            .into_iter()
            .map(Cow::Owned)
            .collect(),
        patch_strategy: owned(v, "x-kubernetes-patch-strategy"),
        patch_merge_key: owned(v, "x-kubernetes-patch-merge-key"),
        default: map.get("default").cloned(),
        format: owned(v, "format"),
        nullable: flag(v, "nullable"),
        preserve_unknown,
        declared: true,
        embedded_resource: flag(v, "x-kubernetes-embedded-resource"),
        rules: rules(v, at, depth)?,
        description: map
            .get("description")
            .and_then(Value::as_str)
            .map(Into::into),
        ..Schema::default()
    };
    if s.embedded_resource {
        s.set_object_fields();
    }
    Ok(s)
}

fn rules(v: &Value, at: &str, depth: usize) -> Result<Option<Box<Rules>>, StructuralError> {
    const KEYWORDS: &[&str] = &[
        "enum",
        "minimum",
        "maximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "pattern",
        "minItems",
        "maxItems",
        "uniqueItems",
        "minProperties",
        "maxProperties",
        "required",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "x-kubernetes-validations",
    ];
    if !KEYWORDS.iter().any(|k| v.get(k).is_some()) {
        return Ok(None);
    }
    let float = |k: &str| v.get(k).and_then(Value::as_f64);
    let int = |k: &str| v.get(k).and_then(Value::as_u64);
    let list = |k: &str| -> Result<Vec<Schema>, StructuralError> {
        let items = v
            .get(k)
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or(&[]);
        items
            .iter()
            .enumerate()
            .map(|(i, s)| build(s, &format!("{at}.{k}[{i}]"), depth + 1))
            .collect()
    };
    let cel = v
        .get("x-kubernetes-validations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    Ok(Some(Box::new(Rules {
        enum_values: v
            .get("enum")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default(),
        minimum: float("minimum"),
        maximum: float("maximum"),
        exclusive_minimum: flag(v, "exclusiveMinimum"),
        exclusive_maximum: flag(v, "exclusiveMaximum"),
        multiple_of: float("multipleOf"),
        min_length: int("minLength"),
        max_length: int("maxLength"),
        pattern: v.get("pattern").and_then(Value::as_str).map(str::to_owned),
        min_items: int("minItems"),
        max_items: int("maxItems"),
        unique_items: flag(v, "uniqueItems"),
        min_properties: int("minProperties"),
        max_properties: int("maxProperties"),
        required: strings(v, "required"),
        all_of: list("allOf")?,
        any_of: list("anyOf")?,
        one_of: list("oneOf")?,
        not: match v.get("not") {
            Some(n) => Some(Box::new(build(n, &format!("{at}.not"), depth + 1)?)),
            None => None,
        },
        cel: cel
            .map(|r| CelRule {
                rule: owned(r, "rule").into_owned(),
                message: owned(r, "message").into_owned(),
                message_expression: owned(r, "messageExpression").into_owned(),
                reason: owned(r, "reason").into_owned(),
                field_path: owned(r, "fieldPath").into_owned(),
                optional_old_self: r.get("optionalOldSelf").and_then(Value::as_bool),
            })
            .collect(),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_custom_resource() {
        let s = Schema::custom_resource(&json!({
            "type": "object",
            "required": ["spec"],
            "properties": {
                "spec": {"type": "object", "properties": {
                    "port": {"x-kubernetes-int-or-string": true},
                    "list": {"type": "array", "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["k"],
                        "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "n": {"type": "integer", "minimum": 1, "default": 3}
                }}
            }
        }))
        .unwrap();
        assert!(
            s.field("metadata")
                .unwrap()
                .schema
                .field("labels")
                .is_some()
        );
        let spec = s.field("spec").unwrap();
        assert!(spec.required);
        assert_eq!(
            spec.schema.field("port").unwrap().schema.kind(),
            Type::IntOrString
        );
        assert_eq!(spec.schema.field("list").unwrap().schema.list_keys(), ["k"]);
        assert!(spec.schema.field("free").unwrap().schema.keeps_unknown());
        let n = &spec.schema.field("n").unwrap().schema;
        assert_eq!(n.default, Some(json!(3)));
        assert_eq!(n.rules.as_ref().unwrap().minimum, Some(1.0));
        assert!(Schema::from_openapi(&json!({"type": "nope"})).is_err());
    }
}
