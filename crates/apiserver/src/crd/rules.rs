//! The rules of a custom kind, derived from its definition.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use keelson_api::{Additional, Schema};
use keelson_kinds::UpdateContext;
use keelson_kinds::custom::{self, Expressions};
use keelson_machinery::field::{ErrorList, ErrorType, FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::{decode, go, meta, time, validation};
use serde_json::Value;

use super::convert::Webhook;
use super::json_path::{self, JsonPath};
use crate::registry::{ColumnDefinition, KindRules, ScalePaths};

/// The schema of each version.
pub(super) type Versions = Arc<BTreeMap<String, Arc<Schema>>>;

pub(super) struct CustomRules {
    schema: Arc<Schema>,
    /// The schema as the definition has it: its rules for metadata too.
    declared: Schema,
    has_status: bool,
    scale: Option<ScalePaths>,
    /// The schemas of all versions, by name: objects are stored in any of them.
    versions: Versions,
    updates_on_read: bool,
    /// What users of a version that is deprecated are told.
    deprecation: String,
    columns: Vec<(ColumnDefinition, JsonPath)>,
    /// Field paths as selectors name them, without the leading dot.
    selectable: Vec<(String, JsonPath)>,
    /// Absent with strategy None.
    converter: Option<Arc<Webhook>>,
    /// The rules written as expressions, compiled when the first object comes.
    expressions: LazyLock<Option<Expressions>, Box<dyn FnOnce() -> Option<Expressions> + Send>>,
}

impl CustomRules {
    pub(super) fn new(
        schema: Arc<Schema>,
        version: &Value,
        has_status: bool,
        scale: Option<ScalePaths>,
        versions: Versions,
        deprecation: String,
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
                    description: match text(&column["description"]) {
                        own if !own.is_empty() => own,
                        _ => format!(
                            "Custom resource definition column (in JSONPath format): {}",
                            text(&column["jsonPath"])
                        ),
                    },
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
                description: keelson_kinds::column_description("", "", "Age").to_owned(),
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
            declared: Schema::from_openapi(&version["schema"]["openAPIV3Schema"])
                .unwrap_or_else(|_| Schema::any()),
            has_status,
            scale,
            updates_on_read: versions.len() > 1 || mentions_default(&version["schema"]),
            versions,
            deprecation,
            columns,
            selectable,
            converter,
            expressions: {
                let openapi = version["schema"]["openAPIV3Schema"].clone();
                LazyLock::new(Box::new(move || Expressions::new(&openapi)))
            },
        }
    }
}

impl CustomRules {
    /// `of_status`: the status alone can have changed, and is judged by its own schema.
    fn check(&self, new: &Value, old: Option<&Value>, of_status: bool) -> ErrorList {
        let mut errors = if of_status {
            self.status_errors(new, old)
        } else {
            custom::validate(&self.declared, new, old)
        };
        if let Some(scale) = &self.scale {
            scale_paths(scale, new, &mut errors);
        }
        errors.extend(custom::embedded(&self.declared, new));
        // Lists that had doubles before may keep them.
        if old.is_none_or(|old| custom::lists(&self.declared, old).is_empty()) {
            errors.extend(custom::lists(&self.declared, new));
        }
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

impl CustomRules {
    fn status_errors(&self, new: &Value, old: Option<&Value>) -> ErrorList {
        let (Some(schema), Some(status)) = (self.declared.field("status"), new.get("status"))
        else {
            return ErrorList::new();
        };
        let before = old.and_then(|old| old.get("status"));
        let mut errors = custom::validate(&schema.schema, status, before);
        let at = Path::new("status");
        for error in &mut errors {
            error.field = match error.field.as_str() {
                "<nil>" => at.to_string(),
                field if field.starts_with('[') => format!("{at}{field}"),
                field => at.child(field).to_string(),
            };
        }
        errors
    }
}

/// What the `scale` subresource reads has to be there as it needs it, if it is there.
fn scale_paths(scale: &ScalePaths, object: &Value, errors: &mut ErrorList) {
    let most = i64::from(i32::MAX);
    for path in [&scale.spec_replicas, &scale.status_replicas] {
        let problem = match nested(object, path, "int64", Value::as_i64) {
            Err(problem) => problem,
            Ok(Some(count)) if count < 0 => {
                errors.push(FieldError::invalid(
                    &Path::new(path),
                    count,
                    "should be a non-negative integer",
                ));
                continue;
            }
            Ok(Some(count)) if count > most => {
                errors.push(FieldError::invalid(
                    &Path::new(path),
                    count,
                    format!("should be less than or equal to {most}"),
                ));
                continue;
            }
            Ok(_) => continue,
        };
        errors.push(FieldError::invalid(&Path::new(path), 0, problem));
    }
    if let Some(path) = &scale.label_selector
        && let Err(problem) = nested(object, path, "string", Value::as_str)
    {
        errors.push(FieldError::invalid(&Path::new(path), "", problem));
    }
}

/// The value under `.a.b`; the error says at which step it is something else.
fn nested<'v, T>(
    object: &'v Value,
    path: &str,
    wanted: &str,
    read: impl Fn(&'v Value) -> Option<T>,
) -> Result<Option<T>, String> {
    let mut here = object;
    let mut walked = String::new();
    let shown = |value: &Value| match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    for step in path.trim_start_matches('.').split('.') {
        walked = format!("{walked}.{step}");
        let Some(map) = here.as_object() else {
            return Err(format!(
                "{walked} accessor error: {} is of the type {}, expected map[string]interface{{}}",
                shown(here),
                go::dynamic_type(here)
            ));
        };
        match map.get(step) {
            Some(next) => here = next,
            None => return Ok(None),
        }
    }
    let found = read(here);
    if found.is_none() {
        return Err(format!(
            "{walked} accessor error: {} is of the type {}, expected {wanted}",
            shown(here),
            go::dynamic_type(here)
        ));
    }
    Ok(found)
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

    fn conversion_may_fail(&self) -> bool {
        self.converter.is_some()
    }

    fn refresh(&self, obj: &mut Value) {
        let (_, version) = meta::split_api_version(meta::api_version(obj));
        let Some(schema) = self.versions.get(version) else {
            return;
        };
        // Only what another version wrote can have fields that this one does not know.
        if self.versions.len() > 1
            && let Ok(decoded) = decode::normalize(obj.clone(), schema)
        {
            *obj = decoded.object;
        }
        fill(schema, obj, true);
    }

    fn deprecation(&self) -> &str {
        &self.deprecation
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
        self.check(obj, None, false)
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

    fn validate_update(&self, new: &Value, old: &Value, ctx: &UpdateContext<'_>) -> ErrorList {
        self.check(new, Some(old), ctx.subresource == "status")
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = finalizer_warnings(new, old);
        if let (Some(expressions), Some(_)) = (&*self.expressions, old) {
            let report = expressions.validate(new, old);
            out.extend(report.ratcheted.iter().map(ToString::to_string));
        }
        out
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["metadata", "spec"],
            _ => &[],
        }
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
            Some(converter) => {
                converter.convert(obj, from, to)?;
                // What a converter adds is kept to the schema as what a client sends is.
                if let Some(schema) = self.versions.get(to) {
                    if let Ok(decoded) = decode::normalize(obj.clone(), schema) {
                        *obj = decoded.object;
                    }
                    fill(schema, obj, true);
                }
                Ok(())
            }
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
                match &field.schema.default {
                    Some(default) if empty => {
                        map.insert(field.name.to_string(), default.clone());
                    }
                    // Null is nothing where it is not allowed.
                    None if empty => drop(map.remove(field.name.as_ref())),
                    _ => {}
                }
                if let Some(child) = map.get_mut(field.name.as_ref()) {
                    fill(&field.schema, child, false);
                }
            }
            if let Additional::Of(values) = schema.additional() {
                if !values.nullable && values.default.is_none() {
                    map.retain(|name, child| !child.is_null() || schema.field(name).is_some());
                }
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
            Some(at) => Value::from(keelson_semantics::duration::human(now - at)),
            None => Value::from("<unknown>"),
        },
        // Of several values the first is shown.
        _ if first.is_null() => Value::Null,
        _ => json_path::shown(first).into(),
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
            None,
            Versions::default(),
            String::new(),
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
            assert_eq!(keelson_semantics::duration::human(seconds), expected);
        }
    }
}
