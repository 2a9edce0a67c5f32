//! Defaults that a schema declares.

use keelson_api::{Additional, Schema, Type};
use serde_json::{Map, Value};

/// Fills absent fields that have a default, at every depth. Idempotent. A null where null is no
/// value counts as absent.
pub fn apply(v: &mut Value, schema: &Schema) {
    match v {
        Value::Object(map) => object(map, schema),
        Value::Array(items) => {
            if let Some(of) = schema.items() {
                for item in items {
                    apply(item, of);
                }
            }
        }
        _ => {}
    }
}

fn object(map: &mut Map<String, Value>, schema: &Schema) {
    if !matches!(schema.kind(), Type::Object | Type::Any) {
        return;
    }
    for f in schema.fields() {
        let Some(default) = &f.schema.default else {
            continue;
        };
        // Zero values stand in the table for fields that are always encoded; that is no default.
        if !f.schema.is_declared() && is_zero(default) {
            continue;
        }
        match map.get(f.name.as_ref()) {
            None => {}
            Some(Value::Null) if !f.schema.nullable => {}
            Some(_) => continue,
        }
        map.insert(f.name.to_string(), default.clone());
    }
    for (k, item) in map.iter_mut() {
        if let Some(f) = schema.field(k) {
            apply(item, &f.schema);
        } else if let Additional::Of(of) = schema.additional() {
            apply(item, of);
        }
    }
}

fn is_zero(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(l) => l.is_empty(),
        Value::Object(m) => m.is_empty(),
    }
}

/// Removes nulls that are no values: in a custom resource, where the schema says neither
/// `nullable` nor that unknown things are kept.
pub fn prune_nulls(v: &mut Value, schema: &Schema) {
    match v {
        Value::Object(map) => {
            map.retain(|k, item| {
                !item.is_null()
                    || schema
                        .property(k)
                        .is_none_or(|s| s.nullable || s.default.is_none())
            });
            for (k, item) in map.iter_mut() {
                if let Some(s) = schema.property(k) {
                    prune_nulls(item, s);
                }
            }
        }
        Value::Array(items) => {
            if let Some(of) = schema.items() {
                for item in items {
                    prune_nulls(item, of);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_defaults_apply_once() {
        let s = Schema::custom_resource(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "default": {}, "properties": {
                "n": {"type": "integer", "default": 0},
                "b": {"type": "string", "default": "x", "nullable": true},
                "c": {"type": "string", "default": "y"},
                "list": {"type": "array", "items": {"type": "object", "properties": {
                    "p": {"type": "string", "default": "TCP"}}}},
                "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {
                    "q": {"type": "boolean", "default": true}}}}
            }}
        }}))
        .unwrap();
        let mut v = json!({});
        apply(&mut v, &s);
        assert_eq!(v, json!({"spec": {"n": 0, "b": "x", "c": "y"}}));
        let mut v = json!({"spec": {"b": null, "c": null, "list": [{}], "m": {"k": {}}}});
        apply(&mut v, &s);
        let want = json!({"spec": {"n": 0, "b": null, "c": "y", "list": [{"p": "TCP"}], "m": {"k": {"q": true}}}});
        assert_eq!(v, want);
        apply(&mut v, &s);
        assert_eq!(v, want, "idempotent");
    }

    #[test]
    fn built_in_defaults_are_the_declared_ones_only() {
        let s = keelson_api::schema("io.k8s.api.core.v1.Pod").unwrap();
        let mut v =
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1}]}]}});
        apply(&mut v, s);
        assert_eq!(
            v,
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1, "protocol": "TCP"}]}]}})
        );
    }
}
