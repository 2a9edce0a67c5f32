//! RuntimeClass.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::{Value, json};

use crate::cell;
use crate::check::At;
use crate::core::pod::default::resource_list;
use crate::core::pod::scheduling::tolerations;
use crate::core::resources::{self, Scope};
use crate::kind::{Column, Kind};
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static RUNTIME_CLASS: Kind = Kind {
    group: "node.k8s.io",
    resource: "runtimeclasses",
    default: |obj| {
        if let Some(list) = obj.at_mut("overhead.podFixed") {
            resource_list(list);
        }
    },
    validate,
    validate_update: |new, old, _| {
        let mut e = validate(new);
        workload::immutable(new, old, "handler", &mut e);
        e
    },
    columns: &[Column::text("Handler"), Column::AGE],
    cells: |obj, now| vec![obj.text("handler").into(), cell::age(obj, now)],
    allow_create_on_update: true,
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    At::new(obj, "handler").required_conforms(&mut e, validation::is_dns1123_label);
    let overhead = At::new(obj, "overhead");
    if overhead.exists() {
        let limits = json!({"limits": overhead.value.at("podFixed")});
        let at = At {
            value: &limits,
            path: overhead.path,
        };
        resources::requirements(&at, Scope::Container, &BTreeSet::new(), &mut e);
    }
    let scheduling = At::new(obj, "scheduling");
    scheduling.at("nodeSelector").labels(&mut e);
    let list = scheduling.at("tolerations");
    tolerations(&list, &mut e);
    let mut seen = BTreeSet::new();
    for t in list.each() {
        if !seen.insert(["key", "operator", "value", "effect"].map(|f| t.value.text(f))) {
            e.push(FieldError::duplicate(&t.path, t.value.clone()));
        }
    }
    e
}
