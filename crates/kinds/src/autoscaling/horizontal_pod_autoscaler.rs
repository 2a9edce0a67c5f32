//! HorizontalPodAutoscaler, stored as v2.

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::{Value, json};

use super::convert;
use crate::cell::{self, NONE, UNKNOWN, UNSET};
use crate::check::{At, name_is_path_segment, quantity};
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

pub(crate) static HORIZONTAL_POD_AUTOSCALER: Kind = Kind {
    group: "autoscaling",
    resource: "horizontalpodautoscalers",
    storage_version: "v2",
    default,
    prepare_create: rules::clear_status,
    validate,
    validate_update: |new, _, ctx| match ctx.subresource {
        "status" => workload::status_counts(new, &["currentReplicas", "desiredReplicas"], &[]),
        _ => validate(new),
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

fn default(obj: &mut Value) {
    obj.fill("spec.minReplicas", 1);
    if obj.text("apiVersion") == "autoscaling/v1" {
        return;
    }
    if obj.list("spec.metrics").is_empty() {
        obj.put(
            "spec.metrics",
            json!([{"type": "Resource", "resource":
                {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
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

fn reference(at: &At, e: &mut ErrorList) {
    for field in ["kind", "name"] {
        at.at(field)
            .required_conforms(e, |n| name_is_path_segment(n, false));
    }
    let version = at.at("apiVersion");
    if version.text().matches('/').count() > 1 {
        e.push(version.invalid(format!(
            "unexpected GroupVersion string: {}",
            version.text()
        )));
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let (min, max) = (spec.at("minReplicas"), spec.at("maxReplicas"));
    if min.int().is_some_and(|m| m < 1) {
        e.push(min.invalid("must be greater than or equal to 1"));
    }
    match max.num() {
        0 => e.push(max.required("must be set and greater than 0")),
        n if n < 0 => e.push(max.invalid("must be greater than or equal to 1")),
        n if n < min.num() => e.push(max.invalid("must be greater than or equal to `minReplicas`")),
        _ => {}
    }
    reference(&spec.at("scaleTargetRef"), &mut e);
    spec.at("metrics").each().for_each(|m| metric(&m, &mut e));
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
    if kind.is_empty() {
        e.push(kind.required("must specify a metric source type"));
    }
    if expected.is_none() {
        e.push(FieldError::not_supported(&kind.path, kind.text(), &names));
    }
    for (_, field) in TYPES {
        let source = metric.at(field);
        if Some(*field) == expected {
            if source.exists() {
                self::source(&source, field, e);
            } else {
                e.push(source.required("must populate information for the given metric source"));
            }
        } else if source.exists() {
            e.push(source.forbidden("must populate the given metric source only"));
        }
    }
}

fn source(source: &At, field: &str, e: &mut ErrorList) {
    let target = source.at("target");
    match field {
        "resource" | "containerResource" => {
            if source.at("name").is_empty() {
                e.push(source.at("name").required("must specify a resource name"));
            }
            if field == "containerResource" && source.at("container").is_empty() {
                e.push(
                    source
                        .at("container")
                        .required("must specify a container name"),
                );
            }
        }
        _ => {
            let metric = source.at("metric");
            metric
                .at("name")
                .required_conforms(e, |n| name_is_path_segment(n, false));
            metric.at("selector").label_selector(e);
            if field == "object" {
                reference(&source.at("describedObject"), e);
            }
        }
    }
    let by = target.at("type");
    if by.is_empty() {
        e.push(by.required("must specify a metric target type"));
    } else if !matches!(by.text(), "Utilization" | "Value" | "AverageValue") {
        e.push(by.invalid("must be either Utilization, Value, or AverageValue"));
    }
    for amount in ["value", "averageValue"] {
        let at = target.at(amount);
        if at.quantity().is_some_and(|q| q.milli_value() <= 0) {
            e.push(at.invalid("must be positive"));
        }
    }
    let share = target.at("averageUtilization");
    if share.int().is_some_and(|u| u < 1) {
        e.push(share.invalid("must be greater than 0"));
    }
    let (value, average) = (target.has("value"), target.has("averageValue"));
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
        e.push(
            target
                .at("value")
                .forbidden("may not set both a target value for metric and a per-pod target"),
        );
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
