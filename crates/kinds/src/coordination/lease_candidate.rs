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
    selectable: |obj| vec![("spec.leaseName", obj.text("spec.leaseName").to_owned())],
    selectable_names: &["spec.leaseName"],
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
    binary.require(&mut e);
    for at in [&binary, &emulation] {
        if !at.is_empty() && version(at.text()).is_none() {
            e.push(at.invalid("must be a valid semantic version"));
        }
    }
    if let (Some(b), Some(v)) = (version(binary.text()), version(emulation.text()))
        && b < v
    {
        e.push(binary.invalid("must be greater than or equal to `emulationVersion`"));
    }
    let by = spec.at("strategy");
    if by.is_empty() {
        e.push(by.required(""));
    } else {
        if by.text() == "OldestEmulationVersion" && emulation.is_empty() {
            e.push(
                emulation.required("must be specified when `strategy` is 'OldestEmulationVersion'"),
            );
        }
        strategy(&by, &mut e);
    }
    e
}
