//! `protobuf.txt`: one message a line: `name number:field:type …`, with the JSON name of each field.
//! `*` before a field marks an embedded struct, whose fields stand in the JSON object itself.

use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

/// The schema's name for a message.
fn schema_name(message: &str) -> String {
    message
        .replacen("k8s.io.", "io.k8s.", 1)
        .replace("apiextensions_apiserver", "apiextensions-apiserver")
        .replace("kube_aggregator", "kube-aggregator")
}

pub(crate) fn render(proto: &Value, schemas: &Value) -> Result<String, String> {
    let packages = proto.as_object().ok_or("protobuf.json is not an object")?;
    let schemas = schemas.as_object().ok_or("schemas.json is not an object")?;
    let mut messages: HashMap<String, &Value> = HashMap::new();
    for (package, list) in packages {
        for (name, fields) in list.as_object().into_iter().flatten() {
            messages.insert(format!("{package}.{name}"), fields);
        }
    }
    // Messages reachable from a served type; the rest are versions no longer served.
    let mut wanted = BTreeSet::new();
    let mut queue: Vec<String> = messages
        .keys()
        .filter(|m| schemas.contains_key(&schema_name(m)))
        .cloned()
        .collect();
    // Wire forms that no published schema names.
    queue.push("k8s.io.apimachinery.pkg.runtime.Unknown".into());
    for name in ["PartialObjectMetadata", "PartialObjectMetadataList"] {
        queue.push(format!("k8s.io.apimachinery.pkg.apis.meta.v1.{name}"));
    }
    while let Some(m) = queue.pop() {
        if !wanted.insert(m.clone()) {
            continue;
        }
        for f in fields(messages.get(&m)) {
            if let Some(inner) = message_of(&m, &f.kind, &messages) {
                queue.push(inner);
            }
        }
    }
    let mut out = String::new();
    for m in wanted {
        let name = schema_name(&m);
        let schema = schemas
            .get(&name)
            .and_then(|s| s.get("properties"))
            .and_then(Value::as_object);
        let _ = write!(out, "{name}");
        for f in fields(messages.get(&m)) {
            let kind = render_kind(&m, &f, &messages);
            let json = schema
                .map(|s| json_name(s, &f.name))
                .unwrap_or(Some(f.name.clone()));
            match json {
                Some(json) => {
                    let _ = write!(out, " {}:{json}:{kind}", f.number);
                }
                None => {
                    let _ = write!(out, " {}:*{}:{kind}", f.number, f.name);
                }
            }
        }
        out.push('\n');
    }
    Ok(out)
}

struct Field {
    number: u64,
    name: String,
    label: String,
    kind: String,
}

fn fields(message: Option<&&Value>) -> Vec<Field> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    message
        .and_then(|m| m.as_array())
        .into_iter()
        .flatten()
        .map(|f| Field {
            number: f[0].as_u64().unwrap_or(0),
            name: text(&f[1]),
            label: text(&f[2]),
            kind: text(&f[3]),
        })
        .collect()
}

/// `None` when the field is an embedded struct.
fn json_name(properties: &Map<String, Value>, name: &str) -> Option<String> {
    if properties.contains_key(name) {
        return Some(name.to_owned());
    }
    let plain = |s: &str| s.to_lowercase().replace(['-', '$', '_'], "");
    properties.keys().find(|k| plain(k) == plain(name)).cloned()
}

fn scalar(kind: &str) -> bool {
    matches!(
        kind,
        "string" | "bytes" | "bool" | "int32" | "int64" | "double"
    )
}

/// The full name of the message a type text names, looked up from the inside out.
fn message_of(from: &str, kind: &str, messages: &HashMap<String, &Value>) -> Option<String> {
    let kind = kind
        .strip_prefix("map<string, ")
        .and_then(|k| k.strip_suffix('>'))
        .unwrap_or(kind);
    if scalar(kind) {
        return None;
    }
    let kind = kind.trim_start_matches('.');
    let package = from.rsplit_once('.').map(|p| p.0).unwrap_or("");
    let local = format!("{package}.{kind}");
    [local, kind.to_owned()]
        .into_iter()
        .find(|n| messages.contains_key(n))
}

fn render_kind(from: &str, f: &Field, messages: &HashMap<String, &Value>) -> String {
    let one = |kind: &str| match message_of(from, kind, messages) {
        Some(m) => schema_name(&m),
        None => kind.to_owned(),
    };
    if let Some(value) = f
        .kind
        .strip_prefix("map<string, ")
        .and_then(|k| k.strip_suffix('>'))
    {
        format!("{{}}{}", one(value))
    } else if f.label == "repeated" {
        format!("[]{}", one(&f.kind))
    } else {
        one(&f.kind)
    }
}
