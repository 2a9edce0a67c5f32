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
    reset_fields: Kind::STATUS_KEEPS_METADATA,
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
    let families: Vec<_> = cidrs.each().map(|c| family(c.text())).collect();
    if families.len() == 2 && families[0].is_some() && families[0] == families[1] {
        e.push(cidrs.invalid(
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        ));
    }
    e
}

/// Whether it is an IPv6 range; nothing of what is no range.
fn family(cidr: &str) -> Option<bool> {
    let (address, length) = cidr.split_once('/')?;
    let address: std::net::IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv6() { 128 } else { 32 };
    let length: u8 = length.parse().ok()?;
    (length <= longest).then_some(address.is_ipv6())
}

/// A second family may be added, the first stays.
fn update(new: &Value, old: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let cidrs = At::new(new, "spec").at("cidrs");
    let before = old.list("spec.cidrs");
    match (before.len(), cidrs.len()) {
        (was, is) if was == is || (was, is) == (1, 2) => {
            for (cidr, was) in cidrs.each().zip(before) {
                if cidr.value != was {
                    e.push(cidr.invalid(IMMUTABLE));
                }
            }
            if was < is {
                e.extend(validate(new));
            }
        }
        _ => {
            e.push(cidrs.invalid(IMMUTABLE));
        }
    }
    e
}
