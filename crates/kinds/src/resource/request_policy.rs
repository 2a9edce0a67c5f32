//! How much of a capacity one request may take: listed amounts, or a range with steps.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::quantity::Quantity;

use crate::check::At;

const MOST_VALUES: usize = 10;

pub(super) fn validate(policy: &At, capacity: Option<Quantity>, e: &mut ErrorList) {
    let (values, range, default) = (
        policy.at("validValues"),
        policy.at("validRange"),
        policy.at("default"),
    );
    if !values.is_empty() && range.exists() {
        let detail = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
        return e.push(policy.forbidden(detail));
    }
    let Some(capacity) = capacity else {
        return;
    };
    let by = if !values.is_empty() {
        "validValues"
    } else if range.exists() {
        "validRange"
    } else {
        return;
    };
    let Some(default) = default.quantity() else {
        return e.push(default.required(&format!("required when {by} is defined")));
    };
    if by == "validValues" {
        listed(&values, default, capacity, e);
    } else {
        ranged(&range, default, capacity, e);
    }
}

fn invalid(at: &At, shown: Quantity, detail: impl Into<String>) -> FieldError {
    let detail: String = detail.into();
    FieldError::invalid(&at.path, shown.to_string(), detail)
}

fn listed(values: &At, default: Quantity, capacity: Quantity, e: &mut ErrorList) {
    let amounts: Vec<_> = values.each().map(|v| v.quantity()).collect();
    for (i, pair) in amounts.windows(2).enumerate() {
        if let [Some(first), Some(second)] = pair
            && first > second
        {
            let path = values.path.index(i + 1);
            let detail = "values must be sorted in ascending order";
            e.push(FieldError::invalid(&path, second.to_string(), detail));
        }
    }
    let mut found = false;
    if values.len() > MOST_VALUES {
        e.push(FieldError::too_many(
            &values.path,
            values.len(),
            MOST_VALUES,
        ));
    } else {
        for (value, amount) in values.each().zip(&amounts) {
            let Some(amount) = amount else { continue };
            if *amount > capacity {
                let detail = format!("option is larger than capacity value: {capacity}");
                e.push(invalid(&value, *amount, detail));
            }
            found |= *amount == default;
        }
        let mut seen = BTreeSet::new();
        for (value, amount) in values.each().zip(&amounts) {
            let Some(amount) = amount else { continue };
            if !seen.insert(*amount) {
                e.push(FieldError::duplicate(&value.path, amount.to_string()));
            }
        }
    }
    if !found {
        let detail = "default value is not valid according to the requestPolicy";
        e.push(invalid(values, default, detail));
    }
}

fn ranged(range: &At, default: Quantity, capacity: Quantity, e: &mut ErrorList) {
    let (min_at, max_at, step_at) = (range.at("min"), range.at("max"), range.at("step"));
    let Some(min) = min_at.quantity() else {
        return e.push(min_at.required("required when validRange is defined"));
    };
    if min > capacity {
        let detail = format!("min is larger than capacity value: {capacity}");
        e.push(invalid(&min_at, min, detail));
    }
    if default < min {
        e.push(invalid(
            &min_at,
            default,
            format!("default is less than min: {min}"),
        ));
    }
    let max = max_at.quantity();
    if let Some(max) = max {
        if min > max {
            e.push(invalid(
                &max_at,
                min,
                format!("min is larger than max: {max}"),
            ));
        }
        if max > capacity {
            let detail = format!("max is larger than capacity value: {capacity}");
            e.push(invalid(&max_at, max, detail));
        }
        if default > max {
            e.push(invalid(
                &max_at,
                default,
                format!("default is more than max: {max}"),
            ));
        }
    }
    let Some(step) = step_at.quantity() else {
        return;
    };
    let first = min + step;
    if first > capacity {
        let detail = format!("one step {first} is larger than capacity value: {capacity}");
        e.push(invalid(&step_at, step, detail));
    }
    for amount in std::iter::once(default).chain(max) {
        let above = amount.value().saturating_sub(min.value());
        if above.checked_rem(step.value()).is_none_or(|rest| rest != 0) {
            let detail = format!("value is not a multiple of a given step ({step}) from ({min})");
            e.push(invalid(&step_at, amount, detail));
        }
    }
}
