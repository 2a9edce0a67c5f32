//! ControllerRevision.

use keelson_machinery::field::ErrorList;
use serde_json::Value;

use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::tree::Tree;
use crate::workload;

pub(crate) static CONTROLLER_REVISION: Kind = Kind {
    group: "apps",
    resource: "controllerrevisions",
    validate,
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        At::new(new, "revision").non_negative(&mut e);
        workload::immutable(new, old, "data", &mut e);
        e
    },
    columns: &[
        Column::text("Controller"),
        Column::text("Revision"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let owner = obj
            .list("metadata.ownerReferences")
            .iter()
            .find(|o| o.flag("controller"));
        let controller = owner.map_or(cell::NONE.to_owned(), |o| {
            let kind = o.text("kind").to_lowercase();
            match o.text("apiVersion").split_once('/') {
                Some((group, _)) => format!("{kind}.{group}/{}", o.text("name")),
                None => format!("{kind}/{}", o.text("name")),
            }
        });
        vec![
            controller.into(),
            obj.num("revision").into(),
            cell::age(obj, now),
        ]
    },
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    At::new(obj, "revision").non_negative(&mut e);
    let data = At::new(obj, "data");
    if !data.exists() {
        e.push(data.required("data is mandatory"));
    } else if !data.value.is_object() {
        e.push(data.required("data must be a valid JSON object"));
    }
    e
}
