//! StorageClass.

use std::collections::BTreeSet;

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
        let mut e = ErrorList::new();
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

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    At::new(obj, "provisioner")
        .required_conforms(&mut e, |p| validation::is_qualified_name(&p.to_lowercase()));
    parameters(&At::new(obj, "parameters"), false, &mut e);
    At::new(obj, "reclaimPolicy").one_of(&mut e, &["Delete", "Retain"]);
    let mode = At::new(obj, "volumeBindingMode");
    mode.required_one_of(&mut e, &["Immediate", "WaitForFirstConsumer"]);
    let mut terms: Vec<&Value> = Vec::new();
    for term in At::new(obj, "allowedTopologies").each() {
        let mut keys = BTreeSet::new();
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
            if !keys.insert(key.text()) {
                e.push(key.duplicate());
            }
        }
        if terms.contains(&term.value) {
            e.push(FieldError::duplicate(
                &term.path.child("matchLabelExpressions"),
                "",
            ));
        }
        terms.push(term.value);
    }
    e
}
