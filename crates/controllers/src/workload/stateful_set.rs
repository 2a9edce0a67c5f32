//! StatefulSet: pods with a stable name and their own volumes.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus,
};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::{
    Controller, ControllerContext, DeleteOptions, Error, Informer, Key, Outcome, ReconcileError,
    Watches,
};
use keelson_semantics::label_selector;

use super::history::{self, History, REVISION_LABEL};
use super::stateful_set_plan::{self as plan, Input, NewPod, Plan};
use crate::owner::Owner;
use crate::{children, clock, pod};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
const HASH: &str = "controller.kubernetes.io/hash";

pub(crate) struct StatefulSetController {
    context: ControllerContext,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
}

impl StatefulSetController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            context: context.clone(),
            sets: context.informer(),
            pods: context.informer(),
            claims: context.informer(),
            revisions: context.informer(),
        };
        children::index(&this.pods);
        children::index(&this.revisions);
        this
    }

    /// Creates the pod's claims that are missing.
    async fn ensure_claims(&self, set: &StatefulSet, name: &str) -> Result<(), ReconcileError> {
        for claim in claims_of(set, name) {
            let (namespace, claim_name) =
                (pod::namespace(&claim.metadata), pod::name(&claim.metadata));
            if let Some(known) = self.claims.get(namespace, claim_name) {
                if known.metadata.deletion_timestamp.is_some() {
                    return Err(ReconcileError::Other(format!(
                        "pvc {claim_name} is being deleted"
                    )));
                }
                continue;
            }
            match self.context.client.create(&claim).await {
                Ok(_) => {
                    let message = format!(
                        "create Claim {claim_name} Pod {name} in StatefulSet {} success",
                        pod::name(&set.metadata)
                    );
                    self.context.events.normal(set, "SuccessfulCreate", message);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => {
                    let message = format!(
                        "create Claim {claim_name} for Pod {name} in StatefulSet {} failed error: {error}",
                        pod::name(&set.metadata)
                    );
                    self.context.events.warning(set, "FailedCreate", message);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        set: &StatefulSet,
        owner: &Owner,
        revision: &ControllerRevision,
        new: NewPod,
    ) -> Result<(), ReconcileError> {
        let Some(template) = history::template(revision) else {
            return Err(ReconcileError::Other(format!(
                "revision {} holds no pod template",
                pod::name(&revision.metadata)
            )));
        };
        let draft = draft(
            set,
            owner,
            &template,
            pod::name(&revision.metadata),
            new.ordinal,
        );
        let name = pod::name(&draft.metadata);
        self.ensure_claims(set, name).await?;
        let result = self.context.client.create(&draft).await;
        self.tell("create", "Create", set, name, result.as_ref().err());
        match result {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    fn tell(&self, verb: &str, reason: &str, set: &StatefulSet, name: &str, error: Option<&Error>) {
        let set_name = pod::name(&set.metadata);
        match error {
            None => {
                let message = format!("{verb} Pod {name} in StatefulSet {set_name} successful");
                self.context
                    .events
                    .normal(set, &format!("Successful{reason}"), message);
            }
            Some(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
            Some(error) => {
                let message =
                    format!("{verb} Pod {name} in StatefulSet {set_name} failed error: {error}");
                self.context
                    .events
                    .warning(set, &format!("Failed{reason}"), message);
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, victim: &Pod) -> Result<(), ReconcileError> {
        let name = pod::name(&victim.metadata);
        let options = DeleteOptions::default().uid(pod::uid(&victim.metadata));
        let result = self
            .context
            .client
            .delete::<Pod>(pod::namespace(&victim.metadata), name, &options)
            .await;
        match result {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                self.tell("delete", "Delete", set, name, Some(&error));
                Err(error.into())
            }
            Ok(()) => {
                self.tell("delete", "Delete", set, name, None);
                Ok(())
            }
        }
    }

    async fn repair(&self, set: &StatefulSet, p: &Pod) -> Result<(), ReconcileError> {
        let name = pod::name(&p.metadata).to_owned();
        self.ensure_claims(set, &name).await?;
        let mut next = p.clone();
        identify(
            &mut next,
            &name,
            plan::ordinal(pod::name(&set.metadata), p).unwrap_or(0),
        );
        if next.metadata.labels != p.metadata.labels {
            let result = self.context.client.update(&next).await;
            self.tell("update", "Update", set, &name, result.as_ref().err());
            result?;
        }
        Ok(())
    }

    /// Claims follow the set or its pods into deletion where the retention policy says so.
    async fn retain(
        &self,
        set: &StatefulSet,
        owner: &Owner,
        pods: &[Arc<Pod>],
        condemned: &[Arc<Pod>],
    ) -> Result<(), ReconcileError> {
        let policy = set
            .spec
            .as_ref()
            .and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
        let when_deleted = policy.and_then(|p| p.when_deleted.as_deref()) == Some("Delete");
        let when_scaled = policy.and_then(|p| p.when_scaled.as_deref()) == Some("Delete");
        for p in pods {
            let scaled_away =
                when_scaled && condemned.iter().any(|c| c.metadata.uid == p.metadata.uid);
            for wanted in claims_of(set, pod::name(&p.metadata)) {
                let Some(known) = self
                    .claims
                    .get(&owner.namespace, pod::name(&wanted.metadata))
                else {
                    continue;
                };
                let mut references = known.metadata.owner_references.clone().unwrap_or_default();
                references
                    .retain(|r| r.uid != owner.uid && Some(&r.uid) != p.metadata.uid.as_ref());
                if scaled_away {
                    references.push(plain_reference("v1", "Pod", &p.metadata));
                } else if when_deleted {
                    references.push(plain_reference("apps/v1", "StatefulSet", &set.metadata));
                }
                if known
                    .metadata
                    .owner_references
                    .as_deref()
                    .unwrap_or_default()
                    == references
                {
                    continue;
                }
                let mut next = PersistentVolumeClaim::clone(&known);
                next.metadata.owner_references = Some(references);
                self.context.client.update(&next).await?;
            }
        }
        Ok(())
    }

    async fn apply(
        &self,
        set: &StatefulSet,
        owner: &Owner,
        revisions: (&ControllerRevision, &ControllerRevision),
        plan: &Plan,
    ) -> Result<(), ReconcileError> {
        for name in &plan.recreate {
            let message = format!(
                "StatefulSet {}/{} is recreating failed Pod {name}",
                owner.namespace, owner.name
            );
            self.context
                .events
                .warning(set, "RecreatingFailedPod", message);
        }
        for p in &plan.repair {
            self.repair(set, p).await?;
        }
        let (current, update) = revisions;
        let deletions =
            futures::future::join_all(plan.delete.iter().map(|p| self.delete(set, p))).await;
        let creations = futures::future::join_all(plan.create.iter().map(|new| {
            let revision = if new.of_update { update } else { current };
            self.create(set, owner, revision, *new)
        }))
        .await;
        deletions.into_iter().chain(creations).collect()
    }

    async fn write_status(
        &self,
        set: &StatefulSet,
        status: StatefulSetStatus,
    ) -> Result<(), ReconcileError> {
        if set
            .status
            .as_ref()
            .is_some_and(|known| same(known, &status))
        {
            return Ok(());
        }
        let next = StatefulSet {
            status: Some(status),
            ..set.clone()
        };
        match self.context.client.update_status(&next).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Equal up to the difference between an absent number and zero.
fn same(a: &StatefulSetStatus, b: &StatefulSetStatus) -> bool {
    let plain = |s: &StatefulSetStatus| {
        let mut s = s.clone();
        for number in [
            &mut s.ready_replicas,
            &mut s.available_replicas,
            &mut s.current_replicas,
            &mut s.updated_replicas,
            &mut s.collision_count,
        ] {
            *number = Some(number.unwrap_or(0));
        }
        s
    };
    plain(a) == plain(b)
}

fn plain_reference(api_version: &str, kind: &str, meta: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: pod::name(meta).to_owned(),
        uid: pod::uid(meta).to_owned(),
        controller: None,
        block_owner_deletion: None,
    }
}

/// The claims of one pod: `<template>-<pod>`.
fn claims_of(set: &StatefulSet, pod_name: &str) -> Vec<PersistentVolumeClaim> {
    let Some(spec) = &set.spec else {
        return Vec::new();
    };
    let labels = spec.selector.match_labels.clone().unwrap_or_default();
    spec.volume_claim_templates
        .iter()
        .flatten()
        .map(|template| {
            let mut claim = template.clone();
            claim.status = None;
            claim.metadata.name = Some(format!("{}-{pod_name}", pod::name(&template.metadata)));
            claim.metadata.namespace.clone_from(&set.metadata.namespace);
            claim.metadata.creation_timestamp = None;
            claim
                .metadata
                .labels
                .get_or_insert_with(BTreeMap::new)
                .extend(labels.clone());
            claim
        })
        .collect()
}

fn identify(p: &mut Pod, name: &str, ordinal: i32) {
    p.metadata.name = Some(name.to_owned());
    let labels = p.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.insert(POD_NAME.to_owned(), name.to_owned());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
}

fn draft(
    set: &StatefulSet,
    owner: &Owner,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
) -> Pod {
    let name = format!("{}-{ordinal}", owner.name);
    let mut p = pod::from_template(template, &owner.namespace, None, owner.reference());
    identify(&mut p, &name, ordinal);
    p.metadata
        .labels
        .get_or_insert_with(BTreeMap::new)
        .insert(REVISION_LABEL.to_owned(), revision.to_owned());
    if let Some(spec) = &mut p.spec {
        spec.hostname = Some(name.clone());
        spec.subdomain = set
            .spec
            .as_ref()
            .and_then(|s| s.service_name.clone())
            .filter(|s| !s.is_empty());
        let volumes = spec.volumes.get_or_insert_default();
        for template in set
            .spec
            .iter()
            .flat_map(|s| s.volume_claim_templates.iter().flatten())
        {
            let volume = pod::name(&template.metadata);
            volumes.retain(|v| v.name != volume);
            volumes.push(Volume {
                name: volume.to_owned(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: format!("{volume}-{name}"),
                    read_only: Some(false),
                }),
                ..Volume::default()
            });
        }
        if volumes.is_empty() {
            spec.volumes = None;
        }
    }
    p
}

fn selects(spec: &StatefulSetSpec, meta: &ObjectMeta) -> bool {
    !label_selector::is_empty(&spec.selector)
        && label_selector::matches(&spec.selector, meta.labels.as_ref())
}

#[async_trait]
impl Controller for StatefulSetController {
    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    fn workers(&self) -> usize {
        5
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.sets);
        watches.owned(&self.pods, "StatefulSet");
        watches.owned(&self.revisions, "StatefulSet");
        watches.needs(&self.claims);
        let sets = self.sets.clone();
        watches.mapped(&self.pods, move |change| {
            children::adopters(&sets, change, |s, meta| {
                s.spec.as_ref().is_some_and(|s| selects(s, meta))
            })
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let Some(spec) = set
            .spec
            .as_ref()
            .filter(|s| !label_selector::is_empty(&s.selector))
        else {
            return Ok(Outcome::Done);
        };
        let owner = Owner::new("apps/v1", "StatefulSet", &set.metadata);
        if owner.deleting {
            return Ok(Outcome::Done);
        }
        let known_status = set.status.clone().unwrap_or_default();
        let history = History {
            client: &self.context.client,
            informer: &self.revisions,
            owner: &owner,
            selector: &spec.selector,
            template: &spec.template,
            collisions: known_status.collision_count,
            hash_label: HASH,
        };
        let revisions = history.list::<StatefulSet>().await?;
        let (update, collided) = match history.current(&revisions).await {
            Err(ReconcileError::Client(error)) if error.is_namespace_terminating() => {
                return Ok(Outcome::Done);
            }
            other => other?,
        };
        let Some(update) = update.filter(|_| !collided) else {
            let mut status = known_status;
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            self.write_status(&set, status).await?;
            return Err(ReconcileError::Other(format!(
                "the name of a revision of StatefulSet {key} is taken"
            )));
        };
        let current = known_status
            .current_revision
            .as_deref()
            .and_then(|name| revisions.iter().find(|r| pod::name(&r.metadata) == name))
            .unwrap_or(&update)
            .clone();
        let candidates = children::candidates(&self.pods, &owner);
        let mut pods =
            children::claim::<StatefulSet, Pod>(&self.context.client, &owner, candidates, |meta| {
                selects(spec, meta)
                    && meta
                        .name
                        .as_deref()
                        .is_some_and(|n| n.starts_with(&format!("{}-", owner.name)))
            })
            .await?;
        pods.retain(|p| plan::ordinal(&owner.name, p).is_some());
        let identified = |p: &Pod| {
            let name = pod::name(&p.metadata);
            let labelled = pod::label(&p.metadata, POD_NAME) == Some(name);
            labelled
                && claims_of(&set, name).iter().all(|c| {
                    self.claims
                        .get(&key.namespace, pod::name(&c.metadata))
                        .is_some()
                })
        };
        let plan = plan::plan(&Input {
            set: &set,
            pods: &pods,
            current_revision: pod::name(&current.metadata),
            update_revision: pod::name(&update.metadata),
            is_identified: &identified,
            now: clock::now(),
        });
        let first = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
        let range = first..first.saturating_add(spec.replicas.unwrap_or(1));
        let condemned: Vec<Arc<Pod>> = pods
            .iter()
            .filter(|p| plan::ordinal(&owner.name, p).is_some_and(|n| !range.contains(&n)))
            .cloned()
            .collect();
        self.retain(&set, &owner, &pods, &condemned).await?;
        let applied = self.apply(&set, &owner, (&current, &update), &plan).await;
        self.write_status(&set, plan.status).await?;
        applied?;
        let in_use = |r: &ControllerRevision| {
            let name = pod::name(&r.metadata);
            [&current.metadata.uid, &update.metadata.uid].contains(&&r.metadata.uid)
                || pods
                    .iter()
                    .any(|p| pod::label(&p.metadata, REVISION_LABEL) == Some(name))
        };
        history
            .truncate(
                &revisions,
                spec.revision_history_limit.unwrap_or(10),
                in_use,
            )
            .await?;
        Ok(plan.requeue.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}
