//! What a Deployment reports: its counts and its conditions, and when a rollout has taken too long.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::scale::max_unavailable;
use super::{Plan, Step, is_paused, replicas, size, status_of};
use crate::{clock, pod};

impl Step<'_> {
    pub(super) fn pause_condition(&mut self) {
        let deployment = self.input.deployment;
        if deployment
            .spec
            .as_ref()
            .and_then(|s| s.progress_deadline_seconds)
            .is_none_or(|s| s == i32::MAX)
        {
            return;
        }
        let known = find(&self.conditions, "Progressing").and_then(|c| c.reason.as_deref());
        if known == Some("ProgressDeadlineExceeded") {
            return;
        }
        let was_paused = known == Some("DeploymentPaused");
        if is_paused(deployment) && !was_paused {
            self.set(
                "Progressing",
                "Unknown",
                "DeploymentPaused",
                "Deployment is paused".into(),
            );
        } else if !is_paused(deployment) && was_paused {
            self.set(
                "Progressing",
                "Unknown",
                "DeploymentResumed",
                "Deployment is resumed".into(),
            );
        }
    }

    pub(super) fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        set_condition(
            &mut self.conditions,
            kind,
            status,
            reason,
            message,
            self.input.now,
        );
    }

    pub(super) fn finish(
        mut self,
        new: Option<&Arc<ReplicaSet>>,
        old: &[&Arc<ReplicaSet>],
    ) -> Plan {
        let deployment = self.input.deployment;
        let known = deployment.status.clone().unwrap_or_default();
        let all: Vec<&Arc<ReplicaSet>> = old.iter().copied().chain(new).collect();
        let sum =
            |part: fn((i32, i32, i32)) -> i32| all.iter().map(|s| part(status_of(s))).sum::<i32>();
        let (total, ready, up) = (sum(|s| s.0), sum(|s| s.1), sum(|s| s.2));
        let asked: i32 = all.iter().map(|s| size(s)).sum();
        let updated = new.map_or(0, |s| status_of(s).0);
        let terminating: i32 = all
            .iter()
            .filter_map(|s| s.status.as_ref()?.terminating_replicas)
            .sum();
        let wanted = self.replicas();
        if up >= wanted - max_unavailable(deployment) {
            self.set(
                "Available",
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.".into(),
            );
        } else {
            self.set(
                "Available",
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.".into(),
            );
        }
        let observed_generation = deployment.metadata.generation;
        let mut status = DeploymentStatus {
            observed_generation,
            replicas: Some(total).filter(|n| *n != 0),
            updated_replicas: Some(updated).filter(|n| *n != 0),
            ready_replicas: Some(ready).filter(|n| *n != 0),
            available_replicas: Some(up).filter(|n| *n != 0),
            unavailable_replicas: Some((asked - up).max(0)).filter(|n| *n != 0),
            terminating_replicas: Some(terminating),
            collision_count: known.collision_count,
            conditions: None,
        };
        if deployment.metadata.deletion_timestamp.is_none() && !is_paused(deployment) {
            self.progress(&known, &status, new);
        }
        self.copy_failure(&all, new);
        let requeue = self.deadline_check(&status);
        status.conditions = Some(self.conditions).filter(|c| !c.is_empty());
        Plan {
            create: self.created,
            resize: self.sets,
            delete: self.deleted,
            annotate: self.annotate,
            status,
            requeue,
        }
    }

    fn progress(
        &mut self,
        known: &DeploymentStatus,
        status: &DeploymentStatus,
        new: Option<&Arc<ReplicaSet>>,
    ) {
        let Some(deadline) = deadline(self.input.deployment) else {
            self.conditions.retain(|c| c.type_ != "Progressing");
            return;
        };
        let count = |n: Option<i32>| n.unwrap_or(0);
        let current = find(&self.conditions, "Progressing").cloned();
        let reason = current
            .as_ref()
            .and_then(|c| c.reason.clone())
            .unwrap_or_default();
        let was_complete = count(status.replicas) == count(status.updated_replicas)
            && reason == "NewReplicaSetAvailable";
        if was_complete {
            return;
        }
        let subject = |verb: &str| match new {
            Some(set) => format!("ReplicaSet \"{}\" {verb}", pod::name(&set.metadata)),
            None => format!(
                "Deployment \"{}\" {verb}",
                pod::name(&self.input.deployment.metadata)
            ),
        };
        if is_complete(self.input.deployment, status) {
            let message = subject("has successfully progressed.");
            self.set("Progressing", "True", "NewReplicaSetAvailable", message);
            return;
        }
        let old = |s: &DeploymentStatus| count(s.replicas) - count(s.updated_replicas);
        let progressed = count(status.updated_replicas) > count(known.updated_replicas)
            || old(status) < old(known)
            || count(status.ready_replicas) > count(known.ready_replicas)
            || count(status.available_replicas) > count(known.available_replicas);
        if progressed {
            let message = subject("is progressing.");
            // The time of the last update restarts the deadline, so it moves even when nothing
            // else about the condition does.
            let since = current
                .as_ref()
                .filter(|c| c.status == "True")
                .and_then(|c| c.last_transition_time.clone());
            self.conditions.retain(|c| c.type_ != "Progressing");
            self.set("Progressing", "True", "ReplicaSetUpdated", message);
            if let (Some(since), Some(c)) = (
                since,
                self.conditions
                    .iter_mut()
                    .find(|c| c.type_ == "Progressing"),
            ) {
                c.last_transition_time = Some(since);
            }
        } else if timed_out(current.as_ref(), deadline, self.input.now) {
            let message = subject("has timed out progressing.");
            self.set("Progressing", "False", "ProgressDeadlineExceeded", message);
        }
    }

    fn copy_failure(&mut self, all: &[&Arc<ReplicaSet>], new: Option<&Arc<ReplicaSet>>) {
        let failing = new.into_iter().chain(all.iter().copied()).find_map(|set| {
            set.status
                .as_ref()?
                .conditions
                .as_ref()?
                .iter()
                .find(|c| c.type_ == "ReplicaFailure" && c.status == "True")
        });
        match failing {
            Some(c) => self.set(
                "ReplicaFailure",
                "True",
                c.reason.as_deref().unwrap_or_default(),
                c.message.clone().unwrap_or_default(),
            ),
            None => self.conditions.retain(|c| c.type_ != "ReplicaFailure"),
        }
    }

    /// When to look again for a missed deadline: nothing else would wake the controller.
    fn deadline_check(&self, status: &DeploymentStatus) -> Option<Duration> {
        let deadline = deadline(self.input.deployment)?;
        if is_paused(self.input.deployment) || is_complete(self.input.deployment, status) {
            return None;
        }
        let condition = find(&self.conditions, "Progressing")?;
        if matches!(
            condition.reason.as_deref(),
            Some("ProgressDeadlineExceeded" | "NewReplicaSetAvailable")
        ) {
            return None;
        }
        let at = clock::after(
            condition.last_update_time.as_ref()?.0,
            i64::from(deadline) + 1,
        );
        Some(clock::until(self.input.now, at).unwrap_or(Duration::from_secs(1)))
    }
}

pub(super) fn conditions(deployment: &Deployment) -> Vec<DeploymentCondition> {
    deployment
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default()
}

/// The deadline in seconds; the largest number means none.
pub(super) fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .as_ref()?
        .progress_deadline_seconds
        .filter(|s| *s != i32::MAX)
}

pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn timed_out(condition: Option<&DeploymentCondition>, deadline: i32, now: Timestamp) -> bool {
    let Some(condition) = condition else {
        return false;
    };
    match condition.reason.as_deref() {
        Some("NewReplicaSetAvailable") => false,
        Some("ProgressDeadlineExceeded") => true,
        _ => condition
            .last_update_time
            .as_ref()
            .is_some_and(|at| clock::after(at.0, i64::from(deadline)) < now),
    }
}

pub(super) fn find<'a>(
    conditions: &'a [DeploymentCondition],
    kind: &str,
) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// Replaces a condition when its status or reason changes; the transition time moves only with
/// the status.
pub(crate) fn set_condition(
    conditions: &mut Vec<DeploymentCondition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let known = find(conditions, kind);
    if known.is_some_and(|c| c.status == status && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let transition = known
        .filter(|c| c.status == status)
        .and_then(|c| c.last_transition_time.clone())
        .unwrap_or_else(|| clock::stamp(now));
    conditions.retain(|c| c.type_ != kind);
    conditions.push(DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(clock::stamp(now)),
        last_transition_time: Some(transition),
    });
}
