//! Preemption: which pods of lower priority to evict so that a pod fits. Pure over the model.

use std::sync::Arc;

use crate::cycle::fits;
use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;

/// A node and the pods to evict from it, least important last.
pub(crate) struct Plan {
    pub(crate) node: String,
    pub(crate) victims: Vec<Arc<PodInfo>>,
}

/// The cheapest plan over the candidate nodes: the one whose most important victim is least
/// important, then the fewest victims. `protected` says that evicting a pod would violate a
/// disruption budget.
pub(crate) fn plan(
    pod: &PodInfo,
    candidates: &[String],
    model: &Model,
    protected: &dyn Fn(&PodInfo) -> bool,
) -> Option<Plan> {
    if pod
        .spec()
        .and_then(|spec| spec.preemption_policy.as_deref())
        == Some("Never")
    {
        return None;
    }
    candidates
        .iter()
        .filter_map(|name| Some((name, victims(pod, model.node(name)?, model, protected)?)))
        .min_by_key(|(_, victims)| {
            let violations = victims.iter().filter(|victim| protected(victim)).count();
            let highest = victims
                .iter()
                .map(|victim| victim.priority())
                .max()
                .unwrap_or(i32::MIN);
            (violations, highest, victims.len())
        })
        .map(|(name, victims)| Plan {
            node: name.clone(),
            victims,
        })
}

/// Takes every less important pod away and puts back, most important and protected first, those
/// that the newcomer can live with.
fn victims(
    pod: &PodInfo,
    node: &NodeInfo,
    model: &Model,
    protected: &dyn Fn(&PodInfo) -> bool,
) -> Option<Vec<Arc<PodInfo>>> {
    let mut copy = node.clone();
    let mut lower: Vec<Arc<PodInfo>> = node
        .pods
        .values()
        .filter(|other| other.priority() < pod.priority())
        .cloned()
        .collect();
    if lower.is_empty() {
        return None;
    }
    for other in &lower {
        copy.remove(other.uid());
    }
    if !fits(pod, &copy, model) {
        return None;
    }
    lower.sort_by_key(|other| {
        let started = other
            .pod
            .status
            .as_ref()
            .and_then(|status| status.start_time.as_ref())
            .map(|time| time.0);
        (
            !protected(other),
            std::cmp::Reverse(other.priority()),
            started,
        )
    });
    let mut victims = Vec::new();
    for other in lower {
        copy.add(other.clone());
        if !fits(pod, &copy, model) {
            copy.remove(other.uid());
            victims.push(other);
        }
    }
    (!victims.is_empty()).then_some(victims)
}
