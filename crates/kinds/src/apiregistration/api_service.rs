//! APIService.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell;
use crate::check::{At, name_is_path_segment};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

pub(crate) static API_SERVICE: Kind = Kind {
    group: "apiregistration.k8s.io",
    resource: "apiservices",
    default: |obj| {
        if obj.at("spec.service").is_object() {
            obj.fill("spec.service.port", 443);
        }
    },
    prepare_create: |obj| {
        rules::clear_status(obj);
        // A group served from within is there as soon as it is named.
        if !obj.has("spec.service") {
            obj.put(
                "status",
                serde_json::json!({"conditions": [{
                    "type": "Available",
                    "status": "True",
                    "reason": "Local",
                    "message": "Local APIServices are always available",
                    "lastTransitionTime": obj.at("metadata.creationTimestamp"),
                }]}),
            );
        }
    },
    validate,
    prepare_update: rules::isolate_status_and_metadata,
    validate_update: |new, _, ctx| match ctx.subresource {
        "status" => {
            let mut e = ErrorList::new();
            for condition in At::new(new, "status").at("conditions").each() {
                condition
                    .at("status")
                    .strictly_one_of(&mut e, &["True", "False", "Unknown"]);
            }
            e
        }
        _ => validate(new),
    },
    columns: &[
        Column::text("Service"),
        Column::text("Available"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let service = obj.at("spec.service");
        let service = if service.is_object() {
            format!("{}/{}", service.text("namespace"), service.text("name"))
        } else {
            "Local".to_owned()
        };
        let condition = obj
            .list("status.conditions")
            .iter()
            .find(|c| c.text("type") == "Available");
        let available = match condition.map(|c| (c.text("status"), c.text("reason"))) {
            None => "Unknown".to_owned(),
            Some(("True", _)) => "True".to_owned(),
            Some((status, reason)) => format!("{status} ({reason})"),
        };
        vec![service.into(), available.into(), cell::age(obj, now)]
    },
    validate_name: name_is_path_segment,
    allow_unconditional_update: false,
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};

/// How many bytes a sound base64 text stands for.
fn bytes_of_base64(text: &str) -> usize {
    let digits = text.trim_end_matches('=').len();
    digits * 3 / 4
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let (group, version) = (spec.at("group"), spec.at("version"));
    let name = At::new(obj, "metadata").at("name");
    let required = format!("{}.{}", version.text(), group.text());
    if name_is_path_segment(name.text(), false).is_empty() && name.text() != required {
        e.push(name.invalid(format!(
            "must be `spec.version+\".\"+spec.group`: {required:?}"
        )));
    }
    if group.is_empty() && version.text() != "v1" {
        e.push(group.required("only v1 may have an empty group and it better be legacy kube"));
    }
    group.optional_conforms(&mut e, validation::is_dns1123_subdomain);
    version.conforms(&mut e, validation::is_dns1035_label);
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let at = spec.at(field);
        if !(1..=most).contains(&at.num()) {
            e.push(FieldError::invalid(
                &at.path,
                at.num(),
                format!("must be positive and less than {most}"),
            ));
        }
    }
    let (service, bundle, insecure) = (
        spec.at("service"),
        spec.at("caBundle"),
        spec.at("insecureSkipTLSVerify"),
    );
    if !service.exists() {
        if !bundle.is_empty() {
            e.push(FieldError::invalid(
                &bundle.path,
                format!("{} bytes", bytes_of_base64(bundle.text())),
                "local APIServices may not have a caBundle",
            ));
        }
        if insecure.flag() {
            e.push(insecure.invalid("local APIServices may not have insecureSkipTLSVerify"));
        }
        return e;
    }
    service.at("namespace").require(&mut e);
    service.at("name").require(&mut e);
    let port = service.at("port");
    if !(1..=65535).contains(&port.num()) {
        e.push(port.invalid("port is not valid: must be between 1 and 65535, inclusive"));
    }
    if insecure.flag() && !bundle.is_empty() {
        e.push(insecure.invalid("may not be true if caBundle is present"));
    }
    e
}
