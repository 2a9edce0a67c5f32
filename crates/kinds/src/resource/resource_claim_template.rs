//! ResourceClaimTemplate.

use keelson_machinery::field::ErrorList;

use super::resource_claim::{default_requests, validate_spec};
use super::{GROUP, convert};
use crate::check::At;
use crate::kind::Kind;
use crate::workload;

pub(crate) static RESOURCE_CLAIM_TEMPLATE: Kind = Kind {
    group: GROUP,
    resource: "resourceclaimtemplates",
    default: |obj| default_requests(obj, "spec.spec.devices.requests"),
    validate: |obj| {
        let mut e = ErrorList::new();
        validate_spec(&At::new(obj, "spec").at("spec"), &mut e);
        e
    },
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        workload::immutable(new, old, "spec", &mut e);
        e
    },
    convert: convert::convert,
    ..Kind::GENERIC
};
