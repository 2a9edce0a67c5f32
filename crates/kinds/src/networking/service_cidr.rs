//! ServiceCIDR.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell;
use crate::check::{At, IMMUTABLE};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::Tree;

pub(crate) static SERVICE_CIDR: Kind = Kind {
    group: "networking.k8s.io",
    resource: "servicecidrs",
    prepare_create: rules::clear_status,
    validate,
    prepare_update: rules::isolate_status_and_metadata,
    validate_update: |new, old, ctx| {
        if ctx.subresource == "status" {
            ErrorList::new()
        } else {
            update(new, old)
        }
    },
    columns: &[Column::text("CIDRs"), Column::AGE],
    cells: |obj, now| {
        vec![
            cell::strings(obj.list("spec.cidrs")).into(),
            cell::age(obj, now),
        ]
    },
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let cidrs = At::new(obj, "spec").at("cidrs");
    match cidrs.len() {
        0 => return vec![cidrs.required("at least one CIDR required")],
        1 | 2 => {}
        _ => {
            return vec![FieldError::invalid(
                &cidrs.path,
                obj.at("spec").clone(),
                "may only hold up to 2 values",
            )];
        }
    }
    cidrs
        .each()
        .for_each(|c| c.conforms(&mut e, validation::is_valid_cidr));
    let v6: Vec<_> = cidrs.each().map(|c| c.text().contains(':')).collect();
    if v6.len() == 2 && v6[0] == v6[1] {
        e.push(cidrs.invalid(
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        ));
    }
    e
}

/// A second family may be added and taken away, the first stays.
fn update(new: &Value, old: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let cidrs = At::new(new, "spec").at("cidrs");
    let before = old.list("spec.cidrs");
    for (cidr, was) in cidrs.each().zip(before) {
        if cidr.value != was {
            e.push(cidr.invalid(IMMUTABLE));
        }
    }
    if cidrs.len() < before.len() {
        e.push(cidrs.invalid(IMMUTABLE));
    } else if cidrs.len() > before.len() {
        e.append(&mut validate(new));
    }
    e
}
