//! PodTemplate.

use keelson_machinery::field::ErrorList;
use serde_json::Value;

use super::pod;
use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

pub(crate) static POD_TEMPLATE: Kind = Kind {
    group: "",
    resource: "podtemplates",
    default: |obj| pod::default_template(obj, "template"),
    prepare_create: |obj| obj.put("metadata.generation", 1),
    validate,
    warnings: |new, old| {
        if old.is_some_and(|old| old.at("template") == new.at("template")) {
            return Vec::new();
        }
        pod::template_warnings(&At::new(new, "template"))
    },
    prepare_update: |new, old, _| {
        rules::raise_generation(new, old, new.at("template") != old.at("template"));
    },
    validate_update: |new, _, _| validate(new),
    columns: &[
        Column::text("Containers"),
        Column::text("Images"),
        Column::text("Pod Labels"),
    ],
    cells: |obj, _| {
        let (names, images) = cell::containers(obj.at("template.spec"));
        vec![
            names.into(),
            images.into(),
            cell::labels(obj.at("template.metadata.labels")).into(),
        ]
    },
    template_spec: "template.spec",
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    pod::pod_template(&At::new(obj, "template"), &mut e);
    e
}
