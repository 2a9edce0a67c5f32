//! Validation of `metadata`: on creation, on update, and of its parts.

use crate::field::{ErrorList, FieldError, Path};
use crate::meta;
use crate::validation::{
    is_dns1035_label, is_dns1123_label, is_dns1123_subdomain, is_path_segment_name,
    is_path_segment_prefix, is_qualified_name, is_valid_label_value, unprintable,
};
use serde_json::Value;

/// Keys and values of all annotations together.
pub const TOTAL_ANNOTATION_SIZE_BYTES: usize = 256 * 1024;

const MAX_FIELD_MANAGER: usize = 128;
const MAX_SUBRESOURCE: usize = 256;

fn mask_trailing_dash(name: &str, prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(rest) if prefix && !rest.is_empty() => format!("{rest}a"),
        _ => name.to_owned(),
    }
}

pub fn name_is_dns_subdomain(name: &str, prefix: bool) -> Vec<String> {
    is_dns1123_subdomain(&mask_trailing_dash(name, prefix))
}

pub fn name_is_dns_label(name: &str, prefix: bool) -> Vec<String> {
    is_dns1123_label(&mask_trailing_dash(name, prefix))
}

pub fn name_is_dns1035_label(name: &str, prefix: bool) -> Vec<String> {
    is_dns1035_label(&mask_trailing_dash(name, prefix))
}

pub fn name_is_path_segment(name: &str, prefix: bool) -> Vec<String> {
    if prefix {
        is_path_segment_prefix(name)
    } else {
        is_path_segment_name(name)
    }
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or("")
}

fn items<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v.get(key)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or(&[])
}

/// Every error of a new object's metadata. Names are expected to be generated already. `name_fn`
/// takes the name and whether it is the prefix of a generated one, which may end in a dash.
pub fn validate_object_meta(
    meta: &Value,
    namespaced: bool,
    name_fn: impl Fn(&str, bool) -> Vec<String>,
    path: &Path,
) -> ErrorList {
    let mut errs = ErrorList::new();
    let generate_name = text(meta, "generateName");
    if !generate_name.is_empty() {
        for msg in name_fn(generate_name, true) {
            errs.push(FieldError::invalid(
                &path.child("generateName"),
                generate_name,
                msg,
            ));
        }
    }
    let name = text(meta, "name");
    if name.is_empty() {
        errs.push(FieldError::required(
            &path.child("name"),
            "name or generateName is required",
        ));
    } else {
        for msg in name_fn(name, false) {
            errs.push(FieldError::invalid(&path.child("name"), name, msg));
        }
    }
    let namespace = text(meta, "namespace");
    let at = path.child("namespace");
    if namespaced {
        if namespace.is_empty() {
            errs.push(FieldError::required(&at, ""));
        } else {
            for msg in is_dns1123_label(namespace) {
                errs.push(FieldError::invalid(&at, namespace, msg));
            }
        }
    } else if !namespace.is_empty() {
        errs.push(FieldError::forbidden(&at, "not allowed on this type"));
    }
    validate_parts(meta, path, &mut errs);
    errs
}

/// What create and update check alike.
fn validate_parts(meta: &Value, path: &Path, errs: &mut ErrorList) {
    let generation = meta.get("generation").and_then(Value::as_i64).unwrap_or(0);
    if generation < 0 {
        errs.push(FieldError::invalid(
            &path.child("generation"),
            generation,
            "must be greater than or equal to 0",
        ));
    }
    if let Some(v) = meta.get("labels") {
        errs.extend(validate_labels(v, &path.child("labels")));
    }
    if let Some(v) = meta.get("annotations") {
        errs.extend(validate_annotations(v, &path.child("annotations")));
    }
    validate_owner_references(meta, path, errs);
    validate_finalizers(meta, path, errs);
    errs.extend(validate_managed_fields(
        items(meta, "managedFields"),
        &path.child("managedFields"),
    ));
}

pub fn validate_labels(labels: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (k, v) in labels.as_object().into_iter().flatten() {
        for msg in is_qualified_name(k) {
            errs.push(FieldError::invalid(path, k.as_str(), msg));
        }
        let v = v.as_str().unwrap_or("");
        for msg in is_valid_label_value(v) {
            errs.push(FieldError::invalid(path, v, msg));
        }
    }
    errs
}

pub fn validate_annotations(annotations: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut size = 0;
    for (k, v) in annotations.as_object().into_iter().flatten() {
        for msg in is_qualified_name(&k.to_lowercase()) {
            errs.push(FieldError::invalid(path, k.as_str(), msg));
        }
        size += k.len() + v.as_str().map_or(0, str::len);
    }
    if size > TOTAL_ANNOTATION_SIZE_BYTES {
        errs.push(FieldError::too_long(path, TOTAL_ANNOTATION_SIZE_BYTES));
    }
    errs
}

fn validate_owner_references(meta: &Value, path: &Path, errs: &mut ErrorList) {
    let path = path.child("ownerReferences");
    let refs = items(meta, "ownerReferences");
    let mut controller: Option<String> = None;
    for r in refs {
        let api_version = text(r, "apiVersion");
        let (group, version) = meta::split_api_version(api_version);
        if version.is_empty() {
            errs.push(FieldError::invalid(
                &path.child("apiVersion"),
                api_version,
                "version must not be empty",
            ));
        }
        for key in ["kind", "name", "uid"] {
            if text(r, key).is_empty() {
                errs.push(FieldError::invalid(
                    &path.child(key),
                    "",
                    "must not be empty",
                ));
            }
        }
        let kind = text(r, "kind");
        if group.is_empty() && version == "v1" && kind == "Event" {
            errs.push(FieldError::invalid(
                &path,
                r.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if r.get("controller") == Some(&Value::Bool(true)) {
            let this = format!("{kind}/{}", text(r, "name"));
            match &controller {
                Some(first) => errs.push(FieldError::invalid(
                    &path,
                    Value::Array(refs.to_vec()),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ),
                )),
                None => controller = Some(this),
            }
        }
    }
}

fn validate_finalizers(meta: &Value, path: &Path, errs: &mut ErrorList) {
    let path = path.child("finalizers");
    let finalizers = items(meta, "finalizers");
    for f in finalizers.iter().filter_map(Value::as_str) {
        for msg in is_qualified_name(f) {
            errs.push(FieldError::invalid(&path, f, msg));
        }
    }
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    if has("orphan") && has("foregroundDeletion") {
        errs.push(FieldError::invalid(
            &path,
            Value::Array(finalizers.to_vec()),
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

/// The `fieldManager` of a request, or the `manager` of an entry.
pub fn validate_field_manager(manager: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if manager.len() > MAX_FIELD_MANAGER {
        errs.push(FieldError::too_long(path, MAX_FIELD_MANAGER));
    }
    errs.extend(
        unprintable(manager)
            .into_iter()
            .map(|m| FieldError::invalid(path, manager, m)),
    );
    errs
}

pub fn validate_managed_fields(entries: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, e) in entries.iter().enumerate() {
        let path = path.index(i);
        let operation = text(e, "operation");
        if !matches!(operation, "Apply" | "Update") {
            errs.push(FieldError::invalid(
                &path.child("operation"),
                operation,
                "must be `Apply` or `Update`",
            ));
        }
        let fields_type = text(e, "fieldsType");
        if !matches!(fields_type, "" | "FieldsV1") {
            errs.push(FieldError::invalid(
                &path.child("fieldsType"),
                fields_type,
                "must be `FieldsV1`",
            ));
        }
        errs.extend(validate_field_manager(
            text(e, "manager"),
            &path.child("manager"),
        ));
        if text(e, "subresource").len() > MAX_SUBRESOURCE {
            errs.push(FieldError::too_long(
                &path.child("subresource"),
                MAX_SUBRESOURCE,
            ));
        }
    }
    errs
}

/// Every error of a changed object's metadata, immutability included.
pub fn validate_object_meta_update(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if !text(old, "deletionTimestamp").is_empty() {
        let before = items(old, "finalizers");
        let mut extra: Vec<&str> = items(new, "finalizers")
            .iter()
            .filter(|f| !before.contains(f))
            .filter_map(Value::as_str)
            .collect();
        extra.sort_unstable();
        extra.dedup();
        if !extra.is_empty() {
            let list: Vec<String> = extra.iter().map(|f| crate::go::quote(f)).collect();
            errs.push(FieldError::forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            ));
        }
    }
    if text(new, "resourceVersion").is_empty() {
        errs.push(FieldError::invalid(
            &path.child("resourceVersion"),
            "",
            "must be specified for an update",
        ));
    }
    let generation = |m: &Value| m.get("generation").and_then(Value::as_i64).unwrap_or(0);
    if generation(new) < generation(old) {
        errs.push(FieldError::invalid(
            &path.child("generation"),
            generation(new),
            "must not be decremented",
        ));
    }
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        if text(new, key) != text(old, key) {
            let bad = if key == "creationTimestamp" && text(new, key).is_empty() {
                Value::Null
            } else {
                Value::from(text(new, key))
            };
            errs.push(FieldError::invalid(
                &path.child(key),
                bad,
                "field is immutable",
            ));
        }
    }
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (n, o) = (new.get(key), old.get(key));
        if n != o {
            errs.push(FieldError::invalid(
                &path.child(key),
                n.cloned().unwrap_or(Value::Null),
                "field is immutable",
            ));
        }
    }
    validate_parts(new, path, &mut errs);
    errs
}

/// Equal, or one error.
pub fn validate_immutable_field(new: &Value, old: &Value, path: &Path) -> ErrorList {
    if new == old {
        ErrorList::new()
    } else {
        vec![FieldError::invalid(path, new.clone(), "field is immutable")]
    }
}

/// A `LabelSelector` object.
pub fn validate_label_selector(selector: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if let Some(labels) = selector.get("matchLabels") {
        errs.extend(validate_labels(labels, &path.child("matchLabels")));
    }
    for (i, e) in items(selector, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let operator = text(e, "operator");
        let values = items(e, "values");
        match operator {
            "In" | "NotIn" if values.is_empty() => errs.push(FieldError::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errs.push(FieldError::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errs.push(FieldError::invalid(
                &path.child("operator"),
                operator,
                "not a valid selector operator",
            )),
        }
        let key = text(e, "key");
        for msg in is_qualified_name(key) {
            errs.push(FieldError::invalid(&path.child("key"), key, msg));
        }
        for (j, v) in values.iter().filter_map(Value::as_str).enumerate() {
            for msg in is_valid_label_value(v) {
                errs.push(FieldError::invalid(&path.child("values").index(j), v, msg));
            }
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(errs: &[FieldError]) -> Vec<&str> {
        errs.iter().map(|e| e.field.as_str()).collect()
    }

    #[test]
    fn creation() {
        let p = Path::new("metadata");
        let ok = json!({"name": "a", "namespace": "b", "labels": {"x": "y"}});
        assert!(validate_object_meta(&ok, true, name_is_dns_subdomain, &p).is_empty());
        let errs = validate_object_meta(&json!({}), true, name_is_dns_subdomain, &p);
        assert_eq!(fields(&errs), ["metadata.name", "metadata.namespace"]);
        let bad = json!({
            "name": "A", "namespace": "n", "generateName": "x-",
            "finalizers": ["orphan", "foregroundDeletion", "no spaces"],
            "annotations": {"k": "x".repeat(TOTAL_ANNOTATION_SIZE_BYTES)},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "1", "controller": true},
                {"apiVersion": "v1", "kind": "Pod", "name": "b", "uid": "", "controller": true}
            ]
        });
        let errs = validate_object_meta(&bad, false, name_is_dns_subdomain, &p);
        assert_eq!(
            fields(&errs),
            [
                "metadata.name",
                "metadata.namespace",
                "metadata.annotations",
                "metadata.ownerReferences.uid",
                "metadata.ownerReferences",
                "metadata.finalizers",
                "metadata.finalizers"
            ]
        );
    }

    #[test]
    fn update() {
        let p = Path::new("metadata");
        let old = json!({"name": "a", "uid": "1", "resourceVersion": "5",
            "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a.b/c"]});
        assert!(validate_object_meta_update(&old, &old, &p).is_empty());
        let mut new = old.clone();
        new["uid"] = json!("2");
        new["finalizers"] = json!(["a.b/c", "a.b/d"]);
        let errs = validate_object_meta_update(&new, &old, &p);
        assert_eq!(fields(&errs), ["metadata.finalizers", "metadata.uid"]);
        assert!(errs[0].detail.ends_with("[]string{\"a.b/d\"}"));
    }
}
