//! StorageClass.

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static STORAGE_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    resource: "storageclasses",
    default: |obj| {
        obj.fill("reclaimPolicy", "Delete");
        obj.fill("volumeBindingMode", "Immediate");
    },
    validate,
    validate_update: |new, old, _| {
        let mut e = validate(new);
        for field in [
            "parameters",
            "provisioner",
            "reclaimPolicy",
            "volumeBindingMode",
        ] {
            workload::immutable(new, old, field, &mut e);
        }
        e
    },
    name_suffix: |obj| {
        let marked = obj
            .at("metadata.annotations")
            .get("storageclass.kubernetes.io/is-default-class");
        if marked.is_some_and(|m| m == "true") {
            " (default)"
        } else {
            ""
        }
    },
    columns: &[
        Column::text("Provisioner"),
        Column::text("ReclaimPolicy"),
        Column::text("VolumeBindingMode"),
        Column::text("AllowVolumeExpansion"),
        Column::AGE,
    ],
    cells: |obj, now| {
        vec![
            obj.text("provisioner").into(),
            obj.at("reclaimPolicy").as_str().unwrap_or("Delete").into(),
            obj.at("volumeBindingMode")
                .as_str()
                .unwrap_or("Immediate")
                .into(),
            obj.flag("allowVolumeExpansion").into(),
            cell::age(obj, now),
        ]
    },
    ..Kind::GENERIC
};

/// `parameters` of classes: bounded in number and size.
pub(super) fn parameters(at: &At, required: bool, e: &mut ErrorList) {
    if at.len() > 512 {
        return e.push(FieldError::too_long(&at.path, 512));
    }
    let mut size = 0;
    for (key, value) in at.entries() {
        if key.is_empty() {
            e.push(FieldError::invalid(
                &at.path,
                key,
                "field can not be empty.",
            ));
        }
        size += key.len() + value.text().len();
    }
    if size > 256 * 1024 {
        e.push(FieldError::too_long(&at.path, 256 * 1024));
    }
    if required && at.is_empty() {
        e.push(at.required("must contain at least one key/value pair"));
    }
}

/// Who makes volumes of a class: a qualified name, told in lower case.
pub(super) fn provisioner(at: &At, e: &mut ErrorList) {
    if at.is_empty() {
        return e.push(at.required(""));
    }
    let lower = at.text().to_lowercase();
    for problem in validation::is_qualified_name(&lower) {
        e.push(FieldError::invalid(&at.path, lower.as_str(), problem));
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    provisioner(&At::new(obj, "provisioner"), &mut e);
    parameters(&At::new(obj, "parameters"), false, &mut e);
    let reclaim = At::new(obj, "reclaimPolicy");
    if !reclaim.is_empty() {
        reclaim.one_of(&mut e, &["Delete", "Retain"]);
    }
    let mode = At::new(obj, "volumeBindingMode");
    if !mode.exists() {
        e.push(mode.required(""));
    }
    mode.one_of(&mut e, &["Immediate", "WaitForFirstConsumer"]);
    let terms = At::new(obj, "allowedTopologies");
    // Upstream compares with as many empty terms as there are terms, too.
    let mut before: Vec<BTreeMap<&str, BTreeSet<&str>>> = vec![BTreeMap::new(); terms.len()];
    for term in terms.each() {
        let mut keys = BTreeMap::new();
        for req in term.at("matchLabelExpressions").each() {
            let (key, values) = (req.at("key"), req.at("values"));
            values.require(&mut e);
            let mut seen = BTreeSet::new();
            for value in values.each() {
                if !seen.insert(value.text()) {
                    e.push(value.duplicate());
                }
            }
            key.label_name(&mut e);
            if keys.insert(key.text(), seen).is_some() {
                e.push(key.duplicate());
            }
        }
        for _ in before.iter().filter(|other| **other == keys) {
            let path = term.path.child("matchLabelExpressions");
            e.push(FieldError::duplicate(&path, ""));
        }
        before.push(keys);
    }
    e
}
