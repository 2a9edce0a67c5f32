//! PodDisruptionBudget.

use keelson_machinery::field::ErrorList;
use serde_json::Value;

use crate::cell;
use crate::check::{At, conditions, name_is_path_segment};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

const COUNTERS: &[&str] = &[
    "disruptionsAllowed",
    "currentHealthy",
    "desiredHealthy",
    "expectedPods",
];

pub(crate) static POD_DISRUPTION_BUDGET: Kind = Kind {
    group: "policy",
    resource: "poddisruptionbudgets",
    prepare_create: |obj| {
        rules::first_generation(obj);
        for counter in COUNTERS {
            obj.put(&format!("status.{counter}"), 0);
        }
    },
    validate,
    prepare_update: rules::with_generation,
    validate_update: |new, _, ctx| {
        if ctx.subresource != "status" {
            return validate(new);
        }
        let mut e = ErrorList::new();
        conditions(&At::new(new, "status").at("conditions"), &mut e);
        e.extend(workload::status_counts(new, COUNTERS, &[]));
        e
    },
    columns: &[
        Column::text("Min Available"),
        Column::text("Max Unavailable"),
        Column::integer("Allowed Disruptions"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let amount = |path: &str| match obj.at(path) {
            Value::Null => "N/A".to_owned(),
            Value::String(s) => s.clone(),
            other => other.to_string(),
        };
        vec![
            amount("spec.minAvailable").into(),
            amount("spec.maxUnavailable").into(),
            obj.num("status.disruptionsAllowed").into(),
            cell::age(obj, now),
        ]
    },
    validate_name: name_is_path_segment,
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        e.push(spec.invalid("minAvailable and maxUnavailable cannot be both set"));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        if spec.has(field) {
            workload::int_or_percent(&spec.at(field), &mut e);
            workload::at_most_all(&spec.at(field), &mut e);
        }
    }
    spec.at("selector").label_selector(&mut e);
    spec.at("unhealthyPodEvictionPolicy")
        .one_of(&mut e, &["AlwaysAllow", "IfHealthyBudget"]);
    e
}
