use super::*;
use keelson_api::{Schema, schema};
use serde_json::{Value, json};

fn config_map() -> Option<&'static Schema> {
    schema("io.k8s.api.core.v1.ConfigMap")
}

fn error(bytes: &[u8], schema: Option<&Schema>) -> String {
    decode(bytes, schema).unwrap_err().to_string()
}

/// `{"spec": item}`, as its bytes.
fn spec(item: &[u8]) -> Vec<u8> {
    [b"\xa1\x64spec", item].concat()
}

fn of_spec(item: &[u8]) -> Value {
    decode(&spec(item), None).unwrap().object["spec"].clone()
}

#[test]
fn what_is_written_is_deterministic_and_read_back() {
    let object = json!({"bb": 1, "a": -1, "c": [1.5, 0.1, 100_000.0, 1e300, 65504.0, 5.960_464_477_539_063e-8],
        "d": {"x": null, "y": true}, "e": "", "n": i64::MIN, "m": i64::MAX, "long": "x".repeat(300)});
    let bytes = encode(&object, None);
    assert_eq!(decode(&bytes, None).unwrap().object, object);
    assert_eq!(
        encode(&json!({"bb": 1, "a": 23, "b": 24}), None),
        b"\xd9\xd9\xf7\xa3\x41a\x17\x41b\x18\x18\x42bb\x01"
    );
    assert_eq!(encode(&json!(1.5), None)[3..], *b"\xf9\x3e\x00");
    assert_eq!(
        encode(&json!(100_000.5), None)[3..],
        *b"\xfa\x47\xc3\x50\x40"
    );
    assert_eq!(encode(&json!(0.1), None)[3], 0xfb);
}

#[test]
fn bytes_of_a_type_are_bytes() {
    let object = json!({"binaryData": {"a": "aGVsbG8="}, "data": {"a": "aGVsbG8="}});
    let bytes = encode(&object, config_map());
    assert!(bytes.windows(7).any(|part| part == b"\xd6\x45hello"));
    assert_eq!(decode(&bytes, config_map()).unwrap().object, object);
    assert_eq!(decode(&bytes, None).unwrap().object, object);
    let with = |item: &[u8]| [b"\xa1\x6abinaryData\xa1\x61a", item].concat();
    for same in [
        b"\xd5\x45hello".as_slice(),
        b"\xd7\x45hello",
        b"\x48aGVsbG8=",
    ] {
        let read = decode(&with(same), config_map()).unwrap().object;
        assert_eq!(read["binaryData"]["a"], "aGVsbG8=");
    }
    assert_eq!(
        error(&with(b"\x64aGVs"), config_map()),
        "cbor: cannot unmarshal UTF-8 text string into Go struct field v1.ConfigMap.binaryData of type []uint8"
    );
    assert_eq!(
        error(&with(b"\x42!!"), config_map()),
        "cbor: failed to decode base64 from byte string: illegal base64 data at input byte 0"
    );
}

#[test]
fn items_become_what_json_has() {
    for (item, expected) in [
        (b"\xd5\x42\xff\xfe".as_slice(), json!("__4")),
        (b"\xd6\x42\xff\xfe", json!("//4=")),
        (b"\xd7\x42\xff\xfe", json!("fffe")),
        (b"\xd6\x81\x42ab", json!(["YWI="])),
        (b"\x42\xff\xfe", json!("\u{fffd}\u{fffd}")),
        (b"\xc1\x1a\x65\x92\x00\x80", json!("2024-01-01T00:00:00Z")),
        (b"\xd8\x64\x61x", json!("x")),
        (b"\x7f\x61a\x61b\xff", json!("ab")),
        (b"\x9f\x01\x02\xff", json!([1, 2])),
        (b"\xbf\x41a\x01\xff", json!({"a": 1})),
        (b"\xa1\xf6\x01", json!({"": 1})),
        (b"\xa1\xd6\x41a\x01", json!({"YQ==": 1})),
        (b"\xf9\x3c\x00", json!(1.0)),
    ] {
        assert_eq!(of_spec(item), expected, "{item:x?}");
    }
}

#[test]
fn what_json_cannot_have_is_refused() {
    for (item, expected) in [
        (
            b"\xa2\x61a\x01\x41a\x02".as_slice(),
            "cbor: found duplicate map key \"a\" at map element index 1",
        ),
        (
            b"\xa1\x01\x02",
            "cbor: cannot unmarshal positive integer into Go value of type string",
        ),
        (
            b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
            "cbor: cannot unmarshal positive integer into Go value of type int64 (18446744073709551615 overflows Go's int64)",
        ),
        (
            b"\xf7",
            "cbor: data item of cbor type primitives is not accepted by protocol: simple value 23 is not recognized",
        ),
        (b"\x61\xff", "cbor: invalid UTF-8 string"),
        (
            b"\xc1\x61a",
            "cbor: tag number 1 must be followed by integer or floating-point number, got UTF-8 text string",
        ),
        (
            b"\xf9\x7e\x00",
            "cbor: data item of cbor type primitives is not accepted by protocol: floating-point NaN",
        ),
        (
            b"\xc2\x41\x01",
            "cbor: data item of cbor type tag is not accepted by protocol: bignum",
        ),
        (b"\xff", "cbor: unexpected \"break\" code"),
        (
            b"\x1c",
            "cbor: invalid additional information 28 for type positive integer",
        ),
        (
            b"\x5f\x61a\xff",
            "cbor: wrong element type UTF-8 text string for indefinite-length byte string",
        ),
        (
            b"\xbb\x00\x00\x00\x00\x00\xff\xff\xff",
            "cbor: exceeded max number of key-value pairs 2097152 for CBOR map",
        ),
        (b"\x9b\x00\x00\x00\x00\x00\xff\xff\xff", "unexpected EOF"),
        (b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff", "unexpected EOF"),
        (
            b"\x01\x01",
            "cbor: 1 bytes of extraneous data starting at index 7",
        ),
    ] {
        assert_eq!(error(&spec(item), None), expected, "{item:x?}");
    }
    assert_eq!(error(b"", None), "EOF");
    let deep = [[0x81; 200].as_slice(), &[1]].concat();
    assert_eq!(
        error(&spec(&deep), None),
        "cbor: exceeded max nested level 120"
    );
    let tags = [[0xc6; 100_000].as_slice(), &[1]].concat();
    assert!(decode(&spec(&tags), None).is_ok());
}

#[test]
fn what_cannot_tell_its_type_is_malformed() {
    for (bytes, expected) in [
        (
            b"\x81\x01".as_slice(),
            "cbor: cannot unmarshal array into Go value of type v1.TypeMeta (cannot decode CBOR array to struct without toarray option)",
        ),
        (
            b"\x61a",
            "cbor: cannot unmarshal UTF-8 text string into Go value of type v1.TypeMeta",
        ),
        (
            b"\xa1\x64kind\x01",
            "cbor: cannot unmarshal positive integer into Go struct field v1.TypeMeta.kind of type string",
        ),
    ] {
        let refused = decode(bytes, None);
        assert_eq!(refused, Err(CborError::Malformed(expected.to_owned())));
    }
    assert_eq!(decode(b"\xf6", None).unwrap().object, Value::Null);
    assert!(decode_map(b"\xf6").unwrap().is_empty());
    assert_eq!(
        decode_map(b"\x81\x01").unwrap_err().to_string(),
        "cbor: cannot unmarshal array into Go value of type map[string]interface {}"
    );
}

#[test]
fn unknown_fields_are_a_problem_of_structs_alone() {
    let body = b"\xa3\x64data\xa1\x61a\x61b\x63zzz\xa1\x01\x02\x01\x02";
    let decoded = decode(body, config_map()).unwrap();
    assert_eq!(decoded.object, json!({"data": {"a": "b"}}));
    assert_eq!(
        decoded.problems,
        ["cbor: found unknown field at map element index 1"]
    );
    let small = b"\xa1\x64spec\xa1\x68replicas\x1a\xff\xff\xff\xff";
    assert_eq!(
        error(small, schema("io.k8s.api.apps.v1.Deployment")),
        "cbor: cannot unmarshal positive integer into Go struct field v1.DeploymentSpec.replicas of type int32 (4294967295 overflows Go's int32)"
    );
}
