//! The rules of a StatefulSet: which ordinals exist, in which order they come and go, and how an
//! update proceeds. Pure; one call is one step.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::deployment_plan::scaled;
use super::history::REVISION_LABEL;
use crate::{clock, pod};

/// A pod to create, of the current or of the newest revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewPod {
    pub ordinal: i32,
    pub of_update: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub create: Vec<NewPod>,
    pub delete: Vec<Arc<Pod>>,
    /// Finished pods among those to delete: they come back under the same name.
    pub recreate: Vec<String>,
    /// Pods whose labels or volumes do not carry their identity.
    pub repair: Vec<Arc<Pod>>,
    pub status: StatefulSetStatus,
    pub requeue: Option<Duration>,
}

pub(crate) struct Input<'a> {
    pub set: &'a StatefulSet,
    pub pods: &'a [Arc<Pod>],
    pub current_revision: &'a str,
    pub update_revision: &'a str,
    /// Whether a pod carries its identity and its volumes.
    pub is_identified: &'a dyn Fn(&Pod) -> bool,
    pub now: Timestamp,
}

/// The ordinal in a pod's name, when it is one of the set's.
pub(crate) fn ordinal(set: &str, p: &Pod) -> Option<i32> {
    let digits = pod::name(&p.metadata)
        .strip_prefix(set)?
        .strip_prefix('-')?;
    let canonical =
        digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    if canonical { digits.parse().ok() } else { None }
}

fn start(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
}

struct Pass<'a> {
    input: &'a Input<'a>,
    spec: &'a StatefulSetSpec,
    first: i32,
    replicas: i32,
    plan: Plan,
}

pub(crate) fn plan(input: &Input) -> Plan {
    let Some(spec) = &input.set.spec else {
        return Plan::default();
    };
    let (first, replicas) = (start(spec), spec.replicas.unwrap_or(1));
    let mut pass = Pass {
        input,
        spec,
        first,
        replicas,
        plan: Plan::default(),
    };
    pass.status();
    if input.set.metadata.deletion_timestamp.is_none() {
        pass.step();
    }
    pass.complete_update();
    pass.plan
}

impl Pass<'_> {
    fn name(&self) -> &str {
        pod::name(&self.input.set.metadata)
    }

    fn min_ready(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn is_parallel(&self) -> bool {
        self.spec.pod_management_policy.as_deref() == Some("Parallel")
    }

    fn is_running_ready(p: &Pod) -> bool {
        pod::phase(p) == "Running" && pod::is_ready(p)
    }

    fn is_available(&self, p: &Pod) -> bool {
        Self::is_running_ready(p) && pod::is_available(p, self.min_ready(), self.input.now)
    }

    fn is_healthy(&self, p: &Pod) -> bool {
        self.is_available(p) && !pod::is_terminating(p)
    }

    fn in_range(&self, ordinal: i32) -> bool {
        ordinal >= self.first && ordinal < self.first.saturating_add(self.replicas)
    }

    fn at(&self, wanted: i32) -> Option<&Arc<Pod>> {
        self.input
            .pods
            .iter()
            .find(|p| ordinal(self.name(), p) == Some(wanted))
    }

    /// Pods beyond the range, the highest ordinal first.
    fn condemned(&self) -> Vec<Arc<Pod>> {
        let mut condemned: Vec<(i32, Arc<Pod>)> = self
            .input
            .pods
            .iter()
            .filter_map(|p| Some((ordinal(self.name(), p)?, p.clone())))
            .filter(|(n, _)| !self.in_range(*n))
            .collect();
        condemned.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
        condemned.into_iter().map(|(_, p)| p).collect()
    }

    fn rolling(&self) -> bool {
        self.spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.type_.as_deref())
            != Some("OnDelete")
    }

    fn partition(&self) -> i32 {
        let rolling = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.rolling_update.as_ref());
        rolling.and_then(|r| r.partition).unwrap_or(0)
    }

    /// Whether a missing ordinal comes back as the revision before the update: below the
    /// partition, and where the update has not arrived yet.
    fn of_update(&self, ordinal: i32) -> bool {
        if self.input.current_revision == self.input.update_revision {
            return true;
        }
        if !self.rolling() {
            return true;
        }
        ordinal >= self.first.saturating_add(self.partition())
    }

    fn step(&mut self) {
        let ordered = !self.is_parallel();
        for ordinal in self.first..self.first.saturating_add(self.replicas) {
            let Some(p) = self.at(ordinal).cloned() else {
                self.plan.create.push(NewPod {
                    ordinal,
                    of_update: self.of_update(ordinal),
                });
                if ordered {
                    return;
                }
                continue;
            };
            if pod::is_terminal(&p) && !pod::is_terminating(&p) {
                self.plan.recreate.push(pod::name(&p.metadata).to_owned());
                self.plan.delete.push(p);
                if ordered {
                    return;
                }
                continue;
            }
            if ordered && (pod::is_terminating(&p) || !self.is_available(&p)) {
                self.note_wait(&p);
                if !pod::is_terminating(&p) && !(self.input.is_identified)(&p) {
                    self.plan.repair.push(p);
                }
                return;
            }
            if !pod::is_terminating(&p) && !(self.input.is_identified)(&p) {
                self.plan.repair.push(p);
            }
        }
        if self.shrink(ordered) {
            return;
        }
        if self.rolling() {
            self.update();
        }
    }

    fn note_wait(&mut self, p: &Pod) {
        let wait = pod::until_available(p, self.min_ready(), self.input.now);
        self.plan.requeue = clock::sooner(self.plan.requeue, wait);
    }

    /// Deletes what is beyond the range; returns whether the step ends here.
    fn shrink(&mut self, ordered: bool) -> bool {
        let condemned = self.condemned();
        let first_unhealthy = self.first_unhealthy().and_then(|p| p.metadata.uid.clone());
        for p in condemned {
            if pod::is_terminating(&p) {
                if ordered {
                    return true;
                }
                continue;
            }
            if ordered && !self.is_available(&p) && p.metadata.uid != first_unhealthy {
                self.note_wait(&p);
                return true;
            }
            self.plan.delete.push(p);
            if ordered {
                return true;
            }
        }
        false
    }

    fn first_unhealthy(&self) -> Option<&Arc<Pod>> {
        let mut all: Vec<_> = self
            .input
            .pods
            .iter()
            .filter_map(|p| Some((ordinal(self.name(), p)?, p)))
            .collect();
        all.sort_by_key(|(n, _)| *n);
        all.into_iter()
            .map(|(_, p)| p)
            .find(|p| !self.is_healthy(p))
    }

    /// Replaces pods of older revisions from the highest ordinal down, as many at a time as may be
    /// unavailable.
    fn update(&mut self) {
        if self.input.set.metadata.deletion_timestamp.is_some() {
            return;
        }
        let rolling = self
            .spec
            .update_strategy
            .as_ref()
            .and_then(|s| s.rolling_update.as_ref());
        let allowed = rolling
            .and_then(|r| r.max_unavailable.as_ref())
            .map_or(1, |value| scaled(Some(value), self.replicas, true).max(1));
        let lowest = self.first.saturating_add(self.partition().max(0));
        let top = self.first.saturating_add(self.replicas);
        let mut unavailable = (self.first..top)
            .filter_map(|n| self.at(n))
            .filter(|p| !self.is_healthy(p))
            .count();
        let allowed = usize::try_from(allowed).unwrap_or(1);
        for n in (lowest..top).rev() {
            let Some(p) = self.at(n).cloned() else {
                continue;
            };
            let updated =
                pod::label(&p.metadata, REVISION_LABEL) == Some(self.input.update_revision);
            if updated || pod::is_terminating(&p) {
                if !self.is_healthy(&p) {
                    self.note_wait(&p);
                    if allowed == 1 {
                        return;
                    }
                }
                continue;
            }
            if !self.is_healthy(&p) {
                // It is missing from service already.
                self.plan.delete.push(p);
                if allowed == 1 {
                    return;
                }
                continue;
            }
            if unavailable >= allowed {
                return;
            }
            unavailable += 1;
            self.plan.delete.push(p);
        }
    }

    fn status(&mut self) {
        let known = self.input.set.status.clone().unwrap_or_default();
        let mut status = StatefulSetStatus {
            observed_generation: self.input.set.metadata.generation,
            current_revision: Some(self.input.current_revision.to_owned()),
            update_revision: Some(self.input.update_revision.to_owned()),
            collision_count: Some(known.collision_count.unwrap_or(0)),
            conditions: known.conditions,
            ..StatefulSetStatus::default()
        };
        let (mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0);
        let pods: Vec<Arc<Pod>> = self
            .input
            .pods
            .iter()
            .filter(|p| ordinal(self.name(), p).is_some())
            .cloned()
            .collect();
        for p in &pods {
            status.replicas += 1;
            if Self::is_running_ready(p) {
                ready += 1;
                available += i32::from(self.is_available(p));
                self.note_wait(p);
            }
            if !pod::is_terminating(p) {
                let revision = pod::label(&p.metadata, REVISION_LABEL);
                current += i32::from(revision == Some(self.input.current_revision));
                updated += i32::from(revision == Some(self.input.update_revision));
            }
        }
        let some = |n: i32| Some(n).filter(|n| *n != 0);
        status.ready_replicas = some(ready);
        status.available_replicas = Some(available);
        status.current_replicas = some(current);
        status.updated_replicas = some(updated);
        self.plan.status = status;
    }

    /// Once every pod is new, the new revision is the current one.
    fn complete_update(&mut self) {
        let (rolling, replicas) = (self.rolling(), self.replicas);
        let status = &mut self.plan.status;
        let all = status.replicas;
        let done = rolling
            && status.updated_replicas.unwrap_or(0) == all
            && status.ready_replicas.unwrap_or(0) == all
            && all == replicas;
        if done {
            status.current_replicas = status.updated_replicas;
            status.current_revision.clone_from(&status.update_revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(spec: Value) -> StatefulSet {
        let mut full = json!({"selector": {}, "serviceName": "s", "template": {}, "replicas": 3});
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "n", "generation": 1}, "spec": full}),
        )
        .unwrap()
    }

    fn pod(n: i32, revision: &str, state: &str) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": format!("web-{n}"), "namespace": "n", "uid": format!("u{n}"), "labels": {REVISION_LABEL: revision}},
            "spec": {"containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if state == "ready" || state == "stopping" {"True"} else {"False"},
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        if state == "stopping" {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if state == "failed" {
            value["status"]["phase"] = json!("Failed");
        }
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn run(set: &StatefulSet, pods: &[Arc<Pod>], current: &str, update: &str) -> Plan {
        plan(&Input {
            set,
            pods,
            current_revision: current,
            update_revision: update,
            is_identified: &|_| true,
            now: "2026-01-01T01:00:00Z".parse().unwrap(),
        })
    }

    fn ordinals(plan: &Plan) -> (Vec<i32>, Vec<String>) {
        (
            plan.create.iter().map(|n| n.ordinal).collect(),
            plan.delete
                .iter()
                .map(|p| p.metadata.name.clone().unwrap())
                .collect(),
        )
    }

    fn none() -> Vec<String> {
        Vec::new()
    }

    #[test]
    fn one_after_the_other_in_order() {
        let s = set(json!({}));
        assert_eq!(ordinals(&run(&s, &[], "a", "a")), (vec![0], none()));
        assert_eq!(
            ordinals(&run(&s, &[pod(0, "a", "starting")], "a", "a")),
            (vec![], none())
        );
        assert_eq!(
            ordinals(&run(&s, &[pod(0, "a", "ready")], "a", "a")),
            (vec![1], none())
        );
    }

    #[test]
    fn all_at_once_when_parallel() {
        let s = set(json!({"podManagementPolicy": "Parallel"}));
        assert_eq!(ordinals(&run(&s, &[], "a", "a")), (vec![0, 1, 2], none()));
    }

    #[test]
    fn shrinking_takes_the_highest_first_and_waits() {
        let s = set(json!({"replicas": 1}));
        let pods = [
            pod(0, "a", "ready"),
            pod(1, "a", "ready"),
            pod(2, "a", "ready"),
        ];
        assert_eq!(ordinals(&run(&s, &pods, "a", "a")).1, ["web-2"]);
        let stopping = [pods[0].clone(), pods[1].clone(), pod(2, "a", "stopping")];
        assert_eq!(ordinals(&run(&s, &stopping, "a", "a")).1, none());
    }

    #[test]
    fn updates_go_from_the_top_to_the_partition() {
        let pods = [
            pod(0, "a", "ready"),
            pod(1, "a", "ready"),
            pod(2, "a", "ready"),
        ];
        let s = set(
            json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}),
        );
        assert_eq!(ordinals(&run(&s, &pods, "a", "b")).1, ["web-2"]);
        let half = [pods[0].clone(), pods[1].clone(), pod(2, "b", "ready")];
        assert_eq!(ordinals(&run(&s, &half, "a", "b")).1, ["web-1"]);
        let done = [pods[0].clone(), pod(1, "b", "ready"), pod(2, "b", "ready")];
        assert_eq!(ordinals(&run(&s, &done, "a", "b")).1, none());
        let lost = run(&s, &[pod(1, "b", "ready"), pod(2, "b", "ready")], "a", "b");
        assert_eq!(
            lost.create,
            [NewPod {
                ordinal: 0,
                of_update: false
            }]
        );
        let manual = set(json!({"updateStrategy": {"type": "OnDelete"}}));
        assert_eq!(ordinals(&run(&manual, &pods, "a", "b")).1, none());
    }

    #[test]
    fn a_complete_update_becomes_current() {
        let s = set(json!({}));
        let pods = [
            pod(0, "b", "ready"),
            pod(1, "b", "ready"),
            pod(2, "b", "ready"),
        ];
        let status = run(&s, &pods, "a", "b").status;
        assert_eq!(status.current_revision.as_deref(), Some("b"));
        assert_eq!(
            (status.current_replicas, status.ready_replicas),
            (Some(3), Some(3))
        );
    }

    #[test]
    fn failed_pods_come_back() {
        let plan = run(&set(json!({})), &[pod(0, "a", "failed")], "a", "a");
        assert_eq!(plan.recreate, ["web-0"]);
        assert_eq!(ordinals(&plan).1, ["web-0"]);
    }

    #[test]
    fn names_of_others_are_not_ordinals() {
        let named = |name: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
        };
        assert_eq!(ordinal("web", &named("web-7")), Some(7));
        for name in ["web-07", "web-x", "web", "other-1", "web--1"] {
            assert_eq!(ordinal("web", &named(name)), None, "{name}");
        }
    }
}
