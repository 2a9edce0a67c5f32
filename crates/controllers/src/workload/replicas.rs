//! What ReplicaSet and ReplicationController share: a count of pods is kept by creating and
//! deleting, and the status tells how many are there. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::pod;

/// No more pods than this are created or deleted in one pass.
pub(crate) const BURST: usize = 500;

/// Names in the status conditions of both kinds.
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    pub terminating: i32,
}

/// A condition of either kind, before it takes the kind's type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
    pub counts: Counts,
    /// When a ready pod will have been ready for long enough.
    pub recheck: Option<Duration>,
}

pub(crate) struct Input<'a> {
    /// Every pod that belongs to the object, finished and terminating ones too.
    pub pods: &'a [Arc<Pod>],
    /// Active pods of the namespace that hang together with ours (for a ReplicaSet: those of its
    /// siblings under the same Deployment), for ranking deletions.
    pub related: &'a [Arc<Pod>],
    pub wanted: i32,
    pub deleting: bool,
    pub min_ready_seconds: i32,
    pub fully_labeled: &'a dyn Fn(&Pod) -> bool,
}

pub(crate) fn plan(input: &Input, now: Timestamp) -> Plan {
    let active: Vec<&Arc<Pod>> = input.pods.iter().filter(|p| pod::is_active(p)).collect();
    let wanted = usize::try_from(input.wanted).unwrap_or(0);
    let (mut create, mut delete) = (0, Vec::new());
    if !input.deleting && active.len() < wanted {
        create = (wanted - active.len()).min(BURST);
    } else if !input.deleting && active.len() > wanted {
        let surplus = (active.len() - wanted).min(BURST);
        delete = choose_surplus(&active, input.related, surplus, now);
    }
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(active.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX)
    };
    let counts = Counts {
        replicas: count(&|_| true),
        fully_labeled: count(input.fully_labeled),
        ready: count(&pod::is_ready),
        available: count(&|p| pod::is_available(p, input.min_ready_seconds, now)),
        terminating: i32::try_from(
            input
                .pods
                .iter()
                .filter(|p| pod::is_terminating(p) && !pod::is_terminal(p))
                .count(),
        )
        .unwrap_or(i32::MAX),
    };
    let recheck = active
        .iter()
        .filter_map(|p| pod::until_available(p, input.min_ready_seconds, now))
        .min();
    Plan {
        create,
        delete,
        counts,
        recheck,
    }
}

fn choose_surplus(
    active: &[&Arc<Pod>],
    related: &[Arc<Pod>],
    surplus: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for node in related.iter().filter_map(|p| pod::node_name(p)) {
        *per_node.entry(node).or_default() += 1;
    }
    let rank = |p: &Pod| {
        pod::node_name(p)
            .and_then(|n| per_node.get(n))
            .copied()
            .unwrap_or(0)
    };
    let mut ranked: Vec<(&Arc<Pod>, usize)> = active.iter().map(|p| (*p, rank(p))).collect();
    ranked.sort_by(|(a, rank_a), (b, rank_b)| pod::deletion_order((a, *rank_a), (b, *rank_b), now));
    ranked
        .into_iter()
        .take(surplus)
        .map(|(p, _)| p.clone())
        .collect()
}

/// What the failure condition must be after a pass: it appears with the first error and goes away
/// with the first pass that has none.
pub(crate) fn failure(diff: i64, error: Option<String>) -> Option<Failure> {
    error.map(|message| Failure {
        reason: if diff < 0 {
            "FailedCreate"
        } else {
            "FailedDelete"
        },
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: &str, ready: bool, deleting: bool) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "labels": {"app": "a"}},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        if deleting {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn run(pods: &[Arc<Pod>], wanted: i32, deleting: bool) -> Plan {
        plan(
            &Input {
                pods,
                related: pods,
                wanted,
                deleting,
                min_ready_seconds: 5,
                fully_labeled: &|_| true,
            },
            "2026-01-01T00:00:02Z".parse().unwrap(),
        )
    }

    #[test]
    fn counts_only_active_pods_and_fills_up() {
        let pods = [pod("a", "n", true, false), pod("b", "n", true, true)];
        let plan = run(&pods, 3, false);
        assert_eq!(plan.create, 2);
        assert!(plan.delete.is_empty());
        assert_eq!(
            plan.counts,
            Counts {
                replicas: 1,
                fully_labeled: 1,
                ready: 1,
                available: 0,
                terminating: 1
            }
        );
        assert_eq!(plan.recheck, Some(Duration::from_secs(3)));
    }

    #[test]
    fn deletes_unready_first_and_nothing_while_deleting() {
        let pods = [pod("a", "n", true, false), pod("b", "n", false, false)];
        let names: Vec<_> = run(&pods, 1, false)
            .delete
            .iter()
            .map(|p| p.metadata.name.clone().unwrap())
            .collect();
        assert_eq!(names, ["b"]);
        assert!(run(&pods, 1, true).delete.is_empty());
        assert_eq!(run(&pods, 9, true).create, 0);
    }

    #[test]
    fn one_pass_is_bounded() {
        assert_eq!(run(&[], 100_000, false).create, BURST);
    }
}
