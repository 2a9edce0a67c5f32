//! Requests must fit into what a node has left; the emptier and the more evenly used node wins.

use super::{MAX_SCORE, Plugin, Rejection};
use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;

pub(crate) struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _model: &Model) -> Result<(), Rejection> {
        let mut reasons = Vec::new();
        let allowed = node.allocatable.other.get("pods").copied().unwrap_or(0);
        if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= allowed {
            reasons.push("Too many pods".to_owned());
        }
        let (wanted, have, used) = (&pod.requests, &node.allocatable, &node.requested);
        if wanted.milli_cpu > 0 && wanted.milli_cpu > have.milli_cpu - used.milli_cpu {
            reasons.push("Insufficient cpu".to_owned());
        }
        if wanted.memory > 0 && wanted.memory > have.memory - used.memory {
            reasons.push("Insufficient memory".to_owned());
        }
        for (name, amount) in wanted.other.iter().filter(|(_, amount)| **amount > 0) {
            let left = have.other.get(name).copied().unwrap_or(0)
                - used.other.get(name).copied().unwrap_or(0);
            if *amount > left {
                reasons.push(format!("Insufficient {name}"));
            }
        }
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(Rejection::resolvable(reasons))
        }
    }

    fn weight(&self) -> i64 {
        1
    }

    /// `LeastAllocated`: the mean share of CPU and memory that would be left.
    fn scores(&self, pod: &PodInfo, nodes: &[&NodeInfo], _model: &Model) -> Option<Vec<i64>> {
        let left = |node: &&NodeInfo| {
            let (cpu, memory) = (used_cpu(pod, node), used_memory(pod, node));
            (share_left(cpu, node.allocatable.milli_cpu)
                + share_left(memory, node.allocatable.memory))
                / 2
        };
        Some(nodes.iter().map(left).collect())
    }
}

pub(crate) struct NodeResourcesBalancedAllocation;

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn concerns(&self, _pod: &PodInfo, _model: &Model) -> bool {
        false
    }

    fn weight(&self) -> i64 {
        1
    }

    /// The closer the used shares of CPU and memory, the better. With two resources the standard
    /// deviation is half of their distance.
    fn scores(&self, pod: &PodInfo, nodes: &[&NodeInfo], _model: &Model) -> Option<Vec<i64>> {
        let share = |used: i64, have: i64| {
            if have <= 0 {
                1.0
            } else {
                (used as f64 / have as f64).min(1.0)
            }
        };
        let balance = |node: &&NodeInfo| {
            let cpu = share(used_cpu(pod, node), node.allocatable.milli_cpu);
            let memory = share(used_memory(pod, node), node.allocatable.memory);
            ((1.0 - (cpu - memory).abs() / 2.0) * MAX_SCORE as f64) as i64
        };
        Some(nodes.iter().map(balance).collect())
    }
}

fn used_cpu(pod: &PodInfo, node: &NodeInfo) -> i64 {
    node.score_requested
        .milli_cpu
        .saturating_add(pod.score_requests.milli_cpu)
}

fn used_memory(pod: &PodInfo, node: &NodeInfo) -> i64 {
    node.score_requested
        .memory
        .saturating_add(pod.score_requests.memory)
}

fn share_left(used: i64, have: i64) -> i64 {
    if have <= 0 || used > have {
        return 0;
    }
    i64::try_from(i128::from(have - used) * i128::from(MAX_SCORE) / i128::from(have)).unwrap_or(0)
}
