//! ReplicationController: the shared replica controller over `v1`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
    ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_semantics::label_selector;

use super::replica_controller::Replicated;
use super::replicas::{Counts, Failure, REPLICA_FAILURE};
use crate::clock;

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";

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
        self.spec
            .as_ref()
            .and_then(|s| s.selector.as_ref())
            .is_some_and(|s| !s.is_empty() && label_selector::map_matches(s, meta.labels.as_ref()))
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
                conditions.push(ReplicationControllerCondition {
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
        let next = ReplicationControllerStatus {
            replicas: counts.replicas,
            fully_labeled_replicas: some(counts.fully_labeled),
            ready_replicas: some(counts.ready),
            available_replicas: some(counts.available),
            observed_generation: self.metadata.generation,
            conditions: Some(conditions).filter(|c| !c.is_empty()),
        };
        let numbers = |s: &ReplicationControllerStatus| {
            [
                Some(s.replicas),
                s.fully_labeled_replicas,
                s.ready_replicas,
                s.available_replicas,
            ]
            .map(|n| n.unwrap_or(0))
        };
        let unchanged = numbers(&known) == numbers(&next)
            && known.observed_generation == next.observed_generation
            && known.conditions.unwrap_or_default() == next.conditions.clone().unwrap_or_default();
        if unchanged {
            return None;
        }
        Some(Self {
            status: Some(next),
            ..self.clone()
        })
    }
}
