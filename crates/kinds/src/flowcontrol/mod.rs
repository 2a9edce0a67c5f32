//! The group `flowcontrol.apiserver.k8s.io`.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

use crate::check::At;

pub(crate) mod flow_schema;
pub mod mandatory;
pub(crate) mod priority_level_configuration;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";

/// The conditions of a status: each of a type of its own.
fn conditions(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let mut seen = BTreeSet::new();
    for condition in At::new(obj, "status").at("conditions").each() {
        let kind = condition.at("type");
        if !seen.insert(kind.text()) {
            e.push(FieldError::duplicate(&kind.path, kind.text()));
        }
        kind.require(&mut e);
    }
    e
}
