//! `spec.nodeSelector` and `spec.affinity.nodeAffinity`.

use keelson_semantics::node_selector;

use super::{Plugin, Rejection, normalize_by_max};
use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;

pub(crate) struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn concerns(&self, pod: &PodInfo, _model: &Model) -> bool {
        pod.spec().is_some_and(|spec| {
            spec.node_selector
                .as_ref()
                .is_some_and(|selector| !selector.is_empty())
                || spec
                    .affinity
                    .as_ref()
                    .is_some_and(|affinity| affinity.node_affinity.is_some())
        })
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _model: &Model) -> Result<(), Rejection> {
        if matches_required(pod, node) {
            return Ok(());
        }
        Err(Rejection::lasting(
            "node(s) didn't match Pod's node affinity/selector",
        ))
    }

    fn weight(&self) -> i64 {
        2
    }

    fn scores(&self, pod: &PodInfo, nodes: &[&NodeInfo], _model: &Model) -> Option<Vec<i64>> {
        let affinity = pod.spec()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = affinity
            .preferred_during_scheduling_ignored_during_execution
            .as_ref()?;
        let score = |node: &&NodeInfo| {
            preferred
                .iter()
                .filter(|term| node_selector::term_matches(&term.preference, node.view()))
                .map(|term| i64::from(term.weight))
                .sum()
        };
        Some(nodes.iter().map(score).collect())
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_max(scores, false);
    }
}

/// The pod's selector and required affinity together.
pub(crate) fn matches_required(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.spec()
        .is_none_or(|spec| node_selector::admits(spec, node.view()))
}
