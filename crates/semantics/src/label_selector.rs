//! Typed label selectors, without a detour through JSON. The text form of selectors, and those of
//! untyped objects, are `keelson_machinery::labels`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub type Labels = BTreeMap<String, String>;

/// Whether `labels` satisfy `selector`. The empty selector matches everything, as in the API; those
/// that must not act on it ask [`is_empty`] first. An unknown operator matches nothing.
pub fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let value = |key: &str| labels.and_then(|l| l.get(key)).map(String::as_str);
    let by_label = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, wanted)| value(key) == Some(wanted));
    by_label
        && selector.match_expressions.iter().flatten().all(|term| {
            let values = term.values.as_deref().unwrap_or_default();
            holds(&term.operator, values, value(&term.key)).unwrap_or(false)
        })
}

/// The four operators that label and node selectors share, or `None` for another one. `value` is
/// absent where the key is.
pub(crate) fn holds(operator: &str, values: &[String], value: Option<&str>) -> Option<bool> {
    let listed = || value.is_some_and(|value| values.iter().any(|v| v == value));
    match operator {
        "In" => Some(listed()),
        "NotIn" => Some(!listed()),
        "Exists" => Some(value.is_some()),
        "DoesNotExist" => Some(value.is_none()),
        _ => None,
    }
}

pub fn is_empty(selector: &LabelSelector) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(BTreeMap::is_empty)
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty)
}

/// Whether every pair of `wanted` is present: the selector form of Services,
/// ReplicationControllers and `spec.nodeSelector`.
pub fn map_matches(wanted: &Labels, labels: Option<&Labels>) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn expressions_follow_the_api() {
        let cases = [
            (r#"{"matchLabels":{"a":"1"}}"#, true),
            (r#"{"matchLabels":{"a":"2"}}"#, false),
            (
                r#"{"matchExpressions":[{"key":"a","operator":"In","values":["1","2"]}]}"#,
                true,
            ),
            (
                r#"{"matchExpressions":[{"key":"b","operator":"In","values":["1"]}]}"#,
                false,
            ),
            (
                r#"{"matchExpressions":[{"key":"b","operator":"NotIn","values":["1"]}]}"#,
                true,
            ),
            (
                r#"{"matchExpressions":[{"key":"a","operator":"NotIn","values":["1"]}]}"#,
                false,
            ),
            (
                r#"{"matchExpressions":[{"key":"a","operator":"Exists"}]}"#,
                true,
            ),
            (
                r#"{"matchExpressions":[{"key":"a","operator":"DoesNotExist"}]}"#,
                false,
            ),
            (
                r#"{"matchExpressions":[{"key":"a","operator":"Gt"}]}"#,
                false,
            ),
            ("{}", true),
        ];
        let have = labels(&[("a", "1")]);
        for (text, wanted) in cases {
            let selector: LabelSelector = serde_json::from_str(text).unwrap();
            assert_eq!(matches(&selector, Some(&have)), wanted, "{text}");
        }
    }
}
