//! JSON seen as values, and values as JSON.

use super::{EvalError, List, Map, Str, Value, ValueResult};
use crate::limits::deep;
use crate::schema::Schema;
use crate::time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value as Json};

/// More nodes are not rendered: values that share their parts can be larger than they cost.
const MAX_NODES: usize = 1_000_000;
/// Deeper values are not rendered.
const MAX_DEPTH: usize = 512;

/// Data as their JSON has them.
pub(super) fn untyped(json: &Json) -> Value<'_> {
    match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => number(n),
        Json::String(s) => Value::String(Str::Borrowed(s)),
        Json::Array(items) => Value::List(List::Json(items, None)),
        Json::Object(map) => Value::Map(Map::Json(map, None)),
    }
}

fn number<'v>(n: &Number) -> Value<'v> {
    match n.as_i64() {
        Some(i) => Value::Int(i),
        None => Value::Double(n.as_f64().unwrap_or(f64::NAN)),
    }
}

fn go_type(json: &Json) -> &'static str {
    match json {
        Json::Null => "<nil>",
        Json::Bool(_) => "bool",
        Json::Number(n) if n.is_i64() => "int64",
        Json::Number(_) => "float64",
        Json::String(_) => "string",
        Json::Array(_) => "[]interface {}",
        Json::Object(_) => "map[string]interface {}",
    }
}

/// Data with the types that a schema declares.
pub(super) fn typed<'v>(json: &'v Json, schema: &'v Schema) -> ValueResult<'v> {
    let wrong = |message: &str| Err(EvalError::new(message));
    if json.is_null() {
        if schema.nullable {
            return Ok(Value::Null);
        }
        return wrong("invalid data, got null for schema with nullable=false");
    }
    if schema.int_or_string {
        return match json {
            Json::String(s) => Ok(Value::String(Str::Borrowed(s))),
            Json::Number(n) if n.is_i64() => Ok(number(n)),
            _ => {
                wrong("invalid data, expected XIntOrString value to be either a string or integer")
            }
        };
    }
    match (schema.ty.as_str(), json) {
        ("object", Json::Object(map)) => Ok(Value::Map(Map::Json(map, Some(schema)))),
        ("object", _) => {
            wrong("invalid data, expected a map for the provided schema with type=object")
        }
        ("array", Json::Array(_)) if schema.items.is_none() => {
            wrong("invalid array type, expected Items with a non-empty Schema")
        }
        ("array", Json::Array(items)) => Ok(Value::List(List::Json(items, Some(schema)))),
        ("array", _) => {
            wrong("invalid data, expected an array for the provided schema with type=array")
        }
        ("string", Json::String(s)) => string(s, &schema.format),
        ("string", other) => wrong(&format!(
            "invalid data, expected string, got {}",
            go_type(other)
        )),
        ("number", Json::Number(n)) => Ok(Value::Double(n.as_f64().unwrap_or(f64::NAN))),
        ("number", other) => wrong(&format!(
            "invalid data, expected float, got {}",
            go_type(other)
        )),
        ("integer", Json::Number(n)) if n.is_i64() => Ok(number(n)),
        ("integer", other) => wrong(&format!(
            "invalid data, expected int, got {}",
            go_type(other)
        )),
        ("boolean", Json::Bool(b)) => Ok(Value::Bool(*b)),
        ("boolean", other) => wrong(&format!(
            "invalid data, expected bool, got {}",
            go_type(other)
        )),
        _ if schema.preserve_unknown => Ok(Value::Preserved(json)),
        (ty, _) => wrong(&format!(
            "invalid type, expected object, array, number, integer, boolean or string, or no type with x-kubernetes-int-or-string or x-kubernetes-preserve-unknown-fields is true, got {ty}"
        )),
    }
}

/// A string of a format that is more than a string.
fn string<'v>(s: &'v str, format: &str) -> ValueResult<'v> {
    match format {
        "duration" => time::parse_openapi_duration(s)
            .map(Value::Duration)
            .ok_or_else(|| EvalError::new(format!("Invalid duration {s}: time: invalid duration"))),
        "date" => time::parse_date(s).map(Value::Timestamp).ok_or_else(|| {
            EvalError::new(format!("Invalid date formatted string {s}: cannot parse"))
        }),
        "date-time" => time::parse_timestamp(s)
            .map(Value::Timestamp)
            .ok_or_else(|| {
                EvalError::new(format!(
                    "Invalid date-time formatted string {s}: cannot parse"
                ))
            }),
        "byte" => match STANDARD.decode(s) {
            Ok(bytes) => Ok(Value::Bytes(bytes.into())),
            Err(e) => Err(EvalError::new(format!(
                "Invalid byte formatted string {s}: {e}"
            ))),
        },
        _ => Ok(Value::String(Str::Borrowed(s))),
    }
}

pub(super) fn render(v: &Value<'_>) -> Result<Json, EvalError> {
    let mut left = MAX_NODES;
    tree(v, &mut left, 0)
}

fn tree(v: &Value<'_>, left: &mut usize, depth: usize) -> Result<Json, EvalError> {
    deep(|| branch(v, left, depth))
}

fn branch(v: &Value<'_>, left: &mut usize, depth: usize) -> Result<Json, EvalError> {
    if *left == 0 || depth > MAX_DEPTH {
        return Err(EvalError::cost_limit());
    }
    *left -= 1;
    Ok(match v {
        Value::Null | Value::Optional(None) => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(i) => Json::from(*i),
        Value::Uint(u) => Json::from(*u),
        Value::Double(d) => Json::from(*d),
        Value::String(s) => Json::String(s.as_str().to_owned()),
        Value::Bytes(b) => Json::String(STANDARD.encode(b)),
        Value::Duration(d) => Json::String(time::show_duration(*d)),
        Value::Timestamp(t) => Json::String(time::show_timestamp(*t)),
        Value::Optional(Some(v)) => tree(v, left, depth + 1)?,
        Value::List(List::Json(items, _) | List::Claims(items)) => Json::Array(items.to_vec()),
        Value::Map(Map::Json(map, _) | Map::Claims(map)) => Json::Object((*map).clone()),
        Value::Preserved(json) => (*json).clone(),
        Value::List(list) => {
            let mut out = Vec::new();
            for item in list.iter() {
                out.push(tree(&item?, left, depth + 1)?);
            }
            Json::Array(out)
        }
        Value::Map(Map::Values(map)) => {
            let mut out = serde_json::Map::new();
            for (k, v) in map.entries() {
                let Value::String(k) = k else {
                    return Err(EvalError::new(format!(
                        "expected a string key, got {}",
                        k.type_of().runtime_name()
                    )));
                };
                out.insert(k.as_str().to_owned(), tree(v, left, depth + 1)?);
            }
            Json::Object(out)
        }
        Value::Object(object) => {
            let mut out = serde_json::Map::new();
            for (name, v) in &object.fields {
                out.insert(name.to_string(), tree(v, left, depth + 1)?);
            }
            Json::Object(out)
        }
        other => {
            let t = other.type_of();
            return Err(EvalError::new(format!(
                "cannot convert value of type {} to JSON",
                t.runtime_name()
            )));
        }
    })
}
