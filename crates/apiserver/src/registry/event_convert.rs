//! Events are served by two groups from one store: `core/v1` names of fields in storage,
//! `events.k8s.io/v1` names for the other group.

use serde_json::{Map, Value};

/// Core name, `events.k8s.io` name.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// The name in storage of a field that a selector names; nothing when the group has no such name.
pub(crate) fn selector_field(group: &str, field: &str) -> Option<String> {
    if group.is_empty() {
        return Some(field.to_owned());
    }
    match field {
        "reason" | "type" => Some(field.to_owned()),
        "reportingController" => Some("reportingComponent".to_owned()),
        _ => field
            .strip_prefix("regarding.")
            .map(|rest| format!("involvedObject.{rest}")),
    }
}

/// Gives the event the form of the group `to`.
pub(crate) fn convert(event: &mut Value, to: &str) {
    let Some(fields) = event.as_object_mut() else {
        return;
    };
    let to_core = to.is_empty();
    for (core, events) in RENAMED {
        let (from, to) = if to_core {
            (events, core)
        } else {
            (core, events)
        };
        if let Some(value) = fields.remove(*from) {
            fields.insert((*to).to_owned(), value);
        }
    }
    if !to_core {
        // The other group leaves these out when they say nothing.
        for name in ["reportingController", "reportingInstance"] {
            if fields.get(name).is_some_and(|v| v == "") {
                fields.remove(name);
            }
        }
    }
    rename_in_series(fields);
    let api_version = if to_core { "v1" } else { "events.k8s.io/v1" };
    fields.insert("apiVersion".into(), api_version.into());
}

/// Both groups name the fields of `series` alike; an empty series is left out.
fn rename_in_series(fields: &mut Map<String, Value>) {
    if fields.get("series").is_some_and(Value::is_null) {
        fields.remove("series");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_use_the_names_of_their_group() {
        let stored = |field| selector_field("events.k8s.io", field);
        assert_eq!(
            stored("reportingController").as_deref(),
            Some("reportingComponent")
        );
        assert_eq!(
            stored("regarding.name").as_deref(),
            Some("involvedObject.name")
        );
        assert_eq!(stored("involvedObject.name"), None);
        assert_eq!(selector_field("", "source").as_deref(), Some("source"));
    }
}
