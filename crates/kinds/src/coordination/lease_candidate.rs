//! LeaseCandidate.

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::tree::Tree;
use crate::workload;

pub(crate) static LEASE_CANDIDATE: Kind = Kind {
    group: "coordination.k8s.io",
    resource: "leasecandidates",
    storage_version: "v1beta1",
    validate,
    validate_update: |new, old, _| {
        let mut e = validate(new);
        workload::immutable(new, old, "spec.leaseName", &mut e);
        e
    },
    columns: &[
        Column::text("LeaseName"),
        Column::text("BinaryVersion"),
        Column::text("EmulationVersion"),
        Column::AGE,
    ],
    cells: |obj, now| {
        vec![
            obj.text("spec.leaseName").into(),
            obj.text("spec.binaryVersion").into(),
            obj.text("spec.emulationVersion").into(),
            cell::age(obj, now),
        ]
    },
    validate_name: |name, _| validation::is_config_map_key(name),
    allow_create_on_update: true,
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

/// How a lease's holder is picked.
pub(super) fn strategy(at: &At, e: &mut ErrorList) {
    if at.text().contains('/') {
        at.conforms(e, validation::is_qualified_name);
    } else {
        at.strictly_one_of(e, &["OldestEmulationVersion"]);
    }
}

/// What is no version counts as the lowest one.
fn version(text: &str) -> Option<[u64; 3]> {
    let core = text.split(['-', '+']).next()?;
    let parts: Vec<u64> = core
        .split('.')
        .map(|p| p.parse().ok())
        .collect::<Option<_>>()?;
    parts.try_into().ok()
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    spec.at("leaseName").require(&mut e);
    let (binary, emulation) = (spec.at("binaryVersion"), spec.at("emulationVersion"));
    let mut read = |at: &At| {
        let found = version(at.text());
        if !at.is_empty() && found.is_none() {
            e.push(at.invalid("must be a valid semantic version"));
        }
        found.unwrap_or_default()
    };
    let emulated = read(&emulation);
    let own = read(&binary);
    binary.require(&mut e);
    if !binary.is_empty() && !emulation.is_empty() && own < emulated {
        e.push(binary.invalid("must be greater than or equal to `emulationVersion`"));
    }
    let by = spec.at("strategy");
    if by.is_empty() {
        e.push(by.required(""));
    } else {
        if by.text() == "OldestEmulationVersion" && emulated == [0; 3] {
            e.push(
                emulation.required("must be specified when `strategy` is 'OldestEmulationVersion'"),
            );
        }
        // Upstream names the field twice here.
        let path = by.path.child("strategy");
        strategy(&At { path, ..by }, &mut e);
    }
    e
}
