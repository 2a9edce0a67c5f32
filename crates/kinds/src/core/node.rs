//! Node.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::pod::default::resource_list;
use super::pod::scheduling::taint_effect;
use super::resources;
use crate::cell::{self, NONE, UNKNOWN};
use crate::check::At;
use crate::kind::{Column, Kind, UpdateContext};
use crate::tree::{Tree, TreeMut};

pub(crate) static NODE: Kind = Kind {
    group: "",
    resource: "nodes",
    default,
    validate,
    validate_update,
    columns: &[
        Column::text("Status"),
        Column::text("Roles"),
        Column::AGE,
        Column::text("Version"),
        Column::wide("Internal-IP"),
        Column::wide("External-IP"),
        Column::wide("OS-Image"),
        Column::wide("Kernel-Version"),
        Column::wide("Container-Runtime"),
    ],
    cells,
    selectable: |obj| {
        vec![(
            "spec.unschedulable",
            obj.flag("spec.unschedulable").to_string(),
        )]
    },
    selectable_names: &["spec.unschedulable"],
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    if !obj.has("status.allocatable") && obj.has("status.capacity") {
        obj.put("status.allocatable", obj.at("status.capacity").clone());
    }
    for list in ["status.capacity", "status.allocatable"] {
        if let Some(list) = obj.at_mut(list) {
            resource_list(list);
        }
    }
    let one = obj.text("spec.podCIDR").to_owned();
    match obj
        .list("spec.podCIDRs")
        .first()
        .and_then(Value::as_str)
        .map(str::to_owned)
    {
        Some(first) => obj.put("spec.podCIDR", first),
        None if !one.is_empty() => obj.put("spec.podCIDRs", vec![Value::from(one)]),
        None => {}
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = common(obj);
    let cidrs = At::new(obj, "spec").at("podCIDRs");
    for cidr in cidrs.each() {
        if validation::parse_cidr(cidr.text()).is_none() {
            e.push(cidr.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
        }
    }
    let v6: Vec<_> = cidrs.each().map(|c| c.text().contains(':')).collect();
    if v6.len() > 2 || v6.len() == 2 && v6[0] == v6[1] {
        e.push(cidrs.invalid("may specify no more than one CIDR for each IP family"));
    }
    e
}

fn common(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let taints = At {
        value: obj.at("spec.taints"),
        path: At::new(obj, "metadata").at("taints").path,
    };
    validate_taints(&taints, &mut e);
    for list in ["capacity", "allocatable"] {
        let amounts = At::new(obj, "status").at(list);
        for (name, at) in amounts.entries() {
            resources::amount(
                &At {
                    value: at.value,
                    path: amounts.path.child(name),
                },
                name,
                &mut e,
            );
        }
    }
    e
}

fn validate_taints(taints: &At, e: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for taint in taints.each() {
        let (key, value, effect) = (taint.at("key"), taint.at("value"), taint.at("effect"));
        key.label_name(e);
        let msgs = validation::is_valid_label_value(value.text());
        if !msgs.is_empty() {
            e.push(value.invalid(msgs.join(";")));
        }
        taint_effect(&effect, e);
        if !seen.insert((effect.text(), key.text())) {
            let mut duplicate = taint.duplicate();
            "taints must be unique by key and effect pair".clone_into(&mut duplicate.detail);
            e.push(duplicate);
        }
    }
}

fn validate_update(new: &Value, old: &Value, _: &UpdateContext) -> ErrorList {
    let mut e = common(new);
    let addresses = At::new(new, "status").at("addresses");
    let mut seen = Vec::new();
    for address in addresses.each() {
        if seen.contains(&address.value) {
            e.push(address.duplicate());
        }
        seen.push(address.value);
    }
    let spec = At::new(new, "spec");
    let kept = |field: &str| {
        !old.at("spec").has(field) || spec.value.at(field) == old.at("spec").at(field)
    };
    if !old.list("spec.podCIDRs").is_empty() && !kept("podCIDRs") {
        e.push(FieldError::forbidden(
            &spec.path.child("podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    if !old.text("spec.providerID").is_empty() && !kept("providerID") {
        e.push(FieldError::forbidden(
            &spec.path.child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    e
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let ready = obj
        .list("status.conditions")
        .iter()
        .rev()
        .find(|c| c.text("type") == "Ready");
    let mut status = match ready.map(|c| c.text("status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if obj.flag("spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles = BTreeSet::new();
    for (key, value) in obj.map("metadata.labels") {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => roles.insert(role),
            _ if key == "kubernetes.io/role" => roles.insert(value.as_str().unwrap_or("")),
            _ => false,
        };
    }
    roles.remove("");
    let address = |kind: &str| {
        let found = obj
            .list("status.addresses")
            .iter()
            .find(|a| a.text("type") == kind);
        found.map_or(NONE, |a| a.text("address")).to_owned()
    };
    let info = |field: &str| match obj.at("status.nodeInfo").text(field) {
        "" => UNKNOWN.to_owned(),
        text => text.to_owned(),
    };
    let mut kernel = info("kernelVersion");
    if obj.has("status.nodeInfo.architecture") {
        kernel.push_str(&format!(" ({})", obj.text("status.nodeInfo.architecture")));
    }
    vec![
        status.into(),
        cell::joined(&roles).into(),
        cell::age(obj, now),
        obj.text("status.nodeInfo.kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        kernel.into(),
        info("containerRuntimeVersion").into(),
    ]
}
