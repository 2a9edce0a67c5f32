//! Update rules that several kinds share.

use serde_json::{Map, Value};

use crate::kind::UpdateContext;
use crate::tree::{Tree, TreeMut};

/// Metadata that a write to `status` may not change.
const KEPT_BY_STATUS: &[&str] = &[
    "labels",
    "annotations",
    "finalizers",
    "ownerReferences",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// The main resource may not change `status`, `status` may change nothing else.
pub(crate) fn isolate_status(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    match ctx.subresource {
        "status" => only_status(new, old),
        "" => new.keep("status", old),
        _ => {}
    }
}

/// Puts back everything but `status`.
pub(crate) fn only_status(new: &mut Value, old: &Value) {
    let Some(fields) = old.as_object() else {
        return;
    };
    for (key, value) in fields {
        if !matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind") {
            new.put(key, value.clone());
        }
    }
    if let Some(now) = new.as_object_mut() {
        now.retain(|k, _| {
            matches!(k.as_str(), "status" | "metadata" | "apiVersion" | "kind")
                || fields.contains_key(k)
        });
    }
    for key in [
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let path = format!("metadata.{key}");
        new.keep(&path, old);
    }
}

/// As [`isolate_status`] for kinds whose `status` path leaves metadata alone too.
pub(crate) fn isolate_status_and_metadata(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    isolate_status(new, old, ctx);
    if ctx.subresource == "status" {
        keep_metadata(new, old);
    }
}

/// Puts back the parts of metadata that only the main resource may change.
pub(crate) fn keep_metadata(new: &mut Value, old: &Value) {
    for key in KEPT_BY_STATUS {
        let path = format!("metadata.{key}");
        new.keep(&path, old);
    }
}

/// As [`isolate_status`], and a changed `spec` raises `metadata.generation`.
pub(crate) fn with_generation(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    isolate_status(new, old, ctx);
    if ctx.subresource.is_empty() {
        raise_generation(new, old, new.at("spec") != old.at("spec"));
    }
}

/// Generation belongs to the server: one more than the old one if `changed`.
pub(crate) fn raise_generation(new: &mut Value, old: &Value, changed: bool) {
    let before = old.num("metadata.generation");
    let after = if changed {
        before.saturating_add(1)
    } else {
        before
    };
    new.put(
        "metadata.generation",
        if after == 0 {
            Value::Null
        } else {
            after.into()
        },
    );
}

/// A new object has no status yet.
pub(crate) fn clear_status(obj: &mut Value) {
    obj.put("status", Map::new());
}

/// A new object has no status yet and is its own first generation.
pub(crate) fn first_generation(obj: &mut Value) {
    clear_status(obj);
    obj.put("metadata.generation", 1);
}

/// Keeps the group, replaces the version.
pub(crate) fn set_api_version(obj: &mut Value, version: &str) {
    let api_version = match obj.text("apiVersion").split_once('/') {
        Some((group, _)) => format!("{group}/{version}"),
        None => version.to_owned(),
    };
    obj.put("apiVersion", api_version);
}
