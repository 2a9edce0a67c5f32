//! Matching of typed label selectors, without a detour through JSON.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub(crate) type Labels = BTreeMap<String, String>;

/// Whether `labels` satisfy `selector`. The empty selector matches everything, as in the API;
/// controllers that must not act on it ask [`is_empty`] first. An unknown operator matches nothing.
pub(crate) fn matches(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let value = |key: &str| labels.and_then(|l| l.get(key));
    let by_label = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, wanted)| value(key) == Some(wanted));
    by_label
        && selector.match_expressions.iter().flatten().all(|term| {
            let listed = |found: &String| term.values.iter().flatten().any(|v| v == found);
            match term.operator.as_str() {
                "In" => value(&term.key).is_some_and(listed),
                "NotIn" => !value(&term.key).is_some_and(listed),
                "Exists" => value(&term.key).is_some(),
                "DoesNotExist" => value(&term.key).is_none(),
                _ => false,
            }
        })
}

pub(crate) fn is_empty(selector: &LabelSelector) -> bool {
    selector
        .match_labels
        .as_ref()
        .is_none_or(BTreeMap::is_empty)
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty)
}

/// Whether every pair of `wanted` is present: the selector form of Services and
/// ReplicationControllers.
pub(crate) fn map_matches(wanted: &Labels, labels: Option<&Labels>) -> bool {
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
