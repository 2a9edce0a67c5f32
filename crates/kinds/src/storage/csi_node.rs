//! CSINode.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell;
use crate::check::{At, IMMUTABLE, same};
use crate::core::pod::volumes::csi_driver_name;
use crate::kind::{Column, Kind};
use crate::tree::{Tree, TreeMut};

pub(crate) static CSI_NODE: Kind = Kind {
    group: "storage.k8s.io",
    resource: "csinodes",
    validate,
    validate_update: update,
    columns: &[Column::integer("Drivers"), Column::AGE],
    cells: |obj, now| vec![obj.list("spec.drivers").len().into(), cell::age(obj, now)],
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let mut names = BTreeSet::new();
    for driver in At::new(obj, "spec").at("drivers").each() {
        let (name, id) = (driver.at("name"), driver.at("nodeID"));
        csi_driver_name(&name, &mut e);
        id.require(&mut e);
        if id.len() > 256 {
            e.push(id.invalid("must be 256 characters or less"));
        }
        driver.at("allocatable").at("count").non_negative(&mut e);
        if !names.insert(name.text()) {
            e.push(name.duplicate());
        }
        let mut keys = BTreeSet::new();
        for key in driver
            .value
            .list("topologyKeys")
            .iter()
            .filter_map(Value::as_str)
        {
            if key.is_empty() {
                e.push(driver.required(""));
            }
            if !keys.insert(key) {
                e.push(FieldError::duplicate(&driver.path, key));
            }
            e.extend(
                validation::is_qualified_name(key)
                    .into_iter()
                    .map(|m| FieldError::invalid(&driver.path, key, m)),
            );
        }
    }
    e
}

/// A driver may come and go; while it is there only its capacity changes.
fn update(new: &Value, old: &Value, _: &crate::kind::UpdateContext) -> ErrorList {
    let mut e = validate(new);
    let drivers = At::new(new, "spec").at("drivers");
    for driver in drivers.each() {
        let was = old
            .list("spec.drivers")
            .iter()
            .find(|d| d.text("name") == driver.value.text("name"));
        let Some(was) = was else { continue };
        let mut munged = driver.value.clone();
        munged.remove("allocatable");
        let mut was = was.clone();
        was.remove("allocatable");
        if !same(&munged, &was) {
            e.push(FieldError::invalid(&drivers.path, munged, IMMUTABLE));
        }
    }
    e
}
