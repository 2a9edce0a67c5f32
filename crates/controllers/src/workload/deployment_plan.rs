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
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{clock, pod};

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

/// `maxSurge` and `maxUnavailable` as counts. Percentages round up and down respectively; both
/// zero would make no progress possible, so one pod may then be unavailable.
pub(crate) fn fence_posts(deployment: &Deployment) -> (i32, i32) {
    if is_recreate(deployment) {
        return (0, 0);
    }
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.rolling_update.as_ref());
    let total = replicas(deployment);
    let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), total, true);
    let unavailable = scaled(
        rolling.and_then(|r| r.max_unavailable.as_ref()),
        total,
        false,
    );
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// An absolute number, or a percentage of `total`.
pub(crate) fn scaled(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.saturating_mul(i64::from(total));
            let rounded = if round_up {
                (product + 99).div_euclid(100)
            } else {
                product.div_euclid(100)
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// `maxUnavailable`, never more than there are replicas.
pub(crate) fn max_unavailable(deployment: &Deployment) -> i32 {
    fence_posts(deployment).1.min(replicas(deployment))
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

/// Whether somebody changed `spec.replicas` since the ReplicaSets were last sized.
fn is_scaling_event(input: &Input) -> bool {
    input.sets.iter().filter(|s| size(s) > 0).any(|set| {
        pod::annotation(&set.metadata, DESIRED)
            .and_then(|v| v.parse::<i32>().ok())
            .is_some_and(|desired| desired != replicas(input.deployment))
    })
}

fn conditions(deployment: &Deployment) -> Vec<DeploymentCondition> {
    deployment
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default()
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

    fn pause_condition(&mut self) {
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

    /// A changed replica count while paused or in the middle of a rollout: one active ReplicaSet
    /// takes it all, several share the difference in proportion to their sizes.
    fn scale(&mut self, new: Option<ReplicaSet>, old: &[&Arc<ReplicaSet>]) {
        let wanted = self.replicas();
        let mut active: Vec<ReplicaSet> = old
            .iter()
            .filter(|s| size(s) > 0)
            .map(|s| ReplicaSet::clone(s))
            .collect();
        active.extend(new.clone().filter(|s| size(s) > 0));
        if active.len() <= 1 {
            let newest_old = || old.last().map(|s| ReplicaSet::clone(s));
            if let Some(only) = active.pop().or(new).or_else(newest_old) {
                self.resize(&only, wanted);
            }
            return;
        }
        if let Some(new) = &new
            && size(new) == wanted
            && available(new) == wanted
        {
            for set in old.iter().filter(|s| size(s) > 0) {
                self.resize(set, 0);
            }
            return;
        }
        if is_recreate(self.input.deployment) {
            return;
        }
        let total: i32 = active.iter().map(size).sum();
        let allowed = if wanted > 0 {
            wanted.saturating_add(fence_posts(self.input.deployment).0)
        } else {
            0
        };
        let to_add = allowed - total;
        for (set, count) in self.proportional(active, to_add, allowed) {
            self.resize(&set, count);
        }
    }

    fn proportional(
        &self,
        mut sets: Vec<ReplicaSet>,
        to_add: i32,
        allowed: i32,
    ) -> Vec<(ReplicaSet, i32)> {
        // The larger sets come first and, among equals, the newer when growing and the older when
        // shrinking, because whatever is left over after rounding goes to the first.
        sets.sort_by(|a, b| {
            let by_age = created(a).cmp(&created(b));
            size(b)
                .cmp(&size(a))
                .then(if to_add > 0 { by_age.reverse() } else { by_age })
        });
        let mut added = 0;
        let mut sizes = Vec::with_capacity(sets.len());
        for set in &sets {
            let mut count = size(set);
            if to_add != 0 {
                let part = self.share(set, allowed, to_add, added);
                count += part;
                added += part;
            }
            sizes.push(count);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        sets.into_iter().zip(sizes).collect()
    }

    fn share(&self, set: &ReplicaSet, allowed: i32, to_add: i32, added: i32) -> i32 {
        let count = size(set);
        if count == 0 {
            return 0;
        }
        let fraction = if self.replicas() == 0 {
            -count
        } else {
            let annotated = pod::annotation(&set.metadata, MAX)
                .and_then(|v| v.parse::<i32>().ok())
                .filter(|m| *m > 0)
                .unwrap_or_else(|| {
                    self.input
                        .deployment
                        .status
                        .as_ref()
                        .and_then(|s| s.replicas)
                        .unwrap_or(0)
                        .max(1)
                });
            let exact = f64::from(count) * f64::from(allowed) / f64::from(annotated);
            #[allow(clippy::cast_possible_truncation)]
            let rounded = exact.round() as i32;
            rounded - count
        };
        let left = to_add - added;
        if to_add > 0 {
            fraction.min(left)
        } else {
            fraction.max(left)
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

    fn set(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        set_condition(
            &mut self.conditions,
            kind,
            status,
            reason,
            message,
            self.input.now,
        );
    }

    fn finish(mut self, new: Option<&Arc<ReplicaSet>>, old: &[&Arc<ReplicaSet>]) -> Plan {
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
        let requeue = self.deadline_check(&status, new);
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
    fn deadline_check(
        &self,
        status: &DeploymentStatus,
        _new: Option<&Arc<ReplicaSet>>,
    ) -> Option<Duration> {
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

/// The deadline in seconds; the largest number means none.
fn deadline(deployment: &Deployment) -> Option<i32> {
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

fn find<'a>(conditions: &'a [DeploymentCondition], kind: &str) -> Option<&'a DeploymentCondition> {
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

#[cfg(test)]
#[path = "deployment_plan_tests.rs"]
mod tests;
