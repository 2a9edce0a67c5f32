//! ResourceClaimTemplate.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::resource_claim::{default_requests, validate_spec};
use super::{GROUP, convert};
use crate::check::At;
use crate::kind::Kind;
use crate::workload;

pub(crate) static RESOURCE_CLAIM_TEMPLATE: Kind = Kind {
    group: GROUP,
    resource: "resourceclaimtemplates",
    default: |obj| default_requests(obj, "spec.spec.devices.requests"),
    validate,
    validate_update: |new, old, _| {
        let mut e = validate(new);
        workload::immutable(new, old, "spec", &mut e);
        e
    },
    convert: convert::convert,
    ..Kind::GENERIC
};

/// What the claims get, and nothing of their own that a server would set.
fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let metadata = spec.at("metadata");
    e.extend(validation::validate_annotations(
        metadata.at("annotations").value,
        &metadata.at("annotations").path,
    ));
    metadata.at("labels").labels(&mut e);
    for (name, field) in metadata.entries() {
        let shown = match name {
            "labels" | "annotations" => continue,
            // By the name of the Go field.
            "uid" => "uID",
            other => other,
        };
        if !field.is_empty() {
            let path = metadata.path.child(shown);
            e.push(FieldError::forbidden(&path, "cannot be set"));
        }
    }
    validate_spec(&spec.at("spec"), &mut e);
    e
}
