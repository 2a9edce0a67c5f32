//! StorageVersionMigration (`storagemigration.k8s.io`).

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::Value;

use crate::check::{self, At};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::Tree;
use crate::workload;

pub(crate) static STORAGE_VERSION_MIGRATION: Kind = Kind {
    group: "storagemigration.k8s.io",
    resource: "storageversionmigrations",
    storage_version: "v1beta1",
    prepare_create: rules::clear_status,
    prepare_update: rules::isolate_status_and_metadata,
    validate,
    validate_update: |new, old, ctx| {
        if ctx.subresource == "status" {
            return validate_status(new, old);
        }
        let mut e = validate(new);
        workload::immutable(new, old, "spec", &mut e);
        e
    },
    columns: &[Column::text("Resource"), Column::text("Status")],
    cells: |obj, _| {
        let resource = obj.at("spec.resource");
        let text = match resource.text("group") {
            "" => resource.text("resource").to_owned(),
            group => format!("{}.{group}", resource.text("resource")),
        };
        let status = obj
            .list("status.conditions")
            .iter()
            .filter(|c| c.text("status") == "True")
            .map(|c| c.text("type"))
            .rfind(|t| matches!(*t, "Running" | "Failed" | "Succeeded"));
        vec![text.into(), status.unwrap_or("Unknown").into()]
    },
    allow_unconditional_update: false,
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let at = At::new(obj, "spec").at("resource");
    let (group, resource) = (at.at("group"), at.at("resource"));
    if resource.is_empty() {
        e.push(resource.required("resource is required to be set"));
    } else {
        joined(&resource, validation::is_dns1035_label, &mut e);
    }
    if !group.is_empty() {
        joined(&group, validation::is_dns1123_subdomain, &mut e);
    }
    e
}

/// All messages of a rule in one error.
fn joined(at: &At, rule: impl Fn(&str) -> Vec<String>, e: &mut ErrorList) {
    let messages = rule(at.text());
    if !messages.is_empty() {
        e.push(at.invalid(messages.join(",")));
    }
}

fn validate_status(new: &Value, old: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let status = At::new(new, "status");
    let (version, conditions) = (status.at("resourceVersion"), status.at("conditions"));
    let text = version.text();
    let number = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if !text.is_empty() && !number {
        e.push(version.invalid(format!("resource version is not well formed: {text}")));
    }
    check::conditions(&conditions, &mut e);
    let before = old.text("status.resourceVersion");
    if !before.is_empty() && before != text {
        e.push(version.invalid_text(check::IMMUTABLE));
    }
    let is = |obj: &Value, kind: &str| {
        let list = obj.list("status.conditions");
        let found = list.iter().find(|c| c.text("type") == kind);
        found.is_some_and(|c| c.text("status") == "True")
    };
    if is(new, "Succeeded") && is(new, "Failed") {
        let both = "Both success and failed conditions cannot be true at the same time";
        e.push(conditions.invalid(both));
    }
    for (kind, name) in [("Succeeded", "Success"), ("Failed", "Failed")] {
        if is(old, kind) && !is(new, kind) {
            let back = format!("{name} condition cannot be set to false once it is true");
            e.push(conditions.invalid(back));
        }
    }
    e
}
