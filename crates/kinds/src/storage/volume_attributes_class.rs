//! VolumeAttributesClass.

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::Value;

use super::storage_class::parameters;
use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::tree::Tree;
use crate::workload;

pub(crate) static VOLUME_ATTRIBUTES_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    resource: "volumeattributesclasses",
    validate,
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        workload::immutable(new, old, "driverName", &mut e);
        workload::immutable(new, old, "parameters", &mut e);
        e
    },
    columns: &[Column::text("DriverName"), Column::AGE],
    cells: |obj, now| vec![obj.text("driverName").into(), cell::age(obj, now)],
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    At::new(obj, "driverName")
        .required_conforms(&mut e, |p| validation::is_qualified_name(&p.to_lowercase()));
    parameters(&At::new(obj, "parameters"), true, &mut e);
    e
}
