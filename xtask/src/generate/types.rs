//! `types.txt`: one type a line, its fields indented below it.

use super::go_source::{Field, Packages};
use serde_json::{Map, Value};
use std::fmt::Write;

const REF: &str = "#/components/schemas/";

pub(crate) fn render(schemas: &Value, go: &Packages) -> Result<String, String> {
    let schemas = schemas.as_object().ok_or("schemas.json is not an object")?;
    let mut out = String::new();
    let mut names: Vec<&String> = schemas.keys().collect();
    names.sort();
    for name in names {
        let s = schemas[name]
            .as_object()
            .ok_or_else(|| format!("{name} is not an object"))?;
        known(
            name,
            s,
            &[
                "properties",
                "required",
                "type",
                "format",
                "oneOf",
                "x-kubernetes-group-version-kind",
                "x-kubernetes-map-type",
                "x-kubernetes-unions",
            ],
        )?;
        out.push_str(name);
        let kind = match (
            s.get("type").and_then(Value::as_str),
            s.get("format").and_then(Value::as_str),
        ) {
            (Some("object"), None) => "object",
            (Some("string"), Some("date-time")) => "time",
            (None, Some("int-or-string")) => "int-or-string",
            (None, None) if s.contains_key("oneOf") => "quantity",
            (None, None) if s.is_empty() => "any",
            other => return Err(format!("{name}: unknown shape {other:?}")),
        };
        let _ = write!(out, " {kind}");
        if let Some(t) = s.get("x-kubernetes-map-type").and_then(Value::as_str) {
            let _ = write!(out, " map={t}");
        }
        for g in list(s, "x-kubernetes-group-version-kind") {
            let text = |k: &str| g.get(k).and_then(Value::as_str).unwrap_or("");
            let _ = write!(
                out,
                " gvk={}/{}/{}",
                text("group"),
                text("version"),
                text("kind")
            );
        }
        for u in list(s, "x-kubernetes-unions") {
            let _ = write!(out, " union={u}");
        }
        out.push('\n');
        let required: Vec<&str> = list(s, "required")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let (package, short) = name.rsplit_once('.').ok_or("a type without a package")?;
        let facts = go.fields(package, short);
        for (field, f) in s
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let f = f
                .as_object()
                .ok_or_else(|| format!("{name}.{field} is not an object"))?;
            let at = format!("{name}.{field}");
            let _ = write!(out, "\t{field} {}", type_text(&at, f)?);
            attributes(&at, f, &mut out)?;
            if required.contains(&field.as_str()) {
                out.push_str(" req");
            }
            match facts.get(field) {
                Some(go) => go_attributes(package, f, go, &mut out),
                None if matches!(field.as_str(), "apiVersion" | "kind") => out.push_str(" omit"),
                None => eprintln!("warning: {at} is not in the Go source"),
            }
            out.push('\n');
        }
    }
    Ok(out)
}

fn list<'a>(s: &'a Map<String, Value>, key: &str) -> &'a [Value] {
    s.get(key)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or(&[])
}

/// Nothing may be lost silently when upstream starts to use another keyword.
fn known(at: &str, s: &Map<String, Value>, keys: &[&str]) -> Result<(), String> {
    match s.keys().find(|k| !keys.contains(&k.as_str())) {
        Some(k) => Err(format!("{at}: unknown keyword {k}")),
        None => Ok(()),
    }
}

fn type_text(at: &str, f: &Map<String, Value>) -> Result<String, String> {
    let reference = f
        .get("$ref")
        .or_else(|| list(f, "allOf").first().and_then(|r| r.get("$ref")));
    if let Some(r) = reference.and_then(Value::as_str) {
        return Ok(r.trim_start_matches(REF).to_owned());
    }
    let inner = |key: &str| -> Result<String, String> {
        let item = f
            .get(key)
            .and_then(Value::as_object)
            .ok_or_else(|| format!("{at}: no {key}"))?;
        known(
            at,
            item,
            &[
                "$ref",
                "allOf",
                "type",
                "format",
                "items",
                "additionalProperties",
                "default",
                "x-kubernetes-list-type",
            ],
        )?;
        type_text(at, item)
    };
    let format = f.get("format").and_then(Value::as_str).unwrap_or("");
    Ok(match (f.get("type").and_then(Value::as_str), format) {
        (Some("array"), _) => format!("[]{}", inner("items")?),
        (Some("object"), _) if f.contains_key("additionalProperties") => {
            format!("{{}}{}", inner("additionalProperties")?)
        }
        (Some("object"), _) => "object".to_owned(),
        (Some("string"), "byte") => "bytes".to_owned(),
        (Some("string"), "") => "string".to_owned(),
        (Some("boolean"), "") => "boolean".to_owned(),
        (Some("integer"), f @ ("int32" | "int64")) => f.to_owned(),
        (Some("integer"), "") => "integer".to_owned(),
        (Some("number"), "double") => "double".to_owned(),
        other => return Err(format!("{at}: unknown type {other:?}")),
    })
}

fn attributes(at: &str, f: &Map<String, Value>, out: &mut String) -> Result<(), String> {
    known(
        at,
        f,
        &[
            "$ref",
            "allOf",
            "type",
            "format",
            "items",
            "additionalProperties",
            "default",
            "x-kubernetes-list-type",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-map-type",
            "x-kubernetes-patch-strategy",
            "x-kubernetes-patch-merge-key",
        ],
    )?;
    if let Some(d) = f.get("default") {
        let _ = write!(out, " def={d}");
    }
    for key in ["items", "additionalProperties"] {
        if let Some(d) = f.get(key).and_then(|i| i.get("default")) {
            let _ = write!(out, " idef={d}");
        }
    }
    let text = |k: &str| f.get(k).and_then(Value::as_str);
    match text("x-kubernetes-list-type") {
        Some("map") => {
            let keys: Vec<&str> = list(f, "x-kubernetes-list-map-keys")
                .iter()
                .filter_map(Value::as_str)
                .collect();
            let _ = write!(out, " list=map:{}", keys.join(","));
        }
        Some(t) => {
            let _ = write!(out, " list={t}");
        }
        None => {}
    }
    for (keyword, short) in [
        ("x-kubernetes-map-type", "map"),
        ("x-kubernetes-patch-strategy", "patch"),
        ("x-kubernetes-patch-merge-key", "key"),
    ] {
        if let Some(t) = text(keyword) {
            let _ = write!(out, " {short}={t}");
        }
    }
    Ok(())
}

fn go_attributes(package: &str, f: &Map<String, Value>, go: &Field, out: &mut String) {
    for (set, word) in [
        (go.pointer, " ptr"),
        (go.omit_empty, " omit"),
        (go.omit_zero, " zero"),
    ] {
        if set {
            out.push_str(word);
        }
    }
    // Only names of scalar types cannot be told from the schema.
    let scalar = f.get("type").and_then(Value::as_str).unwrap_or("");
    let plain = [
        "string", "bool", "int32", "int64", "int", "float64", "[]byte",
    ];
    if matches!(scalar, "string" | "boolean" | "integer" | "number")
        && !plain.contains(&go.go_type.as_str())
    {
        let name = match go.go_type.split_once('.') {
            Some((alias, name)) => {
                let alias = if alias.ends_with("v1") { "v1" } else { alias };
                format!("{alias}.{name}")
            }
            None => format!(
                "{}.{}",
                package.rsplit('.').next().unwrap_or(""),
                go.go_type
            ),
        };
        let _ = write!(out, " go={name}");
    }
}
