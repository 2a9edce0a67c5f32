//! Properties that hold for the whole table of kinds.

#![allow(clippy::unwrap_used)]

mod errors;
mod minimal;

use std::collections::BTreeSet;

use keelson_kinds::{KINDS, Kind, UpdateContext};
use serde_json::{Value, json};

/// Columns that upstream leaves without a word.
const SILENT_COLUMNS: &[(&str, &str)] = &[
    ("leasecandidates", "BinaryVersion"),
    ("leasecandidates", "EmulationVersion"),
    ("runtimeclasses", "Handler"),
];
const NOW: &str = "2026-01-01T00:00:00Z";

fn contexts() -> impl Iterator<Item = UpdateContext<'static>> {
    [
        "",
        "status",
        "scale",
        "ephemeralcontainers",
        "resize",
        "finalize",
        "approval",
        "other",
    ]
    .into_iter()
    .map(|subresource| UpdateContext {
        subresource,
        now: NOW,
    })
}

/// A stored object of the kind, as a create would leave it.
fn created(kind: &Kind) -> Value {
    let mut obj = minimal::object(kind);
    (kind.default)(&mut obj);
    kind.prepare_new(&mut obj);
    obj
}

fn id(kind: &Kind) -> String {
    format!("{}/{}", kind.group, kind.resource)
}

#[test]
fn rows_are_unique_sorted_by_group_and_served() {
    let mut seen = BTreeSet::new();
    for kind in KINDS {
        assert!(
            seen.insert((kind.group, kind.resource)),
            "{} twice",
            id(kind)
        );
        let served = keelson_api::resource(kind.group, kind.storage_version, kind.resource);
        assert!(
            served.is_some(),
            "{} is not served in {}",
            id(kind),
            kind.storage_version
        );
    }
    let groups: Vec<_> = KINDS.iter().map(|k| k.group).collect();
    let mut distinct = groups.clone();
    distinct.dedup();
    assert_eq!(
        distinct.iter().collect::<BTreeSet<_>>().len(),
        distinct.len(),
        "a group stands in two places"
    );
}

#[test]
fn every_resource_has_a_row() {
    let rows: BTreeSet<_> = KINDS.iter().map(|k| (k.group, k.resource)).collect();
    let missing: BTreeSet<_> = keelson_api::resources()
        .iter()
        .map(|r| (r.group, r.resource))
        .filter(|r| !rows.contains(r))
        // Answers itself from the request, and has nothing to check.
        .filter(|r| *r != ("authentication.k8s.io", "selfsubjectreviews"))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn minimal_objects_are_valid_once_defaulted() {
    let mut bad = Vec::new();
    for kind in KINDS {
        for error in (kind.validate)(&created(kind)) {
            bad.push(format!("{}: {error}", id(kind)));
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn what_defaults_and_preparation_write_is_in_the_schema() {
    let mut bad = Vec::new();
    for kind in KINDS {
        let obj = created(kind);
        let facts = keelson_api::resource(kind.group, kind.storage_version, kind.resource).unwrap();
        if kind.group == "events.k8s.io" {
            // Stored in the core group's form.
            continue;
        }
        let name = keelson_api::kind_type(kind.group, kind.storage_version, facts.kind).unwrap();
        let schema = keelson_api::schema(name).unwrap();
        match keelson_machinery::decode::normalize(obj, schema) {
            Ok(decoded) => bad.extend(
                decoded
                    .problems
                    .iter()
                    .map(|p| format!("{}: {p}", id(kind))),
            ),
            Err(error) => bad.push(format!("{}: {error}", id(kind))),
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn defaulting_twice_changes_nothing_more() {
    for kind in KINDS {
        let mut once = minimal::object(kind);
        (kind.default)(&mut once);
        let mut twice = once.clone();
        (kind.default)(&mut twice);
        assert_eq!(once, twice, "{}", id(kind));
    }
}

#[test]
fn an_unchanged_object_updates_without_error_or_change() {
    for kind in KINDS {
        let mut old = created(kind);
        if kind.resource == "namespaces" {
            old["status"]["phase"] = json!("Active");
        }
        for ctx in contexts().filter(|c| c.subresource != "other") {
            let mut new = old.clone();
            kind.prepare_changed(&mut new, &old, &ctx);
            assert_eq!(new, old, "{} {}", id(kind), ctx.subresource);
            let errors = (kind.validate_update)(&new, &old, &ctx);
            assert!(
                errors.is_empty(),
                "{} {}: {errors:?}",
                id(kind),
                ctx.subresource
            );
        }
    }
}

#[test]
fn a_status_write_changes_no_spec_and_the_reverse() {
    for kind in KINDS {
        let old = created(kind);
        let facts = keelson_api::resource(kind.group, kind.storage_version, kind.resource).unwrap();
        if !facts.subresources.iter().any(|s| s.name == "status") {
            continue;
        }
        let mut new = old.clone();
        new["spec"] = json!({"changed": true});
        kind.prepare_changed(
            &mut new,
            &old,
            &UpdateContext {
                subresource: "status",
                now: NOW,
            },
        );
        assert_eq!(
            new.get("spec"),
            old.get("spec"),
            "{} spec by status",
            id(kind)
        );
        let mut new = old.clone();
        new["status"] = json!({"changed": true});
        kind.prepare_changed(
            &mut new,
            &old,
            &UpdateContext {
                subresource: "",
                now: NOW,
            },
        );
        let kept = new
            .get("status")
            .is_none_or(|s| s.get("changed").is_none() || kind.resource == "endpoints");
        assert!(kept, "{} status by the main resource", id(kind));
    }
}

/// How many cells a row has: one for each column, and one more where upstream has that.
fn cells_of(kind: &Kind) -> usize {
    kind.columns.len() + usize::from(kind.resource == "ipaddresses")
}

#[test]
fn rows_have_a_cell_for_every_column() {
    for kind in KINDS {
        for obj in [created(kind), json!({}), Value::Null] {
            assert_eq!((kind.cells)(&obj, 0).len(), cells_of(kind), "{}", id(kind));
        }
    }
}

#[test]
fn every_column_says_what_it_shows() {
    for kind in KINDS {
        for column in kind.columns {
            let text = keelson_kinds::column_description(kind.group, kind.resource, column.name);
            let silent = SILENT_COLUMNS.contains(&(kind.resource, column.name));
            assert_eq!(text.is_empty(), silent, "{}: {}", id(kind), column.name);
        }
    }
}

#[test]
fn selectable_fields_are_those_named() {
    for kind in KINDS {
        let names: Vec<_> = (kind.selectable)(&created(kind))
            .into_iter()
            .map(|(n, _)| n)
            .collect();
        assert_eq!(names, kind.selectable_names, "{}", id(kind));
    }
}

#[test]
fn versions_convert_there_and_back() {
    for kind in KINDS {
        let obj = created(kind);
        for facts in keelson_api::resources()
            .iter()
            .filter(|r| r.group == kind.group && r.resource == kind.resource)
        {
            let mut there = obj.clone();
            (kind.convert)(&mut there, kind.storage_version, facts.version);
            let expected = match facts.group {
                "" => facts.version.to_owned(),
                group => format!("{group}/{}", facts.version),
            };
            assert_eq!(there["apiVersion"], expected, "{}", id(kind));
            (kind.convert)(&mut there, facts.version, kind.storage_version);
            assert_eq!(there, obj, "{} by way of {}", id(kind), facts.version);
        }
    }
}

/// Every place in the object in turn holds something it should not; nothing may panic.
#[test]
fn nothing_panics_on_values_of_the_wrong_shape() {
    let junk = [
        json!(null),
        json!(-1),
        json!("x/y..z"),
        json!([null, 7, {"name": 1}]),
        json!({"a": []}),
        json!(true),
    ];
    for kind in KINDS {
        let base = created(kind);
        let mut pointers = Vec::new();
        collect(&base, String::new(), &mut pointers);
        for pointer in pointers {
            for value in &junk {
                let mut obj = base.clone();
                *obj.pointer_mut(&pointer).unwrap() = value.clone();
                exercise(kind, &obj, &base);
            }
        }
    }
}

fn exercise(kind: &Kind, obj: &Value, base: &Value) {
    let mut defaulted = obj.clone();
    (kind.default)(&mut defaulted);
    let _ = (kind.validate)(&defaulted);
    let _ = (kind.validate)(obj);
    let mut prepared = obj.clone();
    kind.prepare_new(&mut prepared);
    for ctx in contexts() {
        let mut new = obj.clone();
        kind.prepare_changed(&mut new, base, &ctx);
        let _ = (kind.validate_update)(&new, base, &ctx);
        let mut new = base.clone();
        kind.prepare_changed(&mut new, obj, &ctx);
        let _ = (kind.validate_update)(&new, obj, &ctx);
    }
    let _ = (kind.warnings)(obj, Some(base));
    let _ = (kind.warnings)(obj, None);
    assert_eq!((kind.cells)(obj, i64::MIN).len(), cells_of(kind));
    let _ = (kind.selectable)(obj);
    let _ = (kind.graceful_deletion_seconds)(obj, None);
    let mut converted = obj.clone();
    (kind.convert)(&mut converted, "v1", "v1beta1");
    (kind.convert)(&mut converted, "v1beta1", "v2");
}

fn collect(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                let escaped = key.replace('~', "~0").replace('/', "~1");
                collect(child, format!("{at}/{escaped}"), out);
            }
        }
        Value::Array(items) => {
            for (i, child) in items.iter().enumerate() {
                collect(child, format!("{at}/{i}"), out);
            }
        }
        _ => {}
    }
    if !at.is_empty() {
        out.push(at);
    }
}
