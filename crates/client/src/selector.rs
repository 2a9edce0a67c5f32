//! Typed label selectors against labels, for those who hold `k8s-openapi` types.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Whether the labels satisfy every requirement; an empty selector matches everything, an operator
/// that does not exist nothing.
pub fn selector_matches(
    selector: &LabelSelector,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, wanted)| value(key) == Some(wanted))
        && selector
            .match_expressions
            .iter()
            .flatten()
            .all(|requirement| {
                let value = value(&requirement.key);
                let listed = value.is_some_and(|value| {
                    requirement
                        .values
                        .iter()
                        .flatten()
                        .any(|wanted| wanted == value)
                });
                match requirement.operator.as_str() {
                    "In" => listed,
                    "NotIn" => !listed,
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    #[test]
    fn expressions_and_labels_must_all_hold() {
        let labels = BTreeMap::from([
            ("app".to_owned(), "a".to_owned()),
            ("tier".to_owned(), "web".to_owned()),
        ]);
        let requirement = |key: &str, operator: &str, values: &[&str]| LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
        };
        let selector = |requirements| LabelSelector {
            match_expressions: Some(requirements),
            match_labels: None,
        };
        for (requirements, expected) in [
            (vec![], true),
            (vec![requirement("app", "In", &["a", "b"])], true),
            (vec![requirement("app", "NotIn", &["a"])], false),
            (
                vec![
                    requirement("none", "NotIn", &["a"]),
                    requirement("tier", "Exists", &[]),
                ],
                true,
            ),
            (vec![requirement("tier", "DoesNotExist", &[])], false),
            (vec![requirement("tier", "Like", &["web"])], false),
        ] {
            assert_eq!(
                selector_matches(&selector(requirements), Some(&labels)),
                expected
            );
        }
        assert!(!selector_matches(
            &selector(vec![requirement("app", "Exists", &[])]),
            None
        ));
    }
}
