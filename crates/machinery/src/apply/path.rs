//! Path elements in the spelling of FieldsV1: `f:name`, `k:{"name":"a"}`, `v:"x"`, `i:0`.

use crate::go;
use keelson_api::{ListType, Schema};
use serde_json::{Map, Value};

pub(super) fn field(name: &str) -> String {
    format!("f:{name}")
}

/// How a list item is told from its siblings; `None` when it cannot be.
pub(super) fn item(v: &Value, list: &Schema) -> Option<String> {
    match list.list_type() {
        ListType::Atomic => None,
        ListType::Set => match v {
            Value::Object(_) | Value::Array(_) | Value::Null => None,
            v => Some(format!("v:{v}")),
        },
        ListType::Map => {
            let map = v.as_object()?;
            let mut key = Map::new();
            for name in list.list_keys() {
                let value = map.get(name.as_ref()).cloned().or_else(|| {
                    list.items()?
                        .field(name)
                        .and_then(|f| f.schema.default.clone())
                });
                if let Some(value) = value {
                    key.insert(name.to_string(), value);
                }
            }
            (!key.is_empty()).then(|| format!("k:{}", Value::Object(key)))
        }
    }
}

/// `.spec.containers[name="a"].image`.
pub(super) fn display(path: &[String]) -> String {
    path.iter().map(|e| display_element(e)).collect()
}

pub(super) fn display_element(element: &str) -> String {
    let text = |v: &Value| match v {
        Value::String(s) => go::quote(s),
        v => v.to_string(),
    };
    let (kind, rest) = element.split_once(':').unwrap_or(("", element));
    match kind {
        "f" => format!(".{rest}"),
        "k" => {
            let key: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let parts: Vec<String> = key
                .iter()
                .map(|(k, v)| format!("{k}={}", text(v)))
                .collect();
            format!("[{}]", parts.join(","))
        }
        "v" => {
            let v: Value = serde_json::from_str(rest).unwrap_or_default();
            format!("[={}]", text(&v))
        }
        _ => format!("[{rest}]"),
    }
}
