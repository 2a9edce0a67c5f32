//! Text forms of Go's standard library that clients see inside API messages.

use serde_json::Value;
use std::fmt::Write;

/// A string as Go's `%q` prints it.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x10000 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => {
                let _ = write!(out, "\\U{:08x}", c as u32);
            }
        }
    }
    out.push('"');
    out
}

/// Close to Go's `unicode.IsPrint`: everything but controls, separators other than the plain
/// space, and invisible formatting characters.
pub fn is_printable(c: char) -> bool {
    if c == ' ' {
        return true;
    }
    !(c.is_control()
        || c.is_whitespace()
        || matches!(c as u32,
            0xad | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff
            | 0xe000..=0xf8ff | 0xfff0..=0xfffb | 0xe0000..=0xe0fff | 0xf0000..=0x10ffff))
}

/// A value as Go's `json.Marshal` writes it: compact, keys sorted, `<`, `>` and `&` escaped.
pub fn json(v: &Value) -> String {
    let text = v.to_string();
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// What Go's JSON decoder calls a value that it cannot put where it belongs.
pub fn json_kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The type that Go's decoder gives a value where nothing says what it should be.
pub fn dynamic_type(v: &Value) -> &'static str {
    match v {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// The words that Go's `strconv.ParseBool` knows.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A value as Go's `%v` prints the corresponding simple type.
pub fn plain(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => "<nil>".to_owned(),
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(plain).collect::<Vec<_>>().join(" ")
            )
        }
        Value::Object(map) => {
            let pairs: Vec<String> = map
                .iter()
                .map(|(k, v)| format!("{k}:{}", plain(v)))
                .collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

/// The place of the first byte that is not standard padded base64, as Go's decoder reports it.
pub(crate) fn check_base64(t: &str) -> Option<usize> {
    let mut bytes: Vec<(usize, u8)> = Vec::new();
    let b = t.as_bytes();
    let clean = !b.iter().any(|c| matches!(c, b'\r' | b'\n'));
    if clean && b.len().is_multiple_of(4) {
        let body = b
            .strip_suffix(b"==")
            .or_else(|| b.strip_suffix(b"="))
            .unwrap_or(b);
        if body.iter().all(|c| is_base64(*c)) {
            return None;
        }
    }
    bytes.extend(
        b.iter()
            .copied()
            .enumerate()
            .filter(|(_, c)| !matches!(c, b'\r' | b'\n')),
    );
    let mut n = 0;
    while n < bytes.len() && is_base64(bytes[n].1) {
        n += 1;
    }
    let rest = &bytes[n..];
    let ok = match n % 4 {
        0 => rest.is_empty(),
        2 => rest.len() == 2 && rest.iter().all(|(_, c)| *c == b'='),
        3 => rest.len() == 1 && rest[0].1 == b'=',
        _ => false,
    };
    if ok {
        None
    } else {
        // A group that is cut short is reported where it begins.
        let group = bytes.get(n - n % 4).map_or(b.len(), |(i, _)| *i);
        Some(rest.first().map_or(group, |(i, _)| *i))
    }
}

fn is_base64(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'+' || c == b'/'
}
