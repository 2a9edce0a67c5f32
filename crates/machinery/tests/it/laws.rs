use crate::generate::Generator;
use keelson_api::{Schema, kind_type, resources, schema};
use keelson_machinery::apply::{FieldSet, Request, apply, track_update};
use keelson_machinery::decode::{decode, normalize};
use keelson_machinery::{cbor, default, meta, patch, protobuf};
use serde_json::{Value, json};

const SEEDS: u64 = 12;

/// Calls the law with a made-up object of every kind, in the server's form.
fn every_kind(law: impl Fn(&str, &'static Schema, Value, Value)) {
    for r in resources() {
        let Some(name) = kind_type(r.group, r.version, r.kind) else {
            continue;
        };
        let s = schema(name).unwrap();
        let api_version = meta::join_api_version(r.group, r.version);
        for seed in 0..SEEDS {
            let raw = Generator::new(seed).object(s, &api_version, r.kind);
            let canonical = match normalize(raw.clone(), s) {
                Ok(d) => {
                    assert!(
                        d.problems.is_empty(),
                        "{name} seed {seed}: {:?}",
                        d.problems
                    );
                    d.object
                }
                Err(e) => panic!("{name} seed {seed}: {e}\n{raw}"),
            };
            law(&format!("{name} seed {seed}"), s, raw, canonical);
        }
    }
}

#[test]
fn normalizing_is_idempotent_and_survives_the_wire() {
    every_kind(|at, s, _, v| {
        assert_eq!(normalize(v.clone(), s).unwrap().object, v, "{at}");
        let bytes = serde_json::to_vec(&v).unwrap();
        assert_eq!(decode(&bytes, s).unwrap().object, v, "{at}");
    });
}

#[test]
fn every_kind_survives_cbor() {
    every_kind(|at, s, _, v| {
        let bytes = cbor::encode(&v, Some(s));
        let back = cbor::decode(&bytes, Some(s)).unwrap_or_else(|err| panic!("{at}: {err}"));
        assert!(back.problems.is_empty(), "{at}: {:?}", back.problems);
        let back = normalize(back.object, s).unwrap().object;
        assert!(back == v, "{at}: {}", difference(&back, &v));
        // Without the schema bytes are texts in base64 again, and numbers stay what they are.
        let back = cbor::decode(&bytes, None).unwrap().object;
        let back = normalize(back, s).unwrap().object;
        assert!(back == v, "{at}: {}", difference(&back, &v));
        assert_eq!(cbor::encode(&back, Some(s)), bytes, "{at}");
    });
}

#[test]
fn every_kind_survives_protobuf() {
    every_kind(|at, s, _, v| {
        let name = s.type_name();
        if !protobuf::supports(name) {
            return;
        }
        // Protobuf knows no empty list or map, only absent ones.
        let mut v = v;
        drop_empty(&mut v, s);
        let v = normalize(v, s).unwrap().object;
        let bytes = protobuf::encode(&v, name).unwrap();
        let back = protobuf::decode(&bytes, |a, k| {
            let (g, version) = meta::split_api_version(a);
            kind_type(g, version, k)
        })
        .unwrap();
        let back = normalize(back, s).unwrap().object;
        assert!(back == v, "{at}: {}", difference(&back, &v));
    });
}

/// Where two trees differ first.
fn difference(a: &Value, b: &Value) -> String {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let keys = x.keys().chain(y.keys()).find(|k| x.get(*k) != y.get(*k));
            match keys {
                Some(k) => {
                    let null = Value::Null;
                    let inner = difference(x.get(k).unwrap_or(&null), y.get(k).unwrap_or(&null));
                    format!(".{k}{inner}")
                }
                None => String::new(),
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            match x.iter().zip(y).position(|(a, b)| a != b) {
                Some(i) => format!("[{i}]{}", difference(&x[i], &y[i])),
                None => String::new(),
            }
        }
        _ => format!(": {a} is not {b}"),
    }
}

fn drop_empty(v: &mut Value, s: &Schema) {
    match v {
        Value::Object(m) => {
            m.retain(|k, v| match v {
                Value::Array(l) => !l.is_empty(),
                Value::Object(o) => !o.is_empty() || s.property(k).is_some_and(|p| !p.is_map()),
                _ => true,
            });
            for (k, v) in m.iter_mut() {
                if let Some(p) = s.property(k) {
                    drop_empty(v, p);
                }
            }
        }
        Value::Array(l) => {
            if let Some(of) = s.items() {
                l.iter_mut().for_each(|v| drop_empty(v, of));
            }
        }
        _ => {}
    }
}

#[test]
fn defaulting_is_idempotent() {
    every_kind(|at, s, _, mut v| {
        default::apply(&mut v, s);
        let once = v.clone();
        default::apply(&mut v, s);
        assert_eq!(v, once, "{at}");
    });
}

#[test]
fn a_patch_equal_to_the_object_changes_nothing() {
    every_kind(|at, s, _, v| {
        let merged = patch::merge::apply(v.clone(), v.clone()).unwrap();
        assert_eq!(
            normalize(merged, s).unwrap().object,
            v,
            "merge patch of {at}"
        );
        let merged = patch::strategic::apply(v.clone(), v.clone(), s).unwrap();
        assert_eq!(
            normalize(merged, s).unwrap().object,
            v,
            "strategic patch of {at}"
        );
        assert_eq!(
            patch::strategic::apply(v.clone(), json!({}), s).unwrap(),
            v,
            "{at}"
        );
    });
}

#[test]
fn merge_patches_add_up() {
    every_kind(|at, s, _, v| {
        let other = Generator::new(99).object(s, meta::api_version(&v), meta::kind(&v));
        let once = patch::merge::apply(v.clone(), other.clone()).unwrap();
        let twice = patch::merge::apply(once.clone(), other).unwrap();
        assert_eq!(once, twice, "{at}");
    });
}

#[test]
fn applying_is_idempotent_and_owns_what_it_applies() {
    let reset = FieldSet::default();
    every_kind(|at, s, _, raw| {
        let request = Request {
            schema: s,
            manager: "m",
            api_version: meta::api_version(&raw),
            kind: meta::kind(&raw),
            subresource: "",
            now: "2026-01-01T00:00:00Z",
            reset: &reset,
            versions: None,
        };
        let first =
            apply(None, &raw, &request, false).unwrap_or_else(|e| panic!("{at}: {e}\n{raw}"));
        let live = normalize(first, s).unwrap().object;
        // A configuration of empty lists alone owns nothing.
        if meta::managed_fields(&live).is_empty() {
            return;
        }
        let again = apply(Some(&live), &raw, &request, false)
            .unwrap_or_else(|e| panic!("{at}: again: {e}"));
        let again = normalize(again, s).unwrap().object;
        assert_eq!(again["spec"], live["spec"], "{at}");
        assert_eq!(
            meta::managed_fields(&again),
            meta::managed_fields(&live),
            "{at}\n{raw}"
        );
        // Another manager that wants the same does not conflict.
        let other = Request {
            manager: "o",
            ..request
        };
        assert!(apply(Some(&live), &raw, &other, false).is_ok(), "{at}");
    });
}

#[test]
fn an_update_that_changes_nothing_owns_nothing() {
    let reset = FieldSet::default();
    every_kind(|at, s, _, v| {
        let request = Request {
            schema: s,
            manager: "m",
            api_version: meta::api_version(&v),
            kind: meta::kind(&v),
            subresource: "",
            now: "2026-01-01T00:00:00Z",
            reset: &reset,
            versions: None,
        };
        let mut created = v.clone();
        track_update(None, &mut created, &request);
        let mut same = created.clone();
        let later = Request {
            manager: "n",
            now: "2026-01-02T00:00:00Z",
            ..request
        };
        track_update(Some(&created), &mut same, &later);
        assert_eq!(same, created, "{at}");
    });
}

/// Bad input is refused or does something; it never panics and never hangs.
#[test]
fn bad_input_never_panics() {
    let kinds = ["io.k8s.api.core.v1.Pod", "io.k8s.api.apps.v1.Deployment"];
    let reset = FieldSet::of(&["status"]);
    for seed in 0..800 {
        let s = schema(kinds[seed as usize % 2]).unwrap();
        let mut g = Generator::new(seed);
        let (a, b) = (g.chaos(0), g.chaos(0));
        let good = g.object(s, "v1", "Pod");
        let _ = normalize(a.clone(), s);
        let _ = decode(a.to_string().as_bytes(), s);
        let _ = patch::json::apply(good.clone(), &a);
        let _ = patch::merge::apply(a.clone(), b.clone());
        let _ = patch::strategic::apply(good.clone(), a.clone(), s);
        let _ = patch::strategic::apply(a.clone(), b.clone(), s);
        let _ = patch::strategic::apply(json!({"spec": a.clone()}), json!({"spec": b.clone()}), s);
        let request = Request {
            schema: s,
            manager: "m",
            api_version: "v1",
            kind: "Pod",
            subresource: "",
            now: "2026-01-01T00:00:00Z",
            reset: &reset,
            versions: None,
        };
        let mut config = b.clone();
        if config.is_object() {
            config["apiVersion"] = json!("v1");
        }
        let _ = apply(Some(&a), &config, &request, true);
        let _ = apply(Some(&good), &config, &request, false);
        let mut live = good.clone();
        live["metadata"]["managedFields"] = a.clone();
        let _ = apply(Some(&live), &good, &request, true);
        let mut new = b;
        track_update(Some(&a), &mut new, &request);
        let noise = g.bytes(64);
        let _ = protobuf::decode_message(&noise, kinds[0]);
        let _ = protobuf::open(&noise);
        default::apply(&mut new, s);
    }
}
