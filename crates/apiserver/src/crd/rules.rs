//! The rules of a custom kind, derived from its definition.

use std::sync::{Arc, LazyLock};

use keelson_api::{Additional, Schema};
use keelson_kinds::UpdateContext;
use keelson_machinery::field::{ErrorList, ErrorType, FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::{meta, time, validation};
use serde_json::Value;

use super::convert::Webhook;
use super::expressions::Validator;
use super::json_path::JsonPath;
use super::validate;
use crate::registry::{ColumnDefinition, KindRules};

pub(super) struct CustomRules {
    schema: Arc<Schema>,
    has_status: bool,
    updates_on_read: bool,
    columns: Vec<(ColumnDefinition, JsonPath)>,
    /// Field paths as selectors name them, without the leading dot.
    selectable: Vec<(String, JsonPath)>,
    /// Absent with strategy None.
    converter: Option<Arc<Webhook>>,
    /// The rules written as expressions, compiled when the first object comes.
    expressions: LazyLock<Option<Validator>, Box<dyn FnOnce() -> Option<Validator> + Send>>,
}

impl CustomRules {
    pub(super) fn new(
        schema: Arc<Schema>,
        version: &Value,
        has_status: bool,
        several_versions: bool,
        converter: Option<Arc<Webhook>>,
    ) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut columns: Vec<(ColumnDefinition, JsonPath)> = version["additionalPrinterColumns"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|column| {
                let definition = ColumnDefinition {
                    name: text(&column["name"]),
                    kind: text(&column["type"]),
                    format: text(&column["format"]),
                    description: text(&column["description"]),
                    priority: column["priority"]
                        .as_i64()
                        .and_then(|p| i32::try_from(p).ok())
                        .unwrap_or(0),
                };
                (definition, JsonPath::parse(&text(&column["jsonPath"])))
            })
            .collect();
        if columns.is_empty() {
            let age = ColumnDefinition {
                name: "Age".to_owned(),
                kind: "date".to_owned(),
                format: String::new(),
                description: "When the object was created.".to_owned(),
                priority: 0,
            };
            columns.push((age, JsonPath::parse(".metadata.creationTimestamp")));
        }
        let selectable = version["selectableFields"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|field| text(&field["jsonPath"]))
            .map(|path| {
                (
                    path.trim_start_matches('.').to_owned(),
                    JsonPath::parse(&path),
                )
            })
            .collect();
        Self {
            schema,
            has_status,
            updates_on_read: several_versions || mentions_default(&version["schema"]),
            columns,
            selectable,
            converter,
            expressions: {
                let openapi = version["schema"]["openAPIV3Schema"].clone();
                LazyLock::new(Box::new(move || Validator::new(&openapi)))
            },
        }
    }
}

impl CustomRules {
    fn check(&self, new: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = validate::object(&self.schema, new, old);
        let Some(expressions) = &*self.expressions else {
            return errors;
        };
        if errors.iter().any(blocks_expressions) {
            errors.push(FieldError::invalid(&Path::root(), Value::Null, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"));
        } else {
            errors.extend(expressions.validate(new, old).errors);
        }
        errors
    }
}

/// Expressions may rely on what the schema says; after these errors it does not hold.
fn blocks_expressions(error: &FieldError) -> bool {
    matches!(
        error.kind,
        ErrorType::NotSupported
            | ErrorType::Required
            | ErrorType::TooLong
            | ErrorType::TooMany
            | ErrorType::TypeInvalid
    )
}

/// Finalizers should say whose they are.
fn finalizer_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    const STANDARD: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
    let before = old.map(meta::finalizers).unwrap_or_default();
    let mut added: Vec<&str> = meta::finalizers(new);
    added.retain(|finalizer| !before.contains(finalizer));
    added.sort_unstable();
    added.dedup();
    let mut out = Vec::new();
    for finalizer in added {
        let messages = validation::is_qualified_name(finalizer);
        let at = format!("metadata.finalizers: {finalizer:?}");
        out.extend(messages.iter().map(|message| format!("{at}: {message}")));
        if !finalizer.contains('/') && !STANDARD.contains(&finalizer) {
            let path = if finalizer.contains('.') {
                " including a path (/)"
            } else {
                ""
            };
            out.push(format!("{at}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"));
        }
    }
    out
}

/// Whether a default may be in the schema; a property of that name counts too, at little cost.
fn mentions_default(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("default") || map.values().any(mentions_default),
        Value::Array(items) => items.iter().any(mentions_default),
        _ => false,
    }
}

impl KindRules for CustomRules {
    fn updates_on_read(&self) -> bool {
        self.updates_on_read
    }

    fn default(&self, obj: &mut Value) {
        fill(&self.schema, obj, true);
    }

    fn prepare_create(&self, obj: &mut Value) {
        if self.has_status
            && let Some(map) = obj.as_object_mut()
        {
            map.remove("status");
        }
        meta::set_generation(obj, 1);
    }

    fn validate(&self, obj: &Value) -> ErrorList {
        self.check(obj, None)
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, ctx: &UpdateContext<'_>) {
        if ctx.subresource == "status" {
            let status = new.get("status").cloned();
            let managed = new["metadata"]["managedFields"].take();
            let version = meta::resource_version(new).to_owned();
            *new = old.clone();
            set_or_remove(new, "status", status);
            if !managed.is_null() {
                new["metadata"]["managedFields"] = managed;
            }
            meta::set_resource_version(new, &version);
            return;
        }
        if self.has_status {
            set_or_remove(new, "status", old.get("status").cloned());
        }
        let generation = meta::generation(old);
        let changed = without_metadata(new) != without_metadata(old);
        meta::set_generation(new, if changed { generation + 1 } else { generation });
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &UpdateContext<'_>) -> ErrorList {
        self.check(new, Some(old))
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = finalizer_warnings(new, old);
        if let (Some(expressions), Some(_)) = (&*self.expressions, old) {
            let report = expressions.validate(new, old);
            out.extend(report.ratcheted.iter().map(ToString::to_string));
        }
        out
    }

    fn columns(&self) -> Vec<ColumnDefinition> {
        self.columns
            .iter()
            .map(|(definition, _)| definition.clone())
            .collect()
    }

    fn cells(&self, obj: &Value, now: i64) -> Vec<Value> {
        self.columns
            .iter()
            .map(|(column, path)| cell(column, path, obj, now))
            .collect()
    }

    fn selectable(&self, obj: &Value) -> Vec<(String, String)> {
        self.selectable
            .iter()
            .map(|(name, path)| (name.clone(), path.text(obj).unwrap_or_default()))
            .collect()
    }

    fn selectable_names(&self) -> Vec<String> {
        self.selectable
            .iter()
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn convert(&self, obj: &mut Value, from: &str, to: &str) -> Result<(), Status> {
        match &self.converter {
            Some(converter) => converter.convert(obj, from, to),
            // Only apiVersion differs, which the caller sets.
            None => Ok(()),
        }
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        if prefix {
            // A generated suffix follows, so that a trailing dash is fine.
            return validation::is_dns1123_subdomain(&format!("{name}x"));
        }
        validation::is_dns1123_subdomain(name)
    }

    fn allow_create_on_update(&self) -> bool {
        false
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn graceful_deletion_seconds(&self, _obj: &Value, _wanted: Option<i64>) -> Option<i64> {
        None
    }

    fn time_to_live_s(&self) -> Option<u64> {
        None
    }
}

fn set_or_remove(object: &mut Value, key: &str, value: Option<Value>) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    match value {
        Some(value) => drop(map.insert(key.to_owned(), value)),
        None => drop(map.remove(key)),
    }
}

fn without_metadata(object: &Value) -> Value {
    let mut out = object.clone();
    if let Some(map) = out.as_object_mut() {
        map.remove("metadata");
    }
    out
}

/// Fills defaults of the schema from the outside in, so that a default may have defaults.
fn fill(schema: &Schema, value: &mut Value, root: bool) {
    match value {
        Value::Object(map) => {
            for field in schema.fields() {
                // The metadata of the object itself is not the definition's.
                if root && matches!(field.name.as_ref(), "metadata" | "apiVersion" | "kind") {
                    continue;
                }
                let empty = match map.get(field.name.as_ref()) {
                    None => true,
                    Some(Value::Null) => !field.schema.nullable,
                    Some(_) => false,
                };
                if empty && let Some(default) = &field.schema.default {
                    map.insert(field.name.to_string(), default.clone());
                }
                if let Some(child) = map.get_mut(field.name.as_ref()) {
                    fill(&field.schema, child, false);
                }
            }
            if let Additional::Of(values) = schema.additional() {
                for (name, child) in map.iter_mut() {
                    if schema.field(name).is_none() {
                        if child.is_null()
                            && !values.nullable
                            && let Some(default) = &values.default
                        {
                            *child = default.clone();
                        }
                        fill(values, child, false);
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.items() {
                for item in items {
                    if item.is_null()
                        && !schema.nullable
                        && let Some(default) = &schema.default
                    {
                        *item = default.clone();
                    }
                    fill(schema, item, false);
                }
            }
        }
        _ => {}
    }
}

fn cell(column: &ColumnDefinition, path: &JsonPath, obj: &Value, now: i64) -> Value {
    let found = path.find(obj);
    let Some(first) = found.first() else {
        return Value::Null;
    };
    match column.kind.as_str() {
        "integer" => first.as_i64().map_or(Value::Null, Value::from),
        "number" => first.as_f64().map_or(Value::Null, Value::from),
        "boolean" => first.as_bool().map_or(Value::Null, Value::from),
        "date" => match first.as_str().and_then(time::parse_unix) {
            Some(at) => Value::from(age(now - at)),
            None => Value::from("<unknown>"),
        },
        _ => path.text(obj).map_or(Value::Null, Value::from),
    }
}

/// A duration as kubectl writes ages: two units at most while they say something.
fn age(seconds: i64) -> String {
    let s = seconds;
    match s {
        i64::MIN..-2 => "<invalid>".to_owned(),
        -2..0 => "0s".to_owned(),
        0..120 => format!("{s}s"),
        120..600 => two(s / 60, "m", s % 60, "s"),
        600..10_800 => format!("{}m", s / 60),
        10_800..28_800 => two(s / 3600, "h", s / 60 % 60, "m"),
        28_800..172_800 => format!("{}h", s / 3600),
        172_800..691_200 => two(s / 86_400, "d", s / 3600 % 24, "h"),
        691_200..63_072_000 => format!("{}d", s / 86_400),
        63_072_000..252_288_000 => two(s / 31_536_000, "y", s / 86_400 % 365, "d"),
        _ => format!("{}y", s / 31_536_000),
    }
}

fn two(large: i64, large_unit: &str, small: i64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit}{small}{small_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(openapi: Value, version: Value) -> CustomRules {
        CustomRules::new(
            Arc::new(Schema::custom_resource(&openapi).unwrap()),
            &version,
            true,
            false,
            None,
        )
    }

    #[test]
    fn defaults_fill_from_the_outside_in_and_again_change_nothing() {
        let rules = rules(
            json!({"type": "object", "properties": {"spec": {"type": "object", "default": {}, "properties": {
                "replicas": {"type": "integer", "default": 1},
                "items": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "x"}}}},
            }}}}),
            json!({}),
        );
        let mut object = json!({"metadata": {}});
        rules.default(&mut object);
        assert_eq!(object["spec"], json!({"replicas": 1}));
        let mut object = json!({"spec": {"items": [{}]}});
        rules.default(&mut object);
        assert_eq!(
            object["spec"],
            json!({"replicas": 1, "items": [{"p": "x"}]})
        );
        let once = object.clone();
        rules.default(&mut object);
        assert_eq!(object, once);
    }

    #[test]
    fn the_main_path_keeps_status_and_the_status_path_keeps_the_rest() {
        let rules = rules(json!({"type": "object"}), json!({}));
        let old = json!({"metadata": {"generation": 3}, "spec": {"a": 1}, "status": {"s": 1}});
        let mut new = json!({"metadata": {}, "spec": {"a": 2}, "status": {"s": 2}});
        let ctx = UpdateContext {
            subresource: "",
            now: "",
        };
        rules.prepare_update(&mut new, &old, &ctx);
        assert_eq!(
            (&new["status"], meta::generation(&new)),
            (&json!({"s": 1}), 4)
        );
        let mut new =
            json!({"metadata": {"resourceVersion": "7"}, "spec": {"a": 2}, "status": {"s": 2}});
        rules.prepare_update(
            &mut new,
            &old,
            &UpdateContext {
                subresource: "status",
                now: "",
            },
        );
        assert_eq!(
            (&new["status"], &new["spec"], meta::generation(&new)),
            (&json!({"s": 2}), &json!({"a": 1}), 3)
        );
    }

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        for (seconds, expected) in [
            (5, "5s"),
            (119, "119s"),
            (130, "2m10s"),
            (3599, "59m"),
            (10_860, "3h1m"),
            (90_000, "25h"),
            (259_200, "3d"),
        ] {
            assert_eq!(age(seconds), expected);
        }
    }
}
