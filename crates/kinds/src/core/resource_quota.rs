//! ResourceQuota.

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

use super::pod::default::resource_list;
use super::resources;
use crate::cell;
use crate::check::{At, IMMUTABLE, quantity};
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};

const SCOPES: &[&str] = &[
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

pub(crate) static RESOURCE_QUOTA: Kind = Kind {
    group: "",
    resource: "resourcequotas",
    default: |obj| {
        for list in ["spec.hard", "status.hard", "status.used"] {
            if let Some(list) = obj.at_mut(list) {
                resource_list(list);
            }
        }
    },
    prepare_create: rules::clear_status,
    validate,
    validate_update,
    columns: &[Column::text("Request"), Column::text("Limit"), Column::AGE],
    cells,
    ..Kind::GENERIC
};

fn amounts(at: &At, e: &mut ErrorList) {
    for (name, q) in at.entries() {
        resources::name(&q, name, e);
        if !name.contains('/') && (!resources::is_standard(name) || name == "storage") {
            e.push(FieldError::invalid(
                &q.path,
                name,
                "must be a standard resource for quota",
            ));
        }
        resources::amount(&q, name, e);
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    amounts(&spec.at("hard"), &mut e);
    let scopes = spec.at("scopes");
    let named: Vec<_> = scopes.each().map(|s| s.text()).collect();
    let hard: Vec<_> = spec.value.map("hard").keys().map(String::as_str).collect();
    for scope in &named {
        if !SCOPES.contains(scope) {
            e.push(scopes.invalid("unsupported scope"));
        }
        for _ in hard
            .iter()
            .filter(|r| resources::is_standard(r) && !scope_fits(scope, r))
        {
            e.push(scopes.invalid("unsupported scope applied to resource"));
        }
    }
    conflicts(&named, &scopes, &mut e);
    selector(&spec, &hard, &mut e);
    e
}

fn conflicts(named: &[&str], scopes: &At, e: &mut ErrorList) {
    for pair in [
        ["BestEffort", "NotBestEffort"],
        ["Terminating", "NotTerminating"],
    ] {
        if pair.iter().all(|s| named.contains(s)) {
            e.push(scopes.invalid("conflicting scopes"));
        }
    }
}

/// Whether a quota of this scope can count this resource.
fn scope_fits(scope: &str, resource: &str) -> bool {
    let compute = matches!(
        resource,
        "cpu" | "memory" | "limits.cpu" | "limits.memory" | "requests.cpu" | "requests.memory"
    );
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => resource == "pods" || compute,
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage")
        }
        _ => true,
    }
}

fn selector(spec: &At, hard: &[&str], e: &mut ErrorList) {
    let selector = spec.at("scopeSelector");
    let path = selector.path.child("matchExpressions");
    let mut named = Vec::new();
    for req in selector.at("matchExpressions").each() {
        let (scope, operator) = (req.value.text("scopeName"), req.value.text("operator"));
        let values = req.value.list("values");
        if !SCOPES.contains(&scope) {
            e.push(FieldError::invalid(
                &path.child("scopeName"),
                scope,
                "unsupported scope",
            ));
        }
        for _ in hard
            .iter()
            .filter(|r| resources::is_standard(r) && !scope_fits(scope, r))
        {
            e.push(FieldError::invalid(
                &path,
                selector.value.clone(),
                "unsupported scope applied to resource",
            ));
        }
        if !matches!(scope, "PriorityClass" | "VolumeAttributesClass")
            && SCOPES.contains(&scope)
            && operator != "Exists"
        {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            e.push(FieldError::invalid(
                &path.child("operator"),
                operator,
                detail,
            ));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => e.push(FieldError::required(
                &path.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => e.push(FieldError::invalid(
                &path.child("values"),
                values.to_vec(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => e.push(FieldError::invalid(
                &path.child("operator"),
                operator,
                "not a valid selector operator",
            )),
        }
        named.push(scope);
    }
    conflicts(
        &named,
        &At {
            value: spec.value.at("scopes"),
            path,
        },
        e,
    );
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    let mut e = ErrorList::new();
    if ctx.subresource == "status" {
        amounts(&At::new(new, "status").at("hard"), &mut e);
        amounts(&At::new(new, "status").at("used"), &mut e);
        return e;
    }
    e = validate(new);
    let sorted = |obj: &Value| {
        let mut scopes: Vec<_> = obj
            .list("spec.scopes")
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        scopes.sort();
        scopes.dedup();
        scopes
    };
    if sorted(new) != sorted(old) {
        e.push(At::new(new, "spec").at("scopes").invalid(IMMUTABLE));
    }
    e
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in obj.map("status.hard") {
        let text = |v: Option<&Value>| {
            v.and_then(quantity)
                .map_or("0".to_owned(), |q| q.to_string())
        };
        let line = format!(
            "{name}: {}/{}",
            text(obj.at("status.used").get(name)),
            text(Some(hard))
        );
        if name.starts_with("limits.") {
            limits.push(line)
        } else {
            requests.push(line)
        }
    }
    vec![
        requests.join(", ").into(),
        limits.join(", ").into(),
        cell::age(obj, now),
    ]
}
