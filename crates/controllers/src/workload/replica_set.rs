//! ReplicaSet: the shared replica controller over `apps/v1`.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_semantics::label_selector;

use super::replica_controller::Replicated;
use super::replicas::{Counts, Failure, REPLICA_FAILURE};
use crate::clock;

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";

    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|s| s.min_ready_seconds)
            .unwrap_or(0)
    }

    fn selects(&self, meta: &ObjectMeta) -> bool {
        self.spec.as_ref().is_some_and(|s| {
            !label_selector::is_empty(&s.selector)
                && label_selector::matches(&s.selector, meta.labels.as_ref())
        })
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn with_status(
        &self,
        counts: Counts,
        failure: Option<Failure>,
        now: Timestamp,
    ) -> Option<Self> {
        let known = self.status.clone().unwrap_or_default();
        let mut conditions = known.conditions.clone().unwrap_or_default();
        match failure {
            Some(failure)
                if conditions.iter().any(|c| {
                    c.type_ == REPLICA_FAILURE && c.reason.as_deref() == Some(failure.reason)
                }) => {}
            Some(failure) => {
                conditions.retain(|c| c.type_ != REPLICA_FAILURE);
                conditions.push(ReplicaSetCondition {
                    type_: REPLICA_FAILURE.into(),
                    status: "True".into(),
                    reason: Some(failure.reason.into()),
                    message: Some(failure.message),
                    last_transition_time: Some(clock::stamp(now)),
                });
            }
            None => conditions.retain(|c| c.type_ != REPLICA_FAILURE),
        }
        let some = |n: i32| Some(n).filter(|n| *n != 0);
        let next = ReplicaSetStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: some(counts.fully_labeled),
            ready_replicas: some(counts.ready),
            available_replicas: some(counts.available),
            terminating_replicas: Some(counts.terminating),
            observed_generation: self.metadata.generation,
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        };
        if same(&known, &next) {
            return None;
        }
        Some(Self {
            status: Some(next),
            ..self.clone()
        })
    }
}

/// Equal up to the difference between an absent number and zero.
fn same(a: &ReplicaSetStatus, b: &ReplicaSetStatus) -> bool {
    let zero = |n: Option<i32>| n.unwrap_or(0);
    a.replicas == b.replicas
        && zero(a.fully_labeled_replicas) == zero(b.fully_labeled_replicas)
        && zero(a.ready_replicas) == zero(b.ready_replicas)
        && zero(a.available_replicas) == zero(b.available_replicas)
        && zero(a.terminating_replicas) == zero(b.terminating_replicas)
        && a.observed_generation == b.observed_generation
        && a.conditions.as_deref().unwrap_or_default()
            == b.conditions.as_deref().unwrap_or_default()
}
