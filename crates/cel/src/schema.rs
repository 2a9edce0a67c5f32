//! The parts of an OpenAPI schema that decide how data look to an expression.

use serde_json::Value as Json;
use std::collections::BTreeMap;

/// Deeper schemas are cut off: what lies below is not visible to expressions.
const MAX_DEPTH: usize = 128;

/// A schema of OpenAPI v3 without references.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Schema {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean` or empty.
    pub ty: String,
    pub format: String,
    pub nullable: bool,
    pub int_or_string: bool,
    pub embedded_resource: bool,
    pub preserve_unknown: bool,
    /// `atomic`, `set`, `map` or empty.
    pub list_type: String,
    pub list_map_keys: Vec<String>,
    pub items: Option<Box<Schema>>,
    /// `None` when the schema has no `properties` at all.
    pub properties: Option<BTreeMap<String, Schema>>,
    pub additional_properties: Option<Box<Schema>>,
    pub max_items: Option<i64>,
    pub max_length: Option<i64>,
    pub max_properties: Option<i64>,
    pub required: Vec<String>,
    /// The longest text of `enum` in bytes, when there is an `enum`.
    pub longest_enum: Option<i64>,
    pub has_default: bool,
}

impl Schema {
    /// Reads a schema from its JSON form, as `openAPIV3Schema` has it.
    pub fn from_openapi(v: &Json) -> Schema {
        build(v, 0)
    }

    /// The schema of a whole resource: with kind, apiVersion, metadata.name and
    /// metadata.generateName, declared or not.
    #[must_use]
    pub fn with_type_and_object_meta(&self) -> Schema {
        let text = || Schema {
            ty: "string".to_owned(),
            ..Schema::default()
        };
        let is = |s: Option<&Schema>, ty: &str| s.is_some_and(|s| s.ty == ty);
        if let Some(p) = &self.properties {
            let meta = p.get("metadata").and_then(|m| m.properties.as_ref());
            if is(p.get("kind"), "string")
                && is(p.get("apiVersion"), "string")
                && is(p.get("metadata"), "object")
                && meta.is_some_and(|m| {
                    is(m.get("name"), "string") && is(m.get("generateName"), "string")
                })
            {
                return self.clone();
            }
        }
        let mut out = self.clone();
        let properties = out.properties.get_or_insert_default();
        properties.insert("kind".to_owned(), text());
        properties.insert("apiVersion".to_owned(), text());
        let metadata = Schema {
            ty: "object".to_owned(),
            properties: Some(BTreeMap::from([
                ("name".to_owned(), text()),
                ("generateName".to_owned(), text()),
            ])),
            ..Schema::default()
        };
        properties.insert("metadata".to_owned(), metadata);
        out
    }
}

fn build(v: &Json, depth: usize) -> Schema {
    if depth > MAX_DEPTH {
        return Schema::default();
    }
    let text = |key: &str| {
        v.get(key)
            .and_then(Json::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let flag = |key: &str| v.get(key).and_then(Json::as_bool).unwrap_or(false);
    let number = |key: &str| {
        let n = v.get(key)?;
        // A bound may be written as a float.
        n.as_i64().or_else(|| n.as_f64().map(|f| f as i64))
    };
    let strings = |key: &str| {
        let list = v.get(key).and_then(Json::as_array).into_iter().flatten();
        list.filter_map(|s| s.as_str().map(str::to_owned)).collect()
    };
    let child = |key: &str| {
        let s = v.get(key).filter(|s| s.is_object())?;
        Some(Box::new(build(s, depth + 1)))
    };
    let properties = v.get("properties").and_then(Json::as_object).map(|all| {
        let each = all.iter();
        each.map(|(name, s)| (name.clone(), build(s, depth + 1)))
            .collect()
    });
    let longest_enum = v
        .get("enum")
        .and_then(Json::as_array)
        .filter(|values| !values.is_empty())
        .map(|values| {
            let lengths = values.iter().filter_map(Json::as_str).map(str::len);
            lengths
                .max()
                .map_or(0, |n| i64::try_from(n).unwrap_or(i64::MAX))
        });
    let schema = Schema {
        ty: text("type"),
        format: text("format"),
        nullable: flag("nullable"),
        int_or_string: flag("x-kubernetes-int-or-string"),
        embedded_resource: flag("x-kubernetes-embedded-resource"),
        preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
        list_type: text("x-kubernetes-list-type"),
        list_map_keys: strings("x-kubernetes-list-map-keys"),
        items: child("items"),
        properties,
        additional_properties: child("additionalProperties"),
        max_items: number("maxItems"),
        max_length: number("maxLength"),
        max_properties: number("maxProperties"),
        required: strings("required"),
        longest_enum,
        has_default: v.get("default").is_some_and(|d| !d.is_null()),
    };
    // An object inside of an object has a kind and a name like every other.
    if schema.embedded_resource {
        return schema.with_type_and_object_meta();
    }
    schema
}
