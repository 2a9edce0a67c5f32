//! Deployment: ReplicaSets per template, moved from old to new as the strategy allows.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    Controller, ControllerContext, DeleteOptions, Informer, Key, Outcome, ReconcileError, Watches,
};
use keelson_semantics::label_selector;

use super::deployment_plan::{self as plan, Input, Plan, Resize, set_condition};
use crate::owner::{Owner, controller_of};
use crate::{children, clock, pod};

pub(crate) struct DeploymentController {
    context: ControllerContext,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

impl DeploymentController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            context: context.clone(),
            deployments: context.informer(),
            sets: context.informer(),
            pods: context.informer(),
        };
        children::index(&this.sets);
        children::index(&this.pods);
        this
    }

    /// Recreate waits until no pod of an older template can still run.
    fn old_pods_running(&self, new: Option<&Arc<ReplicaSet>>, sets: &[Arc<ReplicaSet>]) -> bool {
        sets.iter()
            .filter(|s| new.is_none_or(|n| n.metadata.uid != s.metadata.uid))
            .flat_map(|s| children::controlled(&self.pods, pod::uid(&s.metadata)))
            .any(|p| !pod::is_terminal(&p))
    }

    async fn apply(
        &self,
        deployment: &Deployment,
        mut plan: Plan,
    ) -> Result<Outcome, ReconcileError> {
        let annotated;
        let mut deployment = deployment;
        if let Some(annotations) = &plan.annotate {
            annotated = self.annotate(deployment, annotations).await?;
            deployment = &annotated;
        }
        if let Some(set) = plan.create.take() {
            self.create(deployment, set, &mut plan.status).await?;
        }
        for resize in &plan.resize {
            self.resize(deployment, resize).await?;
        }
        for set in &plan.delete {
            let options = DeleteOptions::background().uid(pod::uid(&set.metadata));
            let name = pod::name(&set.metadata);
            match self
                .context
                .client
                .delete::<ReplicaSet>(pod::namespace(&set.metadata), name, &options)
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        self.write_status(deployment, plan.status).await?;
        Ok(plan.requeue.map_or(Outcome::Done, Outcome::RequeueAfter))
    }

    async fn annotate(
        &self,
        deployment: &Deployment,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Deployment, ReconcileError> {
        let mut next = deployment.clone();
        next.metadata.annotations = Some(annotations.clone());
        Ok(self.context.client.update(&next).await?)
    }

    async fn create(
        &self,
        deployment: &Deployment,
        set: ReplicaSet,
        status: &mut DeploymentStatus,
    ) -> Result<(), ReconcileError> {
        match self.context.client.create(&set).await {
            Ok(created) => {
                let count = plan::size(&set);
                if count > 0 {
                    let name = pod::name(&created.metadata);
                    let message = format!("Scaled up replica set {name} from 0 to {count}");
                    self.context
                        .events
                        .normal(deployment, "ScalingReplicaSet", message);
                }
                Ok(())
            }
            Err(error) if error.is_already_exists() => self.collide(deployment, &set).await,
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let message = format!(
                    "Failed to create new replica set \"{}\": {error}",
                    pod::name(&set.metadata)
                );
                self.context
                    .events
                    .warning(deployment, "ReplicaSetCreateError", message.clone());
                let mut conditions = status.conditions.take().unwrap_or_default();
                set_condition(
                    &mut conditions,
                    "Progressing",
                    "False",
                    "ReplicaSetCreateError",
                    error.to_string(),
                    clock::now(),
                );
                status.conditions = Some(conditions);
                self.write_status(deployment, status.clone()).await?;
                Err(error.into())
            }
        }
    }

    /// The name is taken: by our own ReplicaSet that the cache does not show yet, or by a hash
    /// collision, which the next hash avoids.
    async fn collide(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
    ) -> Result<(), ReconcileError> {
        let (namespace, name) = (pod::namespace(&set.metadata), pod::name(&set.metadata));
        let existing = self
            .context
            .client
            .get::<ReplicaSet>(namespace, name)
            .await?;
        let ours = controller_of(&existing.metadata)
            .is_some_and(|r| Some(&r.uid) == deployment.metadata.uid.as_ref());
        if ours && plan::find_new(deployment, &[Arc::new(existing)]).is_some() {
            return Ok(());
        }
        let mut status = deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.write_status(deployment, status).await?;
        Err(ReconcileError::Other(format!(
            "the name of ReplicaSet {namespace}/{name} is taken"
        )))
    }

    async fn resize(&self, deployment: &Deployment, resize: &Resize) -> Result<(), ReconcileError> {
        self.context.client.update(&resize.set).await?;
        let (from, to) = (resize.from, resize.to);
        if from != to {
            let verb = if to > from { "up" } else { "down" };
            let name = pod::name(&resize.set.metadata);
            let message = format!("Scaled {verb} replica set {name} from {from} to {to}");
            self.context
                .events
                .normal(deployment, "ScalingReplicaSet", message);
        }
        Ok(())
    }

    async fn write_status(
        &self,
        deployment: &Deployment,
        status: DeploymentStatus,
    ) -> Result<(), ReconcileError> {
        if deployment.status.as_ref().is_some_and(|s| same(s, &status)) {
            return Ok(());
        }
        let next = Deployment {
            status: Some(status),
            ..deployment.clone()
        };
        match self.context.client.update_status(&next).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A selector that matches everything would fight with every other controller.
    async fn refuse_everything(&self, deployment: &Deployment) -> Result<Outcome, ReconcileError> {
        self.context.events.warning(
            deployment,
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.",
        );
        let mut status = deployment.status.clone().unwrap_or_default();
        status.observed_generation = deployment.metadata.generation;
        self.write_status(deployment, status).await?;
        Ok(Outcome::Done)
    }
}

/// Equal up to the difference between an absent number and zero, and the order of conditions.
fn same(a: &DeploymentStatus, b: &DeploymentStatus) -> bool {
    let numbers = |s: &DeploymentStatus| {
        [
            s.replicas,
            s.updated_replicas,
            s.ready_replicas,
            s.available_replicas,
            s.unavailable_replicas,
            s.terminating_replicas,
            s.collision_count,
        ]
        .map(|n| n.unwrap_or(0))
    };
    let all = |s: &DeploymentStatus| {
        let mut all = s.conditions.clone().unwrap_or_default();
        all.sort_by(|a, b| a.type_.cmp(&b.type_));
        all
    };
    a.observed_generation == b.observed_generation && numbers(a) == numbers(b) && all(a) == all(b)
}

fn selects(spec: &DeploymentSpec, meta: &ObjectMeta) -> bool {
    !label_selector::is_empty(&spec.selector)
        && label_selector::matches(&spec.selector, meta.labels.as_ref())
}

#[async_trait]
impl Controller for DeploymentController {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn workers(&self) -> usize {
        5
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.deployments);
        watches.owned(&self.sets, "Deployment");
        let deployments = self.deployments.clone();
        watches.mapped(&self.sets, move |change| {
            children::adopters(&deployments, change, |d, meta| {
                d.spec.as_ref().is_some_and(|s| selects(s, meta))
            })
        });
        // Only the Recreate strategy waits for pods to be gone.
        let (deployments, sets) = (self.deployments.clone(), self.sets.clone());
        watches.mapped(&self.pods, move |change| {
            let meta = &change.object().metadata;
            let finished = matches!(change, keelson_client::Change::Deleted(_))
                || pod::is_terminal(change.object());
            if !finished {
                return Vec::new();
            }
            let parent = controller_of(meta)
                .filter(|r| r.kind == "ReplicaSet")
                .and_then(|r| sets.get(pod::namespace(meta), &r.name))
                .and_then(|s| controller_of(&s.metadata).cloned());
            parent
                .and_then(|r| deployments.get(pod::namespace(meta), &r.name))
                .filter(|d| {
                    let strategy = d.spec.as_ref().and_then(|s| s.strategy.as_ref());
                    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
                })
                .map(|d| Key::of(&d.metadata))
                .into_iter()
                .collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(deployment) = self.deployments.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let Some(spec) = &deployment.spec else {
            return Ok(Outcome::Done);
        };
        if label_selector::is_empty(&spec.selector) {
            return self.refuse_everything(&deployment).await;
        }
        let owner = Owner::new("apps/v1", "Deployment", &deployment.metadata);
        let candidates = children::candidates(&self.sets, &owner);
        let sets = children::claim::<Deployment, ReplicaSet>(
            &self.context.client,
            &owner,
            candidates,
            |meta| selects(spec, meta),
        )
        .await?;
        let mut seen = HashSet::new();
        let sets: Vec<_> = sets
            .into_iter()
            .filter(|s| seen.insert(s.metadata.uid.clone()))
            .collect();
        let new = plan::find_new(&deployment, &sets);
        let input = Input {
            deployment: &deployment,
            old_pods_running: self.old_pods_running(new, &sets),
            sets: &sets,
            now: clock::now(),
        };
        let plan = plan::plan(&input);
        self.apply(&deployment, plan).await
    }
}
