//! Schemas as OpenAPI writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keelson_api::{Additional, ListType, MapType, Rules, Schema, Type};
use serde_json::{Map, Value, json};

use super::Dialect;
use super::descriptions::Descriptions;
use super::overlay::Overlay;
use crate::registry::ResourceEntry;

const KINDS: &str = "x-kubernetes-group-version-kind";

/// Collects the named types that a document needs.
pub(super) struct Definitions {
    dialect: Dialect,
    words: Arc<Descriptions>,
    pub(super) done: BTreeMap<String, Value>,
    waiting: BTreeSet<String>,
    overlay: Arc<Overlay>,
    /// The group and version that a v3 document is about: of the many that a general type stands
    /// in, it names that one.
    about: Option<(String, String)>,
}

impl Definitions {
    pub(super) fn new(dialect: Dialect, about: Option<(String, String)>) -> Self {
        Self {
            dialect,
            words: Descriptions::load(),
            done: BTreeMap::new(),
            waiting: BTreeSet::new(),
            overlay: Overlay::load(),
            about,
        }
    }

    /// A use of a built-in type by name.
    pub(super) fn named(&mut self, name: &str) -> Value {
        if !self.done.contains_key(name) {
            self.waiting.insert(name.to_owned());
        }
        json!({"$ref": self.dialect.reference(name)})
    }

    /// A use of a type: built-in ones are rendered when they are used.
    pub(super) fn reference(&mut self, name: &str) -> Value {
        if keelson_api::schema(name).is_some() {
            return self.named(name);
        }
        json!({"$ref": self.dialect.reference(name)})
    }

    /// Everything that this value refers to is wanted.
    pub(super) fn refer(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
                    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
                    self.named(&name);
                }
                fields.values().for_each(|value| self.refer(value));
            }
            Value::Array(items) => items.iter().for_each(|item| self.refer(item)),
            _ => {}
        }
    }

    /// The definitions of a resource's kind and its list; returns their names.
    pub(super) fn resource(&mut self, entry: &ResourceEntry) -> (String, String) {
        let own = entry.schema.type_name();
        if !own.is_empty() {
            let own = own.to_owned();
            let list = format!("{own}List");
            self.named(&own);
            if keelson_api::schema(&list).is_some() {
                self.named(&list);
            }
            return (own, list);
        }
        let name = custom_name(entry, &entry.kind);
        let list = custom_name(entry, &entry.list_kind);
        // kubectl takes the properties of a v2 document for all there are.
        let open = self.dialect == Dialect::V2 && entry.schema.preserve_unknown;
        let mut schema = if open {
            json!({"type": "object"})
        } else {
            self.inline(&entry.schema)
        };
        if let Some(properties) = schema["properties"].as_object_mut() {
            for (field, value) in properties {
                self.explain(value, self.words.of_root(field));
            }
        }
        mark(&mut schema, entry, &entry.kind);
        self.done.insert(name.clone(), schema);
        let mut schema = json!({
            "type": "object",
            "required": ["items"],
            "description": format!("{} is a list of {}", entry.list_kind, entry.kind),
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": self.named("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"),
                "items": {
                    "type": "array",
                    "items": {"$ref": self.dialect.reference(&name)},
                    "description": format!("List of {}. {ITEMS_WORDS}", entry.resource),
                },
            },
        });
        if let Some(properties) = schema["properties"].as_object_mut() {
            for (field, value) in properties {
                let text = match field.as_str() {
                    "metadata" => Some(LIST_METADATA_WORDS.to_owned()),
                    field => self.words.of_root(field),
                };
                self.explain(value, text);
            }
        }
        mark(&mut schema, entry, &entry.list_kind);
        self.done.insert(list.clone(), schema);
        (name, list)
    }

    /// Renders what is referred to until nothing is missing.
    pub(super) fn finish(mut self) -> BTreeMap<String, Value> {
        while let Some(name) = self.waiting.pop_first() {
            let Some(schema) = keelson_api::schema(&name) else {
                let mut value = json!({"type": "object"});
                self.overlay.apply(&name, &mut value);
                self.done.insert(name, value);
                continue;
            };
            // Marked first, so that a type that contains itself ends.
            self.done.insert(name.clone(), Value::Null);
            let mut value = self.inline(schema);
            let kinds: Vec<Value> = keelson_api::group_version_kinds(&name)
                .iter()
                .map(|k| json!({"group": k.group, "version": k.version, "kind": k.kind}))
                .collect();
            let undescribed = self.overlay.undescribed(&name);
            if let Some(text) = self.words.of_type(&name) {
                value["description"] = json!(text);
            }
            if let Some(properties) = value.get_mut("properties").and_then(Value::as_object_mut) {
                for (field, value) in properties {
                    if undescribed.contains(field) {
                        continue;
                    }
                    let own = self.words.of_field(&name, field);
                    let text = match own {
                        None if !kinds.is_empty() => self.words.of_root(field),
                        own => own,
                    };
                    self.explain(value, text);
                }
            }
            if !kinds.is_empty() {
                value[KINDS] = Value::Array(kinds);
            }
            self.overlay.apply(&name, &mut value);
            self.narrow(&name, &mut value);
            self.done.insert(name, value);
        }
        self.done
    }

    /// Types of meta/v1 are kinds of every version; a document names its own and the first.
    fn narrow(&self, name: &str, value: &mut Value) {
        let Some((group, version)) = &self.about else {
            return;
        };
        if !name.starts_with("io.k8s.apimachinery.pkg.apis.meta.v1.") {
            return;
        }
        if let Some(kinds) = value.get_mut(KINDS).and_then(Value::as_array_mut) {
            kinds.retain(|kind| {
                kind["group"] == "" || kind["group"] == **group && kind["version"] == **version
            });
        }
    }

    /// Adds a description to a use of a type that has none.
    fn explain(&self, value: &mut Value, text: Option<String>) {
        let (Some(text), Some(map)) = (text, value.as_object_mut()) else {
            return;
        };
        if map.contains_key("description") {
            return;
        }
        if self.dialect == Dialect::V3
            && let Some(reference) = map.remove("$ref")
        {
            map.insert("allOf".to_owned(), json!([{"$ref": reference}]));
        }
        map.insert("description".to_owned(), json!(text));
    }

    fn field(&mut self, schema: &Schema) -> Value {
        let name = schema.type_name();
        if name.is_empty() {
            return self.inline(schema);
        }
        let name = name.to_owned();
        let reference = self.named(&name);
        let mut extras = Map::new();
        describe(schema, self.dialect, &mut extras);
        // Said of the type, not of its uses.
        extras.remove("x-kubernetes-map-type");
        if extras.is_empty() {
            return reference;
        }
        if self.dialect == Dialect::V3 {
            extras.insert("allOf".to_owned(), json!([reference]));
            return Value::Object(extras);
        }
        // v2 knows no siblings of $ref but for what tools read in spite of that.
        extras.insert("$ref".to_owned(), reference["$ref"].clone());
        Value::Object(extras)
    }

    fn inline(&mut self, schema: &Schema) -> Value {
        let mut out = Map::new();
        match schema.kind() {
            Type::Object => {
                out.insert("type".to_owned(), json!("object"));
                let fields = schema.fields();
                if !fields.is_empty() {
                    let properties: Map<String, Value> = fields
                        .iter()
                        .map(|f| (f.name.to_string(), self.field(&f.schema)))
                        .collect();
                    out.insert("properties".to_owned(), Value::Object(properties));
                    let required: Vec<&str> = fields
                        .iter()
                        .filter(|f| f.required)
                        .map(|f| f.name.as_ref())
                        .collect();
                    if !required.is_empty() {
                        out.insert("required".to_owned(), json!(required));
                    }
                }
                if let Additional::Of(values) = schema.additional() {
                    let values = self.field(values);
                    out.insert("additionalProperties".to_owned(), values);
                }
            }
            Type::Array => {
                out.insert("type".to_owned(), json!("array"));
                let items = schema
                    .items()
                    .map_or_else(|| json!({}), |items| self.field(items));
                out.insert("items".to_owned(), items);
            }
            Type::Bytes => scalar(&mut out, "string", "byte"),
            Type::Time | Type::MicroTime => scalar(&mut out, "string", "date-time"),
            Type::String => scalar(&mut out, "string", &schema.format),
            Type::Integer => scalar(&mut out, "integer", &schema.format),
            Type::Number => scalar(&mut out, "number", &schema.format),
            Type::Boolean => scalar(&mut out, "boolean", ""),
            Type::IntOrString if schema.type_name().is_empty() => {
                out.insert("x-kubernetes-int-or-string".to_owned(), json!(true));
            }
            Type::IntOrString if self.dialect == Dialect::V2 => {
                scalar(&mut out, "string", "int-or-string")
            }
            Type::IntOrString => {
                out.insert("format".to_owned(), json!("int-or-string"));
                out.insert(
                    "oneOf".to_owned(),
                    json!([{"type": "integer"}, {"type": "string"}]),
                );
            }
            Type::Quantity if self.dialect == Dialect::V2 => scalar(&mut out, "string", ""),
            Type::Quantity => {
                out.insert(
                    "oneOf".to_owned(),
                    json!([{"type": "string"}, {"type": "number"}]),
                );
            }
            Type::Any => {}
        }
        describe(schema, self.dialect, &mut out);
        if schema.type_name().is_empty() {
            if schema.preserve_unknown && !matches!(schema.kind(), Type::Any) {
                out.insert(
                    "x-kubernetes-preserve-unknown-fields".to_owned(),
                    json!(true),
                );
            }
            if schema.embedded_resource {
                out.insert("x-kubernetes-embedded-resource".to_owned(), json!(true));
            }
            if schema.nullable && self.dialect == Dialect::V3 {
                out.insert("nullable".to_owned(), json!(true));
            }
            if let Some(rules) = &schema.rules {
                self.rules(rules, &mut out);
            }
            if self.dialect == Dialect::V2 {
                loosen(schema, &mut out);
            }
        }
        Value::Object(out)
    }

    fn rules(&mut self, rules: &Rules, out: &mut Map<String, Value>) {
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                out.insert(key.to_owned(), value);
            }
        };
        put(
            "enum",
            (!rules.enum_values.is_empty()).then(|| Value::Array(rules.enum_values.clone())),
        );
        put("minimum", rules.minimum.map(number));
        put("maximum", rules.maximum.map(number));
        put(
            "exclusiveMinimum",
            rules.exclusive_minimum.then_some(json!(true)),
        );
        put(
            "exclusiveMaximum",
            rules.exclusive_maximum.then_some(json!(true)),
        );
        put("multipleOf", rules.multiple_of.map(number));
        put("minLength", rules.min_length.map(Value::from));
        put("maxLength", rules.max_length.map(Value::from));
        put("pattern", rules.pattern.clone().map(Value::from));
        put("minItems", rules.min_items.map(Value::from));
        put("maxItems", rules.max_items.map(Value::from));
        put("minProperties", rules.min_properties.map(Value::from));
        put("maxProperties", rules.max_properties.map(Value::from));
        put(
            "required",
            (!rules.required.is_empty()).then(|| json!(rules.required)),
        );
        if self.dialect == Dialect::V2 {
            return;
        }
        for (key, list) in [
            ("allOf", &rules.all_of),
            ("anyOf", &rules.any_of),
            ("oneOf", &rules.one_of),
        ] {
            if !list.is_empty() {
                let list: Vec<Value> = list.iter().map(|s| self.inline(s)).collect();
                out.insert(key.to_owned(), Value::Array(list));
            }
        }
        if let Some(not) = &rules.not {
            let not = self.inline(not);
            out.insert("not".to_owned(), not);
        }
    }
}

/// Whole numbers are written as such.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

fn scalar(out: &mut Map<String, Value>, kind: &str, format: &str) {
    out.insert("type".to_owned(), json!(kind));
    if !format.is_empty() {
        out.insert("format".to_owned(), json!(format));
    }
}

/// Takes out of a v2 schema what kubectl's validation would hold against valid objects, because v2
/// cannot say that null or more fields are allowed.
fn loosen(schema: &Schema, out: &mut Map<String, Value>) {
    if schema.nullable || schema.preserve_unknown {
        out.remove("items");
        out.remove("properties");
        out.remove("type");
    }
    let may_be_null = |name: &str| {
        let mut fields = schema.fields().iter();
        fields.any(|field| field.name == name && field.schema.nullable)
    };
    let any_may_be_null = matches!(schema.additional(), Additional::Of(values) if values.nullable);
    if let Some(required) = out.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !any_may_be_null && !may_be_null(name.as_str().unwrap_or_default()));
        if required.is_empty() {
            out.remove("required");
        }
    }
}

/// What stands at a use of a type.
fn describe(schema: &Schema, dialect: Dialect, out: &mut Map<String, Value>) {
    if let Some(text) = &schema.description {
        out.insert("description".to_owned(), json!(text));
    }
    // Upstream's v2 document has no defaults.
    if let Some(default) = &schema.default
        && dialect == Dialect::V3
    {
        out.insert("default".to_owned(), default.clone());
    }
    if matches!(schema.kind(), Type::Array) {
        match schema.declared_list_type() {
            None => {}
            Some(ListType::Set) => {
                drop(out.insert("x-kubernetes-list-type".to_owned(), json!("set")))
            }
            Some(ListType::Map) => {
                out.insert("x-kubernetes-list-type".to_owned(), json!("map"));
                let keys: Vec<&str> = schema.list_keys().iter().map(AsRef::as_ref).collect();
                out.insert("x-kubernetes-list-map-keys".to_owned(), json!(keys));
            }
            Some(ListType::Atomic) => {
                drop(out.insert("x-kubernetes-list-type".to_owned(), json!("atomic")))
            }
        }
    }
    if schema.map_type() == MapType::Atomic {
        out.insert("x-kubernetes-map-type".to_owned(), json!("atomic"));
    }
    if !schema.patch_strategy.is_empty() {
        out.insert(
            "x-kubernetes-patch-strategy".to_owned(),
            json!(schema.patch_strategy),
        );
    }
    if !schema.patch_merge_key.is_empty() {
        out.insert(
            "x-kubernetes-patch-merge-key".to_owned(),
            json!(schema.patch_merge_key),
        );
    }
}

/// What lists of custom resources say of their fields.
const ITEMS_WORDS: &str = "More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
const LIST_METADATA_WORDS: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

fn mark(schema: &mut Value, entry: &ResourceEntry, kind: &str) {
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": entry.group, "version": entry.version, "kind": kind}]);
}

/// `com.example.v1.Foo` for group `example.com`.
fn custom_name(entry: &ResourceEntry, kind: &str) -> String {
    let mut parts: Vec<&str> = entry.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{kind}", parts.join("."), entry.version)
}
