//! ResourceClaim.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::device_class::{opaque, selectors};
use super::{GROUP, convert};
use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static RESOURCE_CLAIM: Kind = Kind {
    group: GROUP,
    resource: "resourceclaims",
    default: |obj| default_requests(obj, "spec.devices.requests"),
    prepare_create: rules::clear_status,
    validate: |obj| {
        let mut e = ErrorList::new();
        validate_spec(&At::new(obj, "spec"), &mut e);
        e
    },
    prepare_update: rules::isolate_status_and_metadata,
    validate_update,
    columns: &[Column::text("State"), Column::AGE],
    cells: |obj, now| {
        let deleted = obj.has("metadata.deletionTimestamp");
        let allocated = obj.has("status.allocation");
        let mut states = Vec::new();
        if deleted {
            states.push("deleted");
        }
        if allocated {
            states.push("allocated");
            if !obj.list("status.reservedFor").is_empty() {
                states.push("reserved");
            }
        } else if !deleted {
            states.push("pending");
        }
        vec![states.join(",").into(), cell::age(obj, now)]
    },
    convert: convert::convert,
    ..Kind::GENERIC
};

/// A request without a count asks for one device.
pub(super) fn default_requests(obj: &mut Value, path: &str) {
    let one = |request: &mut Value| {
        request.fill_text("allocationMode", "ExactCount");
        if request.text("allocationMode") == "ExactCount" && request.num("count") == 0 {
            request.put("count", 1);
        }
        for toleration in request.list_mut("tolerations") {
            toleration.fill_text("operator", "Equal");
        }
    };
    for request in obj.list_mut(path) {
        if let Some(exact) = request.at_mut("exactly").filter(|r| r.is_object()) {
            one(exact);
        } else if request.has("deviceClassName") {
            one(request);
        }
        request.list_mut("firstAvailable").iter_mut().for_each(one);
    }
}

pub(super) fn validate_spec(spec: &At, e: &mut ErrorList) {
    let devices = spec.at("devices");
    let requests = devices.at("requests");
    if requests.len() > 32 {
        e.push(FieldError::too_many(&requests.path, requests.len(), 32));
    }
    let mut names = BTreeSet::new();
    for request in requests.each() {
        let name = request.at("name");
        name.required_conforms(e, validation::is_dns1123_label);
        if !name.is_empty() && !names.insert(name.text().to_owned()) {
            e.push(name.duplicate());
        }
        let (exact, first) = (request.at("exactly"), request.at("firstAvailable"));
        match (exact.exists(), !first.is_empty()) {
            (true, true) => {
                e.push(request.invalid("exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"));
            }
            (false, false) => {
                e.push(request.required("exactly one of `exactly` or `firstAvailable` is required"))
            }
            (true, false) => device_request(&exact, e),
            (false, true) => {
                if first.len() > 8 {
                    e.push(FieldError::too_many(&first.path, first.len(), 8));
                }
                for sub in first.each() {
                    let own = sub.at("name");
                    own.required_conforms(e, validation::is_dns1123_label);
                    if !names.insert(format!("{}/{}", name.text(), own.text())) {
                        e.push(own.duplicate());
                    }
                    device_request(&sub, e);
                }
            }
        }
    }
    let known = |at: &At, e: &mut ErrorList| {
        if !names.contains(at.text()) {
            e.push(at.invalid("must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"));
        }
    };
    for constraint in devices.at("constraints").each() {
        constraint.at("requests").each().for_each(|r| known(&r, e));
        if !constraint.has("matchAttribute") && !constraint.has("distinctAttribute") {
            e.push(
                constraint
                    .required("exactly one of matchAttribute or distinctAttribute is required"),
            );
        }
    }
    for config in devices.at("config").each() {
        config.at("requests").each().for_each(|r| known(&r, e));
        opaque(&config, e);
    }
}

fn device_request(request: &At, e: &mut ErrorList) {
    request
        .at("deviceClassName")
        .required_conforms(e, validation::is_dns1123_subdomain);
    selectors(&request.at("selectors"), e);
    let (mode, count) = (request.at("allocationMode"), request.at("count"));
    match mode.text() {
        "ExactCount" => count.positive(e),
        "All" => {
            if count.num() != 0 {
                e.push(count.invalid("must not be specified when allocationMode is 'All'"));
            }
        }
        _ => e.push(FieldError::not_supported(
            &mode.path,
            mode.text(),
            &["All", "ExactCount"],
        )),
    }
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    let mut e = ErrorList::new();
    if ctx.subresource != "status" {
        workload::immutable(new, old, "spec", &mut e);
        return e;
    }
    let status = At::new(new, "status");
    let (allocation, reserved) = (status.at("allocation"), status.at("reservedFor"));
    if reserved.len() > 256 {
        e.push(FieldError::too_many(&reserved.path, reserved.len(), 256));
    }
    let mut seen = BTreeSet::new();
    for consumer in reserved.each() {
        for field in ["resource", "name", "uid"] {
            consumer.at(field).require(&mut e);
        }
        if !seen.insert(consumer.value.text("uid")) {
            e.push(FieldError::duplicate(
                &consumer.at("uid").path,
                consumer.value.text("uid"),
            ));
        }
    }
    if !reserved.is_empty() && !allocation.exists() {
        e.push(reserved.forbidden("may not be specified when `allocated` is not set"));
    }
    if old.has("status.allocation") {
        if allocation.exists() {
            workload::immutable(new, old, "status.allocation", &mut e);
        } else if !reserved.is_empty() {
            e.push(allocation.forbidden("may not be removed while the claim is reserved"));
        }
    }
    e
}
