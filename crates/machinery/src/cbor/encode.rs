//! From a tree to CBOR.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_api::{Additional, Schema, Type};
use serde_json::{Number, Value};

use super::{MAGIC, half};

/// "Expected later encoding: base64", around bytes that JSON has as such a text.
const BASE64_TAG: u8 = 0xd6;

/// An object with its magic. The schema is that of a built-in type.
pub fn encode(value: &Value, schema: Option<&Schema>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(MAGIC);
    put(&mut out, value, schema);
    out
}

/// One frame of a watch: the event with its encoded object.
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + event.len() + 24);
    out.extend_from_slice(MAGIC);
    put_head(&mut out, 5, 2);
    put_string(&mut out, "type");
    put_string(&mut out, event);
    put_string(&mut out, "object");
    out.extend_from_slice(object);
    out
}

fn put(out: &mut Vec<u8>, value: &Value, schema: Option<&Schema>) {
    match value {
        Value::Null => out.push(0xf6),
        Value::Bool(flag) => out.push(0xf4 + u8::from(*flag)),
        Value::Number(number) => put_number(out, number, schema),
        Value::String(text) => {
            let bytes = schema.is_some_and(|schema| schema.kind() == Type::Bytes);
            match bytes.then(|| STANDARD.decode(text)) {
                Some(Ok(bytes)) => {
                    out.push(BASE64_TAG);
                    put_head(out, 2, bytes.len() as u64);
                    out.extend_from_slice(&bytes);
                }
                _ => put_string(out, text),
            }
        }
        Value::Array(items) => {
            let schema = schema.and_then(Schema::items);
            put_head(out, 4, items.len() as u64);
            items.iter().for_each(|item| put(out, item, schema));
        }
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            // The order of the encoded keys: their length comes before their letters.
            sorted.sort_by_key(|(name, _)| (name.len(), *name));
            put_head(out, 5, sorted.len() as u64);
            for (name, value) in sorted {
                put_string(out, name);
                put(out, value, schema.and_then(|schema| member(schema, name)));
            }
        }
    }
}

/// The schema of a field, or of the values of a map.
pub(super) fn member<'s>(schema: &'s Schema, name: &str) -> Option<&'s Schema> {
    match (schema.field(name), schema.additional()) {
        (Some(field), _) => Some(&field.schema),
        (None, Additional::Of(of)) => Some(of),
        _ => None,
    }
}

fn put_head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    match argument {
        0..24 => out.push(major | argument as u8),
        24..0x100 => out.extend_from_slice(&[major | 24, argument as u8]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend_from_slice(&(argument as u16).to_be_bytes());
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(major | 26);
            out.extend_from_slice(&(argument as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&argument.to_be_bytes());
        }
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_head(out, 2, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn put_number(out: &mut Vec<u8>, number: &Number, schema: Option<&Schema>) {
    let float = schema.is_some_and(|schema| schema.kind() == Type::Number);
    match (number.as_i64(), number.as_u64()) {
        (Some(number), _) if !float && number < 0 => put_head(out, 1, !number as u64),
        (_, Some(number)) if !float => put_head(out, 0, number),
        _ => put_float(out, number.as_f64().unwrap_or_default()),
    }
}

/// The shortest width that holds the value.
fn put_float(out: &mut Vec<u8>, value: f64) {
    let single = value as f32;
    if f64::from(single) != value {
        out.push(0xfb);
        out.extend_from_slice(&value.to_be_bytes());
        return;
    }
    match to_half(single) {
        Some(bits) => {
            out.push(0xf9);
            out.extend_from_slice(&bits.to_be_bytes());
        }
        None => {
            out.push(0xfa);
            out.extend_from_slice(&single.to_be_bytes());
        }
    }
}

/// The half that is exactly this value.
fn to_half(value: f32) -> Option<u16> {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let exponent = (bits >> 23 & 0xff) as i32 - 127;
    let fraction = bits & 0x7f_ffff;
    let magnitude = match exponent {
        -127 if fraction == 0 => 0,
        -14..=15 => ((exponent + 15) as u16) << 10 | (fraction >> 13) as u16,
        -24..=-15 => ((fraction | 0x80_0000) >> (-exponent - 1)) as u16,
        _ => return None,
    };
    let found = sign | magnitude;
    (half(found) == f64::from(value)).then_some(found)
}
