//! Documents as clients send them.

use keelson_api::{Schema, kind_type, schema};
use keelson_machinery::decode::{decode, normalize};
use keelson_machinery::{default, meta};
use serde_json::Value;

pub(crate) const JSON: &[&[u8]] = &[
    br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"x":"y"}},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1"}}}],"tolerations":[{"key":"k"}]}}"#,
    br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d","creationTimestamp":"2024-01-01T00:00:00Z"},"spec":{"replicas":3,"selector":{"matchLabels":{"a":"b"}},"strategy":{"rollingUpdate":{"maxSurge":"25%","maxUnavailable":1}},"template":{}}}"#,
    br#"{"apiVersion":"v1","kind":"Secret","data":{"k":"AAECAw=="},"stringData":{"a":"b"},"immutable":true}"#,
    br#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","spec":{"group":"g","names":{"plural":"p","kind":"K"},"scope":"Namespaced","versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"x":{"x-kubernetes-preserve-unknown-fields":true,"default":{"y":[1,2.5,null]}}}}}}]}}"#,
];

/// A ConfigMap in its envelope: magic, type, metadata.name and one datum.
pub(crate) const PROTOBUF: &[&[u8]] = &[
    b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x11\x0a\x05\x0a\x03abc\x12\x08\x0a\x01k\x12\x03val",
    b"k8s\0\x0a\x09\x0a\x02v1\x12\x03Pod\x12\x0f\x0a\x03\x0a\x01a\x12\x08\x12\x06\x0a\x01c\x12\x01i",
    b"k8s\0",
];

/// A ConfigMap with texts and bytes, one in indefinite lengths, and numbers of every kind.
pub(crate) const CBOR: &[&[u8]] = &[
    b"\xd9\xd9\xf7\xa4\x44kind\x49ConfigMap\x44data\xa1\x41a\x61b\x4abinaryData\xa1\x41b\xd6\x45hello\x4aapiVersion\x42v1",
    b"\xbf\x64kind\x63Pod\x6aapiVersion\x62v1\x64spec\xa1\x6acontainers\x9f\xa1\x64name\x7f\x61a\x61b\xff\xff\xff",
    b"\xa2\x61a\x88\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x38\x63\xf9\x3e\x00\xfa\x47\xc3\x50\x40\xfb\x3f\xb9\x99\x99\x99\x99\x99\x9a\xf6\xf5\xc1\x1a\x65\x92\x00\x80\x61b\xc0\x74\x32\x30\x32\x34-01-01T00:00:00Z",
    b"\xd5\x81\xd7\x42\xff\xfe",
];

/// The schema that an object says it follows; a Pod's otherwise.
pub(crate) fn schema_of(object: &Value) -> Option<&'static Schema> {
    let (group, version) = meta::split_api_version(meta::api_version(object));
    let name = kind_type(group, version, meta::kind(object)).unwrap_or("io.k8s.api.core.v1.Pod");
    schema(name)
}

pub(crate) fn json(data: &[u8]) {
    let said = serde_json::from_slice(data).unwrap_or(Value::Null);
    let Some(schema) = schema_of(&said) else {
        return;
    };
    let Ok(decoded) = decode(data, schema) else {
        return;
    };
    let object = decoded.object;
    if let Ok(again) = normalize(object.clone(), schema) {
        assert_eq!(
            again.object, object,
            "normalizing twice is normalizing once"
        );
    }
    let mut filled = object;
    default::apply(&mut filled, schema);
    let once = filled.clone();
    default::apply(&mut filled, schema);
    assert_eq!(filled, once, "defaulting twice is defaulting once");
    assert_eq!(through_cbor(&once, Some(schema)), None);
    let name = schema.type_name();
    if keelson_machinery::protobuf::supports(name)
        && let Ok(bytes) = keelson_machinery::protobuf::encode(&once, name)
    {
        protobuf(&bytes);
    }
}

pub(crate) fn cbor(data: &[u8]) {
    if let Ok(map) = keelson_machinery::cbor::decode_map(data) {
        assert_eq!(through_cbor(&map.into(), None), None);
    }
    let Ok(decoded) = keelson_machinery::cbor::decode(data, None) else {
        return;
    };
    assert_eq!(through_cbor(&decoded.object, None), None);
    let Some(schema) = schema_of(&decoded.object) else {
        return;
    };
    if let Ok(decoded) = keelson_machinery::cbor::decode(data, Some(schema))
        && let Ok(decoded) = normalize(decoded.object, schema)
    {
        let (was, is) = (&decoded.object, through_cbor(&decoded.object, Some(schema)));
        assert_eq!(is, None, "{was}");
    }
}

/// What a tree becomes by way of CBOR, when that is another one.
fn through_cbor(object: &Value, schema: Option<&Schema>) -> Option<Value> {
    let bytes = keelson_machinery::cbor::encode(object, schema);
    match keelson_machinery::cbor::decode(&bytes, schema) {
        Ok(again) => (again.object != *object).then_some(again.object),
        // What an object says of its type is a text, or it cannot be read as one.
        Err(_) if object["kind"].is_string() && object["apiVersion"].is_string() => {
            Some(Value::Null)
        }
        Err(_) => None,
    }
}

pub(crate) fn protobuf(data: &[u8]) {
    let type_of = |api_version: &str, kind: &str| {
        let (group, version) = meta::split_api_version(api_version);
        kind_type(group, version, kind)
    };
    if let Ok(object) = keelson_machinery::protobuf::decode(data, type_of)
        && let Some(schema) = schema_of(&object)
    {
        let _ = normalize(object, schema);
    }
    let _ = keelson_machinery::protobuf::decode_message(data, "io.k8s.api.core.v1.Pod");
}
