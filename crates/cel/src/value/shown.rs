//! Values as messages show them.

use super::{List, Map, Value};
use crate::time;
use std::fmt::{self, Write};

/// Longer texts are cut off; values that share their parts can be larger than they cost.
const MAX_TEXT: usize = 10_000;

/// Prints as upstream's messages do.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::String(s) => f.write_str(s),
            Value::Int(i) => write!(f, "{i}"),
            Value::Uint(u) => write!(f, "{u}"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Double(d) => f.write_str(&double(*d)),
            Value::Type(t) => f.write_str(t.runtime_name()),
            Value::Timestamp(t) => f.write_str(&time::show_timestamp(*t)),
            Value::Duration(d) => f.write_str(&time::show_duration(*d)),
            Value::Optional(None) => f.write_str("optional.none()"),
            Value::Optional(Some(v)) => write!(f, "optional({v})"),
            other => f.write_str(&quoted(other)),
        }
    }
}

/// A value the way a source text would write it.
pub(super) fn quoted(v: &Value<'_>) -> String {
    let mut out = String::new();
    source(v, &mut out);
    out
}

fn source(v: &Value<'_>, out: &mut String) {
    if out.len() > MAX_TEXT {
        return;
    }
    match v {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(i) => drop(write!(out, "{i}")),
        Value::Uint(u) => drop(write!(out, "{u}u")),
        Value::Double(d) if d.is_nan() => out.push_str("double(\"NaN\")"),
        Value::Double(d) if d.is_infinite() => {
            let sign = if *d < 0.0 { "-" } else { "" };
            let _ = write!(out, "double(\"{sign}Infinity\")");
        }
        Value::Double(d) => {
            let text = format!("{d}");
            out.push_str(&text);
            if !text.contains('.') {
                out.push_str(".0");
            }
        }
        Value::String(s) => out.push_str(&keelson_machinery::go::quote(s)),
        Value::Bytes(b) => {
            out.push_str("b\"");
            for byte in b.iter() {
                let _ = write!(out, "\\{byte:03o}");
            }
            out.push('"');
        }
        Value::Duration(d) => drop(write!(out, "duration(\"{}\")", time::show_duration(*d))),
        Value::Timestamp(t) => drop(write!(out, "timestamp(\"{}\")", time::show_utc(*t))),
        Value::List(list) => shown_list(list, out),
        Value::Map(map) => shown_map(map, out),
        Value::Object(o) => {
            let _ = write!(out, "{}{{", o.type_name);
            for (i, (name, value)) in o.fields.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                let _ = write!(out, "{name}: ");
                source(value, out);
            }
            out.push('}');
        }
        Value::Optional(None) => out.push_str("optional.none()"),
        Value::Optional(Some(v)) => {
            out.push_str("optional.of(");
            source(v, out);
            out.push(')');
        }
        Value::Type(t) => out.push_str(t.runtime_name()),
        Value::Opaque(o) => out.push_str(o.type_name()),
        Value::Lazy(name) => out.push_str(name),
        Value::Preserved(json) => drop(write!(out, "{json}")),
    }
}

fn shown_list(list: &List<'_>, out: &mut String) {
    out.push('[');
    for (i, item) in list.iter().enumerate() {
        if out.len() > MAX_TEXT {
            break;
        }
        out.push_str(if i > 0 { ", " } else { "" });
        if let Ok(item) = item {
            source(&item, out);
        }
    }
    out.push(']');
}

fn shown_map(map: &Map<'_>, out: &mut String) {
    out.push('{');
    for (i, key) in map.keys().into_iter().enumerate() {
        if out.len() > MAX_TEXT {
            break;
        }
        out.push_str(if i > 0 { ", " } else { "" });
        source(&key, out);
        out.push_str(": ");
        if let Ok(Some(value)) = map.find(&key) {
            source(&value, out);
        }
    }
    out.push('}');
}

/// A double as `%g` prints it.
pub(crate) fn double(d: f64) -> String {
    crate::number::shortest(d)
}

/// The name of the type that holds such a value upstream, which some messages show.
pub(crate) fn implementation(v: &Value<'_>) -> String {
    let name = match v {
        Value::Null => "Null",
        Value::Bool(_) => "Bool",
        Value::Int(_) => "Int",
        Value::Uint(_) => "Uint",
        Value::Double(_) => "Double",
        Value::String(_) => "String",
        Value::Bytes(_) => "Bytes",
        Value::Duration(_) => "Duration",
        Value::Timestamp(_) => "Timestamp",
        Value::List(_) => return "*types.baseList".to_owned(),
        Value::Type(_) => return "*types.Type".to_owned(),
        Value::Optional(_) => return "*types.Optional".to_owned(),
        other => return other.type_of().runtime_name().to_owned(),
    };
    format!("types.{name}")
}
