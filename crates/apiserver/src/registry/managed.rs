//! `metadata.managedFields`: who set which field. Kept in terms of the request's version.

use std::sync::Arc;

use keelson_api::Schema;
use keelson_machinery::apply::{self, FieldSet, Request};
use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use serde_json::{Map, Value};

use super::resources::ResourceEntry;

/// Records what this write changed; `new` and `old` are in the stored form.
pub(crate) fn track(
    entry: &ResourceEntry,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    subresource: &str,
) -> Result<(), Status> {
    let api_version = entry.api_version();
    let now = time::now();
    let reset = reset_fields(entry, subresource);
    let request = Request {
        schema: &entry.schema,
        manager,
        api_version: &api_version,
        kind: &entry.kind,
        subresource,
        now: &now,
        reset: &reset,
        versions: None,
    };
    if entry.is_stored_form() {
        apply::track_update(old, new, &request);
        return Ok(());
    }
    let mut old = old.cloned();
    if let Some(old) = &mut old {
        entry.from_storage(old)?;
    }
    let mut converted = new.clone();
    entry.from_storage(&mut converted)?;
    apply::track_update(old.as_ref(), &mut converted, &request);
    meta::set_managed_fields(new, meta::managed_fields(&converted).to_vec());
    Ok(())
}

/// A resource in the version of the request, and all its versions.
pub(crate) struct Forms<'a> {
    pub(crate) own: &'a ResourceEntry,
    pub(crate) all: &'a [Arc<ResourceEntry>],
}

impl Forms<'_> {
    fn find(&self, api_version: &str) -> Option<&ResourceEntry> {
        let found = self.all.iter().find(|e| e.api_version() == api_version);
        found.map(|entry| &**entry)
    }
}

impl apply::Versions for Forms<'_> {
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        let form = self.find(api_version)?;
        let mut out = object.clone();
        self.own.to_storage(&mut out).ok()?;
        form.from_storage(&mut out).ok()?;
        Some(out)
    }

    fn schema(&self, api_version: &str) -> Option<&Schema> {
        Some(&self.find(api_version)?.schema)
    }
}

/// The applied configuration merged into the live object, both in the entry's version.
pub(crate) fn apply(
    forms: &Forms<'_>,
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    subresource: &str,
    force: bool,
) -> Result<Value, Status> {
    let entry = forms.own;
    let api_version = entry.api_version();
    let now = time::now();
    let reset = reset_fields(entry, subresource);
    let request = Request {
        schema: &entry.schema,
        manager,
        api_version: &api_version,
        kind: &entry.kind,
        subresource,
        now: &now,
        reset: &reset,
        versions: Some(forms),
    };
    apply::apply(live, config, &request, force).map_err(|err| err.status())
}

/// Fields that this path cannot change and therefore nobody owns through it.
fn reset_fields(entry: &ResourceEntry, subresource: &str) -> FieldSet {
    if subresource.is_empty() && entry.subresource("status").is_none() {
        return FieldSet::default();
    }
    FieldSet::of(entry.rules.reset_fields(subresource))
}

/// A write that changes nothing but the times of managers is no write.
pub(crate) fn keep_timestamps_of_unchanged(new: &mut Value, old: &Value) {
    if same_but_times(new, old) {
        meta::set_managed_fields(new, meta::managed_fields(old).to_vec());
    }
}

fn same_but_times(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else {
        return false;
    };
    let (Some(new_meta), Some(old_meta)) = (object(new, "metadata"), object(old, "metadata"))
    else {
        return false;
    };
    same_except(new, old, &["metadata"])
        && same_except(new_meta, old_meta, &["resourceVersion", "managedFields"])
        && same_managers(new_meta.get("managedFields"), old_meta.get("managedFields"))
}

fn object<'a>(map: &'a Map<String, Value>, field: &str) -> Option<&'a Map<String, Value>> {
    map.get(field)?.as_object()
}

fn same_except(a: &Map<String, Value>, b: &Map<String, Value>, except: &[&str]) -> bool {
    let kept = |map: &'_ Map<String, Value>| {
        map.keys()
            .filter(|key| !except.contains(&key.as_str()))
            .count()
    };
    kept(a) == kept(b)
        && a.iter()
            .all(|(key, value)| except.contains(&key.as_str()) || b.get(key) == Some(value))
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn same_managers(a: Option<&Value>, b: Option<&Value>) -> bool {
    let (a, b) = (list(a), list(b));
    a.len() == b.len()
        && a.iter().zip(b).all(|pair| match pair {
            (Value::Object(a), Value::Object(b)) => same_except(a, b, &["time"]),
            (a, b) => a == b,
        })
}
