//! ResourceSlice.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::{GROUP, convert, device};
use crate::cell;
use crate::check::At;
use crate::core::pod::volumes::csi_driver_name;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static RESOURCE_SLICE: Kind = Kind {
    group: GROUP,
    resource: "resourceslices",
    prepare_create: |obj| {
        obj.put("metadata.generation", 1);
        let now = obj.text("metadata.creationTimestamp").to_owned();
        fill_times(obj, &now);
    },
    prepare_update: |new, old, ctx| {
        fill_times(new, ctx.now);
        rules::with_generation(new, old, ctx);
    },
    validate,
    validate_update: |new, old, _| validate_with(new, Some(old)),
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

fn fill_times(obj: &mut Value, now: &str) {
    for device in obj.list_mut("spec.devices") {
        let taints = device.list_mut("taints").iter_mut();
        taints.for_each(|taint| device::fill_time_added(taint, now));
    }
}

fn validate(obj: &Value) -> ErrorList {
    validate_with(obj, None)
}

fn validate_with(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    csi_driver_name(&spec.at("driver"), &mut e);
    pool(&spec.at("pool"), &mut e);
    if let Some(old) = old {
        for field in ["spec.pool.name", "spec.driver"] {
            workload::immutable(obj, old, field, &mut e);
        }
        workload::immutable_optional(obj, old, "spec.nodeName", &mut e);
    }
    place(&spec, &mut e);
    let (devices, shared) = (spec.at("devices"), spec.at("sharedCounters"));
    if devices.exists() && shared.exists() {
        let detail = "only one of `sharedCounters` or `devices` is allowed";
        e.push(FieldError::invalid(&spec.path, "", detail));
    }
    let most = if devices.each().any(|d| is_advanced(&d)) {
        64
    } else {
        128
    };
    if devices.len() > most {
        e.push(FieldError::too_many(&devices.path, devices.len(), most));
    } else {
        let own_place = spec.value.flag("perDeviceNodeSelection");
        for device in devices.each() {
            device::validate(&device, own_place, &mut e);
        }
        device::unique(&devices, "name", &mut e);
    }
    if shared.len() > 8 {
        e.push(FieldError::too_many(&shared.path, shared.len(), 8));
    } else {
        for set in shared.each() {
            device::counter_set_name(&set.at("name"), &mut e);
            device::counters(&set.at("counters"), &mut e);
        }
        device::unique(&shared, "name", &mut e);
    }
    e
}

/// Devices with taints, counters or lists of values come in smaller slices.
fn is_advanced(device: &At) -> bool {
    let lists = ["bools", "ints", "strings", "versions"];
    !device.at("taints").is_empty()
        || !device.at("consumesCounters").is_empty()
        || device
            .at("attributes")
            .entries()
            .any(|(_, attribute)| lists.iter().any(|list| attribute.has(list)))
}

fn pool(pool: &At, e: &mut ErrorList) {
    pool_name(&pool.at("name"), e);
    pool.at("resourceSliceCount").positive(e);
    let generation = pool.at("generation");
    if generation.num() < 0 {
        e.push(generation.invalid("must be greater than or equal to zero"));
    }
}

/// Subdomains separated by slashes.
pub(super) fn pool_name(name: &At, e: &mut ErrorList) {
    if name.is_empty() {
        return e.push(name.required(""));
    }
    if name.len() > 253 {
        e.push(FieldError::too_long(&name.path, 253));
    }
    for part in name.text().split('/') {
        e.extend(
            validation::is_dns1123_subdomain(part)
                .into_iter()
                .map(|m| FieldError::invalid(&name.path, part, m)),
        );
    }
}

/// Where the slice's devices are: in one of four ways.
fn place(spec: &At, e: &mut ErrorList) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut set = Vec::new();
    device::node_name(
        &spec.at("nodeName"),
        "must be either unset or set to a non-empty string",
        &mut set,
        e,
    );
    device::node_selection(&spec.at("nodeSelector"), &mut set, e);
    let terms = spec.at("nodeSelector").at("nodeSelectorTerms");
    if spec.has("nodeSelector") && terms.len() != 1 {
        e.push(terms.invalid("must have exactly one node selector term"));
    }
    device::switch(&spec.at("allNodes"), "`allNodes`", &mut set, e);
    let each = spec.at("perDeviceNodeSelection");
    device::switch(&each, "`perDeviceNodeSelection`", &mut set, e);
    match set.len() {
        0 => e.push(spec.required(ONE)),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", set.join(", "));
            let detail = format!("{ONE}, but multiple fields are set");
            e.push(FieldError::invalid(&spec.path, shown, detail));
        }
    }
}
