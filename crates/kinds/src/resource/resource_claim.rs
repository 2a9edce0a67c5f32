//! ResourceClaim.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::device_class::{opaque, selectors};
use super::{GROUP, convert, device};
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
    reset_fields: Kind::STATUS_KEEPS_METADATA,
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
        } else if !request.text("deviceClassName").is_empty() {
            one(request);
        }
        request.list_mut("firstAvailable").iter_mut().for_each(one);
    }
}

pub(super) fn validate_spec(spec: &At, e: &mut ErrorList) {
    const MOST: usize = 32;
    let devices = spec.at("devices");
    let bounded = |list: &At, e: &mut ErrorList| {
        if list.len() > MOST {
            e.push(FieldError::too_many(&list.path, list.len(), MOST));
        }
        list.len() <= MOST
    };
    let requests = devices.at("requests");
    if bounded(&requests, e) {
        requests.each().for_each(|r| request(&r, e));
        device::unique(&requests, "name", e);
    }
    let constraints = devices.at("constraints");
    if bounded(&constraints, e) {
        for constraint in constraints.each() {
            named_requests(&constraint.at("requests"), &requests, e);
            let (same, distinct) = (
                constraint.at("matchAttribute"),
                constraint.at("distinctAttribute"),
            );
            if same.exists() {
                fully_qualified(&same, e);
            } else if distinct.exists() {
                fully_qualified(&distinct, e);
            } else {
                e.push(constraint.required("exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set"));
            }
        }
    }
    let config = devices.at("config");
    if bounded(&config, e) {
        for config in config.each() {
            named_requests(&config.at("requests"), &requests, e);
            opaque(&config, e);
        }
    }
}

fn request(request: &At, e: &mut ErrorList) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    request.at("name").conforms(e, validation::is_dns1123_label);
    let (exact, first) = (request.at("exactly"), request.at("firstAvailable"));
    match (exact.exists(), !first.is_empty()) {
        (true, true) => {
            let detail = format!("{ONE}, but multiple fields are set");
            e.push(FieldError::invalid(&request.path, (), detail));
        }
        (false, false) => e.push(request.required(ONE)),
        (true, false) => device_request(&exact, e),
        (false, true) if first.len() > 8 => {
            e.push(FieldError::too_many(&first.path, first.len(), 8));
        }
        (false, true) => {
            for sub in first.each() {
                sub.at("name").conforms(e, validation::is_dns1123_label);
                device_request(&sub, e);
            }
            device::unique(&first, "name", e);
        }
    }
}

/// Names of requests, or of requests and one of their alternatives, each once.
fn named_requests(list: &At, requests: &At, e: &mut ErrorList) {
    const KNOWN: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    if list.len() > 32 {
        return e.push(FieldError::too_many(&list.path, list.len(), 32));
    }
    let is_known = |text: &str| {
        let (name, sub) = text
            .split_once('/')
            .map_or((text, None), |(n, s)| (n, Some(s)));
        let named = |at: &At, name: &str| at.value.text("name") == name;
        let Some(request) = requests.each().find(|r| named(r, name)) else {
            return false;
        };
        sub.is_none_or(|sub| request.at("firstAvailable").each().any(|s| named(&s, sub)))
    };
    let mut seen = BTreeSet::new();
    for name in list.each() {
        let parts: Vec<_> = name.text().split('/').collect();
        if parts.len() > 2 {
            e.push(name.invalid(KNOWN));
            continue;
        }
        for part in parts {
            e.extend(
                validation::is_dns1123_label(part)
                    .into_iter()
                    .map(|problem| FieldError::invalid(&name.path, part, problem)),
            );
        }
        if !is_known(name.text()) {
            e.push(name.invalid(KNOWN));
        }
    }
    for name in list.each() {
        if !seen.insert(name.text()) {
            e.push(name.duplicate());
        }
    }
}

fn fully_qualified(name: &At, e: &mut ErrorList) {
    device::qualified_name(name, name.text(), e);
    if !name.text().contains('/') {
        let detail = "a fully qualified name must be a domain and a name separated by a slash";
        e.push(name.invalid(detail));
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
    for toleration in request.at("tolerations").each() {
        self::toleration(&toleration, e);
    }
}

fn toleration(toleration: &At, e: &mut ErrorList) {
    let (operator, value) = (toleration.at("operator"), toleration.at("value"));
    toleration
        .at("key")
        .optional_conforms(e, validation::is_qualified_name);
    match operator.text() {
        "Exists" => {
            if !value.is_empty() {
                e.push(value.invalid("must be empty for operator `Exists`"));
            }
        }
        "Equal" => value.conforms(e, validation::is_valid_label_value),
        "" => e.push(operator.required("")),
        _ => e.push(operator.not_supported(&["Equal", "Exists"])),
    }
    let effect = toleration.at("effect");
    if !effect.is_empty() {
        effect.one_of(e, device::EFFECTS);
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
