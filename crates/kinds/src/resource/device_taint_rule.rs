//! DeviceTaintRule.

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::Value;

use super::{GROUP, convert};
use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::Tree;

pub(crate) static DEVICE_TAINT_RULE: Kind = Kind {
    group: GROUP,
    resource: "devicetaintrules",
    storage_version: "v1beta2",
    prepare_create: rules::first_generation,
    prepare_update: |new, old, ctx| {
        rules::isolate_status_and_metadata(new, old, ctx);
        if ctx.subresource.is_empty() {
            rules::raise_generation(new, old, new.at("spec") != old.at("spec"));
        }
    },
    validate,
    validate_update: |new, _, ctx| {
        if ctx.subresource == "status" {
            ErrorList::new()
        } else {
            validate(new)
        }
    },
    columns: &[
        Column::text("Key"),
        Column::text("Value"),
        Column::text("Effect"),
        Column::text("TimeAdded"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let taint = obj.at("spec.taint");
        let added = if taint.has("timeAdded") {
            cell::since(taint.text("timeAdded"), now)
        } else {
            String::new()
        };
        vec![
            taint.text("key").into(),
            taint.text("value").into(),
            taint.text("effect").into(),
            added.into(),
            cell::age(obj, now),
        ]
    },
    convert: convert::convert,
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let taint = spec.at("taint");
    taint
        .at("key")
        .required_conforms(&mut e, validation::is_qualified_name);
    taint
        .at("value")
        .optional_conforms(&mut e, validation::is_valid_label_value);
    taint
        .at("effect")
        .required_one_of(&mut e, &["NoExecute", "NoSchedule", "None"]);
    let selector = spec.at("deviceSelector");
    selector.at("driver").optional_conforms(&mut e, |d| {
        validation::is_dns1123_subdomain(&d.to_lowercase())
    });
    selector
        .at("device")
        .optional_conforms(&mut e, validation::is_dns1123_label);
    e
}
