//! ReplicaSet.

use keelson_machinery::field::ErrorList;
use serde_json::Value;

use crate::cell;
use crate::check::At;
use crate::core::pod;
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload::{self, WITHIN_REPLICAS};

pub(crate) static REPLICA_SET: Kind = Kind {
    group: "apps",
    resource: "replicasets",
    default: |obj| {
        obj.fill("spec.replicas", 1);
        pod::default_template(obj, "spec.template");
    },
    prepare_create: |obj| {
        rules::first_generation(obj);
        obj.put("status.replicas", 0);
    },
    validate,
    prepare_update,
    validate_update: |new, old, ctx| {
        if ctx.subresource == "status" {
            return status(new);
        }
        let mut e = validate(new);
        workload::immutable(new, old, "spec.selector", &mut e);
        e
    },
    warnings: workload::warnings,
    columns: REPLICAS,
    cells: |obj, now| replica_cells(obj, now, cell::selector(obj.at("spec.selector"))),
    template_spec: "spec.template.spec",
    ..Kind::GENERIC
};

pub(crate) const REPLICAS: &[Column] = &[
    Column::integer("Desired"),
    Column::integer("Current"),
    Column::integer("Ready"),
    Column::AGE,
    Column::wide("Containers"),
    Column::wide("Images"),
    Column::wide("Selector"),
];

pub(crate) fn replica_cells(obj: &Value, now: i64, selector: String) -> Vec<Value> {
    let [names, images] = workload::wide_cells(obj, "spec.template");
    vec![
        obj.num("spec.replicas").into(),
        obj.num("status.replicas").into(),
        obj.num("status.readyReplicas").into(),
        cell::age(obj, now),
        names,
        images,
        selector.into(),
    ]
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    spec.at("replicas").non_negative(&mut e);
    spec.at("minReadySeconds").non_negative(&mut e);
    let empty = "empty selector is invalid for deployment";
    workload::selector_and_template(&spec, "ReplicaSet", empty, &mut e);
    e
}

pub(crate) fn prepare_update(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    if ctx.subresource == "scale" {
        workload::keep_all_but_replicas(new, old);
        rules::raise_generation(new, old, new.at("spec") != old.at("spec"));
    } else {
        rules::with_generation(new, old, ctx);
    }
}

/// Counters that ReplicaSet and ReplicationController share.
pub(crate) fn status(obj: &Value) -> ErrorList {
    workload::status_counts(
        obj,
        &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ],
        &[
            ("fullyLabeledReplicas", "replicas", WITHIN_REPLICAS),
            ("readyReplicas", "replicas", WITHIN_REPLICAS),
            ("availableReplicas", "replicas", WITHIN_REPLICAS),
            (
                "availableReplicas",
                "readyReplicas",
                "cannot be greater than readyReplicas",
            ),
        ],
    )
}
