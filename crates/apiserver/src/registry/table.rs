//! Server-side tables (`meta.k8s.io` Table) and partial objects.

use serde_json::{Map, Value, json};

use super::negotiate::IncludeObject;
use super::resources::ResourceEntry;

pub(crate) fn table(
    entry: &ResourceEntry,
    meta_version: &str,
    metadata: Value,
    rows: Vec<Value>,
    headers: bool,
) -> Value {
    let columns = if headers { columns(entry) } else { Value::Null };
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{meta_version}"),
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn columns(entry: &ResourceEntry) -> Value {
    let mut columns = vec![json!({
        "name": "Name",
        "type": "string",
        "format": "name",
        "description": keelson_kinds::column_description(&entry.group, &entry.resource, "Name"),
        "priority": 0,
    })];
    if entry.rules.nameless_table() {
        columns.clear();
    }
    for column in entry.rules.columns() {
        columns.push(json!({
            "name": column.name,
            "type": column.kind,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        }));
    }
    Value::Array(columns)
}

/// One row; `object` is in the entry's version.
pub(crate) fn row(
    entry: &ResourceEntry,
    object: Value,
    include: IncludeObject,
    meta_version: &str,
    now: i64,
) -> Value {
    let name = object
        .pointer("/metadata/name")
        .cloned()
        .unwrap_or_default();
    let mut cells = vec![name];
    if entry.rules.nameless_table() {
        cells.clear();
    }
    if entry.is_stored_form() || entry.custom {
        cells.extend(entry.rules.cells(&object, now));
    } else {
        // Columns of built-in kinds read the stored form, those of custom kinds their version's; a
        // conversion that fails leaves the name alone.
        let mut stored = object.clone();
        if entry.to_storage(&mut stored).is_ok() {
            cells.extend(entry.rules.cells(&stored, now));
        }
    }
    let object = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial(object, meta_version),
        IncludeObject::Object => object,
    };
    json!({"cells": cells, "object": object})
}

/// A bookmark among table rows has no cells.
pub(crate) fn bookmark_row(object: Value, meta_version: &str) -> Value {
    json!({"cells": [], "object": partial(object, meta_version)})
}

pub(crate) fn partial(object: Value, meta_version: &str) -> Value {
    let mut out = Map::new();
    out.insert("kind".into(), "PartialObjectMetadata".into());
    out.insert(
        "apiVersion".into(),
        format!("meta.k8s.io/{meta_version}").into(),
    );
    if let Value::Object(mut fields) = object
        && let Some(metadata) = fields.remove("metadata")
    {
        out.insert("metadata".into(), metadata);
    }
    Value::Object(out)
}
