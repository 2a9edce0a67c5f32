//! PodGroup.

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::Value;

use super::template;
use crate::cell::{self, NONE};
use crate::check::{self, At};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

pub(crate) static POD_GROUP: Kind = Kind {
    group: "scheduling.k8s.io",
    resource: "podgroups",
    storage_version: "v1alpha2",
    default: |obj| {
        if obj.has("spec") {
            obj.fill("spec.disruptionMode", "Pod");
        }
    },
    prepare_create: |obj| {
        rules::clear_status(obj);
        drop_disabled(obj, &Value::Null);
    },
    prepare_update: |new, old, ctx| {
        rules::isolate_status_and_metadata(new, old, ctx);
        drop_disabled(new, old);
        if ctx.subresource == "status" && old.list("spec.resourceClaims").is_empty() {
            new.remove("status.resourceClaimStatuses");
        }
    },
    validate,
    validate_update: |new, old, ctx| match ctx.subresource {
        "status" => {
            let mut e = ErrorList::new();
            check::conditions(&At::new(new, "status").at("conditions"), &mut e);
            e
        }
        _ => validate_update(new, old),
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

fn drop_disabled(new: &mut Value, old: &Value) {
    if let Some(spec) = new.at_mut("spec") {
        template::drop_disabled(spec, old.get("spec"));
        spec.fill_text("disruptionMode", "Pod");
        if let Some(fields) = spec.as_object_mut() {
            fields.entry("podGroupTemplateRef").or_insert(Value::Null);
        }
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let reference = spec.at("podGroupTemplateRef");
    if reference.exists() {
        template::union(&reference, &["workload"], &mut e);
        let workload = reference.at("workload");
        if workload.exists() {
            workload
                .at("workloadName")
                .required_conforms(&mut e, validation::is_dns1123_subdomain);
            template::short_name(&workload.at("podGroupTemplateName"), &mut e);
        }
    }
    template::policy(&spec.at("schedulingPolicy"), &mut e);
    e
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let (spec, before) = (At::new(new, "spec"), old.at("spec"));
    for field in ["podGroupTemplateRef", "schedulingPolicy"] {
        template::immutable(&spec.at(field), before.at(field), &mut e);
    }
    // Its gate is off, so that it cannot change either.
    let mode = spec.at("disruptionMode");
    if !check::same(mode.value, before.at("disruptionMode")) {
        e.push(mode.forbidden(""));
    }
    e
}
