//! The OpenAPI v2 document as the protobuf message `openapi.v2.Document`, which is all that older
//! clients and kubectl's fallback take. Written from the JSON document by a table of fields.

use serde_json::{Map, Value};

/// What is answered. A client that was written before asks with an `@`, which no parser of media
/// types takes in an answer.
pub(super) const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
pub(super) const ASKED_FOR: &[&str] = &[
    MEDIA_TYPE,
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
];

/// How the value of a JSON key becomes a field.
enum Form {
    Text,
    Texts,
    Flag,
    Whole,
    Double,
    /// Any JSON, as text: JSON is YAML.
    Any,
    Anys,
    One(&'static Message),
    Many(&'static Message),
    /// A message whose only field holds the value.
    Inside(&'static Form, u32),
    /// A map, as a message that repeats named values under this number.
    Named(&'static Form, u32),
    /// A flag or a schema.
    SchemaOrFlag,
    Parameters,
    Parameter,
    Response,
}

struct Message {
    fields: &'static [(&'static str, u32, Form)],
    /// Where keys that begin with `x-` go.
    extensions: u32,
}

static INFO: Message = Message {
    fields: &[
        ("title", 1, Form::Text),
        ("version", 2, Form::Text),
        ("description", 3, Form::Text),
    ],
    extensions: 7,
};

/// How clients prove who they are is no part of it: nobody reads that from this form.
static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Form::Text),
        ("info", 2, Form::One(&INFO)),
        ("paths", 8, Form::Named(&Form::One(&PATH_ITEM), 2)),
        ("definitions", 9, Form::Named(&Form::One(&SCHEMA), 1)),
        ("parameters", 10, Form::Named(&Form::Parameter, 1)),
    ],
    extensions: 16,
};

static PATH_ITEM: Message = Message {
    fields: &[
        ("get", 2, Form::One(&OPERATION)),
        ("put", 3, Form::One(&OPERATION)),
        ("post", 4, Form::One(&OPERATION)),
        ("delete", 5, Form::One(&OPERATION)),
        ("options", 6, Form::One(&OPERATION)),
        ("head", 7, Form::One(&OPERATION)),
        ("patch", 8, Form::One(&OPERATION)),
        ("parameters", 9, Form::Parameters),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Form::Texts),
        ("summary", 2, Form::Text),
        ("description", 3, Form::Text),
        ("operationId", 5, Form::Text),
        ("produces", 6, Form::Texts),
        ("consumes", 7, Form::Texts),
        ("parameters", 8, Form::Parameters),
        ("responses", 9, Form::Named(&Form::Response, 1)),
        ("schemes", 10, Form::Texts),
        ("deprecated", 11, Form::Flag),
    ],
    extensions: 13,
};

static RESPONSE: Message = Message {
    fields: &[
        ("description", 1, Form::Text),
        ("schema", 2, Form::Inside(&Form::One(&SCHEMA), 1)),
    ],
    extensions: 5,
};

static BODY_PARAMETER: Message = Message {
    fields: &[
        ("description", 1, Form::Text),
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("required", 4, Form::Flag),
        ("schema", 5, Form::One(&SCHEMA)),
    ],
    extensions: 6,
};

static QUERY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("type", 6, Form::Text),
        ("format", 7, Form::Text),
        ("uniqueItems", 20, Form::Flag),
    ],
    extensions: 23,
};

static PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Form::Flag),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("type", 5, Form::Text),
        ("format", 6, Form::Text),
        ("uniqueItems", 19, Form::Flag),
    ],
    extensions: 22,
};

static REFERENCE: Message = Message {
    fields: &[("$ref", 1, Form::Text), ("description", 2, Form::Text)],
    extensions: 0,
};

static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Form::Text),
        ("format", 2, Form::Text),
        ("title", 3, Form::Text),
        ("description", 4, Form::Text),
        ("default", 5, Form::Any),
        ("multipleOf", 6, Form::Double),
        ("maximum", 7, Form::Double),
        ("exclusiveMaximum", 8, Form::Flag),
        ("minimum", 9, Form::Double),
        ("exclusiveMinimum", 10, Form::Flag),
        ("maxLength", 11, Form::Whole),
        ("minLength", 12, Form::Whole),
        ("pattern", 13, Form::Text),
        ("maxItems", 14, Form::Whole),
        ("minItems", 15, Form::Whole),
        ("uniqueItems", 16, Form::Flag),
        ("maxProperties", 17, Form::Whole),
        ("minProperties", 18, Form::Whole),
        ("required", 19, Form::Texts),
        ("enum", 20, Form::Anys),
        ("additionalProperties", 21, Form::SchemaOrFlag),
        ("type", 22, Form::Inside(&Form::Texts, 1)),
        ("items", 23, Form::Inside(&Form::One(&SCHEMA), 1)),
        ("allOf", 24, Form::Many(&SCHEMA)),
        ("properties", 25, Form::Named(&Form::One(&SCHEMA), 1)),
        ("readOnly", 27, Form::Flag),
        ("example", 30, Form::Any),
    ],
    extensions: 31,
};

/// A message whose first field is a schema.
static ONE_SCHEMA: Form = Form::Inside(&Form::One(&SCHEMA), 1);

pub(super) fn encode(document: &Value) -> Vec<u8> {
    message(&DOCUMENT, document)
}

fn message(shape: &Message, value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(map) = value.as_object() else {
        return out;
    };
    for (key, number, form) in shape.fields {
        if let Some(value) = map.get(*key) {
            field(&mut out, *number, form, value);
        }
    }
    for (key, value) in map.iter().filter(|(key, _)| key.starts_with("x-")) {
        let mut named = Vec::new();
        bytes(&mut named, 1, key.as_bytes());
        field(&mut named, 2, &Form::Any, value);
        bytes(&mut out, shape.extensions, &named);
    }
    out
}

fn field(out: &mut Vec<u8>, number: u32, form: &Form, value: &Value) {
    match form {
        Form::Text => bytes(out, number, value.as_str().unwrap_or_default().as_bytes()),
        Form::Texts => {
            for text in one_or_many(value).iter().filter_map(Value::as_str) {
                bytes(out, number, text.as_bytes());
            }
        }
        Form::Flag => {
            varint(out, u64::from(number) << 3);
            varint(out, u64::from(value.as_bool().unwrap_or(false)));
        }
        Form::Whole => {
            varint(out, u64::from(number) << 3);
            // Negative numbers are sign-extended, which is what the cast does.
            varint(out, value.as_i64().unwrap_or(0) as u64);
        }
        Form::Double => {
            varint(out, (u64::from(number) << 3) | 1);
            out.extend_from_slice(&value.as_f64().unwrap_or(0.0).to_le_bytes());
        }
        Form::Any => {
            let mut any = Vec::new();
            bytes(&mut any, 2, value.to_string().as_bytes());
            bytes(out, number, &any);
        }
        Form::Anys => {
            for value in one_or_many(value) {
                field(out, number, &Form::Any, value);
            }
        }
        Form::One(shape) => bytes(out, number, &message(shape, value)),
        Form::Many(shape) => {
            for value in one_or_many(value) {
                bytes(out, number, &message(shape, value));
            }
        }
        Form::Inside(form, inner) => {
            let mut inside = Vec::new();
            field(&mut inside, *inner, form, value);
            bytes(out, number, &inside);
        }
        Form::Named(form, inner) => {
            let all = value.as_object().map(|map| named(map, form, *inner));
            bytes(out, number, &all.unwrap_or_default());
        }
        Form::SchemaOrFlag => match value {
            Value::Bool(_) => field(out, number, &Form::Inside(&Form::Flag, 2), value),
            _ => field(out, number, &ONE_SCHEMA, value),
        },
        Form::Parameters => {
            for parameter in one_or_many(value) {
                bytes(out, number, &parameters_item(parameter));
            }
        }
        Form::Parameter => bytes(out, number, &parameter_message(value)),
        Form::Response => {
            let (inner, shape) = match value.get("$ref") {
                Some(_) => (2, &REFERENCE),
                None => (1, &RESPONSE),
            };
            let mut inside = Vec::new();
            bytes(&mut inside, inner, &message(shape, value));
            bytes(out, number, &inside);
        }
    }
}

fn named(map: &Map<String, Value>, form: &Form, number: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in map {
        let mut entry = Vec::new();
        bytes(&mut entry, 1, name.as_bytes());
        field(&mut entry, 2, form, value);
        bytes(&mut out, number, &entry);
    }
    out
}

fn parameters_item(parameter: &Value) -> Vec<u8> {
    if parameter.get("$ref").is_some() {
        return wrap(2, &message(&REFERENCE, parameter));
    }
    wrap(1, &parameter_message(parameter))
}

fn parameter_message(parameter: &Value) -> Vec<u8> {
    match parameter.get("in").and_then(Value::as_str) {
        Some("body") => wrap(1, &message(&BODY_PARAMETER, parameter)),
        Some("path") => wrap(2, &wrap(4, &message(&PATH_PARAMETER, parameter))),
        _ => wrap(2, &wrap(3, &message(&QUERY_PARAMETER, parameter))),
    }
}

fn wrap(number: u32, inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, number, inner);
    out
}

fn one_or_many(value: &Value) -> &[Value] {
    match value {
        Value::Array(all) => all,
        one => std::slice::from_ref(one),
    }
}

fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(out, (u64::from(number) << 3) | 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_maps_and_extensions_have_their_places() {
        let schema = json!({"type": "object", "x-a": 1});
        assert_eq!(
            message(&SCHEMA, &schema),
            [
                &[0xb2, 0x01, 8, 0x0a, 6][..],
                b"object",
                &[0xfa, 0x01, 10, 0x0a, 3],
                b"x-a",
                &[0x12, 3, 0x12, 1],
                b"1",
            ]
            .concat()
        );
        let paths = json!({"paths": {"/a": {"get": {"operationId": "g"}}}});
        assert_eq!(
            encode(&paths),
            [
                &[0x42, 13, 0x12, 11, 0x0a, 2][..],
                b"/a",
                &[0x12, 5, 0x12, 3, 0x2a, 1],
                b"g",
            ]
            .concat()
        );
    }

    #[test]
    fn parameters_are_told_apart_by_their_place() {
        let item = |place: &str| parameters_item(&json!({"in": place}));
        assert_eq!(item("body")[2] >> 3, 1);
        assert_eq!((item("path")[2] >> 3, item("path")[4] >> 3), (2, 4));
        assert_eq!((item("query")[2] >> 3, item("query")[4] >> 3), (2, 3));
    }
}
