//! The rules of a DaemonSet: on which nodes it runs, which pods go, and how an update proceeds.
//! Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Toleration};
use keelson_semantics::{node_selector, taint};

use super::deployment_plan::scaled;
use super::history::REVISION_LABEL;
use crate::{clock, pod};

/// Pods created or deleted in one pass.
const MAX_PER_PASS: usize = 250;

#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Failed pods among those to delete, by name and node.
    pub failed: Vec<(String, String)>,
    pub status: DaemonSetStatus,
    pub requeue: Option<Duration>,
}

/// Whether a pod may start on the node, and whether one that runs there may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub run: bool,
    pub stay: bool,
}

pub(crate) fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let mut rows = vec![
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        rows.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    for (key, effect) in rows {
        let toleration = Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Toleration::default()
        };
        // One of the template's for a time alone would have the daemon evicted.
        let same = |t: &&mut Toleration| {
            (&t.key, &t.operator, &t.effect)
                == (&toleration.key, &toleration.operator, &toleration.effect)
                && t.value.as_deref().unwrap_or_default().is_empty()
        };
        match all.iter_mut().find(same) {
            Some(own) => *own = toleration,
            None => all.push(toleration),
        }
    }
    all
}

pub(crate) fn place(set: &DaemonSetSpec, node: &Node) -> Place {
    let nowhere = Place {
        run: false,
        stay: false,
    };
    let Some(spec) = &set.template.spec else {
        return nowhere;
    };
    let elsewhere = spec
        .node_name
        .as_deref()
        .is_some_and(|n| !n.is_empty() && n != pod::name(&node.metadata));
    if elsewhere || !node_selector::admits(spec, node.into()) {
        return nowhere;
    }
    let taints = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    let tolerations = tolerations(spec);
    let tolerates = |effects| taint::untolerated(&tolerations, &taints, effects).is_none();
    Place {
        run: tolerates(&["NoSchedule", "NoExecute"]),
        stay: tolerates(&["NoExecute"]),
    }
}

/// The node a daemon pod is meant for, before and after it is scheduled.
pub(crate) fn target_node(p: &Pod) -> Option<String> {
    if let Some(node) = pod::node_name(p) {
        return Some(node.to_owned());
    }
    let required = p
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required
        .node_selector_terms
        .iter()
        .flat_map(|t| t.match_fields.iter().flatten());
    fields
        .filter(|r| r.key == "metadata.name" && r.operator == "In")
        .find_map(|r| r.values.as_ref()?.first().cloned())
}

pub(crate) struct Input<'a> {
    pub set: &'a DaemonSet,
    pub nodes: &'a [Arc<Node>],
    pub pods: &'a [Arc<Pod>],
    /// The hash of the newest revision.
    pub hash: &'a str,
    pub now: Timestamp,
}

struct Pass<'a> {
    input: &'a Input<'a>,
    spec: &'a DaemonSetSpec,
    by_node: BTreeMap<String, Vec<Arc<Pod>>>,
    plan: Plan,
}

pub(crate) fn plan(input: &Input) -> Plan {
    let Some(spec) = &input.set.spec else {
        return Plan::default();
    };
    let mut by_node: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
    for p in input.pods {
        if let Some(node) = target_node(p) {
            by_node.entry(node).or_default().push(p.clone());
        }
    }
    let mut pass = Pass {
        input,
        spec,
        by_node,
        plan: Plan::default(),
    };
    pass.status();
    if input.set.metadata.deletion_timestamp.is_none() {
        pass.place_all();
        let rolling = spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.type_.as_deref())
            != Some("OnDelete");
        if rolling {
            pass.roll();
        }
    }
    pass.plan.create.truncate(MAX_PER_PASS);
    pass.plan.delete.truncate(MAX_PER_PASS);
    pass.plan
}

impl Pass<'_> {
    fn min_ready(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_updated(&self, p: &Pod) -> bool {
        pod::label(&p.metadata, REVISION_LABEL) == Some(self.input.hash)
    }

    fn is_available(&self, p: &Pod) -> bool {
        pod::is_available(p, self.min_ready(), self.input.now)
    }

    fn pods_on(&self, node: &str) -> Vec<Arc<Pod>> {
        self.by_node.get(node).cloned().unwrap_or_default()
    }

    fn place_all(&mut self) {
        let surge = self.max_surge() > 0;
        for node in self.input.nodes {
            let name = pod::name(&node.metadata).to_owned();
            let place = place(self.spec, node);
            let pods = self.pods_on(&name);
            if !place.stay {
                self.plan
                    .delete
                    .extend(pods.into_iter().filter(|p| !pod::is_terminating(p)));
                continue;
            }
            let mut running = Vec::new();
            let mut stopping = false;
            for p in pods {
                if pod::is_terminating(&p) {
                    stopping = true;
                } else if pod::is_terminal(&p) {
                    if pod::phase(&p) == "Failed" {
                        self.plan
                            .failed
                            .push((pod::name(&p.metadata).to_owned(), name.clone()));
                    }
                    self.plan.delete.push(p);
                    stopping = true;
                } else {
                    running.push(p);
                }
            }
            if running.is_empty() {
                // The successor waits for the end of its predecessor: both may want one port.
                if place.run && (!stopping || surge) {
                    self.plan.create.push(name);
                }
                continue;
            }
            self.delete_doubled(running, surge);
        }
        self.delete_stranded();
    }

    /// One pod per node stays, the oldest; with surge, one of each generation while the new one
    /// gets ready.
    fn delete_doubled(&mut self, mut running: Vec<Arc<Pod>>, surge: bool) {
        running.sort_by_key(|p| {
            (
                pod::node_name(p).is_none(),
                p.metadata.creation_timestamp.as_ref().map(|t| t.0),
                p.metadata.name.clone(),
            )
        });
        let mut groups: Vec<Vec<Arc<Pod>>> = Vec::new();
        if surge {
            let (new, old): (Vec<_>, Vec<_>) =
                running.into_iter().partition(|p| self.is_updated(p));
            groups.push(old);
            groups.push(new);
        } else {
            groups.push(running);
        }
        for group in groups {
            self.plan.delete.extend(group.into_iter().skip(1));
        }
    }

    /// Pods that wait for a node which is gone can never be scheduled.
    fn delete_stranded(&mut self) {
        for (name, pods) in &self.by_node {
            if self
                .input
                .nodes
                .iter()
                .any(|n| pod::name(&n.metadata) == name)
            {
                continue;
            }
            self.plan.delete.extend(
                pods.iter()
                    .filter(|p| pod::node_name(p).is_none() && !pod::is_terminating(p))
                    .cloned(),
            );
        }
    }

    fn desired(&self) -> i32 {
        let count = self
            .input
            .nodes
            .iter()
            .filter(|n| place(self.spec, n).run)
            .count();
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    fn rolling(&self) -> Option<&k8s_openapi::api::apps::v1::RollingUpdateDaemonSet> {
        self.spec.update_strategy.as_ref()?.rolling_update.as_ref()
    }

    fn max_surge(&self) -> i32 {
        scaled(
            self.rolling().and_then(|r| r.max_surge.as_ref()),
            self.desired(),
            true,
        )
    }

    fn max_unavailable(&self) -> i32 {
        let value = self.rolling().map(|r| r.max_unavailable.as_ref());
        let count = match value {
            None | Some(None) => i32::from(self.max_surge() == 0),
            Some(value) => scaled(value, self.desired(), true),
        };
        // Neither surge nor unavailability would stop every update.
        if count == 0 && self.max_surge() == 0 {
            1
        } else {
            count
        }
    }

    fn roll(&mut self) {
        let (surge, unavailable) = (self.max_surge(), self.max_unavailable());
        let doomed: Vec<Option<String>> = self
            .plan
            .delete
            .iter()
            .map(|p| p.metadata.uid.clone())
            .collect();
        let mut budget_used = 0;
        let mut surging = 0;
        let mut free = Vec::new();
        let mut candidates = Vec::new();
        let mut newcomers = Vec::new();
        for node in self.input.nodes {
            let name = pod::name(&node.metadata);
            if !place(self.spec, node).run {
                continue;
            }
            let alive: Vec<Arc<Pod>> = self
                .pods_on(name)
                .into_iter()
                .filter(|p| pod::is_active(p) && !doomed.contains(&p.metadata.uid))
                .collect();
            let new = alive.iter().find(|p| self.is_updated(p)).cloned();
            let old = alive.iter().find(|p| !self.is_updated(p)).cloned();
            match (old, new) {
                (None, None) => budget_used += 1,
                (None, Some(new)) => budget_used += i32::from(!self.is_available(&new)),
                (Some(old), None) if surge == 0 => {
                    if self.is_available(&old) {
                        candidates.push(old);
                    } else {
                        // It serves nobody: replacing it costs no availability.
                        budget_used += 1;
                        free.push(old);
                    }
                }
                (Some(old), None) => {
                    if self.is_available(&old) {
                        newcomers.push(name.to_owned())
                    } else {
                        free.push(old)
                    }
                }
                (Some(old), Some(new)) => {
                    if self.is_available(&new) {
                        free.push(old);
                    } else {
                        surging += 1;
                    }
                }
            }
        }
        self.plan.delete.extend(free);
        if surge > 0 {
            let room = usize::try_from((surge - surging).max(0)).unwrap_or(0);
            self.plan.create.extend(newcomers.into_iter().take(room));
        } else {
            let room = usize::try_from((unavailable - budget_used).max(0)).unwrap_or(0);
            self.plan.delete.extend(candidates.into_iter().take(room));
        }
    }

    fn status(&mut self) {
        let mut status = self.input.set.status.clone().unwrap_or_default();
        let (mut desired, mut current, mut misscheduled) = (0, 0, 0);
        let (mut ready, mut updated, mut available) = (0, 0, 0);
        for node in self.input.nodes {
            let pods = self.pods_on(pod::name(&node.metadata));
            let mut alive: Vec<_> = pods.iter().filter(|p| !pod::is_terminating(p)).collect();
            if !place(self.spec, node).run {
                misscheduled += i32::from(!alive.is_empty());
                continue;
            }
            desired += 1;
            if alive.is_empty() {
                continue;
            }
            current += 1;
            alive.sort_by_key(|p| {
                (
                    p.metadata.creation_timestamp.as_ref().map(|t| t.0),
                    p.metadata.name.clone(),
                )
            });
            // While surging, the pod that serves is the one that counts.
            let first = alive
                .iter()
                .find(|p| self.is_available(p))
                .unwrap_or(&alive[0]);
            ready += i32::from(pod::is_ready(first));
            available += i32::from(self.is_available(first));
            updated += i32::from(alive.iter().any(|p| self.is_updated(p)));
            let wait = alive
                .iter()
                .filter_map(|p| pod::until_available(p, self.min_ready(), self.input.now))
                .min();
            self.plan.requeue = clock::sooner(self.plan.requeue, wait);
        }
        let some = |n: i32| Some(n).filter(|n| *n != 0);
        status.desired_number_scheduled = desired;
        status.current_number_scheduled = current;
        status.number_misscheduled = misscheduled;
        status.number_ready = ready;
        status.number_available = some(available);
        status.number_unavailable = some(desired - available);
        status.updated_number_scheduled = some(updated);
        status.observed_generation = self.input.set.metadata.generation;
        self.plan.status = status;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(strategy: Value) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "n", "generation": 2},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "updateStrategy": strategy,
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}},
        }))
        .unwrap()
    }

    fn node(name: &str, taints: Value) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": taints}}))
                .unwrap(),
        )
    }

    fn pod(name: &str, node: &str, hash: &str, phase: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {REVISION_LABEL: hash}},
                "spec": {"containers": [], "nodeName": node},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"},
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap(),
        )
    }

    fn run(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
        plan(&Input {
            set,
            nodes,
            pods,
            hash: "new",
            now: "2026-01-01T01:00:00Z".parse().unwrap(),
        })
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|p| pod::name(&p.metadata)).collect()
    }

    #[test]
    fn every_fitting_node_gets_one_pod() {
        let nodes = [
            node("a", json!([])),
            node(
                "b",
                json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]),
            ),
            node("c", json!([{"key": "mine", "effect": "NoSchedule"}])),
            node("d", json!([{"key": "mine", "effect": "NoExecute"}])),
        ];
        let pods = [
            pod("pc", "c", "new", "Running", true),
            pod("pd", "d", "new", "Running", true),
        ];
        let plan = run(&set(json!({})), &nodes, &pods);
        assert_eq!(plan.create, ["a", "b"]);
        assert_eq!(
            names(&plan.delete),
            ["pd"],
            "NoSchedule lets what runs stay, NoExecute does not"
        );
        assert_eq!(
            (
                plan.status.desired_number_scheduled,
                plan.status.number_misscheduled
            ),
            (2, 2)
        );
    }

    #[test]
    fn failed_and_doubled_pods_go() {
        let nodes = [node("a", json!([])), node("b", json!([]))];
        let pods = [
            pod("x", "a", "new", "Failed", false),
            pod("y", "b", "new", "Running", true),
            pod("z", "b", "new", "Running", true),
        ];
        let plan = run(&set(json!({})), &nodes, &pods);
        assert_eq!(names(&plan.delete), ["x", "z"]);
        assert_eq!(plan.failed, [("x".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn rolling_respects_max_unavailable() {
        let nodes = [
            node("a", json!([])),
            node("b", json!([])),
            node("c", json!([])),
        ];
        let pods = [
            pod("a", "a", "old", "Running", true),
            pod("b", "b", "old", "Running", true),
            pod("c", "c", "old", "Running", true),
        ];
        let one = run(
            &set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}})),
            &nodes,
            &pods,
        );
        assert_eq!(names(&one.delete), ["a"]);
        let none = run(&set(json!({"type": "OnDelete"})), &nodes, &pods);
        assert!(none.delete.is_empty());
        let busy = [
            pod("a", "a", "new", "Running", false),
            pods[1].clone(),
            pods[2].clone(),
        ];
        let waiting = run(
            &set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}})),
            &nodes,
            &busy,
        );
        assert!(waiting.delete.is_empty());
    }

    #[test]
    fn surging_starts_the_new_before_stopping_the_old() {
        let strategy =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        let nodes = [node("a", json!([])), node("b", json!([]))];
        let old = [
            pod("a", "a", "old", "Running", true),
            pod("b", "b", "old", "Running", true),
        ];
        let start = run(&set(strategy.clone()), &nodes, &old);
        assert_eq!(
            (start.create.as_slice(), start.delete.len()),
            (["a".to_owned()].as_slice(), 0)
        );
        let both = [
            old[0].clone(),
            pod("a2", "a", "new", "Running", true),
            old[1].clone(),
        ];
        let next = run(&set(strategy), &nodes, &both);
        assert_eq!(names(&next.delete), ["a"]);
        assert_eq!(next.create, ["b"]);
    }
}
