//! HorizontalPodAutoscaler between v1 and v2. What v1 has no field for rides in annotations, in
//! the flat form that v1 gave to metrics.

use serde_json::{Value, json};

use crate::tree::{Tree, TreeMut};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Metric type's field, then pairs of v2's path and v1's name.
type Fields = (&'static str, &'static [(&'static str, &'static str)]);

const SPECS: &[Fields] = &[
    (
        "resource",
        &[
            ("name", "name"),
            ("target.averageUtilization", "targetAverageUtilization"),
            ("target.averageValue", "targetAverageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", "name"),
            ("container", "container"),
            ("target.averageUtilization", "targetAverageUtilization"),
            ("target.averageValue", "targetAverageValue"),
        ],
    ),
    (
        "pods",
        &[
            ("metric.name", "metricName"),
            ("metric.selector", "selector"),
            ("target.averageValue", "targetAverageValue"),
        ],
    ),
    (
        "object",
        &[
            ("describedObject", "target"),
            ("metric.name", "metricName"),
            ("metric.selector", "selector"),
            ("target.value", "targetValue"),
            ("target.averageValue", "averageValue"),
        ],
    ),
    (
        "external",
        &[
            ("metric.name", "metricName"),
            ("metric.selector", "metricSelector"),
            ("target.value", "targetValue"),
            ("target.averageValue", "targetAverageValue"),
        ],
    ),
];

const STATUSES: &[Fields] = &[
    (
        "resource",
        &[
            ("name", "name"),
            ("current.averageUtilization", "currentAverageUtilization"),
            ("current.averageValue", "currentAverageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", "name"),
            ("container", "container"),
            ("current.averageUtilization", "currentAverageUtilization"),
            ("current.averageValue", "currentAverageValue"),
        ],
    ),
    (
        "pods",
        &[
            ("metric.name", "metricName"),
            ("metric.selector", "selector"),
            ("current.averageValue", "currentAverageValue"),
        ],
    ),
    (
        "object",
        &[
            ("describedObject", "target"),
            ("metric.name", "metricName"),
            ("metric.selector", "selector"),
            ("current.value", "currentValue"),
            ("current.averageValue", "averageValue"),
        ],
    ),
    (
        "external",
        &[
            ("metric.name", "metricName"),
            ("metric.selector", "metricSelector"),
            ("current.value", "currentValue"),
            ("current.averageValue", "currentAverageValue"),
        ],
    ),
];

/// Amounts that v1's own types always write, as zero when there are none.
const ALWAYS: &[(&str, &str)] = &[
    ("resource", "currentAverageValue"),
    ("containerResource", "currentAverageValue"),
    ("pods", "targetAverageValue"),
    ("pods", "currentAverageValue"),
    ("object", "targetValue"),
    ("object", "currentValue"),
    ("external", "currentValue"),
];

fn flatten(metric: &Value, table: &[Fields]) -> Value {
    let mut out = json!({"type": metric.at("type")});
    for (kind, fields) in table {
        let from = metric.at(kind);
        for (nested, flat) in fields.iter().filter(|_| from.is_object()) {
            let path = format!("{kind}.{flat}");
            if from.has(nested) {
                out.put(&path, from.at(nested).clone());
            } else if ALWAYS.contains(&(*kind, *flat)) {
                out.put(&path, "0");
            }
        }
    }
    out
}

fn unflatten(metric: &Value, table: &[Fields]) -> Value {
    let mut out = json!({"type": metric.at("type")});
    for (kind, fields) in table {
        let from = metric.at(kind);
        if !from.is_object() {
            continue;
        }
        for (nested, flat) in *fields {
            if from.has(flat) {
                out.put(&format!("{kind}.{nested}"), from.at(flat).clone());
            }
        }
        if let Some(target) = out
            .at_mut(&format!("{kind}.target"))
            .filter(|t| t.is_object())
        {
            let by = if target.has("averageUtilization") {
                "Utilization"
            } else if target.has("averageValue") {
                "AverageValue"
            } else {
                "Value"
            };
            target.put("type", by);
        }
    }
    out
}

fn is_cpu(metric: &Value, utilization: &str) -> bool {
    metric.text("type") == "Resource"
        && metric.text("resource.name") == "cpu"
        && metric.at("resource").has(utilization)
}

/// The order of fields in the annotations' JSON, which clients compare as text. One list serves
/// all of the types in there, since none orders two fields the other way round.
const ORDER: &[&str] = &[
    "type",
    "status",
    "lastTransitionTime",
    "reason",
    "message",
    "target",
    "kind",
    "metricName",
    "metricSelector",
    "name",
    "apiVersion",
    "targetAverageUtilization",
    "currentAverageUtilization",
    "targetValue",
    "currentValue",
    "targetAverageValue",
    "currentAverageValue",
    "selector",
    "averageValue",
    "container",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "ScaleUp",
    "ScaleDown",
    "StabilizationWindowSeconds",
    "SelectPolicy",
    "Policies",
    "Tolerance",
    "Type",
    "Value",
    "PeriodSeconds",
];

fn ordered(value: &Value, out: &mut String) {
    let position = |key: &str| ORDER.iter().position(|k| *k == key).unwrap_or(ORDER.len());
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(key, _)| position(key));
            for (i, (key, value)) in fields.into_iter().enumerate() {
                out.push(if i == 0 { '{' } else { ',' });
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                ordered(value, out);
            }
            out.push_str(if map.is_empty() { "{}" } else { "}" });
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                ordered(item, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn annotate(obj: &mut Value, key: &str, value: &Value) {
    let mut text = String::new();
    ordered(value, &mut text);
    if let Some(annotations) = obj.object("metadata.annotations") {
        annotations.insert(key.to_owned(), text.into());
    }
}

/// Upstream writes the behavior by the names of its own structs, and all of their fields.
fn behavior_to_annotation(behavior: &Value) -> Value {
    let rules = |name: &str| {
        let rules = behavior.at(name);
        if !rules.is_object() {
            return Value::Null;
        }
        let policy = |p: &Value| json!({"Type": p.at("type"), "Value": p.at("value"), "PeriodSeconds": p.at("periodSeconds")});
        let policies = rules.at("policies").as_array();
        let policies: Option<Vec<_>> = policies.map(|all| all.iter().map(policy).collect());
        json!({
            "StabilizationWindowSeconds": rules.at("stabilizationWindowSeconds"),
            "SelectPolicy": rules.at("selectPolicy"),
            "Policies": policies,
            "Tolerance": rules.at("tolerance"),
        })
    };
    json!({"ScaleUp": rules("scaleUp"), "ScaleDown": rules("scaleDown")})
}

/// The same back; names may be written either way.
fn behavior_from_annotation(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let lower = |key: &str| {
                let mut letters = key.chars();
                letters.next().map_or_else(String::new, |first| {
                    first.to_lowercase().chain(letters).collect()
                })
            };
            let fields = map.iter().filter(|(_, v)| !v.is_null());
            fields
                .map(|(k, v)| (lower(k), behavior_from_annotation(v)))
                .collect()
        }
        Value::Array(items) => items.iter().map(behavior_from_annotation).collect(),
        other => other.clone(),
    }
}

/// The annotation's content, which leaves the object.
fn take(obj: &mut Value, key: &str) -> Option<Value> {
    let annotations = obj.at_mut("metadata.annotations")?.as_object_mut()?;
    let text = annotations.remove(key)?;
    if annotations.is_empty() {
        obj.remove("metadata.annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

pub(super) fn to_v1(obj: &mut Value) {
    obj.put("apiVersion", "autoscaling/v1");
    let metrics = obj.list("spec.metrics").to_vec();
    obj.remove("spec.metrics");
    let cpu = metrics
        .iter()
        .position(|m| is_cpu(m, "target.averageUtilization"));
    if let Some(i) = cpu {
        let target = metrics[i].at("resource.target.averageUtilization").clone();
        obj.put("spec.targetCPUUtilizationPercentage", target);
    }
    let rest: Vec<_> = metrics
        .iter()
        .enumerate()
        .filter(|(i, _)| Some(*i) != cpu)
        .map(|(_, m)| flatten(m, SPECS))
        .collect();
    if !rest.is_empty() {
        annotate(obj, METRICS, &rest.into());
    }
    let behavior = obj.at("spec.behavior").clone();
    obj.remove("spec.behavior");
    if !behavior.is_null() {
        annotate(obj, BEHAVIOR, &behavior_to_annotation(&behavior));
    }
    let current = obj.list("status.currentMetrics").to_vec();
    obj.remove("status.currentMetrics");
    if let Some(status) = obj.at_mut("status").and_then(Value::as_object_mut) {
        status.entry("currentReplicas").or_insert(0.into());
    }
    if let Some(cpu) = current
        .iter()
        .find(|m| is_cpu(m, "current.averageUtilization"))
    {
        obj.put(
            "status.currentCPUUtilizationPercentage",
            cpu.at("resource.current.averageUtilization").clone(),
        );
    }
    if !current.is_empty() {
        let flat: Vec<_> = current.iter().map(|m| flatten(m, STATUSES)).collect();
        annotate(obj, CURRENT, &flat.into());
    }
    let conditions = obj.at("status.conditions").clone();
    obj.remove("status.conditions");
    if !conditions.is_null() {
        annotate(obj, CONDITIONS, &conditions);
    }
}

pub(super) fn to_v2(obj: &mut Value) {
    obj.put("apiVersion", "autoscaling/v2");
    let mut metrics: Vec<Value> = Vec::new();
    let target = obj.at("spec.targetCPUUtilizationPercentage").clone();
    obj.remove("spec.targetCPUUtilizationPercentage");
    if !target.is_null() {
        metrics.push(json!({"type": "Resource", "resource":
            {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": target}}}));
    }
    if let Some(Value::Array(more)) = take(obj, METRICS) {
        metrics.extend(more.iter().map(|m| unflatten(m, SPECS)));
    }
    if metrics.is_empty() {
        metrics.push(super::horizontal_pod_autoscaler::default_metric());
    }
    obj.put("spec.metrics", metrics);
    if let Some(behavior) = take(obj, BEHAVIOR) {
        obj.put("spec.behavior", behavior_from_annotation(&behavior));
    }
    let cpu = obj.at("status.currentCPUUtilizationPercentage").clone();
    obj.remove("status.currentCPUUtilizationPercentage");
    let mut current: Vec<Value> = Vec::new();
    if let Some(Value::Array(more)) = take(obj, CURRENT) {
        current.extend(more.iter().map(|m| unflatten(m, STATUSES)));
    } else if !cpu.is_null() {
        current.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": cpu}}}));
    }
    if let Some(status) = obj.at_mut("status").and_then(Value::as_object_mut) {
        // What v1 always writes, v2 leaves out, and the other way round.
        if status.get("currentReplicas") == Some(&json!(0)) {
            status.remove("currentReplicas");
        }
        let current = Some(current).filter(|all| !all.is_empty());
        status.insert("currentMetrics".to_owned(), current.into());
    } else if !current.is_empty() {
        obj.put("status.currentMetrics", current);
    }
    if let Some(conditions) = take(obj, CONDITIONS) {
        obj.put("status.conditions", conditions);
    }
    super::horizontal_pod_autoscaler::default(obj);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_by_way_of_v1() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
            {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1k"}}},
        ], "behavior": {"scaleUp": {"selectPolicy": "Max"}}}});
        let mut v2 = v2;
        super::super::horizontal_pod_autoscaler::default(&mut v2);
        let mut obj = v2.clone();
        to_v1(&mut obj);
        assert_eq!(obj["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(obj["apiVersion"], "autoscaling/v1");
        to_v2(&mut obj);
        assert_eq!(obj, v2);
    }
}
