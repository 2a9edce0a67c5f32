//! PodDisruptionBudgets: how many pods may be taken away right now. The eviction API reads and
//! writes the same status.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    Condition, LabelSelector, ObjectMeta, OwnerReference,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::{
    Controller, ControllerContext, Informer, Key, Outcome, ReconcileError, ResourceType, Watches,
};
use keelson_semantics::label_selector;
use std::collections::BTreeMap;
use std::time::Duration;

use super::deployment_plan::scaled;
use crate::owner::controller_of;
use crate::{clock, discovery, pod};

/// An eviction that was granted but whose pod is still there after this long is forgotten.
const DELETION_TIMEOUT_SECONDS: i64 = 120;

pub(crate) struct DisruptionController {
    context: ControllerContext,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    replication_controllers: Informer<ReplicationController>,
}

/// What the budget demands of the pods it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Demand {
    expected: i32,
    healthy: i32,
}

impl DisruptionController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            context: context.clone(),
            budgets: context.informer(),
            pods: context.informer(),
            deployments: context.informer(),
            replica_sets: context.informer(),
            stateful_sets: context.informer(),
            replication_controllers: context.informer(),
        }
    }

    /// The number of pods that the controllers of these pods want, each asked once.
    async fn expected_scale(&self, pods: &[Arc<Pod>]) -> Result<i32, ReconcileError> {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        for p in pods {
            let namespace = pod::namespace(&p.metadata);
            let Some(reference) = controller_of(&p.metadata) else {
                return Err(ReconcileError::Other(format!(
                    "found no controllers for pod {:?}",
                    pod::name(&p.metadata)
                )));
            };
            if scales.contains_key(&reference.uid) {
                continue;
            }
            let (uid, scale) = self.scale_of(namespace, reference).await?;
            scales.insert(uid, scale);
        }
        Ok(scales.values().fold(0_i32, |sum, n| sum.saturating_add(*n)))
    }

    /// The uid and size of what finally controls: a ReplicaSet's Deployment rather than itself.
    async fn scale_of(
        &self,
        namespace: &str,
        reference: &OwnerReference,
    ) -> Result<(String, i32), ReconcileError> {
        let name = reference.name.as_str();
        let known = match reference.kind.as_str() {
            "ReplicaSet" => self.replica_sets.get(namespace, name).map(|set| {
                let parent = controller_of(&set.metadata)
                    .filter(|r| r.kind == "Deployment")
                    .and_then(|r| self.deployments.get(namespace, &r.name));
                match parent {
                    Some(d) => (
                        d.metadata.uid.clone(),
                        d.spec.as_ref().and_then(|s| s.replicas),
                    ),
                    None => (
                        set.metadata.uid.clone(),
                        set.spec.as_ref().and_then(|s| s.replicas),
                    ),
                }
            }),
            "StatefulSet" => self.stateful_sets.get(namespace, name).map(|s| {
                (
                    s.metadata.uid.clone(),
                    s.spec.as_ref().and_then(|s| s.replicas),
                )
            }),
            "ReplicationController" => self.replication_controllers.get(namespace, name).map(|s| {
                (
                    s.metadata.uid.clone(),
                    s.spec.as_ref().and_then(|s| s.replicas),
                )
            }),
            _ => None,
        };
        match known {
            Some((uid, replicas)) => Ok((uid.unwrap_or_default(), replicas.unwrap_or(1))),
            None => self.scale_subresource(namespace, reference).await,
        }
    }

    async fn scale_subresource(
        &self,
        namespace: &str,
        reference: &OwnerReference,
    ) -> Result<(String, i32), ReconcileError> {
        let (group, version) = reference
            .api_version
            .split_once('/')
            .unwrap_or(("", &reference.api_version));
        let served = discovery::discover(&self.context.client).await?.served;
        let resource = served
            .into_iter()
            .map(|s| s.resource)
            .find(|r| r.group == group && r.kind == reference.kind);
        let Some(resource) = resource else {
            return Err(ReconcileError::Other(format!(
                "{} {} is not served",
                reference.kind, reference.name
            )));
        };
        let resource = ResourceType {
            version: version.to_owned(),
            ..resource
        };
        let path = resource.path(namespace, &reference.name, "scale");
        match self
            .context
            .client
            .request(http::Method::GET, &path, None)
            .await
        {
            Ok(scale) => {
                let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
                Ok((
                    reference.uid.clone(),
                    i32::try_from(replicas).unwrap_or(i32::MAX),
                ))
            }
            Err(error) if error.is_not_found() => {
                let message = format!(
                    "{} does not implement the scale subresource",
                    resource.resource
                );
                Err(ReconcileError::Other(message))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn demand(
        &self,
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
    ) -> Result<Demand, ReconcileError> {
        let spec = budget.spec.clone().unwrap_or_default();
        if let Some(most) = &spec.max_unavailable {
            let expected = self.expected_scale(pods).await?;
            let away = scaled(Some(most), expected, true);
            return Ok(Demand {
                expected,
                healthy: (expected - away).max(0),
            });
        }
        match &spec.min_available {
            Some(IntOrString::Int(healthy)) => Ok(Demand {
                expected: i32::try_from(pods.len()).unwrap_or(i32::MAX),
                healthy: *healthy,
            }),
            percent @ Some(IntOrString::String(_)) => {
                let expected = self.expected_scale(pods).await?;
                Ok(Demand {
                    expected,
                    healthy: scaled(percent.as_ref(), expected, true),
                })
            }
            None => Ok(Demand {
                expected: i32::try_from(pods.len()).unwrap_or(i32::MAX),
                healthy: 0,
            }),
        }
    }

    async fn write(
        &self,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<(), ReconcileError> {
        if budget.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let next = PodDisruptionBudget {
            status: Some(status),
            ..budget.clone()
        };
        match self.context.client.update_status(&next).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// A missing selector matches nothing, an empty one everything.
fn selects(budget: &PodDisruptionBudget, meta: &ObjectMeta) -> bool {
    let chosen: Option<&LabelSelector> = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    chosen.is_some_and(|s| label_selector::matches(s, meta.labels.as_ref()))
}

/// The status, and when a granted eviction has to be forgotten. Pure.
fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    demand: Demand,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let known = budget.status.clone().unwrap_or_default();
    let mut recheck = None;
    let mut disrupted = known.disrupted_pods.clone().unwrap_or_default();
    disrupted.retain(|name, at| {
        let alive = pods
            .iter()
            .any(|p| pod::name(&p.metadata) == name && !pod::is_terminating(p));
        let left = clock::until(now, clock::after(at.0, DELETION_TIMEOUT_SECONDS));
        if alive {
            recheck = clock::sooner(recheck, left);
        }
        alive && left.is_some()
    });
    let healthy = pods
        .iter()
        .filter(|p| {
            !pod::is_terminating(p)
                && pod::is_ready(p)
                && !disrupted.contains_key(pod::name(&p.metadata))
        })
        .count();
    let current = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if demand.expected <= 0 {
        0
    } else {
        (current - demand.healthy).max(0)
    };
    let generation = budget.metadata.generation;
    let mut conditions = known.conditions.clone().unwrap_or_default();
    let (value, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    set_condition(&mut conditions, value, reason, "", generation, now);
    let next = PodDisruptionBudgetStatus {
        current_healthy: Some(current),
        desired_healthy: Some(demand.healthy),
        expected_pods: Some(demand.expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted).filter(|d| !d.is_empty()),
        observed_generation: generation,
        conditions: Some(conditions),
    };
    (next, recheck)
}

fn set_condition(
    conditions: &mut Vec<Condition>,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    const KIND: &str = "DisruptionAllowed";
    let known = conditions.iter().find(|c| c.type_ == KIND);
    let since = known
        .filter(|c| c.status == status)
        .map_or_else(|| clock::stamp(now), |c| c.last_transition_time.clone());
    let next = Condition {
        type_: KIND.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|c| c.type_ == KIND) {
        Some(known) => *known = next,
        None => conditions.push(next),
    }
}

#[async_trait]
impl Controller for DisruptionController {
    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.budgets);
        let budgets = self.budgets.clone();
        watches.mapped(&self.pods, move |change| {
            let new = change.object();
            budgets
                .list_in(pod::namespace(&new.metadata))
                .iter()
                .filter(|b| {
                    selects(b, &new.metadata)
                        || change.old().is_some_and(|old| selects(b, &old.metadata))
                })
                .map(|b| Key::of(&b.metadata))
                .collect()
        });
        // A changed size changes what is expected.
        let all = |budgets: &Informer<PodDisruptionBudget>, namespace: &str| -> Vec<Key> {
            budgets
                .list_in(namespace)
                .iter()
                .map(|b| Key::of(&b.metadata))
                .collect()
        };
        let budgets = self.budgets.clone();
        watches.mapped(&self.deployments, move |c| {
            all(&budgets, pod::namespace(&c.object().metadata))
        });
        let budgets = self.budgets.clone();
        watches.mapped(&self.replica_sets, move |c| {
            all(&budgets, pod::namespace(&c.object().metadata))
        });
        let budgets = self.budgets.clone();
        watches.mapped(&self.stateful_sets, move |c| {
            all(&budgets, pod::namespace(&c.object().metadata))
        });
        let budgets = self.budgets.clone();
        watches.mapped(&self.replication_controllers, move |c| {
            all(&budgets, pod::namespace(&c.object().metadata))
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(budget) = self.budgets.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let pods: Vec<Arc<Pod>> = self
            .pods
            .list_in(&key.namespace)
            .into_iter()
            .filter(|p| selects(&budget, &p.metadata) && !pod::is_terminal(p))
            .collect();
        if pods.is_empty() {
            self.context
                .events
                .normal(&*budget, "NoPods", "No matching pods found");
        }
        let now = clock::now();
        match self.demand(&budget, &pods).await {
            Ok(demand) => {
                let (next, recheck) = status(&budget, &pods, demand, now);
                self.write(&budget, next).await?;
                Ok(recheck.map_or(Outcome::Done, Outcome::RequeueAfter))
            }
            Err(error) => {
                let message = format!("Failed to calculate the number of expected pods: {error}");
                self.context
                    .events
                    .warning(&*budget, "CalculateExpectedPodCountFailed", message);
                // Fail safe: as long as nothing is known, nothing may be taken away.
                let mut next = budget.status.clone().unwrap_or_default();
                next.disruptions_allowed = Some(0);
                next.observed_generation = budget.metadata.generation;
                let mut conditions = next.conditions.take().unwrap_or_default();
                set_condition(
                    &mut conditions,
                    "False",
                    "SyncFailed",
                    &error.to_string(),
                    budget.metadata.generation,
                    now,
                );
                next.conditions = Some(conditions);
                self.write(&budget, next).await?;
                match error {
                    // The owner is gone or has no size: its pods' own changes usually come first.
                    ReconcileError::Other(_) => Ok(Outcome::RequeueAfter(Duration::from_secs(30))),
                    error => Err(error),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]},
            }))
            .unwrap(),
        )
    }

    #[test]
    fn disruptions_are_what_is_healthy_beyond_the_demand() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let budget: PodDisruptionBudget = serde_json::from_value(json!({
            "metadata": {"name": "b", "generation": 3},
            "status": {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
                "disruptedPods": {"b": "2026-01-01T00:00:30Z", "gone": "2026-01-01T00:00:30Z", "old": "2025-12-31T00:00:00Z"}},
        }))
        .unwrap();
        let pods = [
            pod("a", true),
            pod("b", true),
            pod("c", false),
            pod("old", true),
        ];
        let (next, recheck) = status(
            &budget,
            &pods,
            Demand {
                expected: 4,
                healthy: 1,
            },
            now,
        );
        assert_eq!(
            next.current_healthy,
            Some(2),
            "b is about to go and c is not ready"
        );
        assert_eq!(next.disruptions_allowed, Some(1));
        let kept: Vec<_> = next.disrupted_pods.unwrap().into_keys().collect();
        assert_eq!(kept, ["b"]);
        assert_eq!(recheck, Some(Duration::from_secs(90)));
        assert_eq!(next.conditions.unwrap()[0].reason, "SufficientPods");
    }

    #[test]
    fn nothing_expected_allows_nothing() {
        let budget = PodDisruptionBudget::default();
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let (next, _) = status(
            &budget,
            &[],
            Demand {
                expected: 0,
                healthy: 0,
            },
            now,
        );
        assert_eq!(next.disruptions_allowed, Some(0));
        assert_eq!(next.conditions.unwrap()[0].reason, "InsufficientPods");
    }
}
