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
use crate::check::addresses::{legacy_cidr, legacy_cidr_warning};
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};

pub(crate) static NODE: Kind = Kind {
    group: "",
    resource: "nodes",
    default,
    prepare_create: |obj| {
        obj.remove("spec.configSource");
        obj.remove("status.config");
    },
    validate,
    prepare_update: |new, old, ctx| {
        if ctx.subresource.is_empty() && !old.has("spec.configSource") {
            new.remove("spec.configSource");
        }
        rules::isolate_status(new, old, ctx);
    },
    validate_update,
    warnings: |new, _| warnings(new),
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

fn warnings(obj: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let spec = At::new(obj, "spec");
    if spec.has("configSource") {
        out.push("spec.configSource: the feature is removed".to_owned());
    }
    if !spec.at("externalID").is_empty() {
        out.push(
            "spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned(),
        );
    }
    for cidr in spec.at("podCIDRs").each() {
        legacy_cidr_warning(&cidr, &mut out);
    }
    out
}

/// What a kubelet says it can do: names in order, each once.
fn declared_features(list: &At, e: &mut ErrorList) {
    let mut before: Option<&str> = None;
    for at in list.each() {
        let name = at.text();
        if let Some(before) = before {
            if before == name {
                e.push(at.duplicate());
            } else if before > name {
                e.push(at.invalid("list must be sorted alphabetically"));
            }
        }
        before = Some(name);
        let parts: Vec<&str> = name.split('/').collect();
        let word = |part: &&str| {
            part.starts_with(|c: char| c.is_ascii_alphabetic())
                && part.chars().all(|c| c.is_ascii_alphanumeric())
        };
        let camel = name.starts_with(|c: char| c.is_ascii_uppercase());
        if !camel || !parts.iter().all(word) {
            e.push(at.invalid(format!("invalid feature name {name:?}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes")));
        }
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = common(obj);
    let cidrs = At::new(obj, "spec").at("podCIDRs");
    for cidr in cidrs.each() {
        legacy_cidr(&cidr, &mut e);
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
    declared_features(&At::new(obj, "status").at("declaredFeatures"), &mut e);
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
    if !obj.text("status.nodeInfo.architecture").is_empty() {
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
