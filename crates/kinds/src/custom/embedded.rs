//! Objects inside of objects: they say what they are, and their metadata is sound.

use keelson_api::{Additional, Schema};
use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use crate::check::name_is_path_segment;

/// Every error of the objects embedded in a value, the value itself if its schema says that it is
/// one.
pub fn embedded(schema: &Schema, value: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    walk(schema, value, &Path::root(), &mut e);
    e
}

fn walk(schema: &Schema, value: &Value, path: &Path, e: &mut ErrorList) {
    match value {
        Value::Object(map) => {
            if schema.is_embedded_resource() {
                object(value, path, e);
            }
            for (name, child) in map {
                let own = matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
                if own && schema.is_embedded_resource() {
                    continue;
                }
                if let Some(field) = schema.field(name) {
                    walk(&field.schema, child, &path.child(name), e);
                } else if let Additional::Of(values) = schema.additional() {
                    walk(values, child, &path.key(name), e);
                }
            }
        }
        Value::Array(items) => {
            if let Some(of) = schema.items() {
                for (i, item) in items.iter().enumerate() {
                    walk(of, item, &path.index(i), e);
                }
            }
        }
        _ => {}
    }
}

fn object(value: &Value, path: &Path, e: &mut ErrorList) {
    let (version, kind) = (path.child("apiVersion"), path.child("kind"));
    for (key, at) in [("apiVersion", &version), ("kind", &kind)] {
        match &value[key] {
            Value::Null if value.get(key).is_none() => e.push(FieldError::required(at, "")),
            Value::String(text) if text.is_empty() => {
                e.push(FieldError::invalid(at, "", "must not be empty"));
            }
            Value::String(_) => {}
            other => e.push(FieldError::invalid(at, other.clone(), "must be a string")),
        }
    }
    if let Some(text) = value["apiVersion"].as_str()
        && text.matches('/').count() > 1
    {
        let detail = format!("unexpected GroupVersion string: {text}");
        e.push(FieldError::invalid(&version, text, detail));
    }
    if let Some(text) = value["kind"].as_str().filter(|text| !text.is_empty()) {
        let problems = validation::is_dns1035_label(&text.to_lowercase());
        if !problems.is_empty() {
            let detail = format!(
                "may have mixed case, but should otherwise match: {}",
                problems.join(",")
            );
            e.push(FieldError::invalid(&kind, text, detail));
        }
    }
    let Some(metadata) = value.get("metadata").filter(|m| m.is_object()) else {
        return;
    };
    let mut metadata = metadata.clone();
    if metadata["name"].as_str().unwrap_or_default().is_empty() {
        // It need not have one.
        metadata["name"] = "fakename".into();
    }
    let namespaced = !metadata["namespace"]
        .as_str()
        .unwrap_or_default()
        .is_empty();
    e.extend(validation::validate_object_meta(
        &metadata,
        namespaced,
        name_is_path_segment,
        &path.child("metadata"),
    ));
}
