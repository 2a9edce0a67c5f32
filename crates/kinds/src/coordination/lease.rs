//! Lease.

use keelson_machinery::field::ErrorList;
use serde_json::Value;

use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::tree::{Tree, TreeMut};

/// The feature behind them (CoordinatedLeaderElection) is off in this version.
const COORDINATED: &[&str] = &["spec.strategy", "spec.preferredHolder"];

pub(crate) static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    resource: "leases",
    prepare_create: |obj| COORDINATED.iter().for_each(|field| obj.remove(field)),
    validate,
    prepare_update: |new, old, _| {
        for field in COORDINATED.iter().filter(|field| !old.has(field)) {
            new.remove(field);
        }
    },
    validate_update: |new, _, _| validate(new),
    columns: &[Column::text("Holder"), Column::AGE],
    cells: |obj, now| vec![obj.text("spec.holderIdentity").into(), cell::age(obj, now)],
    allow_create_on_update: true,
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let duration = spec.at("leaseDurationSeconds");
    if duration.int().is_some_and(|d| d <= 0) {
        e.push(duration.invalid("must be greater than 0"));
    }
    spec.at("leaseTransitions").non_negative(&mut e);
    if spec.has("strategy") {
        super::lease_candidate::strategy(&spec.at("strategy"), &mut e);
    }
    if !spec.at("preferredHolder").is_empty() && spec.at("strategy").is_empty() {
        e.push(
            spec.at("preferredHolder")
                .forbidden("may only be specified if `strategy` is defined"),
        );
    }
    e
}
