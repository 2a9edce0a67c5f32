//! DaemonSet.

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

use crate::cell;
use crate::check::At;
use crate::core::pod;
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

/// Where the template generation of the first API versions lives on.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub(crate) static DAEMON_SET: Kind = Kind {
    group: "apps",
    resource: "daemonsets",
    default,
    prepare_create: |obj| {
        rules::first_generation(obj);
        set_template_generation(obj, 1);
        for counter in [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
        ] {
            obj.put(&format!("status.{counter}"), 0);
        }
    },
    validate,
    prepare_update,
    validate_update,
    warnings: workload::template_warnings,
    columns: &[
        Column::integer("Desired"),
        Column::integer("Current"),
        Column::integer("Ready"),
        Column::integer("Up-to-date"),
        Column::integer("Available"),
        Column::text("Node Selector"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    cells,
    template_spec: "spec.template.spec",
    ..Kind::GENERIC
};

fn set_template_generation(obj: &mut Value, generation: i64) {
    if let Some(annotations) = obj.object("metadata.annotations") {
        annotations.insert(
            TEMPLATE_GENERATION.to_owned(),
            generation.to_string().into(),
        );
    }
}

fn template_generation(obj: &Value) -> i64 {
    let annotation = obj.at("metadata.annotations").get(TEMPLATE_GENERATION);
    annotation
        .and_then(Value::as_str)
        .and_then(|g| g.parse().ok())
        .unwrap_or(0)
}

fn default(obj: &mut Value) {
    obj.fill_text("spec.updateStrategy.type", "RollingUpdate");
    if obj.text("spec.updateStrategy.type") == "RollingUpdate" {
        obj.fill("spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
        obj.fill("spec.updateStrategy.rollingUpdate.maxSurge", 0);
    }
    obj.fill("spec.revisionHistoryLimit", 10);
    pod::default_template(obj, "spec.template");
    if template_generation(obj) == 0 {
        set_template_generation(obj, 0);
    }
}

fn prepare_update(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    if ctx.subresource == "status" {
        return rules::only_status(new, old);
    }
    let template = new.at("spec.template") != old.at("spec.template");
    let generation = template_generation(old) + i64::from(template);
    set_template_generation(new, generation);
    rules::with_generation(new, old, ctx);
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let selector = spec.at("selector");
    if workload::label_selector(&selector, &mut e) {
        workload::template_is_selected(&spec, &mut e);
    }
    if workload::selects_all(&selector) {
        e.push(selector.invalid("empty selector is invalid for daemonset"));
    }
    workload::lasting_template(&spec, "DaemonSet", &mut e);
    spec.at("minReadySeconds").non_negative(&mut e);
    update_strategy(&spec.at("updateStrategy"), &mut e);
    spec.at("revisionHistoryLimit").non_negative(&mut e);
    e
}

fn update_strategy(strategy: &At, e: &mut ErrorList) {
    let rolling = strategy.at("rollingUpdate");
    match strategy.value.text("type") {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.exists() => e.push(rolling.required("")),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            workload::int_or_percent(&unavailable, e);
            workload::int_or_percent(&surge, e);
            workload::at_most_all(&unavailable, e);
            workload::at_most_all(&surge, e);
            let (u, s) = (
                workload::int_or_percent_value(unavailable.value),
                workload::int_or_percent_value(surge.value),
            );
            if u != 0 && s != 0 {
                e.push(surge.invalid("may not be set when maxUnavailable is non-zero"));
            } else if u == 0 && s == 0 {
                e.push(unavailable.required("cannot be 0 when maxSurge is 0"));
            }
        }
        _ => {
            let shown = strategy.value.clone();
            e.push(FieldError::not_supported(
                &strategy.path,
                shown,
                &["RollingUpdate", "OnDelete"],
            ));
        }
    }
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    if ctx.subresource == "status" {
        let mut e = workload::status_counts(
            new,
            &[
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
                "collisionCount",
            ],
            &[],
        );
        workload::not_decremented(new, old, "status.collisionCount", &mut e);
        return e;
    }
    let mut e = ErrorList::new();
    workload::immutable(new, old, "spec.selector", &mut e);
    e.extend(validate(new));
    e
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let [names, images] = workload::wide_cells(obj, "spec.template");
    let count = |field: &str| Value::from(obj.at("status").num(field));
    vec![
        count("desiredNumberScheduled"),
        count("currentNumberScheduled"),
        count("numberReady"),
        count("updatedNumberScheduled"),
        count("numberAvailable"),
        cell::labels(obj.at("spec.template.spec.nodeSelector")).into(),
        cell::age(obj, now),
        names,
        images,
        cell::selector(obj.at("spec.selector")).into(),
    ]
}
