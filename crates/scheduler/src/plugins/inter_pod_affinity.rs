//! `podAffinity` and `podAntiAffinity`: near to or away from pods by topology domain. The required
//! anti-affinity of pods that run already holds against newcomers as well.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
use keelson_semantics::label_selector;

use super::{MAX_SCORE, Plugin, Rejection};
use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;

/// The weight with which a required affinity of an existing pod attracts newcomers.
const HARD_AFFINITY_WEIGHT: i64 = 1;

pub(crate) struct InterPodAffinity;

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn concerns(&self, pod: &PodInfo, model: &Model) -> bool {
        pod.has_pod_affinity() || model.any_pod_with_affinity()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, model: &Model) -> Result<(), Rejection> {
        let affinity = affinity(pod);
        for term in required(affinity, Kind::Affinity) {
            if !affinity_holds(term, pod, node, model) {
                return Err(Rejection::lasting(
                    "node(s) didn't match pod affinity rules",
                ));
            }
        }
        for term in required(affinity, Kind::Anti) {
            if domain(model, node, &term.topology_key)
                .any(|(_, other)| selects(term, pod, other, model))
            {
                return Err(Rejection::resolvable(vec![
                    "node(s) didn't match pod anti-affinity rules".to_owned(),
                ]));
            }
        }
        if model.any_pod_with_affinity() && repelled(pod, node, model) {
            return Err(Rejection::resolvable(vec![
                "node(s) didn't satisfy existing pods anti-affinity rules".to_owned(),
            ]));
        }
        Ok(())
    }

    fn weight(&self) -> i64 {
        2
    }

    fn scores(&self, pod: &PodInfo, nodes: &[&NodeInfo], model: &Model) -> Option<Vec<i64>> {
        let mut weights: BTreeMap<(String, String), i64> = BTreeMap::new();
        let own = affinity(pod);
        for other_node in model.nodes() {
            for other in other_node.pods.values() {
                for (sign, kind) in [(1, Kind::Affinity), (-1, Kind::Anti)] {
                    for weighted in preferred(own, kind) {
                        let term = &weighted.pod_affinity_term;
                        if selects(term, pod, other, model) {
                            note(
                                &mut weights,
                                term,
                                other_node,
                                sign * i64::from(weighted.weight),
                            );
                        }
                    }
                    for weighted in preferred(affinity(other), kind) {
                        let term = &weighted.pod_affinity_term;
                        if selects(term, other, pod, model) {
                            note(
                                &mut weights,
                                term,
                                other_node,
                                sign * i64::from(weighted.weight),
                            );
                        }
                    }
                }
                for term in required(affinity(other), Kind::Affinity) {
                    if selects(term, other, pod, model) {
                        note(&mut weights, term, other_node, HARD_AFFINITY_WEIGHT);
                    }
                }
            }
        }
        if weights.is_empty() {
            return None;
        }
        let score = |node: &&NodeInfo| {
            let of_node = |((key, value), weight): (&(String, String), &i64)| {
                (node.label(key) == Some(value.as_str())).then_some(*weight)
            };
            weights.iter().filter_map(of_node).sum()
        };
        Some(nodes.iter().map(score).collect())
    }

    fn normalize(&self, scores: &mut [i64]) {
        let (min, max) = (
            scores.iter().min().copied().unwrap_or(0),
            scores.iter().max().copied().unwrap_or(0),
        );
        for score in scores {
            *score = if max == min {
                0
            } else {
                (*score - min) * MAX_SCORE / (max - min)
            };
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Affinity,
    Anti,
}

fn affinity(pod: &PodInfo) -> Option<&Affinity> {
    pod.spec()?.affinity.as_ref()
}

fn required(affinity: Option<&Affinity>, kind: Kind) -> &[PodAffinityTerm] {
    let terms = affinity.and_then(|affinity| match kind {
        Kind::Affinity => affinity
            .pod_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_deref(),
        Kind::Anti => affinity
            .pod_anti_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_deref(),
    });
    terms.unwrap_or_default()
}

fn preferred(affinity: Option<&Affinity>, kind: Kind) -> &[WeightedPodAffinityTerm] {
    let terms = affinity.and_then(|affinity| match kind {
        Kind::Affinity => affinity
            .pod_affinity
            .as_ref()?
            .preferred_during_scheduling_ignored_during_execution
            .as_deref(),
        Kind::Anti => affinity
            .pod_anti_affinity
            .as_ref()?
            .preferred_during_scheduling_ignored_during_execution
            .as_deref(),
    });
    terms.unwrap_or_default()
}

fn note(
    weights: &mut BTreeMap<(String, String), i64>,
    term: &PodAffinityTerm,
    node: &NodeInfo,
    weight: i64,
) {
    if let Some(value) = node.label(&term.topology_key) {
        *weights
            .entry((term.topology_key.clone(), value.to_owned()))
            .or_default() += weight;
    }
}

/// Pods on nodes of the same topology domain as `node`, which may be a changed copy of the model's
/// own entry and stands in its place.
fn domain<'a>(
    model: &'a Model,
    node: &'a NodeInfo,
    topology_key: &'a str,
) -> impl Iterator<Item = (&'a NodeInfo, &'a PodInfo)> {
    let value = node.label(topology_key);
    model
        .nodes()
        .filter(move |other| value.is_some() && other.label(topology_key) == value)
        .map(move |other| if other.name == node.name { node } else { other })
        .flat_map(|other| other.pods.values().map(move |pod| (other, &**pod)))
}

/// A term of `owner` means `other`: by namespace and by labels.
fn selects(term: &PodAffinityTerm, owner: &PodInfo, other: &PodInfo, model: &Model) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = if named.is_empty() && term.namespace_selector.is_none() {
        other.namespace() == owner.namespace()
    } else {
        named.iter().any(|namespace| namespace == other.namespace())
            || term.namespace_selector.as_ref().is_some_and(|selector| {
                label_selector::matches(selector, model.namespace_labels(other.namespace()))
            })
    };
    if !in_namespace {
        return false;
    }
    let Some(selector) = &term.label_selector else {
        return false;
    };
    let keys = |keys: &Option<Vec<String>>, operator: &str| -> Vec<LabelSelectorRequirement> {
        keys.iter()
            .flatten()
            .filter_map(|key| {
                let value = owner.labels()?.get(key)?.clone();
                Some(LabelSelectorRequirement {
                    key: key.clone(),
                    operator: operator.to_owned(),
                    values: Some(vec![value]),
                })
            })
            .collect()
    };
    let mut extra = keys(&term.match_label_keys, "In");
    extra.extend(keys(&term.mismatch_label_keys, "NotIn"));
    if extra.is_empty() {
        return label_selector::matches(selector, other.labels());
    }
    let mut selector = selector.clone();
    selector
        .match_expressions
        .get_or_insert_default()
        .extend(extra);
    label_selector::matches(&selector, other.labels())
}

/// Some selected pod runs in the node's domain; the first pod of a group that selects itself may
/// go anywhere.
fn affinity_holds(term: &PodAffinityTerm, pod: &PodInfo, node: &NodeInfo, model: &Model) -> bool {
    if node.label(&term.topology_key).is_none() {
        return false;
    }
    if domain(model, node, &term.topology_key).any(|(_, other)| selects(term, pod, other, model)) {
        return true;
    }
    let anywhere = model
        .nodes()
        .filter(|other| other.label(&term.topology_key).is_some())
        .flat_map(|other| other.pods.values())
        .any(|other| selects(term, pod, other, model));
    !anywhere && selects(term, pod, pod, model)
}

fn repelled(pod: &PodInfo, node: &NodeInfo, model: &Model) -> bool {
    let in_domain = |other_node: &NodeInfo, key: &str| {
        let value = node.label(key);
        value.is_some() && other_node.label(key) == value
    };
    model
        .nodes()
        .map(|other| if other.name == node.name { node } else { other })
        .any(|other_node| {
            other_node
                .pods
                .values()
                .filter(|other| other.has_pod_affinity())
                .any(|other| {
                    required(affinity(other), Kind::Anti).iter().any(|term| {
                        in_domain(other_node, &term.topology_key)
                            && selects(term, other, pod, model)
                    })
                })
        })
}
