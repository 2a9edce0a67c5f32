//! LimitRange.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::quantity::Quantity;
use keelson_machinery::validation;
use serde_json::{Map, Value};

use super::pod::default::resource_list;
use super::resources;
use crate::check::At;
use crate::kind::Kind;
use crate::tree::{Tree, TreeMut};

const LISTS: [&str; 5] = [
    "max",
    "min",
    "default",
    "defaultRequest",
    "maxLimitRequestRatio",
];

pub(crate) static LIMIT_RANGE: Kind = Kind {
    group: "",
    resource: "limitranges",
    default,
    validate,
    validate_update: |new, _, _| validate(new),
    columns: &[crate::kind::Column {
        name: "Created At",
        kind: "date",
        format: "",
        priority: 0,
    }],
    cells: |obj, _| vec![obj.at("metadata.creationTimestamp").clone()],
    allow_create_on_update: true,
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    for limit in obj.list_mut("spec.limits") {
        for list in LISTS {
            if let Some(list) = limit.at_mut(list) {
                resource_list(list);
            }
        }
        if limit.text("type") != "Container" {
            continue;
        }
        let copy = |from: Map<String, Value>, to: &str, limit: &mut Value| {
            if let Some(map) = limit.object(to) {
                for (name, q) in from {
                    map.entry(name).or_insert(q);
                }
            }
        };
        copy(limit.map("max").clone(), "default", limit);
        copy(limit.map("default").clone(), "defaultRequest", limit);
        copy(limit.map("min").clone(), "defaultRequest", limit);
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let mut types = BTreeSet::new();
    for limit in At::new(obj, "spec").at("limits").each() {
        let kind = limit.at("type");
        let msgs = validation::is_qualified_name(kind.text());
        if !msgs.is_empty() {
            e.extend(
                msgs.into_iter()
                    .map(|m| FieldError::invalid(&kind.path, kind.text(), m)),
            );
        } else if !kind.text().contains('/')
            && !matches!(kind.text(), "Pod" | "Container" | "PersistentVolumeClaim")
        {
            e.push(kind.invalid("must be a standard limit type or fully qualified"));
        }
        if !types.insert(kind.text()) {
            e.push(kind.duplicate());
        }
        one(&limit, kind.text(), &mut e);
    }
    e
}

fn one(limit: &At, kind: &str, e: &mut ErrorList) {
    let mut names = BTreeSet::new();
    for list in LISTS {
        let at = limit.at(list);
        if kind == "Pod" && matches!(list, "default" | "defaultRequest") {
            if !at.is_empty() {
                e.push(at.forbidden("may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for (name, q) in at.entries() {
            match kind {
                "Pod" | "Container" => resources::container_name(&q, name, e),
                _ => _ = resources::name(&q, name, e),
            }
            names.insert(name);
        }
    }
    let storage = |list: &str| limit.value.at(list).get("storage").is_some();
    if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
        let detail =
            "either minimum or maximum storage value is required, but neither was provided";
        e.push(limit.at("limits").required(detail));
    }
    for name in names {
        relations(limit, name, e);
    }
}

fn relations(limit: &At, name: &str, e: &mut ErrorList) {
    let of = |list: &str| {
        limit
            .value
            .at(list)
            .get(name)
            .and_then(crate::check::quantity)
    };
    let (min, max, default, request) = (of("min"), of("max"), of("default"), of("defaultRequest"));
    // What is shown is not always the value at the path: so upstream has it.
    let mut ordered = |low: &Option<Quantity>,
                       low_name: &str,
                       high: &Option<Quantity>,
                       high_name: &str,
                       at: &str| {
        if let (Some(l), Some(h)) = (low, high)
            && l > h
        {
            let path = limit.path.child(at).key(name);
            let shown = match (at, low_name) {
                ("default", "default") => h.to_string(),
                ("default", _) => l.to_string(),
                _ => of(at).map_or(String::new(), |q| q.to_string()),
            };
            e.push(FieldError::invalid(
                &path,
                shown,
                format!("{low_name} value {l} is greater than {high_name} value {h}"),
            ));
        }
    };
    ordered(&min, "min", &max, "max", "min");
    ordered(&min, "min", &request, "default request", "defaultRequest");
    ordered(&request, "default request", &max, "max", "defaultRequest");
    ordered(
        &request,
        "default request",
        &default,
        "default limit",
        "defaultRequest",
    );
    ordered(&min, "min", &default, "default", "default");
    ordered(&default, "default", &max, "max", "default");
    let Some(ratio) = of("maxLimitRequestRatio") else {
        return;
    };
    let path = limit.path.child("maxLimitRequestRatio").key(name);
    if ratio.milli_value() < 1000 {
        e.push(FieldError::invalid(
            &path,
            ratio.to_string(),
            format!("ratio {ratio} is less than 1"),
        ));
    }
    if let (Some(min), Some(max)) = (min, max) {
        let most = max.milli_value() as f64 / min.milli_value() as f64;
        if ratio.milli_value() as f64 / 1000.0 > most {
            let detail = format!("ratio {ratio} is greater than max/min = {most:.6}");
            e.push(FieldError::invalid(&path, ratio.to_string(), detail));
        }
    }
}
