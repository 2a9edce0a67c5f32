//! What a pod, a volume or a device demands of a node: `nodeSelector`, node selector terms.
//! Specified by the API of `core/v1` `NodeSelector`.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
};

use crate::label_selector::{self, Labels};

/// A node as selectors see it.
#[derive(Debug, Clone, Copy)]
pub struct NodeView<'n> {
    pub name: &'n str,
    pub labels: Option<&'n Labels>,
}

impl<'n> From<&'n Node> for NodeView<'n> {
    fn from(node: &'n Node) -> Self {
        Self {
            name: node.metadata.name.as_deref().unwrap_or_default(),
            labels: node.metadata.labels.as_ref(),
        }
    }
}

/// Whether a pod's node selector and required node affinity admit the node.
pub fn admits(spec: &PodSpec, node: NodeView<'_>) -> bool {
    let selected = spec
        .node_selector
        .as_ref()
        .is_none_or(|wanted| label_selector::map_matches(wanted, node.labels));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    selected && required.is_none_or(|required| selects(required, node))
}

/// Any term suffices.
pub fn selects(wanted: &NodeSelector, node: NodeView<'_>) -> bool {
    let mut terms = wanted.node_selector_terms.iter();
    terms.any(|term| term_matches(term, node))
}

/// All requirements of the term hold; a term without any matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: NodeView<'_>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| node.labels?.get(key).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(node.name);
    expressions.iter().all(|r| holds(r, label(&r.key)))
        && fields.iter().all(|r| holds(r, field(&r.key)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |test: fn(i64, i64) -> bool| {
        let have = value.and_then(|v| v.parse().ok());
        let bound = values.first().and_then(|v| v.parse().ok());
        matches!((have, bound), (Some(have), Some(bound)) if test(have, bound))
    };
    match requirement.operator.as_str() {
        "Gt" => compare(|have, bound| have > bound),
        "Lt" => compare(|have, bound| have < bound),
        operator => label_selector::holds(operator, values, value).unwrap_or(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_and_terms() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "cpus": "8"}}}),
        )
        .unwrap();
        let term = |term: serde_json::Value| -> PodSpec {
            serde_json::from_value(json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}))
            .unwrap()
        };
        let cases = [
            (
                json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["4"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "cpus", "operator": "Lt", "values": ["4"]}]}),
                false,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}),
                true,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}),
                false,
            ),
            (json!({}), false),
        ];
        for (text, wanted) in cases {
            assert_eq!(
                admits(&term(text.clone()), (&node).into()),
                wanted,
                "{text}"
            );
        }
        let plain: PodSpec =
            serde_json::from_value(json!({"containers": [], "nodeSelector": {"disk": "hdd"}}))
                .unwrap();
        assert!(!admits(&plain, (&node).into()));
    }
}
