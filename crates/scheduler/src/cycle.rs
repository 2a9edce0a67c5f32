//! One scheduling decision: filter, score, choose. Pure over the model.

use std::collections::BTreeMap;

use crate::model::{Model, NodeInfo};
use crate::plugins::{PLUGINS, Plugin, Rejection};
use crate::pod_info::PodInfo;

/// Why a pod fits nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Unschedulable {
    pub(crate) nodes: usize,
    /// How many nodes gave each reason, as `Insufficient cpu` → 3.
    pub(crate) reasons: BTreeMap<String, usize>,
    /// The plugins that rejected: only what changes their verdict can help the pod.
    pub(crate) plugins: Vec<&'static str>,
    /// Nodes that evicting other pods might open.
    pub(crate) preemptable: Vec<String>,
}

impl Unschedulable {
    /// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {…}.`
    pub(crate) fn message(&self) -> String {
        let mut reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        if reasons.is_empty() {
            return format!("0/{} nodes are available.", self.nodes);
        }
        reasons.sort();
        format!(
            "0/{} nodes are available: {}.",
            self.nodes,
            reasons.join(", ")
        )
    }
}

/// The node to bind to, or why there is none. `tie` breaks ties between the best nodes.
pub(crate) fn decide(pod: &PodInfo, model: &Model, tie: usize) -> Result<String, Unschedulable> {
    let mut failure = Unschedulable::default();
    if model.nodes().next().is_none() {
        return Err(Unschedulable {
            reasons: BTreeMap::new(),
            ..Unschedulable::default()
        });
    }
    let mut feasible: Vec<&NodeInfo> = Vec::new();
    let active: Vec<&dyn Plugin> = PLUGINS
        .iter()
        .copied()
        .filter(|plugin| plugin.concerns(pod, model))
        .collect();
    for node in model.nodes() {
        failure.nodes += 1;
        match first_rejection(&active, pod, node, model) {
            None => feasible.push(node),
            Some((plugin, rejection)) => {
                for reason in rejection.reasons {
                    *failure.reasons.entry(reason).or_default() += 1;
                }
                if !failure.plugins.contains(&plugin) {
                    failure.plugins.push(plugin);
                }
                if rejection.resolvable {
                    failure.preemptable.push(node.name.clone());
                }
            }
        }
    }
    match feasible.as_slice() {
        [] => Err(failure),
        [only] => Ok(only.name.clone()),
        _ => Ok(best(pod, &feasible, model, tie)),
    }
}

/// Whether the pod would fit on this node as it stands; used by preemption on changed copies.
pub(crate) fn fits(pod: &PodInfo, node: &NodeInfo, model: &Model) -> bool {
    let active: Vec<&dyn Plugin> = PLUGINS
        .iter()
        .copied()
        .filter(|plugin| plugin.concerns(pod, model))
        .collect();
    first_rejection(&active, pod, node, model).is_none()
}

fn first_rejection(
    plugins: &[&dyn Plugin],
    pod: &PodInfo,
    node: &NodeInfo,
    model: &Model,
) -> Option<(&'static str, Rejection)> {
    plugins.iter().find_map(|plugin| {
        plugin
            .filter(pod, node, model)
            .err()
            .map(|rejection| (plugin.name(), rejection))
    })
}

fn best(pod: &PodInfo, nodes: &[&NodeInfo], model: &Model, tie: usize) -> String {
    let mut totals = vec![0_i64; nodes.len()];
    for plugin in PLUGINS.iter().filter(|plugin| plugin.weight() > 0) {
        let Some(mut scores) = plugin.scores(pod, nodes, model) else {
            continue;
        };
        plugin.normalize(&mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += score * plugin.weight();
        }
    }
    let top = totals.iter().max().copied().unwrap_or(0);
    let best: Vec<&&NodeInfo> = nodes
        .iter()
        .zip(&totals)
        .filter(|(_, total)| **total == top)
        .map(|(node, _)| node)
        .collect();
    best[tie % best.len()].name.clone()
}
