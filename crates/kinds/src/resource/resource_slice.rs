//! ResourceSlice.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::{GROUP, convert};
use crate::cell;
use crate::check::At;
use crate::core::pod::scheduling::node_selector;
use crate::core::pod::volumes::csi_driver_name;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static RESOURCE_SLICE: Kind = Kind {
    group: GROUP,
    resource: "resourceslices",
    prepare_create: |obj| obj.put("metadata.generation", 1),
    prepare_update: rules::with_generation,
    validate,
    validate_update: |new, old, _| {
        let mut e = validate(new);
        for field in ["spec.driver", "spec.pool.name", "spec.nodeName"] {
            workload::immutable(new, old, field, &mut e);
        }
        e
    },
    columns: &[
        Column::text("Node"),
        Column::text("Driver"),
        Column::text("Pool"),
        Column::AGE,
    ],
    cells: |obj, now| {
        vec![
            obj.text("spec.nodeName").into(),
            obj.text("spec.driver").into(),
            obj.text("spec.pool.name").into(),
            cell::age(obj, now),
        ]
    },
    selectable: |obj| {
        vec![
            ("spec.nodeName", obj.text("spec.nodeName").to_owned()),
            ("spec.driver", obj.text("spec.driver").to_owned()),
        ]
    },
    selectable_names: &["spec.nodeName", "spec.driver"],
    convert: convert::convert,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    csi_driver_name(&spec.at("driver"), &mut e);
    let pool = spec.at("pool");
    let name = pool.at("name");
    if name.is_empty() {
        e.push(name.required(""));
    }
    if name.len() > 253 {
        e.push(FieldError::too_long(&name.path, 253));
    }
    for part in name.text().split('/').filter(|p| !p.is_empty()) {
        e.extend(
            validation::is_dns1123_subdomain(part)
                .into_iter()
                .map(|m| FieldError::invalid(&name.path, part, m)),
        );
    }
    let count = pool.at("resourceSliceCount");
    if count.num() <= 0 {
        e.push(FieldError::invalid(
            &count.path,
            count.num(),
            "must be greater than zero",
        ));
    }
    pool.at("generation").non_negative(&mut e);
    let (node, selector) = (spec.at("nodeName"), spec.at("nodeSelector"));
    let places = [
        node.exists(),
        selector.exists(),
        spec.value.flag("allNodes"),
        spec.value.flag("perDeviceNodeSelection"),
    ];
    let shared = !spec.at("sharedCounters").is_empty();
    match places.iter().filter(|p| **p).count() {
        1 => {}
        0 if shared => {}
        0 => e.push(spec.required("exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required")),
        _ => e.push(spec.invalid("exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set")),
    }
    if node.exists() {
        node.required_conforms(&mut e, validation::is_dns1123_subdomain);
    }
    if selector.exists() {
        node_selector(&selector, &mut e);
    }
    let devices = spec.at("devices");
    if devices.len() > 128 {
        e.push(FieldError::too_many(&devices.path, devices.len(), 128));
    }
    let mut names = BTreeSet::new();
    for device in devices.each() {
        let name = device.at("name");
        name.required_conforms(&mut e, validation::is_dns1123_label);
        if !name.is_empty() && !names.insert(name.text()) {
            e.push(name.duplicate());
        }
        for (_, attribute) in device.at("attributes").entries() {
            let kinds = attribute
                .value
                .as_object()
                .map_or(0, |o| o.values().filter(|v| !v.is_null()).count());
            if kinds != 1 {
                e.push(attribute.required("exactly one value must be specified"));
            }
        }
    }
    e
}
