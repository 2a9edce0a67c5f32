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
    let name = schema.type_name();
    if keelson_machinery::protobuf::supports(name)
        && let Ok(bytes) = keelson_machinery::protobuf::encode(&once, name)
    {
        protobuf(&bytes);
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
