//! HorizontalPodAutoscaler, stored as v2.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::{Value, json};

use super::convert;
use crate::cell::{self, NONE, UNKNOWN, UNSET};
use crate::check::{At, name_is_path_segment, quantity};
use crate::core::resources;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

const TYPES: &[(&str, &str)] = &[
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
/// The sources in the order in which they are looked at: rules are told of the first one alone.
const SOURCES: &[&str] = &[
    "object",
    "external",
    "pods",
    "resource",
    "containerResource",
];

pub(crate) static HORIZONTAL_POD_AUTOSCALER: Kind = Kind {
    group: "autoscaling",
    resource: "horizontalpodautoscalers",
    storage_version: "v2",
    default,
    prepare_create: |obj| {
        rules::clear_status(obj);
        always_there(obj);
    },
    validate,
    prepare_update: |new, old, ctx| {
        rules::isolate_status(new, old, ctx);
        always_there(new);
    },
    validate_update: |new, old, ctx| match ctx.subresource {
        "status" => workload::status_counts(new, &["currentReplicas", "desiredReplicas"], &[]),
        _ => validate_with(new, Some(old)),
    },
    columns: &[
        Column::text("Reference"),
        Column::text("Targets"),
        Column::text("MinPods"),
        Column::text("MaxPods"),
        Column::text("Replicas"),
        Column::AGE,
    ],
    cells: |obj, now| {
        vec![
            format!(
                "{}/{}",
                obj.text("spec.scaleTargetRef.kind"),
                obj.text("spec.scaleTargetRef.name")
            )
            .into(),
            targets(obj).into(),
            obj.int("spec.minReplicas")
                .map_or(UNSET.to_owned(), |n| n.to_string())
                .into(),
            obj.num("spec.maxReplicas").into(),
            obj.num("status.currentReplicas").into(),
            cell::age(obj, now),
        ]
    },
    convert: |obj, _, to| match to {
        "v1" | "autoscaling/v1" => convert::to_v1(obj),
        _ => convert::to_v2(obj),
    },
    ..Kind::GENERIC
};

/// Fields of the status that are written even when they say nothing.
fn always_there(obj: &mut Value) {
    if let Some(status) = obj.object("status") {
        status.entry("desiredReplicas").or_insert(0.into());
        status.entry("currentMetrics").or_insert(Value::Null);
    }
}

/// What scales when nothing is asked for.
pub(super) fn default_metric() -> Value {
    json!({"type": "Resource", "resource":
        {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}})
}

pub(super) fn default(obj: &mut Value) {
    obj.fill("spec.minReplicas", 1);
    if obj.text("apiVersion") == "autoscaling/v1" {
        return;
    }
    if obj.list("spec.metrics").is_empty() {
        obj.put("spec.metrics", vec![default_metric()]);
    }
    if !obj.at("spec.behavior").is_object() {
        return;
    }
    obj.fill("spec.behavior.scaleUp.stabilizationWindowSeconds", 0);
    let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    for (direction, policies) in [("scaleUp", up), ("scaleDown", down)] {
        obj.fill(&format!("spec.behavior.{direction}.selectPolicy"), "Max");
        obj.fill(&format!("spec.behavior.{direction}.policies"), policies);
    }
}

/// What the API version of a reference may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Grouped,
    Any,
    /// It was like that before.
    Unchecked,
}

fn reference(at: &At, allowed: Version, e: &mut ErrorList) {
    for field in ["kind", "name"] {
        at.at(field)
            .required_conforms(e, |n| name_is_path_segment(n, false));
    }
    let version = at.at("apiVersion");
    let grouped = version
        .text()
        .split_once('/')
        .is_some_and(|v| !v.0.is_empty());
    let detail = match version.text().matches('/').count() {
        _ if allowed == Version::Unchecked => return,
        0 | 1 if grouped || allowed == Version::Any => return,
        0 | 1 => "apiVersion must specify API group".to_owned(),
        _ => format!("unexpected GroupVersion string: {}", version.text()),
    };
    e.push(FieldError::invalid(&version.path, version.text(), detail));
}

fn validate(obj: &Value) -> ErrorList {
    validate_with(obj, None)
}

fn validate_with(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let (min, max) = (spec.at("minReplicas"), spec.at("maxReplicas"));
    let zero_before = old.is_some_and(|old| old.int("spec.minReplicas") == Some(0));
    let lowest = if zero_before { 0 } else { 1 };
    if min.int().is_some_and(|min| min < lowest) {
        e.push(min.invalid(format!("must be greater than or equal to {lowest}")));
    }
    match max.num() {
        0 => e.push(max.required("must be set and greater than 0")),
        n if n < 0 => e.push(max.invalid("must be greater than or equal to 1")),
        _ => {}
    }
    if min.int().is_some_and(|min| max.num() < min) {
        let detail = "must be greater than or equal to `minReplicas`";
        e.push(FieldError::invalid(&max.path, max.num(), detail));
    }
    let same = |field: &str| old.is_some_and(|old| old.text(field) == obj.text(field));
    let version = if same("spec.scaleTargetRef.apiVersion") && same("spec.scaleTargetRef.kind") {
        Version::Unchecked
    } else if obj.text("spec.scaleTargetRef.kind") == "ReplicationController" {
        Version::Any
    } else {
        Version::Grouped
    };
    reference(&spec.at("scaleTargetRef"), version, &mut e);
    let metrics = spec.at("metrics");
    metrics.each().for_each(|m| metric(&m, &mut e));
    let scales_to_zero = |m: At| matches!(m.value.text("type"), "Object" | "External");
    if min.int() == Some(0) && !metrics.each().any(scales_to_zero) {
        e.push(metrics.forbidden(
            "must specify at least one Object or External metric to support scaling to zero replicas",
        ));
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = spec.at("behavior").at(direction);
        if rules.exists() {
            scaling(&rules, &mut e);
        }
    }
    e
}

fn metric(metric: &At, e: &mut ErrorList) {
    let kind = metric.at("type");
    let names: Vec<_> = TYPES.iter().map(|(n, _)| *n).collect();
    let expected = TYPES
        .iter()
        .find(|(n, _)| *n == kind.text())
        .map(|(_, field)| *field);
    let unknown = || FieldError::not_supported(&kind.path, kind.text(), &names);
    if kind.is_empty() {
        e.push(kind.required("must specify a metric source type"));
    }
    if expected.is_none() {
        e.push(unknown());
    }
    let present: Vec<_> = SOURCES.iter().filter(|field| metric.has(field)).collect();
    if let Some(first) = present.first() {
        source(&metric.at(first), first, e);
    }
    match expected {
        Some(field) if !metric.has(field) => {
            let at = metric.at(field);
            e.push(at.required("must populate information for the given metric source"));
        }
        Some(_) => {}
        None => e.push(unknown()),
    }
    if present.len() != 1 {
        for field in present {
            if Some(*field) != expected {
                let at = metric.at(field);
                e.push(at.forbidden("must populate the given metric source only"));
            }
        }
    }
}

fn source(source: &At, field: &str, e: &mut ErrorList) {
    match field {
        "resource" | "containerResource" => {
            let (name, container) = (source.at("name"), source.at("container"));
            if name.is_empty() {
                e.push(name.required("must specify a resource name"));
            } else if field == "containerResource" {
                resources::container_resource_name(&name, e);
            }
            if field == "containerResource" && container.is_empty() {
                e.push(container.required("must specify a container"));
            } else if field == "containerResource" {
                container.conforms(e, validation::is_dns1123_label);
            }
        }
        _ => {
            if field == "object" {
                reference(&source.at("describedObject"), Version::Any, e);
            }
            let name = source.at("metric").at("name");
            if name.is_empty() {
                e.push(name.required("must specify a metric name"));
            } else {
                name.conforms(e, |n| name_is_path_segment(n, false));
            }
        }
    }
    let at = source.at("target");
    target_amounts(&at, e);
    target_choice(&at, field, e);
}

fn target_amounts(target: &At, e: &mut ErrorList) {
    let by = target.at("type");
    if by.is_empty() {
        e.push(by.required("must specify a metric target type"));
    }
    if !matches!(by.text(), "Utilization" | "Value" | "AverageValue") {
        let detail = "must be either Utilization, Value, or AverageValue";
        e.push(FieldError::invalid(&by.path, by.text(), detail));
    }
    for amount in ["value", "averageValue"] {
        let at = target.at(amount);
        if at.quantity().is_some_and(|q| q.sign() != 1) {
            e.push(at.invalid("must be positive"));
        }
    }
    let share = target.at("averageUtilization");
    if share.int().is_some_and(|u| u < 1) {
        e.push(share.invalid("must be greater than 0"));
    }
}

/// Which of the amounts a kind of metric needs, and which it may not have together.
fn target_choice(target: &At, field: &str, e: &mut ErrorList) {
    let (value, average) = (target.has("value"), target.has("averageValue"));
    let share = target.at("averageUtilization");
    let missing = match field {
        "object" if !value && !average => Some("must set either a target value or averageValue"),
        "external" if !value && !average => {
            Some("must set either a target value for metric or a per-pod target")
        }
        "pods" if !average => Some("must specify a positive target averageValue"),
        _ => None,
    };
    if let Some(detail) = missing {
        e.push(target.at("averageValue").required(detail));
    }
    if field == "external" && value && average {
        let detail = "may not set both a target value for metric and a per-pod target";
        e.push(target.at("value").forbidden(detail));
    }
    if matches!(field, "resource" | "containerResource") {
        if !share.exists() && !average {
            e.push(share.required("must set either a target raw value or a target utilization"));
        }
        if share.exists() && average {
            let detail = "may not set both a target raw value and a target utilization";
            e.push(target.at("averageValue").forbidden(detail));
        }
    }
}

fn scaling(rules: &At, e: &mut ErrorList) {
    let window = rules.at("stabilizationWindowSeconds");
    if window.num() < 0 {
        e.push(window.invalid("must be greater than or equal to zero"));
    }
    if window.num() > 3600 {
        e.push(window.invalid("must be less than or equal to 3600"));
    }
    rules
        .at("selectPolicy")
        .one_of(e, &["Disabled", "Max", "Min"]);
    let policies = rules.at("policies");
    if policies.is_empty() {
        e.push(policies.required("must specify at least one Policy"));
    }
    for policy in policies.each() {
        policy.at("type").strictly_one_of(e, &["Percent", "Pods"]);
        policy.at("value").positive(e);
        let period = policy.at("periodSeconds");
        period.positive(e);
        if period.num() > 1800 {
            e.push(period.invalid("must be less than or equal to 1800"));
        }
    }
    if rules
        .at("tolerance")
        .quantity()
        .is_some_and(|q| q.is_negative())
    {
        e.push(rules.at("tolerance").invalid(crate::check::NON_NEGATIVE));
    }
}

fn targets(obj: &Value) -> String {
    let specs = obj.list("spec.metrics");
    if specs.is_empty() {
        return NONE.to_owned();
    }
    let all: Vec<_> = specs
        .iter()
        .enumerate()
        .map(|(i, spec)| target(spec, obj.list("status.currentMetrics").get(i)))
        .collect();
    let shown = all
        .iter()
        .take(2)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    if all.len() > 2 {
        format!("{shown} + {} more...", all.len() - 2)
    } else {
        shown
    }
}

fn target(spec: &Value, status: Option<&Value>) -> String {
    let Some((_, field)) = TYPES.iter().find(|(n, _)| *n == spec.text("type")) else {
        return "<unknown type>".to_owned();
    };
    let wanted = spec.at(field).at("target");
    let current = |path: &str| {
        status
            .map(|s| s.at(field).at("current").at(path))
            .filter(|v| !v.is_null())
    };
    let amount = |v: Option<&Value>| {
        v.and_then(quantity)
            .map_or(UNKNOWN.to_owned(), |q| q.to_string())
    };
    let average = wanted.has("averageValue");
    let name = spec.at(field).text("name");
    match *field {
        "resource" | "containerResource" if average => {
            format!(
                "{name}: {}/{}",
                amount(current("averageValue")),
                amount(Some(wanted.at("averageValue")))
            )
        }
        "resource" | "containerResource" => {
            let share = |v: Option<&Value>, none: &str| {
                v.and_then(Value::as_i64)
                    .map_or(none.to_owned(), |n| format!("{n}%"))
            };
            let wanted = share(Some(wanted.at("averageUtilization")), "<auto>");
            format!(
                "{name}: {}/{wanted}",
                share(current("averageUtilization"), UNKNOWN)
            )
        }
        "pods" => format!(
            "{}/{}",
            amount(current("averageValue")),
            amount(Some(wanted.at("averageValue")))
        ),
        _ if average => format!(
            "{}/{} (avg)",
            amount(current("averageValue")),
            amount(Some(wanted.at("averageValue")))
        ),
        _ => format!(
            "{}/{}",
            amount(current("value")),
            amount(Some(wanted.at("value")))
        ),
    }
}
