//! PodGroup.

use serde_json::Value;

use crate::cell::{self, NONE};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static POD_GROUP: Kind = Kind {
    group: "scheduling.k8s.io",
    resource: "podgroups",
    storage_version: "v1alpha2",
    default: |obj| {
        if obj.has("spec") {
            obj.fill("spec.disruptionMode", "Pod");
        }
    },
    prepare_create: rules::clear_status,
    prepare_update: rules::isolate_status_and_metadata,
    validate_update: |new, old, ctx| {
        let mut e = keelson_machinery::field::ErrorList::new();
        if ctx.subresource.is_empty() {
            workload::immutable(new, old, "spec", &mut e);
        }
        e
    },
    columns: &[
        Column::text("Policy"),
        Column::text("Workload"),
        Column::text("Status"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let condition = |kind: &str| {
            obj.list("status.conditions")
                .iter()
                .rev()
                .find(|c| c.text("type") == kind)
        };
        let mut status = match condition("PodGroupScheduled").map(|c| c.text("status")) {
            Some("True") => "Scheduled",
            Some(_) => "Unschedulable",
            None => "Pending",
        };
        if let Some(c) = condition("DisruptionTarget") {
            status = c.text("reason");
        }
        let policy = if obj.has("spec.schedulingPolicy.gang") {
            "Gang"
        } else {
            "Basic"
        };
        let workload = obj
            .at("spec.podGroupTemplateRef.workload.workloadName")
            .as_str()
            .unwrap_or(NONE);
        let cells: Vec<Value> = vec![
            policy.into(),
            workload.into(),
            status.into(),
            cell::age(obj, now),
        ];
        cells
    },
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};
