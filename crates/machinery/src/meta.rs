//! Accessors over an object's type and metadata.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or("")
}

fn meta_text<'a>(obj: &'a Value, key: &str) -> &'a str {
    obj.get("metadata").map(|m| text(m, key)).unwrap_or("")
}

pub fn api_version(obj: &Value) -> &str {
    text(obj, "apiVersion")
}

pub fn kind(obj: &Value) -> &str {
    text(obj, "kind")
}

/// `apps/v1` → `("apps", "v1")`, `v1` → `("", "v1")`.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

pub fn join_api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

pub fn metadata(obj: &Value) -> Option<&Map<String, Value>> {
    obj.get("metadata").and_then(Value::as_object)
}

/// The metadata, made an object when it is missing or of another type.
pub fn metadata_mut(obj: &mut Value) -> &mut Map<String, Value> {
    as_map(
        as_map(obj)
            .entry("metadata")
            .or_insert_with(|| Value::Object(Map::new())),
    )
}

/// The value as an object; whatever else stood there is replaced by an empty one.
pub fn as_map(v: &mut Value) -> &mut Map<String, Value> {
    if !v.is_object() {
        *v = Value::Object(Map::new());
    }
    match v {
        Value::Object(m) => m,
        _ => unreachable!("made an object above"),
    }
}

pub fn name(obj: &Value) -> &str {
    meta_text(obj, "name")
}

pub fn generate_name(obj: &Value) -> &str {
    meta_text(obj, "generateName")
}

pub fn namespace(obj: &Value) -> &str {
    meta_text(obj, "namespace")
}

pub fn uid(obj: &Value) -> &str {
    meta_text(obj, "uid")
}

pub fn resource_version(obj: &Value) -> &str {
    meta_text(obj, "resourceVersion")
}

pub fn creation_timestamp(obj: &Value) -> Option<&str> {
    Some(meta_text(obj, "creationTimestamp")).filter(|s| !s.is_empty())
}

pub fn deletion_timestamp(obj: &Value) -> Option<&str> {
    Some(meta_text(obj, "deletionTimestamp")).filter(|s| !s.is_empty())
}

pub fn deletion_grace_period_seconds(obj: &Value) -> Option<i64> {
    obj.get("metadata")?
        .get("deletionGracePeriodSeconds")?
        .as_i64()
}

pub fn generation(obj: &Value) -> i64 {
    obj.get("metadata")
        .and_then(|m| m.get("generation"))
        .and_then(Value::as_i64)
        .unwrap_or(0)
}

fn string_map(obj: &Value, key: &str) -> BTreeMap<String, String> {
    obj.get("metadata")
        .and_then(|m| m.get(key))
        .and_then(Value::as_object)
        .map(|m| {
            m.iter()
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect()
        })
        .unwrap_or_default()
}

pub fn labels(obj: &Value) -> BTreeMap<String, String> {
    string_map(obj, "labels")
}

pub fn label<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    obj.get("metadata")?.get("labels")?.get(key)?.as_str()
}

pub fn annotations(obj: &Value) -> BTreeMap<String, String> {
    string_map(obj, "annotations")
}

pub fn annotation<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    obj.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

pub fn owner_references(obj: &Value) -> &[Value] {
    list(obj, "ownerReferences")
}

/// The owner whose `controller` is true.
pub fn controller_of(obj: &Value) -> Option<&Value> {
    owner_references(obj)
        .iter()
        .find(|r| r.get("controller") == Some(&Value::Bool(true)))
}

pub fn managed_fields(obj: &Value) -> &[Value] {
    list(obj, "managedFields")
}

pub fn finalizers(obj: &Value) -> Vec<&str> {
    list(obj, "finalizers")
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

fn list<'a>(obj: &'a Value, key: &str) -> &'a [Value] {
    obj.get("metadata")
        .and_then(|m| m.get(key))
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or(&[])
}

/// Sets a string of the metadata; an empty one is removed.
pub fn set_text(obj: &mut Value, key: &str, value: &str) {
    let m = metadata_mut(obj);
    if value.is_empty() {
        m.remove(key);
    } else {
        m.insert(key.to_owned(), Value::String(value.to_owned()));
    }
}

pub fn set_name(obj: &mut Value, v: &str) {
    set_text(obj, "name", v);
}

pub fn set_namespace(obj: &mut Value, v: &str) {
    set_text(obj, "namespace", v);
}

pub fn set_uid(obj: &mut Value, v: &str) {
    set_text(obj, "uid", v);
}

pub fn set_resource_version(obj: &mut Value, v: &str) {
    set_text(obj, "resourceVersion", v);
}

pub fn set_creation_timestamp(obj: &mut Value, v: &str) {
    set_text(obj, "creationTimestamp", v);
}

pub fn set_deletion_timestamp(obj: &mut Value, v: Option<&str>) {
    set_text(obj, "deletionTimestamp", v.unwrap_or(""));
}

pub fn set_deletion_grace_period_seconds(obj: &mut Value, v: Option<i64>) {
    let m = metadata_mut(obj);
    match v {
        Some(s) => m.insert("deletionGracePeriodSeconds".into(), s.into()),
        None => m.remove("deletionGracePeriodSeconds"),
    };
}

/// Sets the generation; zero is removed.
pub fn set_generation(obj: &mut Value, v: i64) {
    let m = metadata_mut(obj);
    if v == 0 {
        m.remove("generation");
    } else {
        m.insert("generation".into(), v.into());
    }
}

pub fn set_finalizers(obj: &mut Value, v: &[&str]) {
    set_list(
        obj,
        "finalizers",
        v.iter().map(|s| Value::String((*s).to_owned())).collect(),
    );
}

pub fn set_owner_references(obj: &mut Value, v: Vec<Value>) {
    set_list(obj, "ownerReferences", v);
}

pub fn set_managed_fields(obj: &mut Value, v: Vec<Value>) {
    set_list(obj, "managedFields", v);
}

fn set_list(obj: &mut Value, key: &str, v: Vec<Value>) {
    let m = metadata_mut(obj);
    if v.is_empty() {
        m.remove(key);
    } else {
        m.insert(key.to_owned(), Value::Array(v));
    }
}

pub fn set_label(obj: &mut Value, key: &str, value: &str) {
    set_entry(obj, "labels", key, value);
}

pub fn set_annotation(obj: &mut Value, key: &str, value: &str) {
    set_entry(obj, "annotations", key, value);
}

fn set_entry(obj: &mut Value, map: &str, key: &str, value: &str) {
    let m = metadata_mut(obj)
        .entry(map)
        .or_insert_with(|| Value::Object(Map::new()));
    as_map(m).insert(key.to_owned(), Value::String(value.to_owned()));
}

pub fn set_labels(obj: &mut Value, v: &BTreeMap<String, String>) {
    set_map(obj, "labels", v);
}

pub fn set_annotations(obj: &mut Value, v: &BTreeMap<String, String>) {
    set_map(obj, "annotations", v);
}

fn set_map(obj: &mut Value, key: &str, v: &BTreeMap<String, String>) {
    let m = metadata_mut(obj);
    if v.is_empty() {
        m.remove(key);
    } else {
        let map = v
            .iter()
            .map(|(k, v)| (k.clone(), Value::String(v.clone())))
            .collect();
        m.insert(key.to_owned(), Value::Object(map));
    }
}

/// Sets `apiVersion` and `kind`.
pub fn set_type(obj: &mut Value, api_version: &str, kind: &str) {
    let m = as_map(obj);
    m.insert("apiVersion".into(), Value::String(api_version.to_owned()));
    m.insert("kind".into(), Value::String(kind.to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_and_writes() {
        let mut o = json!({"metadata": null});
        set_name(&mut o, "a");
        set_label(&mut o, "k", "v");
        set_generation(&mut o, 2);
        set_finalizers(&mut o, &["f"]);
        assert_eq!(name(&o), "a");
        assert_eq!(label(&o, "k"), Some("v"));
        assert_eq!(generation(&o), 2);
        assert_eq!(finalizers(&o), ["f"]);
        set_finalizers(&mut o, &[]);
        set_name(&mut o, "");
        assert_eq!(
            o,
            json!({"metadata": {"labels": {"k": "v"}, "generation": 2}})
        );
        assert_eq!(split_api_version("apps/v1"), ("apps", "v1"));
        assert_eq!(split_api_version("v1"), ("", "v1"));
    }
}
