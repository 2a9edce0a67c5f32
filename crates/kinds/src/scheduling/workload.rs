//! Workload.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::template;
use crate::check::At;
use crate::kind::Kind;
use crate::tree::{Tree, TreeMut};

pub(crate) static WORKLOAD: Kind = Kind {
    group: "scheduling.k8s.io",
    resource: "workloads",
    storage_version: "v1alpha2",
    prepare_create: |obj| drop_disabled(obj, &Value::Null),
    prepare_update: |new, old, _| drop_disabled(new, old),
    validate: |obj| {
        let mut e = ErrorList::new();
        controller(&At::new(obj, "spec").at("controllerRef"), &mut e);
        templates(&At::new(obj, "spec").at("podGroupTemplates"), &mut e);
        e
    },
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        let spec = At::new(new, "spec");
        template::immutable(
            &spec.at("controllerRef"),
            old.at("spec.controllerRef"),
            &mut e,
        );
        let list = spec.at("podGroupTemplates");
        template::immutable(&list, old.at("spec.podGroupTemplates"), &mut e);
        if list.is_empty() {
            e.push(list.required(""));
        }
        e
    },
    reset_fields: &[],
    ..Kind::GENERIC
};

fn drop_disabled(new: &mut Value, old: &Value) {
    let before = old.list("spec.podGroupTemplates");
    let templates = new.list_mut("spec.podGroupTemplates").iter_mut();
    for (index, one) in templates.enumerate() {
        template::drop_disabled(one, before.get(index));
        if let Some(fields) = one.as_object_mut() {
            fields.entry("schedulingConstraints").or_insert(Value::Null);
        }
    }
}

fn controller(at: &At, e: &mut ErrorList) {
    if !at.exists() {
        return;
    }
    at.at("apiGroup")
        .optional_conforms(e, validation::is_dns1123_subdomain);
    for field in ["kind", "name"] {
        at.at(field)
            .required_conforms(e, validation::is_path_segment_name);
    }
}

fn templates(list: &At, e: &mut ErrorList) {
    const MOST: usize = 8;
    if list.is_empty() {
        return e.push(list.required(""));
    }
    if list.len() > MOST {
        return e.push(FieldError::too_many(&list.path, list.len(), MOST));
    }
    let mut seen: Vec<&str> = Vec::new();
    for one in list.each() {
        let name = one.at("name");
        if seen.contains(&name.text()) {
            e.push(one.duplicate());
        }
        seen.push(name.text());
        template::short_name(&name, e);
        template::policy(&one.at("schedulingPolicy"), e);
    }
}
