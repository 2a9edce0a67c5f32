//! The rules of a Deployment: given the object and its ReplicaSets, what to create, resize and
//! delete, and what to report. Pure; one call is one step, and the next step follows from the
//! events that this one causes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::pod;

mod scale;
mod status;

pub(crate) use scale::scaled;
use scale::{fence_posts, is_scaling_event, max_unavailable};
pub(crate) use status::set_condition;
use status::{conditions, deadline, find};

pub(crate) const HASH_LABEL: &str = "pod-template-hash";
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// A ReplicaSet whose size or annotations change.
#[derive(Clone, Debug)]
pub(crate) struct Resize {
    pub set: ReplicaSet,
    pub from: i32,
    pub to: i32,
}

#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The new ReplicaSet, when there is none for the template yet.
    pub create: Option<ReplicaSet>,
    pub resize: Vec<Resize>,
    pub delete: Vec<Arc<ReplicaSet>>,
    /// Annotations that the Deployment itself must carry.
    pub annotate: Option<BTreeMap<String, String>>,
    pub status: DeploymentStatus,
    pub requeue: Option<Duration>,
}

/// All that planning knows.
pub(crate) struct Input<'a> {
    pub deployment: &'a Deployment,
    /// ReplicaSets that this Deployment controls.
    pub sets: &'a [Arc<ReplicaSet>],
    /// For Recreate: whether pods of old ReplicaSets still run.
    pub old_pods_running: bool,
    pub now: Timestamp,
}

pub(crate) fn replicas(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.replicas)
        .unwrap_or(1)
}

pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn status_of(set: &ReplicaSet) -> (i32, i32, i32) {
    set.status.as_ref().map_or((0, 0, 0), |s| {
        (
            s.replicas,
            s.ready_replicas.unwrap_or(0),
            s.available_replicas.unwrap_or(0),
        )
    })
}

fn available(set: &ReplicaSet) -> i32 {
    status_of(set).2
}

fn is_recreate(deployment: &Deployment) -> bool {
    deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.type_.as_deref())
        == Some("Recreate")
}

fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|s| s.paused) == Some(true)
}

fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let strip = |t: &PodTemplateSpec| {
        let mut t = t.clone();
        if let Some(meta) = &mut t.metadata {
            if let Some(labels) = &mut meta.labels {
                labels.remove(HASH_LABEL);
                if labels.is_empty() {
                    meta.labels = None;
                }
            }
            if *meta == ObjectMeta::default() {
                t.metadata = None;
            }
        }
        t
    };
    strip(a) == strip(b)
}

fn created(set: &ReplicaSet) -> (Option<Timestamp>, &str) {
    (
        set.metadata.creation_timestamp.as_ref().map(|t| t.0),
        pod::name(&set.metadata),
    )
}

/// The oldest ReplicaSet whose template is the Deployment's.
pub(crate) fn find_new<'a>(
    deployment: &Deployment,
    sets: &'a [Arc<ReplicaSet>],
) -> Option<&'a Arc<ReplicaSet>> {
    let template = &deployment.spec.as_ref()?.template;
    sets.iter()
        .filter(|s| {
            s.spec
                .as_ref()
                .and_then(|spec| spec.template.as_ref())
                .is_some_and(|t| same_template(t, template))
        })
        .min_by_key(|s| created(s))
}

pub(crate) fn revision(meta: &ObjectMeta) -> i64 {
    pod::annotation(meta, REVISION)
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

/// Plans one step.
pub(crate) fn plan(input: &Input) -> Plan {
    let deployment = input.deployment;
    let new = find_new(deployment, input.sets);
    let old: Vec<&Arc<ReplicaSet>> = {
        let mut old: Vec<_> = input
            .sets
            .iter()
            .filter(|s| new.is_none_or(|n| n.metadata.uid != s.metadata.uid))
            .collect();
        old.sort_by_key(|s| created(s));
        old
    };
    let mut step = Step {
        input,
        sets: Vec::new(),
        created: None,
        deleted: Vec::new(),
        annotate: None,
        conditions: conditions(deployment),
    };
    if deployment.metadata.deletion_timestamp.is_none() {
        step.pause_condition();
        let paused = is_paused(deployment);
        let mut current = None;
        if let Some(new) = new {
            current = Some(step.adopt_revision(new, &old));
        }
        if paused || is_scaling_event(input) {
            step.scale(current, &old);
            if paused {
                step.clean_up(&old);
            }
        } else if is_recreate(deployment) {
            step.recreate(current, &old);
        } else {
            step.rolling(current, &old);
        }
    }
    step.finish(new, &old)
}

/// A plan under construction.
struct Step<'a> {
    input: &'a Input<'a>,
    sets: Vec<Resize>,
    created: Option<ReplicaSet>,
    deleted: Vec<Arc<ReplicaSet>>,
    annotate: Option<BTreeMap<String, String>>,
    conditions: Vec<DeploymentCondition>,
}

impl Step<'_> {
    fn replicas(&self) -> i32 {
        replicas(self.input.deployment)
    }

    /// Gives the ReplicaSet of the current template the newest revision, and the Deployment too.
    fn adopt_revision(&mut self, new: &Arc<ReplicaSet>, old: &[&Arc<ReplicaSet>]) -> ReplicaSet {
        let deployment = self.input.deployment;
        let newest = old.iter().map(|s| revision(&s.metadata)).max().unwrap_or(0) + 1;
        let mut set = ReplicaSet::clone(new);
        let annotations = set.metadata.annotations.get_or_insert_default();
        let before = annotations.clone();
        for (key, value) in deployment.metadata.annotations.iter().flatten() {
            if !is_own_annotation(key) {
                annotations.insert(key.clone(), value.clone());
            }
        }
        let had = annotations.get(REVISION).cloned();
        let number: i64 = had.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        if number < newest {
            annotations.insert(REVISION.into(), newest.to_string());
            if let Some(had) = had {
                let mut history: Vec<String> = annotations
                    .get(REVISION_HISTORY)
                    .map(|h| {
                        h.split(',')
                            .filter(|s| !s.is_empty())
                            .map(str::to_owned)
                            .collect()
                    })
                    .unwrap_or_default();
                history.push(had);
                // Old entries go first: the annotation must not grow without end.
                let keep = history.len().saturating_sub(100);
                annotations.insert(REVISION_HISTORY.into(), history[keep..].join(","));
            }
        }
        let changed = before != *annotations;
        let spec = set.spec.get_or_insert_default();
        let min_ready = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
        let min_ready_changed = spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0);
        spec.min_ready_seconds = min_ready;
        if changed || min_ready_changed {
            let count = size(&set);
            self.put(Resize {
                set: set.clone(),
                from: count,
                to: count,
            });
        }
        self.annotate_deployment(revision(&set.metadata));
        if find(&self.conditions, "Progressing").is_none() && self.has_deadline() {
            let message = format!("Found new replica set \"{}\"", pod::name(&set.metadata));
            self.set("Progressing", "True", "FoundNewReplicaSet", message);
        }
        set
    }

    fn annotate_deployment(&mut self, number: i64) {
        let mut annotations = self
            .input
            .deployment
            .metadata
            .annotations
            .clone()
            .unwrap_or_default();
        let before = annotations.clone();
        annotations.insert(REVISION.into(), number.to_string());
        annotations.remove(ROLLBACK_TO);
        if annotations != before {
            self.annotate = Some(annotations);
        }
    }

    fn has_deadline(&self) -> bool {
        deadline(self.input.deployment).is_some()
    }

    /// The ReplicaSet for a template that has none yet.
    fn create(&mut self, old: &[&Arc<ReplicaSet>]) {
        let deployment = self.input.deployment;
        let Some(spec) = &deployment.spec else { return };
        let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
        let hash = pod::template_hash(&spec.template, collisions);
        let mut template = spec.template.clone();
        let labels = template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default();
        labels.insert(HASH_LABEL.into(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(HASH_LABEL.into(), hash.clone());
        let number = old.iter().map(|s| revision(&s.metadata)).max().unwrap_or(0) + 1;
        let mut annotations: BTreeMap<String, String> = deployment
            .metadata
            .annotations
            .iter()
            .flatten()
            .filter(|(key, _)| !is_own_annotation(key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        annotations.insert(REVISION.into(), number.to_string());
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", pod::name(&deployment.metadata))),
                namespace: deployment.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![OwnerReference {
                    api_version: "apps/v1".into(),
                    kind: "Deployment".into(),
                    name: pod::name(&deployment.metadata).to_owned(),
                    uid: pod::uid(&deployment.metadata).to_owned(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let count = self.room_for_new(None, old);
        self.mark(&mut set, count);
        if self.has_deadline() {
            let message = format!("Created new replica set \"{}\"", pod::name(&set.metadata));
            self.set("Progressing", "True", "NewReplicaSetCreated", message);
        }
        self.annotate_deployment(number);
        self.created = Some(set);
    }

    /// How large the new ReplicaSet may be now.
    fn room_for_new(&self, new: Option<&ReplicaSet>, old: &[&Arc<ReplicaSet>]) -> i32 {
        let wanted = self.replicas();
        if is_recreate(self.input.deployment) {
            return wanted;
        }
        let have = new.map_or(0, size);
        let total = have + old.iter().map(|s| size(s)).sum::<i32>();
        let limit = wanted.saturating_add(fence_posts(self.input.deployment).0);
        if total >= limit {
            return have;
        }
        have + (limit - total).min(wanted - have)
    }

    fn mark(&self, set: &mut ReplicaSet, count: i32) {
        set.spec.get_or_insert_default().replicas = Some(count);
        let annotations = set.metadata.annotations.get_or_insert_default();
        let wanted = self.replicas();
        annotations.insert(DESIRED.into(), wanted.to_string());
        annotations.insert(
            MAX.into(),
            wanted
                .saturating_add(fence_posts(self.input.deployment).0)
                .to_string(),
        );
    }

    /// Sizes `set`; returns whether anything about it changes.
    fn resize(&mut self, set: &ReplicaSet, to: i32) -> bool {
        let mut next = self
            .sets
            .iter()
            .find(|r| r.set.metadata.uid == set.metadata.uid)
            .map_or_else(|| set.clone(), |r| r.set.clone());
        let before = next.clone();
        self.mark(&mut next, to);
        if before == next {
            return false;
        }
        self.put(Resize {
            set: next,
            from: size(set),
            to,
        });
        true
    }

    fn put(&mut self, resize: Resize) {
        match self
            .sets
            .iter_mut()
            .find(|r| r.set.metadata.uid == resize.set.metadata.uid)
        {
            Some(known) => {
                known.to = resize.to;
                known.set = resize.set;
            }
            None => self.sets.push(resize),
        }
    }

    fn rolling(&mut self, new: Option<ReplicaSet>, old: &[&Arc<ReplicaSet>]) {
        let Some(new) = new else {
            self.create(old);
            return;
        };
        let wanted = self.replicas();
        let have = size(&new);
        let target = if have > wanted {
            wanted
        } else {
            self.room_for_new(Some(&new), old)
        };
        if target != have && self.resize(&new, target) {
            return;
        }
        if self.scale_down_old(&new, old) {
            return;
        }
        self.resize(&new, have);
        self.clean_up(old);
    }

    /// Takes pods away from old ReplicaSets as far as availability allows: first those that are
    /// not healthy anyway, then the rest.
    fn scale_down_old(&mut self, new: &ReplicaSet, old: &[&Arc<ReplicaSet>]) -> bool {
        let old_total: i32 = old.iter().map(|s| size(s)).sum();
        if old_total == 0 {
            return false;
        }
        let minimum = self.replicas() - max_unavailable(self.input.deployment);
        let all = old_total + size(new);
        let new_unavailable = (size(new) - available(new)).max(0);
        let mut budget = all - minimum - new_unavailable;
        if budget <= 0 {
            return false;
        }
        let mut sizes: Vec<i32> = old.iter().map(|s| size(s)).collect();
        for (set, count) in old.iter().zip(&mut sizes) {
            let unhealthy = (*count - available(set)).clamp(0, budget.max(0));
            *count -= unhealthy;
            budget -= unhealthy;
        }
        let total_available = available(new) + old.iter().map(|s| available(s)).sum::<i32>();
        let mut healthy_budget = (total_available - minimum).max(0);
        for count in &mut sizes {
            let take = (*count).min(healthy_budget);
            *count -= take;
            healthy_budget -= take;
        }
        let mut changed = false;
        for (set, count) in old.iter().zip(sizes) {
            if count != size(set) {
                changed |= self.resize(set, count);
            }
        }
        changed
    }

    fn recreate(&mut self, new: Option<ReplicaSet>, old: &[&Arc<ReplicaSet>]) {
        let mut scaled = false;
        for set in old.iter().filter(|s| size(s) > 0) {
            scaled |= self.resize(set, 0);
        }
        if scaled || self.input.old_pods_running {
            return;
        }
        match new {
            None => self.create(old),
            Some(new) => {
                let wanted = self.replicas();
                self.resize(&new, wanted);
                self.clean_up(old);
            }
        }
    }

    /// Old and empty ReplicaSets beyond the history limit go, once the rollout is complete.
    fn clean_up(&mut self, old: &[&Arc<ReplicaSet>]) {
        let Some(limit) = self
            .input
            .deployment
            .spec
            .as_ref()
            .and_then(|s| s.revision_history_limit)
            .or(Some(10))
        else {
            return;
        };
        if !is_paused(self.input.deployment) && !self.is_complete_now(old) {
            return;
        }
        let mut candidates: Vec<&Arc<ReplicaSet>> = old
            .iter()
            .copied()
            .filter(|s| s.metadata.deletion_timestamp.is_none())
            .collect();
        let surplus = candidates
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        candidates.sort_by_key(|s| (revision(&s.metadata), created(s)));
        self.deleted = candidates
            .into_iter()
            .take(surplus)
            .filter(|s| {
                let observed = s
                    .status
                    .as_ref()
                    .and_then(|s| s.observed_generation)
                    .unwrap_or(0);
                status_of(s).0 == 0
                    && size(s) == 0
                    && s.metadata.generation.unwrap_or(0) <= observed
            })
            .cloned()
            .collect();
    }

    fn is_complete_now(&self, old: &[&Arc<ReplicaSet>]) -> bool {
        let Some(new) = find_new(self.input.deployment, self.input.sets) else {
            return false;
        };
        let wanted = self.replicas();
        let (replicas, _, available) = status_of(new);
        replicas == wanted && available == wanted && old.iter().all(|s| status_of(s).0 == 0)
    }
}

fn is_own_annotation(key: &str) -> bool {
    [
        LAST_APPLIED,
        REVISION,
        REVISION_HISTORY,
        DESIRED,
        MAX,
        ROLLBACK_TO,
    ]
    .contains(&key)
}

#[cfg(test)]
mod tests;
