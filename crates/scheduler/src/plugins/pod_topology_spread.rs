//! `topologySpreadConstraints`: pods of a group spread evenly over topology domains.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use keelson_semantics::label_selector;

use super::node_affinity::matches_required;
use super::taint_toleration::TaintToleration;
use super::{MAX_SCORE, Plugin, Rejection};
use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;

pub(crate) struct PodTopologySpread;

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn concerns(&self, pod: &PodInfo, _model: &Model) -> bool {
        constraints(pod, "DoNotSchedule").next().is_some()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, model: &Model) -> Result<(), Rejection> {
        for constraint in constraints(pod, "DoNotSchedule") {
            let Some(value) = node.label(&constraint.topology_key) else {
                return Err(Rejection::lasting(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let counts = count(constraint, pod, node, model);
            let domains = i32::try_from(counts.len()).unwrap_or(i32::MAX);
            let least = match constraint.min_domains {
                Some(min) if domains < min => 0,
                _ => counts.values().min().copied().unwrap_or(0),
            };
            let own = i64::from(matches_self(constraint, pod));
            let here = counts.get(value).copied().unwrap_or(0);
            if here + own - least > i64::from(constraint.max_skew) {
                return Err(Rejection::resolvable(vec![
                    "node(s) didn't match pod topology spread constraints".to_owned(),
                ]));
            }
        }
        Ok(())
    }

    fn weight(&self) -> i64 {
        2
    }

    fn scores(&self, pod: &PodInfo, nodes: &[&NodeInfo], model: &Model) -> Option<Vec<i64>> {
        let mut scores = vec![0; nodes.len()];
        let mut any = false;
        for constraint in constraints(pod, "ScheduleAnyway") {
            any = true;
            // The counts do not depend on the node when every node is as the model has it.
            let counts = nodes
                .first()
                .map(|node| count(constraint, pod, node, model))
                .unwrap_or_default();
            for (score, node) in scores.iter_mut().zip(nodes) {
                let value = node.label(&constraint.topology_key);
                *score += value
                    .and_then(|value| counts.get(value))
                    .copied()
                    .unwrap_or(0);
            }
        }
        any.then_some(scores)
    }

    /// Fewer pods of the group in the domain is better.
    fn normalize(&self, scores: &mut [i64]) {
        let (min, max) = (
            scores.iter().min().copied().unwrap_or(0),
            scores.iter().max().copied().unwrap_or(0),
        );
        for score in scores {
            *score = if max == 0 {
                MAX_SCORE
            } else {
                MAX_SCORE * (max + min - *score) / max
            };
        }
    }
}

fn constraints<'a>(
    pod: &'a PodInfo,
    when: &'static str,
) -> impl Iterator<Item = &'a TopologySpreadConstraint> {
    pod.spec()
        .into_iter()
        .flat_map(|spec| spec.topology_spread_constraints.iter().flatten())
        .filter(move |constraint| constraint.when_unsatisfiable == when)
}

fn matches_self(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> bool {
    constraint
        .label_selector
        .as_ref()
        .is_some_and(|selector| label_selector::matches(selector, pod.labels()))
}

/// Matching pods per domain, over the nodes that the pod could use at all. `node` stands in place
/// of the model's entry of its name.
fn count<'a>(
    constraint: &TopologySpreadConstraint,
    pod: &PodInfo,
    node: &'a NodeInfo,
    model: &'a Model,
) -> BTreeMap<&'a str, i64> {
    let respect_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let respect_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    let keys: BTreeSet<&str> = constraint
        .match_label_keys
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let counted = |other: &PodInfo| {
        other.namespace() == pod.namespace()
            && other.pod.metadata.deletion_timestamp.is_none()
            && matches_self(constraint, other)
            && keys.iter().all(|key| {
                let wanted = pod.labels().and_then(|labels| labels.get(*key));
                wanted.is_none() || other.labels().and_then(|labels| labels.get(*key)) == wanted
            })
    };
    let mut counts = BTreeMap::new();
    for candidate in model
        .nodes()
        .map(|other| if other.name == node.name { node } else { other })
    {
        let Some(value) = candidate.label(&constraint.topology_key) else {
            continue;
        };
        if respect_affinity && !matches_required(pod, candidate)
            || respect_taints && TaintToleration.filter(pod, candidate, model).is_err()
        {
            continue;
        }
        let here = candidate
            .pods
            .values()
            .filter(|other| counted(other))
            .count();
        *counts.entry(value).or_insert(0) += i64::try_from(here).unwrap_or(i64::MAX);
    }
    counts
}
