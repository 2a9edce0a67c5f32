//! JSON ⇄ protobuf for built-in types, driven by the table of messages.
//!
//! An object on the wire is `k8s\0` and a `runtime.Unknown` that names its type and carries its
//! message. What is decoded is the plain tree; [`crate::decode::normalize`] brings it into the
//! server's form, as it does with JSON.

use crate::time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_api::{Message, MessageField, WireType, message};
use serde_json::{Map, Value};

pub const MAGIC: &[u8; 4] = b"k8s\0";
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAX_DEPTH: usize = 120;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Magic,
    #[error("type {0} has no protobuf form")]
    NoMessage(String),
    #[error("unexpected end of protobuf data")]
    Truncated,
    #[error("protobuf: {0}")]
    Malformed(&'static str),
    #[error("{field}: {problem}")]
    Value {
        field: String,
        problem: &'static str,
    },
}

/// The outer message of an object on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Envelope<'b> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'b [u8],
    pub content_type: String,
}

/// Whether objects of a type can be sent.
pub fn supports(type_name: &str) -> bool {
    message(type_name).is_some()
}

/// An object with its envelope. `type_name` is the full name of its type.
pub fn encode(object: &Value, type_name: &str) -> Result<Vec<u8>, ProtobufError> {
    let raw = encode_message(object, type_name)?;
    let text = |k: &str| object.get(k).and_then(Value::as_str).unwrap_or("");
    let mut type_meta = Vec::new();
    put_bytes(&mut type_meta, 1, text("apiVersion").as_bytes());
    put_bytes(&mut type_meta, 2, text("kind").as_bytes());
    let mut out = Vec::with_capacity(raw.len() + type_meta.len() + 24);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &type_meta);
    put_bytes(&mut out, 2, &raw);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    Ok(out)
}

/// The message alone.
pub fn encode_message(object: &Value, type_name: &str) -> Result<Vec<u8>, ProtobufError> {
    let m = message(type_name).ok_or_else(|| ProtobufError::NoMessage(type_name.to_owned()))?;
    let mut out = Vec::new();
    write_message(object, type_name, m, &mut out, 0)?;
    Ok(out)
}

/// One frame of a watch: the length in four bytes, then the event with its encoded object.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(object.len() + 8);
    put_bytes(&mut raw, 1, object);
    let mut body = Vec::with_capacity(raw.len() + event.len() + 16);
    put_bytes(&mut body, 1, event.as_bytes());
    put_bytes(&mut body, 2, &raw);
    let mut out = Vec::with_capacity(body.len() + 4);
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&body);
    out
}

/// Opens an envelope.
pub fn open(bytes: &[u8]) -> Result<Envelope<'_>, ProtobufError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let mut out = Envelope::default();
    let mut r = Reader { bytes: body };
    while let Some((number, wire)) = r.tag()? {
        match (number, wire) {
            (1, Wire::Bytes(b)) => {
                let mut inner = Reader { bytes: b };
                while let Some(field) = inner.tag()? {
                    match field {
                        (1, Wire::Bytes(b)) => out.api_version = text(b)?,
                        (2, Wire::Bytes(b)) => out.kind = text(b)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(b)) => out.raw = b,
            (4, Wire::Bytes(b)) => out.content_type = text(b)?,
            _ => {}
        }
    }
    Ok(out)
}

/// The tree of a message; of an object, without apiVersion and kind.
pub fn decode_message(bytes: &[u8], type_name: &str) -> Result<Value, ProtobufError> {
    let m = message(type_name).ok_or_else(|| ProtobufError::NoMessage(type_name.to_owned()))?;
    read_message(bytes, type_name, m, 0)
}

/// An object with its envelope. `type_of` finds the full type name of an apiVersion and kind.
pub fn decode(
    bytes: &[u8],
    type_of: impl Fn(&str, &str) -> Option<&'static str>,
) -> Result<Value, ProtobufError> {
    let e = open(bytes)?;
    let name = type_of(&e.api_version, &e.kind)
        .ok_or_else(|| ProtobufError::NoMessage(format!("{}, Kind={}", e.api_version, e.kind)))?;
    let mut v = decode_message(e.raw, name)?;
    crate::meta::set_type(&mut v, &e.api_version, &e.kind);
    Ok(v)
}

// Writing.

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push((v as u8) | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn put_number(out: &mut Vec<u8>, number: u32, v: i64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, v as u64);
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn bad(field: &str, problem: &'static str) -> ProtobufError {
    ProtobufError::Value {
        field: field.to_owned(),
        problem,
    }
}

fn write_message(
    v: &Value,
    name: &str,
    m: &Message,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Malformed("nested too deeply"));
    }
    if write_special(v, name, out, depth)? {
        return Ok(());
    }
    let Value::Object(map) = v else {
        return if v.is_null() {
            Ok(())
        } else {
            Err(bad(name, "must be an object"))
        };
    };
    for f in &m.fields {
        if f.embedded {
            if let WireType::Message(inner) = f.ty
                && let Some(im) = message(inner)
                && im
                    .fields
                    .iter()
                    .any(|x| x.embedded || map.contains_key(x.json))
            {
                let mut body = Vec::new();
                write_message(v, inner, im, &mut body, depth + 1)?;
                put_bytes(out, f.number, &body);
            }
            continue;
        }
        let Some(item) = map.get(f.json) else {
            continue;
        };
        match item {
            Value::Null => {}
            Value::Array(items) if f.repeated => {
                for i in items {
                    write_field(i, f, out, depth)?;
                }
            }
            Value::Object(entries) if f.map => {
                for (k, e) in entries {
                    let mut body = Vec::new();
                    put_bytes(&mut body, 1, k.as_bytes());
                    let value = MessageField {
                        number: 2,
                        map: false,
                        ..*f
                    };
                    write_field(e, &value, &mut body, depth)?;
                    put_bytes(out, f.number, &body);
                }
            }
            _ if f.map => return Err(bad(f.json, "must be an object")),
            // A type of its own may stand for a list (ExtraValue).
            item => write_field(item, f, out, depth)?,
        }
    }
    Ok(())
}

fn write_field(
    v: &Value,
    f: &MessageField,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), ProtobufError> {
    match f.ty {
        WireType::String => {
            let s = v.as_str().ok_or_else(|| bad(f.json, "must be a string"))?;
            put_bytes(out, f.number, s.as_bytes());
        }
        WireType::Bytes => {
            let s = v.as_str().ok_or_else(|| bad(f.json, "must be a string"))?;
            let b = STANDARD
                .decode(s)
                .map_err(|_| bad(f.json, "must be base64"))?;
            put_bytes(out, f.number, &b);
        }
        WireType::Bool => {
            let b = v
                .as_bool()
                .ok_or_else(|| bad(f.json, "must be a boolean"))?;
            put_number(out, f.number, i64::from(b));
        }
        WireType::Int32 | WireType::Int64 => {
            let n = v
                .as_i64()
                .ok_or_else(|| bad(f.json, "must be an integer"))?;
            put_number(out, f.number, n);
        }
        WireType::Double => {
            let n = v.as_f64().ok_or_else(|| bad(f.json, "must be a number"))?;
            put_varint(out, u64::from(f.number) << 3 | 1);
            out.extend_from_slice(&n.to_le_bytes());
        }
        WireType::Message(name) => {
            let m = message(name).ok_or_else(|| ProtobufError::NoMessage(name.to_owned()))?;
            let mut body = Vec::new();
            write_message(v, name, m, &mut body, depth + 1)?;
            put_bytes(out, f.number, &body);
        }
    }
    Ok(())
}

/// Types whose JSON is no object with the message's fields.
fn write_special(
    v: &Value,
    name: &str,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<bool, ProtobufError> {
    if let Some(name) = name.strip_prefix(EXTENSIONS) {
        return write_extension(v, name, out, depth);
    }
    match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => {
            let text = match v {
                Value::String(s) => s.clone(),
                v => v.to_string(),
            };
            put_bytes(out, 1, text.as_bytes());
        }
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => match v {
            Value::String(s) => {
                put_number(out, 1, 1);
                put_number(out, 2, 0);
                put_bytes(out, 3, s.as_bytes());
            }
            v => {
                let n = v
                    .as_i64()
                    .ok_or_else(|| bad(name, "must be an integer or a string"))?;
                put_number(out, 1, 0);
                put_number(out, 2, n);
                put_bytes(out, 3, b"");
            }
        },
        "io.k8s.apimachinery.pkg.runtime.RawExtension" => {
            if !v.is_null() {
                put_bytes(out, 1, v.to_string().as_bytes());
            }
        }
        _ => match name.strip_prefix(META) {
            Some("Time" | "MicroTime") => {
                if let Some(s) = v.as_str() {
                    let t = time::parse(s).ok_or_else(|| bad(name, "must be an RFC 3339 time"))?;
                    put_number(out, 1, t.as_second());
                    put_number(out, 2, i64::from(t.subsec_nanosecond()));
                }
            }
            Some("FieldsV1") => put_bytes(out, 1, v.to_string().as_bytes()),
            _ => match v {
                // A list that is a type of its own: one repeated field.
                Value::Array(items) => {
                    for i in items {
                        let s = i.as_str().ok_or_else(|| bad(name, "must hold strings"))?;
                        put_bytes(out, 1, s.as_bytes());
                    }
                }
                _ => return Ok(false),
            },
        },
    }
    Ok(true)
}

fn write_extension(
    v: &Value,
    name: &str,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<bool, ProtobufError> {
    let props = format!("{EXTENSIONS}JSONSchemaProps");
    let m = message(&props).ok_or_else(|| ProtobufError::NoMessage(props.clone()))?;
    let schema = |v: &Value, number: u32, out: &mut Vec<u8>| -> Result<(), ProtobufError> {
        let mut body = Vec::new();
        write_message(v, &props, m, &mut body, depth + 1)?;
        put_bytes(out, number, &body);
        Ok(())
    };
    match (name, v) {
        ("JSON", v) => put_bytes(out, 1, v.to_string().as_bytes()),
        ("JSONSchemaPropsOrArray", Value::Array(items)) => {
            for i in items {
                schema(i, 2, out)?;
            }
        }
        ("JSONSchemaPropsOrStringArray", Value::Array(items)) => {
            for i in items {
                put_bytes(out, 2, i.as_str().unwrap_or("").as_bytes());
            }
        }
        ("JSONSchemaPropsOrBool", Value::Bool(b)) => put_number(out, 1, i64::from(*b)),
        ("JSONSchemaPropsOrBool", v) => {
            put_number(out, 1, 1);
            schema(v, 2, out)?;
        }
        ("JSONSchemaPropsOrArray" | "JSONSchemaPropsOrStringArray", v) => schema(v, 1, out)?,
        _ => return Ok(false),
    }
    Ok(true)
}

// Reading.

enum Wire<'b> {
    Number(u64),
    Fixed64([u8; 8]),
    Bytes(&'b [u8]),
    /// Four bytes; no type of the API uses them.
    Fixed32,
}

struct Reader<'b> {
    bytes: &'b [u8],
}

impl<'b> Reader<'b> {
    fn take(&mut self, n: usize) -> Result<&'b [u8], ProtobufError> {
        if n > self.bytes.len() {
            return Err(ProtobufError::Truncated);
        }
        let (a, b) = self.bytes.split_at(n);
        self.bytes = b;
        Ok(a)
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut v = 0u64;
        for shift in (0..70).step_by(7) {
            let b = self.take(1)?[0];
            if shift < 64 {
                v |= u64::from(b & 0x7f) << shift;
            }
            if b & 0x80 == 0 {
                return Ok(v);
            }
        }
        Err(ProtobufError::Malformed("number is too long"))
    }

    fn tag(&mut self) -> Result<Option<(u32, Wire<'b>)>, ProtobufError> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3)
            .map_err(|_| ProtobufError::Malformed("field number is out of range"))?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => {
                let mut b = [0; 8];
                b.copy_from_slice(self.take(8)?);
                Wire::Fixed64(b)
            }
            2 => {
                let n = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Truncated)?;
                Wire::Bytes(self.take(n)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(ProtobufError::Malformed("unknown wire type")),
        };
        Ok(Some((number, wire)))
    }
}

fn text(b: &[u8]) -> Result<String, ProtobufError> {
    String::from_utf8(b.to_vec()).map_err(|_| ProtobufError::Malformed("text is not UTF-8"))
}

fn read_message(
    bytes: &[u8],
    name: &str,
    m: &Message,
    depth: usize,
) -> Result<Value, ProtobufError> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Malformed("nested too deeply"));
    }
    if let Some(v) = read_special(bytes, name, depth)? {
        return Ok(v);
    }
    let mut out = Map::new();
    read_fields(bytes, m, &mut out, depth)?;
    Ok(Value::Object(out))
}

fn read_fields(
    bytes: &[u8],
    m: &Message,
    out: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    let mut r = Reader { bytes };
    while let Some((number, wire)) = r.tag()? {
        let Some(f) = m.field(number) else { continue };
        if f.embedded {
            if let (WireType::Message(inner), Wire::Bytes(b)) = (f.ty, wire)
                && let Some(im) = message(inner)
            {
                if depth > MAX_DEPTH {
                    return Err(ProtobufError::Malformed("nested too deeply"));
                }
                read_fields(b, im, out, depth + 1)?;
            }
        } else if f.map {
            let Wire::Bytes(b) = wire else {
                return Err(bad(f.json, "is not a map"));
            };
            let (mut key, mut value) = (String::new(), None);
            let mut entry = Reader { bytes: b };
            while let Some((n, w)) = entry.tag()? {
                match (n, w) {
                    (1, Wire::Bytes(b)) => key = text(b)?,
                    (2, w) => value = Some(read_field(&w, f, depth)?),
                    _ => {}
                }
            }
            let value = match value {
                Some(v) => v,
                None => read_field(&Wire::Bytes(b""), f, depth)?,
            };
            let map = out
                .entry(f.json)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, value);
            }
        } else if f.repeated {
            let list = out
                .entry(f.json)
                .or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { continue };
            match (&wire, f.ty) {
                (Wire::Bytes(b), WireType::Bool | WireType::Int32 | WireType::Int64) => {
                    let mut packed = Reader { bytes: b };
                    while !packed.bytes.is_empty() {
                        list.push(read_field(&Wire::Number(packed.varint()?), f, depth)?);
                    }
                }
                _ => list.push(read_field(&wire, f, depth)?),
            }
        } else {
            out.insert(f.json.to_owned(), read_field(&wire, f, depth)?);
        }
    }
    Ok(())
}

fn read_field(wire: &Wire<'_>, f: &MessageField, depth: usize) -> Result<Value, ProtobufError> {
    Ok(match (f.ty, wire) {
        (WireType::String, Wire::Bytes(b)) => Value::String(text(b)?),
        (WireType::Bytes, Wire::Bytes(b)) => Value::String(STANDARD.encode(b)),
        (WireType::Bool, Wire::Number(n)) => Value::Bool(*n != 0),
        (WireType::Int32, Wire::Number(n)) => Value::from(*n as i32),
        (WireType::Int64, Wire::Number(n)) => Value::from(*n as i64),
        (WireType::Double, Wire::Fixed64(b)) => {
            serde_json::Number::from_f64(f64::from_le_bytes(*b))
                .map(Value::Number)
                .ok_or_else(|| bad(f.json, "is not a finite number"))?
        }
        (WireType::Message(name), Wire::Bytes(b)) => {
            let m = message(name).ok_or_else(|| ProtobufError::NoMessage(name.to_owned()))?;
            read_message(b, name, m, depth + 1)?
        }
        _ => return Err(bad(f.json, "has another wire type")),
    })
}

fn read_special(bytes: &[u8], name: &str, depth: usize) -> Result<Option<Value>, ProtobufError> {
    let json = |b: &[u8]| -> Result<Value, ProtobufError> {
        if b.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(b)
            .map_err(|_| ProtobufError::Malformed("embedded JSON is not valid"))
    };
    let (mut first, mut second, mut strings) = (0i64, 0i64, Vec::new());
    let mut last: &[u8] = b"";
    let simple = |name: &str| {
        matches!(
            name,
            "io.k8s.apimachinery.pkg.api.resource.Quantity"
                | "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
                | "io.k8s.apimachinery.pkg.runtime.RawExtension"
        ) || matches!(
            name.strip_prefix(META),
            Some("Time" | "MicroTime" | "FieldsV1" | "Verbs")
        ) || name.ends_with(".ExtraValue")
            || name.strip_prefix(EXTENSIONS) == Some("JSON")
    };
    if !simple(name) {
        return match name.strip_prefix(EXTENSIONS) {
            Some(n) => read_extension(bytes, n, depth),
            None => Ok(None),
        };
    }
    let mut r = Reader { bytes };
    while let Some((number, wire)) = r.tag()? {
        match (number, wire) {
            (1, Wire::Number(n)) => first = n as i64,
            (2, Wire::Number(n)) => second = n as i64,
            (1, Wire::Bytes(b)) if name.ends_with("ExtraValue") || name.ends_with("Verbs") => {
                strings.push(Value::String(text(b)?));
            }
            (_, Wire::Bytes(b)) => last = b,
            _ => {}
        }
    }
    Ok(Some(match name.rsplit('.').next().unwrap_or("") {
        "Quantity" => Value::String(text(last)?),
        "IntOrString" if first == 1 => Value::String(text(last)?),
        "IntOrString" => Value::from(second as i32),
        "Time" | "MicroTime" if first == 0 && second == 0 => Value::Null,
        "Time" => Value::String(time::format_unix(first)),
        "MicroTime" => {
            let nanos = i32::try_from(second).unwrap_or(0);
            match jiff::Timestamp::new(first, nanos) {
                Ok(t) => Value::String(time::format_micro(t)),
                Err(_) => Value::Null,
            }
        }
        "ExtraValue" | "Verbs" => Value::Array(strings),
        _ => json(last)?,
    }))
}

fn read_extension(bytes: &[u8], name: &str, depth: usize) -> Result<Option<Value>, ProtobufError> {
    if !name.starts_with("JSONSchemaPropsOr") {
        return Ok(None);
    }
    let props = format!("{EXTENSIONS}JSONSchemaProps");
    let m = message(&props).ok_or_else(|| ProtobufError::NoMessage(props.clone()))?;
    let (mut schema, mut list, mut allows) = (None, Vec::new(), false);
    let mut r = Reader { bytes };
    while let Some((number, wire)) = r.tag()? {
        match (name, number, wire) {
            ("JSONSchemaPropsOrBool", 1, Wire::Number(n)) => allows = n != 0,
            ("JSONSchemaPropsOrBool", 2, Wire::Bytes(b)) | (_, 1, Wire::Bytes(b)) => {
                schema = Some(read_message(b, &props, m, depth + 1)?);
            }
            ("JSONSchemaPropsOrStringArray", 2, Wire::Bytes(b)) => {
                list.push(Value::String(text(b)?))
            }
            (_, 2, Wire::Bytes(b)) => list.push(read_message(b, &props, m, depth + 1)?),
            _ => {}
        }
    }
    Ok(Some(match schema {
        Some(s) => s,
        None if name == "JSONSchemaPropsOrBool" => Value::Bool(allows),
        None => Value::Array(list),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::normalize;
    use keelson_api::{kind_type, schema};
    use serde_json::json;

    fn type_of(api_version: &str, kind: &str) -> Option<&'static str> {
        let (g, v) = crate::meta::split_api_version(api_version);
        kind_type(g, v, kind)
    }

    fn round_trip(v: Value) {
        let name = type_of(
            v["apiVersion"].as_str().unwrap(),
            v["kind"].as_str().unwrap(),
        )
        .unwrap();
        let s = schema(name).unwrap();
        let canonical = normalize(v, s).unwrap().object;
        let bytes = encode(&canonical, name).unwrap();
        let back = normalize(decode(&bytes, type_of).unwrap(), s).unwrap();
        assert_eq!(back.object, canonical);
        assert!(back.problems.is_empty(), "{:?}", back.problems);
        // Every cut must fail or decode, never panic.
        for n in 0..bytes.len() {
            let _ = decode(&bytes[..n], type_of);
        }
    }

    #[test]
    fn objects_round_trip() {
        round_trip(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "n", "labels": {"a": "b"}, "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"terminationGracePeriodSeconds": 0, "tolerations": [{"key": "k", "tolerationSeconds": -5}],
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "c", "configMap": {"name": "x", "defaultMode": 420}}],
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}}, "securityContext": {"privileged": false},
                    "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 3},
                    "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}}]}]},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}]}}));
        round_trip(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "AAEC", "e": ""}}),
        );
        round_trip(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"ports": [{"port": 80, "targetPort": "x"}, {"port": 81, "targetPort": 8081}]}}),
        );
        round_trip(
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"renewTime": "2026-01-01T00:00:00.123456Z", "leaseTransitions": 0}}),
        );
        round_trip(
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
            "spec": {"extra": {"k": ["a", "b"]}}}),
        );
        round_trip(
            json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {}, "data": {"spec": {"x": [1]}}, "revision": 3}),
        );
    }

    #[test]
    fn definitions_round_trip() {
        round_trip(
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
            "spec": {"group": "g", "scope": "Namespaced", "names": {"kind": "K", "plural": "ks"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", "enum": ["x", 1]},
                        "x-kubernetes-list-type": "set"},
                        "m": {"type": "object", "additionalProperties": {"type": "integer", "default": 3, "maximum": 1.5}}}}}}]}}),
        );
    }

    #[test]
    fn every_message_of_a_kind_round_trips_when_empty() {
        for r in keelson_api::resources() {
            let Some(name) = kind_type(r.group, r.version, r.kind) else {
                continue;
            };
            if supports(name) {
                round_trip(
                    json!({"apiVersion": crate::meta::join_api_version(r.group, r.version), "kind": r.kind}),
                );
            }
        }
    }

    #[test]
    fn bad_input_is_refused() {
        assert_eq!(decode(b"{}", type_of), Err(ProtobufError::Magic));
        assert_eq!(
            decode(b"k8s\0\x0a\xff", type_of),
            Err(ProtobufError::Truncated)
        );
        assert!(matches!(
            decode(b"k8s\0", type_of),
            Err(ProtobufError::NoMessage(_))
        ));
        // A message nested in itself without end.
        let props = format!("{EXTENSIONS}JSONSchemaProps");
        let mut body = Vec::new();
        for _ in 0..5000 {
            let mut outer = Vec::new();
            put_bytes(&mut outer, 28, &body);
            body = outer;
        }
        assert!(decode_message(&body, &props).is_err());
    }

    #[test]
    fn a_known_encoding() {
        // Namespace "a": ObjectMeta.name is field 1 of field 1.
        let got = encode_message(
            &json!({"metadata": {"name": "a"}}),
            "io.k8s.api.core.v1.Namespace",
        )
        .unwrap();
        assert_eq!(got, [0x0a, 0x03, 0x0a, 0x01, b'a']);
        assert_eq!(
            watch_frame("ADDED", b"x"),
            b"\0\0\0\x0c\x0a\x05ADDED\x12\x03\x0a\x01x"
        );
    }
}
