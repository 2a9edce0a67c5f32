//! Which names a definition gets: those no other definition of its group has.

use std::sync::Arc;

use keelson_machinery::meta;
use serde_json::{Value, json};

use super::set_condition;

/// Fills `status`: accepted names, stored versions, NamesAccepted and Established. Pure.
pub(super) fn settle(definition: &mut Value, all: &[Arc<Value>], now: &str) {
    complete(definition);
    let group = definition["spec"]["group"].clone();
    let own = meta::name(definition).to_owned();
    let others: Vec<&Value> = all
        .iter()
        .map(|d| &**d)
        .filter(|d| d["spec"]["group"] == group && meta::name(d) != own)
        .map(|d| &d["status"]["acceptedNames"])
        .collect();
    let wanted = &definition["spec"]["names"];
    let mut accepted = definition["status"]["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({});
    }
    let mut conflicts: Vec<(&str, String)> = Vec::new();
    // Plural, singular and short names share one space; kinds and list kinds another.
    let resource_taken = |name: &str| {
        others.iter().any(|o| {
            o["plural"] == name
                || o["singular"] == name
                || o["shortNames"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|s| s == name))
        })
    };
    let kind_taken = |name: &str| {
        others
            .iter()
            .any(|o| o["kind"] == name || o["listKind"] == name)
    };
    for (field, reason) in [
        ("plural", "PluralConflict"),
        ("singular", "SingularConflict"),
    ] {
        let name = wanted[field].as_str().unwrap_or_default();
        if !name.is_empty() && resource_taken(name) {
            conflicts.push((reason, format!("{name:?} is already in use")));
        } else {
            accepted[field] = wanted[field].clone();
        }
    }
    let short: Vec<&str> = wanted["shortNames"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let taken: Vec<String> = short
        .iter()
        .filter(|s| resource_taken(s))
        .map(|s| format!("{s:?} is already in use"))
        .collect();
    if taken.is_empty() {
        accepted["shortNames"] = wanted["shortNames"].clone();
    } else {
        let all = match taken.as_slice() {
            [one] => one.clone(),
            all => format!("[{}]", all.join(", ")),
        };
        conflicts.push(("ShortNamesConflict", all));
    }
    for (field, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
        let name = wanted[field].as_str().unwrap_or_default();
        if !name.is_empty() && kind_taken(name) {
            conflicts.push((reason, format!("{name:?} is already in use")));
        } else {
            accepted[field] = wanted[field].clone();
        }
    }
    accepted["categories"] = wanted["categories"].clone();
    if let Some(map) = accepted.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    if !definition["status"].is_object() {
        definition["status"] = json!({});
    }
    definition["status"]["acceptedNames"] = accepted;
    store_version(definition);
    approve(definition, now);
    conclude(definition, conflicts.last(), now);
}

/// Whether the names are accepted, and with them the definition. Of several conflicts the last one
/// is told.
fn conclude(definition: &mut Value, conflict: Option<&(&str, String)>, now: &str) {
    match conflict {
        None => {
            set_condition(
                definition,
                "NamesAccepted",
                "True",
                "NoConflicts",
                "no conflicts found",
                now,
            );
            set_condition(
                definition,
                "Established",
                "True",
                "InitialNamesAccepted",
                "the initial names have been accepted",
                now,
            );
        }
        Some((reason, message)) => {
            set_condition(definition, "NamesAccepted", "False", reason, message, now);
            // What was established stays so: its objects exist.
            if !super::is_established(definition) {
                set_condition(
                    definition,
                    "Established",
                    "False",
                    "NotAccepted",
                    "not all names are accepted",
                    now,
                );
            }
        }
    }
}

/// Groups of the community say who agreed to their definitions.
fn approve(definition: &mut Value, now: &str) {
    const KEY: &str = "api-approved.kubernetes.io";
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let of_community = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.ends_with(&format!(".{domain}")));
    if !of_community {
        return;
    }
    let said = definition["metadata"]["annotations"][KEY]
        .as_str()
        .unwrap_or_default();
    let required = format!("protected groups must have approval annotation {KEY:?}");
    let is_url = said.starts_with("https://") || said.starts_with("http://");
    let (status, reason, message) = if said.is_empty() {
        ("False", "MissingAnnotation", format!("{required}, {SEE}"))
    } else if said.starts_with("unapproved") {
        let message = format!("not approved: {said:?}");
        ("False", "UnapprovedAnnotation", message)
    } else if is_url {
        ("True", "ApprovedAnnotation", format!("approved in {said}"))
    } else {
        let message =
            format!("{required} with either a URL or a reason starting with \"unapproved\", {SEE}");
        ("False", "InvalidAnnotation", message)
    };
    set_condition(
        definition,
        "KubernetesAPIApprovalPolicyConformant",
        status,
        reason,
        &message,
        now,
    );
}

/// Names that were left out follow from the kind.
fn complete(definition: &mut Value) {
    let kind = definition["spec"]["names"]["kind"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let Some(names) = definition["spec"]
        .get_mut("names")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    for (field, name) in [
        ("singular", kind.to_lowercase()),
        ("listKind", format!("{kind}List")),
    ] {
        let missing = names
            .get(field)
            .and_then(Value::as_str)
            .is_none_or(str::is_empty);
        if missing {
            names.insert(field.to_owned(), json!(name));
        }
    }
}

/// The version objects are written in joins those that objects may be stored in.
fn store_version(definition: &mut Value) {
    let versions = definition["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten();
    let storage = versions
        .into_iter()
        .find(|v| v["storage"] == true)
        .and_then(|v| v["name"].as_str());
    let Some(storage) = storage.map(ToOwned::to_owned) else {
        return;
    };
    let mut stored = definition["status"]["storedVersions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if !stored.iter().any(|v| *v == storage.as_str()) {
        stored.push(json!(storage));
    }
    definition["status"]["storedVersions"] = Value::Array(stored);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, kind: &str, short: &[&str]) -> Value {
        json!({
            "metadata": {"name": format!("{name}.example.com")},
            "spec": {
                "group": "example.com",
                "names": {"plural": name, "singular": name, "kind": kind, "listKind": format!("{kind}List"), "shortNames": short},
                "versions": [{"name": "v1", "storage": true}],
            },
        })
    }

    #[test]
    fn names_left_out_follow_from_the_kind() {
        let mut one = definition("foos", "Foo", &[]);
        let names = one["spec"]["names"].as_object_mut().unwrap();
        names.remove("singular");
        names.remove("listKind");
        settle(&mut one, &[], "now");
        let accepted = &one["status"]["acceptedNames"];
        assert_eq!(
            (&accepted["singular"], &accepted["listKind"]),
            (&json!("foo"), &json!("FooList"))
        );
    }

    #[test]
    fn the_second_of_two_definitions_with_one_kind_is_not_established() {
        let mut first = definition("foos", "Foo", &["f"]);
        settle(&mut first, &[], "now");
        assert!(super::super::is_established(&first));
        assert_eq!(first["status"]["storedVersions"], json!(["v1"]));
        let mut second = definition("bars", "Foo", &["f"]);
        settle(&mut second, &[Arc::new(first.clone())], "now");
        assert!(!super::super::is_established(&second));
        assert_eq!(
            second["status"]["conditions"][0]["reason"],
            "ListKindConflict"
        );
        let before = first.clone();
        settle(&mut first, &[Arc::new(second)], "later");
        assert_eq!(first, before, "settled definitions do not change");
    }
}
