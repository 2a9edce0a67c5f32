//! The controller of both kinds that keep a number of pods.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    Controller, ControllerContext, Informer, Key, Object, Outcome, ReconcileError, Watches,
};
use keelson_semantics::label_selector;

use super::replicas::{self, Counts, Failure, Input};
use crate::owner::{Owner, controller_of};
use crate::{children, clock, pod};

/// What the shared controller must know about a kind.
pub(crate) trait Replicated: Object {
    const CONTROLLER: &'static str;

    fn wanted(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selects(&self, labels: &ObjectMeta) -> bool;
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// The object with the status that these counts mean, or `None` when it has it already.
    fn with_status(&self, counts: Counts, failure: Option<Failure>, now: Timestamp)
    -> Option<Self>;
}

pub(crate) struct ReplicaController<K: Replicated> {
    context: ControllerContext,
    sets: Informer<K>,
    pods: Informer<Pod>,
}

impl<K: Replicated> ReplicaController<K> {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let (sets, pods) = (context.informer::<K>(), context.informer::<Pod>());
        children::index(&sets);
        children::index(&pods);
        Self {
            context: context.clone(),
            sets,
            pods,
        }
    }

    /// Active pods of every set under the same parent: deleting prefers crowded nodes.
    fn related(&self, set: &K, own: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(parent) = controller_of(set.metadata()) else {
            return own.iter().filter(|p| pod::is_active(p)).cloned().collect();
        };
        children::controlled(&self.sets, &parent.uid)
            .iter()
            .flat_map(|sibling| children::controlled(&self.pods, pod::uid(sibling.metadata())))
            .filter(|p| pod::is_active(p))
            .collect()
    }

    async fn write_status(
        &self,
        set: &K,
        counts: Counts,
        failure: Option<Failure>,
    ) -> Result<(), ReconcileError> {
        let Some(next) = set.with_status(counts, failure, clock::now()) else {
            return Ok(());
        };
        match self.context.client.update_status(&next).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[async_trait]
impl<K: Replicated> Controller for ReplicaController<K> {
    fn name(&self) -> &'static str {
        K::CONTROLLER
    }

    fn workers(&self) -> usize {
        5
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.sets);
        watches.owned(&self.pods, K::KIND);
        let sets = self.sets.clone();
        watches.mapped(&self.pods, move |change| {
            children::adopters(&sets, change, |set, meta| set.selects(meta))
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let meta = set.metadata();
        let owner = Owner::new(K::API_VERSION, K::KIND, meta);
        let candidates = children::candidates(&self.pods, &owner)
            .into_iter()
            .filter(|p| !pod::is_terminal(p) || owner.owns(&p.metadata))
            .collect();
        let pods =
            children::claim::<K, Pod>(&self.context.client, &owner, candidates, |m| set.selects(m))
                .await?;
        let related = self.related(&set, &pods);
        let template = set.template().cloned().unwrap_or_default();
        let plan = replicas::plan(
            &Input {
                pods: &pods,
                related: &related,
                wanted: set.wanted(),
                deleting: owner.deleting,
                min_ready_seconds: set.min_ready_seconds(),
                fully_labeled: &|p| {
                    let wanted = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
                    wanted
                        .is_none_or(|w| label_selector::map_matches(w, p.metadata.labels.as_ref()))
                },
            },
            clock::now(),
        );
        let diff = i64::from(plan.counts.replicas) - i64::from(set.wanted());
        let mut error = None;
        if plan.create > 0 {
            let prefix = format!("{}-", key.name);
            let new =
                pod::from_template(&template, &key.namespace, Some(prefix), owner.reference());
            error = children::slow_start(plan.create, |_| async {
                children::create_pod(&self.context.client, &self.context.events, &*set, &new)
                    .await
                    .map(drop)
            })
            .await;
        } else if !plan.delete.is_empty() {
            error = children::delete_pods(
                &self.context.client,
                &self.context.events,
                &*set,
                &plan.delete,
            )
            .await;
        }
        if error
            .as_ref()
            .is_some_and(keelson_client::Error::is_namespace_terminating)
        {
            error = None;
        }
        let failure = replicas::failure(diff, error.as_ref().map(ToString::to_string));
        self.write_status(&set, plan.counts, failure).await?;
        match (error, plan.recheck) {
            (Some(error), _) => Err(error.into()),
            (None, Some(delay)) => Ok(Outcome::RequeueAfter(delay)),
            (None, None) => Ok(Outcome::Done),
        }
    }
}
