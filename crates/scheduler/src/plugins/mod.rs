//! The plugins, one file each. A plugin rejects nodes, scores them, or both.

mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod pod_topology_spread;
mod taint_toleration;

use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;

/// Scores after normalising lie in `0..=MAX_SCORE`.
pub(crate) const MAX_SCORE: i64 = 100;

/// In the order in which filters run: the cheap and the selective first.
pub static PLUGINS: &[&dyn Plugin] = &[
    &node_unschedulable::NodeUnschedulable,
    &node_name::NodeName,
    &taint_toleration::TaintToleration,
    &node_affinity::NodeAffinity,
    &node_ports::NodePorts,
    &node_resources::NodeResourcesFit,
    &node_resources::NodeResourcesBalancedAllocation,
    &pod_topology_spread::PodTopologySpread,
    &inter_pod_affinity::InterPodAffinity,
];

/// Why a node was rejected.
pub struct Rejection {
    pub(crate) reasons: Vec<String>,
    /// Evicting pods from the node could change the verdict.
    pub(crate) resolvable: bool,
}

impl Rejection {
    pub(crate) fn resolvable(reasons: Vec<String>) -> Self {
        Self {
            reasons,
            resolvable: true,
        }
    }

    pub(crate) fn lasting(reason: impl Into<String>) -> Self {
        Self {
            reasons: vec![reason.into()],
            resolvable: false,
        }
    }
}

#[expect(
    private_interfaces,
    reason = "the trait names rows of a public table; only this crate implements it"
)]
pub trait Plugin: Sync {
    /// Upstream's name of the plugin.
    fn name(&self) -> &'static str;

    /// Whether this pod can make the plugin reject anything; asked once a cycle.
    fn concerns(&self, _pod: &PodInfo, _model: &Model) -> bool {
        true
    }

    fn filter(&self, _pod: &PodInfo, _node: &NodeInfo, _model: &Model) -> Result<(), Rejection> {
        Ok(())
    }

    /// Zero for plugins that do not score.
    fn weight(&self) -> i64 {
        0
    }

    /// A raw score for each node; `None` when the pod does not care.
    fn scores(&self, _pod: &PodInfo, _nodes: &[&NodeInfo], _model: &Model) -> Option<Vec<i64>> {
        None
    }

    /// Brings raw scores into `0..=MAX_SCORE`.
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Scales so that the highest raw score becomes [`MAX_SCORE`]; `reverse` makes low raw scores win.
pub(crate) fn normalize_by_max(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = if max == 0 {
            if reverse { MAX_SCORE } else { 0 }
        } else {
            let scaled = *score * MAX_SCORE / max;
            if reverse { MAX_SCORE - scaled } else { scaled }
        };
    }
}
