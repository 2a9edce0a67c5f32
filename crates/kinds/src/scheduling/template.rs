//! What a Workload's templates and a PodGroup have in common.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::check::{self, At};

/// Behind gates of their own, which are off.
const DISABLED: &[&str] = &[
    "schedulingConstraints",
    "resourceClaims",
    "disruptionMode",
    "priorityClassName",
    "priority",
];

/// A template loses what is behind those gates, unless it had it before. Upstream writes the
/// absence of constraints.
pub(super) fn drop_disabled(template: &mut Value, old: Option<&Value>) {
    let Some(fields) = template.as_object_mut() else {
        return;
    };
    for name in DISABLED {
        let used = old
            .and_then(|old| old.get(*name))
            .is_some_and(|v| !v.is_null());
        if !used {
            fields.remove(*name);
        }
    }
}

/// One of the ways in which a group is scheduled.
pub(super) fn policy(policy: &At, e: &mut ErrorList) {
    union(policy, &["basic", "gang"], e);
    let gang = policy.at("gang");
    if gang.exists() {
        let count = gang.at("minCount");
        match count.num() {
            0 => e.push(count.required("")),
            n if n < 1 => e.push(count.invalid("must be greater than or equal to 1")),
            _ => {}
        }
    }
}

/// Exactly one of the fields is there.
pub(super) fn union(at: &At, fields: &[&str], e: &mut ErrorList) {
    let set: Vec<&str> = fields.iter().copied().filter(|f| at.has(f)).collect();
    let names: Vec<String> = fields.iter().map(|f| format!("`{f}`")).collect();
    let names = names.join(", ");
    match set[..] {
        [_] => {}
        [] => {
            let detail = format!("must specify one of: {names}");
            e.push(FieldError::invalid(&at.path, "", detail));
        }
        _ => {
            let detail = format!("must specify exactly one of: {names}");
            let shown = format!("{{{}}}", set.join(", "));
            e.push(FieldError::invalid(&at.path, shown, detail));
        }
    }
}

/// Unchanged; what it is now is not shown.
pub(super) fn immutable(new: &At, old: &Value, e: &mut ErrorList) -> bool {
    let same = check::same(new.value, old);
    if !same {
        e.push(FieldError::invalid(
            &new.path,
            Value::Null,
            check::IMMUTABLE,
        ));
    }
    same
}

/// A name of one label.
pub(super) fn short_name(at: &At, e: &mut ErrorList) {
    at.required_conforms(e, |name| {
        let messages = validation::is_dns1123_label(name).into_iter();
        // Checks that are declared count bytes, with the same result.
        messages
            .map(|m| m.replace("63 characters", "63 bytes"))
            .collect()
    });
}
