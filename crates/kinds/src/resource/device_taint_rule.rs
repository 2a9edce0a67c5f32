//! DeviceTaintRule.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::resource_slice::pool_name;
use super::{GROUP, convert, device};
use crate::cell;
use crate::check::{self, At};
use crate::core::pod::volumes::csi_driver_name;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

pub(crate) static DEVICE_TAINT_RULE: Kind = Kind {
    group: GROUP,
    resource: "devicetaintrules",
    storage_version: "v1beta2",
    prepare_create: |obj| {
        rules::first_generation(obj);
        let now = obj.text("metadata.creationTimestamp").to_owned();
        fill_time(obj, &now);
    },
    prepare_update: |new, old, ctx| {
        let (taint, before) = (new.at("spec.taint"), old.at("spec.taint"));
        if taint.at("effect") != before.at("effect")
            && taint.at("timeAdded") == before.at("timeAdded")
        {
            // Another effect begins when it is asked for.
            new.remove("spec.taint.timeAdded");
        }
        fill_time(new, ctx.now);
        rules::isolate_status_and_metadata(new, old, ctx);
        if ctx.subresource.is_empty() {
            rules::raise_generation(new, old, new.at("spec") != old.at("spec"));
        }
    },
    validate,
    validate_update: |new, _, ctx| match ctx.subresource {
        "status" => validate_status(new),
        _ => validate(new),
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

fn fill_time(obj: &mut Value, now: &str) {
    if let Some(taint) = obj.at_mut("spec.taint") {
        device::fill_time_added(taint, now);
    }
}

fn validate_status(obj: &Value) -> ErrorList {
    const MOST: usize = 8;
    let mut e = ErrorList::new();
    let list = At::new(obj, "status").at("conditions");
    check::conditions(&list, &mut e);
    if list.len() > MOST {
        e.push(FieldError::too_many(&list.path, list.len(), MOST));
    }
    e
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let selector = spec.at("deviceSelector");
    let (driver, pool, name) = (
        selector.at("driver"),
        selector.at("pool"),
        selector.at("device"),
    );
    if driver.exists() {
        csi_driver_name(&driver, &mut e);
    }
    if pool.exists() {
        pool_name(&pool, &mut e);
    }
    if name.exists() {
        name.conforms(&mut e, validation::is_dns1123_label);
    }
    device::taint(&spec.at("taint"), &mut e);
    e
}
