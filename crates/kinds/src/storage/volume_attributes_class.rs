//! VolumeAttributesClass.

use keelson_machinery::field::ErrorList;
use serde_json::Value;

use super::storage_class::{parameters, provisioner};
use crate::cell;
use crate::check::{At, same};
use crate::kind::{Column, Kind};
use crate::tree::Tree;

pub(crate) static VOLUME_ATTRIBUTES_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    resource: "volumeattributesclasses",
    validate,
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        for field in ["driverName", "parameters"] {
            let at = At::new(new, field);
            if !same(at.value, old.at(field)) {
                e.push(at.forbidden(format!("updates to {field} are forbidden.")));
            }
        }
        e.extend(validate(new));
        e
    },
    columns: &[Column::text("DriverName"), Column::AGE],
    cells: |obj, now| vec![obj.text("driverName").into(), cell::age(obj, now)],
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    provisioner(&At::new(obj, "driverName"), &mut e);
    parameters(&At::new(obj, "parameters"), true, &mut e);
    e
}
