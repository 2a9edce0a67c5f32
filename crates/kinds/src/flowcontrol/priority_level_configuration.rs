//! PriorityLevelConfiguration.

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::{Value, json};

use super::GROUP;
use crate::cell::{self, NONE};
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

pub(crate) static PRIORITY_LEVEL_CONFIGURATION: Kind = Kind {
    group: GROUP,
    resource: "prioritylevelconfigurations",
    default,
    prepare_create: rules::first_generation,
    validate,
    prepare_update: |new, old, ctx| {
        rules::with_generation(new, old, ctx);
        if ctx.subresource == "status" {
            rules::keep_metadata(new, old);
        }
    },
    validate_update: |new, _, ctx| {
        if ctx.subresource == "status" {
            super::conditions(new)
        } else {
            validate(new)
        }
    },
    columns: &[
        Column::text("Type"),
        Column::text("NominalConcurrencyShares"),
        Column::text("Queues"),
        Column::text("HandSize"),
        Column::text("QueueLengthLimit"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let or_none = |path: &str| match obj.at(path) {
            Value::Null => NONE.into(),
            v => v.clone(),
        };
        let queuing = "spec.limited.limitResponse.queuing";
        vec![
            obj.text("spec.type").into(),
            or_none("spec.limited.nominalConcurrencyShares"),
            or_none(&format!("{queuing}.queues")),
            or_none(&format!("{queuing}.handSize")),
            or_none(&format!("{queuing}.queueLengthLimit")),
            cell::age(obj, now),
        ]
    },
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    if obj.text("spec.type") == "Exempt" {
        obj.fill("spec.exempt", json!({}));
    }
    for (kind, shares) in [("exempt", 0), ("limited", 30)] {
        if let Some(level) = obj
            .at_mut(&format!("spec.{kind}"))
            .filter(|l| l.is_object())
        {
            level.fill("nominalConcurrencyShares", shares);
            level.fill("lendablePercent", 0);
        }
    }
    if let Some(queuing) = obj
        .at_mut("spec.limited.limitResponse.queuing")
        .filter(|q| q.is_object())
    {
        for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            if queuing.num(field) == 0 {
                queuing.put(field, value);
            }
        }
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let (kind, limited, exempt) = (spec.at("type"), spec.at("limited"), spec.at("exempt"));
    if (kind.text() == "Exempt") != (obj.text("metadata.name") == "exempt") {
        e.push(kind.invalid("must be 'Exempt' if and only if `name` is 'exempt'"));
    }
    match kind.text() {
        "Exempt" => {
            if limited.exists() {
                e.push(limited.forbidden("must be nil if the type is not Limited"));
            }
            let shares = exempt.at("nominalConcurrencyShares");
            if shares.num() < 0 {
                e.push(shares.invalid("must be a non-negative integer"));
            }
            percent(&exempt.at("lendablePercent"), &mut e);
        }
        "Limited" => {
            if exempt.exists() {
                e.push(exempt.forbidden("must be nil if the type is Limited"));
            }
            if limited.exists() {
                self::limited(&limited, &mut e);
            } else {
                e.push(limited.required("must not be empty when type is Limited"));
            }
        }
        _ => e.push(FieldError::not_supported(
            &kind.path,
            kind.text(),
            &["Exempt", "Limited"],
        )),
    }
    mandatory(&spec, obj.text("metadata.name"), &mut e);
    e.extend(super::conditions(obj));
    e
}

/// Of `exempt`, the field of that name is the administrator's.
fn mandatory(spec: &At, name: &str, e: &mut ErrorList) {
    let Some(mut fixed) = super::mandatory::priority_level(name) else {
        return;
    };
    let but = if name == "exempt" {
        match spec.value.get("exempt") {
            Some(own) => fixed["exempt"] = own.clone(),
            None => drop(fixed.as_object_mut().and_then(|f| f.remove("exempt"))),
        }
        " except the 'spec.exempt' field"
    } else {
        ""
    };
    if fixed != *spec.value {
        e.push(spec.invalid(format!("spec of '{name}'{but} must equal the fixed value")));
    }
}

fn percent(at: &At, e: &mut ErrorList) {
    if at.int().is_some_and(|p| !(0..=100).contains(&p)) {
        e.push(at.invalid("must be between 0 and 100, inclusive"));
    }
}

fn limited(limited: &At, e: &mut ErrorList) {
    let shares = limited.at("nominalConcurrencyShares");
    if shares.num() < 0 {
        e.push(shares.invalid("must be a non-negative integer"));
    }
    percent(&limited.at("lendablePercent"), e);
    let borrowing = limited.at("borrowingLimitPercent");
    if borrowing.num() < 0 {
        e.push(borrowing.invalid("if specified, must be a non-negative integer"));
    }
    let response = limited.at("limitResponse");
    let queuing = response.at("queuing");
    match response.at("type").text() {
        "Reject" => {
            if queuing.exists() {
                e.push(
                    queuing.forbidden("must be nil if limited.limitResponse.type is not Limited"),
                );
            }
        }
        "Queue" if !queuing.exists() => {
            e.push(queuing.required("must not be empty if limited.limitResponse.type is Limited"));
        }
        "Queue" => {
            let (hand, queues) = (queuing.at("handSize"), queuing.at("queues"));
            for at in [&queuing.at("queueLengthLimit"), &queues, &hand] {
                if at.num() <= 0 {
                    e.push(at.invalid("must be positive"));
                }
            }
            if queues.num() > 10_000_000 {
                e.push(queues.invalid("must not be greater than 10000000"));
            }
            if hand.num() > queues.num() {
                e.push(hand.invalid(format!(
                    "should not be greater than queues ({})",
                    queues.num()
                )));
            } else if hand.num() > 0 && (hand.num() as f64) * (queues.num() as f64).log2() > 60.0 {
                let detail = format!(
                    "required entropy bits of deckSize {} and handSize {} should not be greater than 60",
                    queues.num(),
                    hand.num()
                );
                e.push(hand.invalid(detail));
            }
        }
        kind => {
            let path = response.path.child("type");
            e.push(FieldError::not_supported(&path, kind, &["Queue", "Reject"]));
        }
    }
}
