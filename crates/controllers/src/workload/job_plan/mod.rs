//! The rules of a Job: which pods have finished, whether the Job has, and how many more pods it
//! needs. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use crate::{clock, pod};

mod backoff;
mod failure_policy;
pub(crate) mod indexes;

use backoff::{delay_seconds, failures, finish_time, total_failures};
use failure_policy::{is_ignored, judge};
use indexes::index_of;

pub(crate) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(crate) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub(crate) const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// Pods created or deleted in one pass.
const MAX_PER_PASS: usize = 500;
/// Pods counted in one pass, which bounds the size of the status.
const MAX_UNCOUNTED: usize = 500;

/// A pod to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewPod {
    pub index: Option<i32>,
    /// Counted and ignored failures of the index, when they are limited per index.
    pub failures: Option<(i32, i32)>,
}

/// How a Job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub success: bool,
    pub reason: String,
    pub message: String,
}

#[derive(Debug)]
pub(crate) struct Plan {
    /// To be written before finalizers are removed: it names the pods about to be forgotten.
    pub status: JobStatus,
    pub strip: Vec<Arc<Pod>>,
    pub delete: Vec<Arc<Pod>>,
    pub create: Vec<NewPod>,
    pub end: Option<End>,
    /// Whether nothing but counting stands between the Job and its end.
    pub may_finish: bool,
    /// An event about suspension, if that changed.
    pub suspension: Option<(&'static str, &'static str)>,
    pub requeue: Option<Duration>,
}

pub(crate) fn is_finished(job: &Job) -> bool {
    finished_condition(job).is_some()
}

pub(crate) fn finished_condition(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

pub(crate) fn is_tracked(p: &Pod) -> bool {
    p.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == FINALIZER)
}

pub(crate) fn is_indexed(job: &JobSpec) -> bool {
    job.completion_mode.as_deref() == Some("Indexed")
}

fn is_suspended(job: &JobSpec) -> bool {
    job.suspend == Some(true)
}

/// Replacements wait until the predecessor has really failed, not just begun to stop.
fn replaces_failed_only(spec: &JobSpec) -> bool {
    match spec.pod_replacement_policy.as_deref() {
        Some(policy) => policy == "Failed",
        None => spec.pod_failure_policy.is_some(),
    }
}

fn is_failed(p: &Pod, spec: &JobSpec) -> bool {
    if pod::phase(p) == "Failed" {
        return true;
    }
    !replaces_failed_only(spec) && pod::is_terminating(p) && pod::phase(p) != "Succeeded"
}

fn uid(p: &Pod) -> String {
    pod::uid(&p.metadata).to_owned()
}

/// A pass under construction.
struct Pass<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: &'a [Arc<Pod>],
    active: Vec<Arc<Pod>>,
    status: JobStatus,
    uncounted: UncountedTerminatedPods,
    succeeded: i32,
    failed: i32,
    succeeded_indexes: BTreeSet<i32>,
    failed_indexes: BTreeSet<i32>,
    /// The newest failed pod of each index that awaits a replacement.
    delayed: BTreeMap<i32, Arc<Pod>>,
    now: Timestamp,
}

/// Moves pods whose finalizer is gone from the uncounted lists into the counters.
pub(crate) fn fold(status: &mut JobStatus, still_tracked: &HashSet<String>) {
    let Some(uncounted) = &mut status.uncounted_terminated_pods else {
        return;
    };
    let settle = |list: &mut Option<Vec<String>>| -> i32 {
        let Some(uids) = list else { return 0 };
        let before = uids.len();
        uids.retain(|u| still_tracked.contains(u));
        i32::try_from(before - uids.len()).unwrap_or(0)
    };
    let succeeded = settle(&mut uncounted.succeeded);
    let failed = settle(&mut uncounted.failed);
    if succeeded > 0 {
        status.succeeded = Some(status.succeeded.unwrap_or(0) + succeeded);
    }
    if failed > 0 {
        status.failed = Some(status.failed.unwrap_or(0) + failed);
    }
}

pub(crate) fn is_counted(status: &JobStatus) -> bool {
    status.uncounted_terminated_pods.as_ref().is_none_or(|u| {
        u.succeeded.as_ref().is_none_or(Vec::is_empty)
            && u.failed.as_ref().is_none_or(Vec::is_empty)
    })
}

pub(crate) fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Option<Plan> {
    let spec = job.spec.as_ref()?;
    let mut status = job.status.clone().unwrap_or_default();
    status.uncounted_terminated_pods.get_or_insert_default();
    let tracked: HashSet<String> = pods
        .iter()
        .filter(|p| is_tracked(p))
        .map(|p| uid(p))
        .collect();
    fold(&mut status, &tracked);
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let mut pass = Pass {
        job,
        spec,
        pods,
        active: pods.iter().filter(|p| pod::is_active(p)).cloned().collect(),
        status,
        uncounted,
        succeeded: 0,
        failed: 0,
        succeeded_indexes: BTreeSet::new(),
        failed_indexes: BTreeSet::new(),
        delayed: BTreeMap::new(),
        now,
    };
    pass.count();
    Some(pass.run())
}

impl Pass<'_> {
    fn completions(&self) -> i32 {
        self.spec.completions.unwrap_or(0)
    }

    fn is_known(&self, p: &Pod) -> (bool, bool) {
        let has =
            |list: &Option<Vec<String>>| list.iter().flatten().any(|u| *u == pod::uid(&p.metadata));
        (has(&self.uncounted.succeeded), has(&self.uncounted.failed))
    }

    /// Every end of a pod that is visible now, counted or not.
    fn count(&mut self) {
        let lists = |list: &Option<Vec<String>>| {
            i32::try_from(list.as_ref().map_or(0, Vec::len)).unwrap_or(0)
        };
        self.succeeded = self.status.succeeded.unwrap_or(0) + lists(&self.uncounted.succeeded);
        self.failed = self.status.failed.unwrap_or(0) + lists(&self.uncounted.failed);
        for p in self.pods.iter().filter(|p| is_tracked(p)) {
            let (known_success, known_failure) = self.is_known(p);
            if known_success || known_failure {
                continue;
            }
            if pod::phase(p) == "Succeeded" {
                self.succeeded += 1;
            } else if is_failed(p, self.spec)
                && !is_ignored(self.spec.pod_failure_policy.as_ref(), p)
            {
                self.failed += 1;
            }
        }
        if is_indexed(self.spec) {
            self.count_indexes();
        }
    }

    fn count_indexes(&mut self) {
        let limit = self.completions();
        self.succeeded_indexes = indexes::parse(
            self.status.completed_indexes.as_deref().unwrap_or_default(),
            limit,
        );
        let finished = self
            .pods
            .iter()
            .filter(|p| is_tracked(p) && pod::phase(p) == "Succeeded");
        self.succeeded_indexes
            .extend(finished.filter_map(|p| index_of(p)).filter(|i| *i < limit));
        self.succeeded = i32::try_from(self.succeeded_indexes.len()).unwrap_or(i32::MAX);
        let Some(per_index) = self.spec.backoff_limit_per_index else {
            return;
        };
        self.failed_indexes = indexes::parse(
            self.status.failed_indexes.as_deref().unwrap_or_default(),
            limit,
        );
        let failed: Vec<_> = self
            .pods
            .iter()
            .filter(|p| is_tracked(p) && is_failed(p, self.spec))
            .cloned()
            .collect();
        for p in &failed {
            let Some(index) =
                index_of(p).filter(|i| *i < limit && !self.succeeded_indexes.contains(i))
            else {
                continue;
            };
            let rule = self
                .spec
                .pod_failure_policy
                .as_ref()
                .and_then(|policy| judge(policy, p));
            let ignored = rule.as_ref().is_some_and(|r| r.action == "Ignore");
            let fail_now = rule.is_some_and(|r| r.action == "FailIndex");
            if fail_now || (!ignored && failures(p).0 >= per_index) {
                self.failed_indexes.insert(index);
            }
        }
        let replaced: HashSet<i32> = self.active.iter().filter_map(|p| index_of(p)).collect();
        for p in failed {
            let Some(index) = index_of(&p).filter(|i| *i < limit) else {
                continue;
            };
            if self.succeeded_indexes.contains(&index)
                || self.failed_indexes.contains(&index)
                || replaced.contains(&index)
            {
                continue;
            }
            let newer = self
                .delayed
                .get(&index)
                .is_none_or(|known| total_failures(known) <= total_failures(&p));
            if newer {
                self.delayed.insert(index, p);
            }
        }
    }

    fn run(mut self) -> Plan {
        if self.status.start_time.is_none() && !is_suspended(self.spec) {
            self.status.start_time = Some(clock::stamp(self.now));
        }
        let mut requeue = None;
        let mut end = self.earlier_end().or_else(|| self.failure(&mut requeue));
        if end.is_none() && is_indexed(self.spec) {
            end = self.success_policy();
        }
        let (mut delete, mut create, mut suspension) = (Vec::new(), Vec::new(), None);
        if end.is_some() {
            delete.clone_from(&self.active);
        } else {
            if self.job.metadata.deletion_timestamp.is_none() {
                (delete, create) = self.manage(&mut requeue);
            }
            if self.is_complete(delete.len(), create.len()) {
                end = Some(End {
                    success: true,
                    reason: "CompletionsReached".into(),
                    message: "Reached expected number of succeeded pods".into(),
                });
            } else if self.job.metadata.deletion_timestamp.is_none() {
                suspension = self.note_suspension();
            }
        }
        let strip = self.track(end.as_ref());
        self.write_counts(&delete, create.len());
        if let Some(end) = &end {
            let kind = if end.success {
                "SuccessCriteriaMet"
            } else {
                "FailureTarget"
            };
            set_condition(
                &mut self.status,
                kind,
                "True",
                &end.reason,
                &end.message,
                self.now,
            );
        }
        let stopping = self
            .pods
            .iter()
            .any(|p| pod::is_terminating(p) && !pod::is_terminal(p));
        Plan {
            may_finish: end.is_some() && delete.is_empty() && !stopping,
            status: self.status,
            strip,
            delete,
            create,
            end,
            suspension,
            requeue,
        }
    }

    /// An end that was decided in an earlier pass stands.
    fn earlier_end(&self) -> Option<End> {
        let conditions = self.status.conditions.as_ref()?;
        let found = |kind: &str| {
            conditions
                .iter()
                .find(|c| c.type_ == kind && c.status == "True")
        };
        let end = |c: &JobCondition, success| End {
            success,
            reason: c.reason.clone().unwrap_or_default(),
            message: c.message.clone().unwrap_or_default(),
        };
        found("SuccessCriteriaMet")
            .map(|c| end(c, true))
            .or_else(|| found("FailureTarget").map(|c| end(c, false)))
    }

    fn failure(&self, requeue: &mut Option<Duration>) -> Option<End> {
        let fail = |reason: &str, message: String| {
            Some(End {
                success: false,
                reason: reason.into(),
                message,
            })
        };
        if let Some(policy) = &self.spec.pod_failure_policy {
            let fatal = self
                .pods
                .iter()
                .filter(|p| is_failed(p, self.spec))
                .find_map(|p| {
                    judge(policy, p)
                        .filter(|rule| rule.action == "FailJob")
                        .map(|rule| rule.message)
                });
            if let Some(message) = fatal {
                return fail("PodFailurePolicy", message);
            }
        }
        let limit =
            self.spec
                .backoff_limit
                .unwrap_or(if self.spec.backoff_limit_per_index.is_some() {
                    i32::MAX
                } else {
                    6
                });
        if self.failed > limit || self.restarts_exceed(limit) {
            return fail(
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit".into(),
            );
        }
        if let (Some(seconds), Some(start)) =
            (self.spec.active_deadline_seconds, &self.status.start_time)
            && !is_suspended(self.spec)
        {
            match clock::until(self.now, clock::after(start.0, seconds)) {
                None => {
                    return fail(
                        "DeadlineExceeded",
                        "Job was active longer than specified deadline".into(),
                    );
                }
                left => *requeue = clock::sooner(*requeue, left),
            }
        }
        self.spec.backoff_limit_per_index?;
        let failed = i32::try_from(self.failed_indexes.len()).unwrap_or(i32::MAX);
        if self.spec.max_failed_indexes.is_some_and(|max| failed > max) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return fail("MaxFailedIndexesExceeded", message.into());
        }
        if failed > 0 && failed + self.succeeded >= self.completions() {
            return fail("FailedIndexes", "Job has failed indexes".into());
        }
        None
    }

    /// Containers that restart in place count against the limit as well.
    fn restarts_exceed(&self, limit: i32) -> bool {
        let policy = self
            .spec
            .template
            .spec
            .as_ref()
            .and_then(|s| s.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let statuses = self
            .pods
            .iter()
            .filter(|p| matches!(pod::phase(p), "Running" | "Pending"))
            .filter_map(|p| p.status.as_ref())
            .flat_map(|s| {
                s.init_container_statuses
                    .iter()
                    .flatten()
                    .chain(s.container_statuses.iter().flatten())
            });
        let restarts = statuses.fold(0_i32, |sum, s| sum.saturating_add(s.restart_count));
        if limit == 0 {
            restarts > 0
        } else {
            restarts >= limit
        }
    }

    fn success_policy(&self) -> Option<End> {
        let policy = self.spec.success_policy.as_ref()?;
        policy.rules.iter().enumerate().find_map(|(number, rule)| {
            let wanted = match &rule.succeeded_indexes {
                Some(text) => indexes::parse(text, self.completions()),
                None => (0..self.completions()).collect(),
            };
            let met = wanted.intersection(&self.succeeded_indexes).count();
            let needed = match (rule.succeeded_count, &rule.succeeded_indexes) {
                (Some(count), _) => usize::try_from(count).unwrap_or(0),
                (None, _) => wanted.len(),
            };
            (met >= needed && needed > 0).then(|| End {
                success: true,
                reason: "SuccessPolicy".into(),
                message: format!("Matched rules at index {number}"),
            })
        })
    }

    fn manage(&self, requeue: &mut Option<Duration>) -> (Vec<Arc<Pod>>, Vec<NewPod>) {
        if is_suspended(self.spec) {
            return (self.active.clone(), Vec::new());
        }
        let active = i32::try_from(self.active.len()).unwrap_or(i32::MAX);
        let parallelism = self.spec.parallelism.unwrap_or(1);
        let wanted = match self.spec.completions {
            None if self.succeeded > 0 => active,
            None => parallelism,
            Some(completions) => (completions - self.succeeded).clamp(0, parallelism.max(0)),
        };
        let delete = self.surplus(usize::try_from((active - wanted).max(0)).unwrap_or(0));
        if !delete.is_empty() {
            return (delete, Vec::new());
        }
        let terminating = if replaces_failed_only(self.spec) {
            self.terminating()
        } else {
            0
        };
        let missing = usize::try_from((wanted - terminating - active).max(0))
            .unwrap_or(0)
            .min(MAX_PER_PASS);
        if missing == 0 {
            return (Vec::new(), Vec::new());
        }
        if self.spec.backoff_limit_per_index.is_none()
            && let Some(wait) = self.backoff()
        {
            *requeue = clock::sooner(*requeue, Some(wait));
            return (Vec::new(), Vec::new());
        }
        if !is_indexed(self.spec) {
            return (
                Vec::new(),
                vec![
                    NewPod {
                        index: None,
                        failures: None
                    };
                    missing
                ],
            );
        }
        (Vec::new(), self.pending_indexes(missing, requeue))
    }

    fn terminating(&self) -> i32 {
        let count = self
            .pods
            .iter()
            .filter(|p| pod::is_terminating(p) && !pod::is_terminal(p))
            .count();
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    /// Active pods to remove: all with an index that is done, out of range or taken twice, and
    /// then as many as there are too many.
    fn surplus(&self, at_least: usize) -> Vec<Arc<Pod>> {
        let mut ranked = self.active.clone();
        ranked.sort_by(|a, b| pod::deletion_order((a, 0), (b, 0), self.now));
        let mut chosen: Vec<Arc<Pod>> = Vec::new();
        if is_indexed(self.spec) {
            let mut kept = HashSet::new();
            // The best to keep come last in the deletion order.
            for p in ranked.iter().rev() {
                let fits = index_of(p).is_some_and(|i| {
                    i < self.completions()
                        && !self.succeeded_indexes.contains(&i)
                        && !self.failed_indexes.contains(&i)
                        && kept.insert(i)
                });
                if !fits {
                    chosen.push(p.clone());
                }
            }
        }
        for p in ranked {
            if chosen.len() >= at_least {
                break;
            }
            if !chosen.iter().any(|c| c.metadata.uid == p.metadata.uid) {
                chosen.push(p);
            }
        }
        chosen.truncate(MAX_PER_PASS);
        chosen
    }

    /// Time until the next pod may be tried after failures without a success in between.
    fn backoff(&self) -> Option<Duration> {
        let ended = |success: bool| {
            self.pods.iter().filter(move |p| {
                if success {
                    pod::phase(p) == "Succeeded"
                } else {
                    is_failed(p, self.spec)
                }
            })
        };
        let last_success = ended(true).filter_map(|p| finish_time(p)).max();
        let failures: Vec<Timestamp> = ended(false)
            .filter_map(|p| finish_time(p))
            .filter(|t| last_success.is_none_or(|s| *t > s))
            .collect();
        let last = failures.iter().max()?;
        let delay = delay_seconds(i32::try_from(failures.len()).unwrap_or(i32::MAX));
        clock::until(self.now, clock::after(*last, delay))
    }

    fn pending_indexes(&self, missing: usize, requeue: &mut Option<Duration>) -> Vec<NewPod> {
        let taken: HashSet<i32> = self.active.iter().filter_map(|p| index_of(p)).collect();
        let blocked: HashSet<i32> = if replaces_failed_only(self.spec) {
            let stopping = self
                .pods
                .iter()
                .filter(|p| pod::is_terminating(p) && !pod::is_terminal(p));
            stopping.filter_map(|p| index_of(p)).collect()
        } else {
            HashSet::new()
        };
        let mut chosen = Vec::new();
        for index in 0..self.completions() {
            if chosen.len() == missing {
                break;
            }
            let done =
                self.succeeded_indexes.contains(&index) || self.failed_indexes.contains(&index);
            if done || taken.contains(&index) || blocked.contains(&index) {
                continue;
            }
            if self.spec.backoff_limit_per_index.is_none() {
                chosen.push(NewPod {
                    index: Some(index),
                    failures: None,
                });
                continue;
            }
            let mut counts = (0, 0);
            if let Some(last) = self.delayed.get(&index) {
                counts = failures(last);
                if is_ignored(self.spec.pod_failure_policy.as_ref(), last) {
                    counts.1 += 1
                } else {
                    counts.0 += 1
                }
                let at = clock::after(
                    finish_time(last).unwrap_or(self.now),
                    delay_seconds(counts.0 + counts.1),
                );
                if let Some(wait) = clock::until(self.now, at) {
                    *requeue = clock::sooner(*requeue, Some(wait));
                    continue;
                }
            }
            chosen.push(NewPod {
                index: Some(index),
                failures: Some(counts),
            });
        }
        chosen
    }

    fn is_complete(&self, deleting: usize, creating: usize) -> bool {
        let active = self.active.len().saturating_sub(deleting) + creating;
        if active > 0 {
            return false;
        }
        match self.spec.completions {
            None => self.succeeded > 0,
            Some(completions) => self.succeeded >= completions,
        }
    }

    fn note_suspension(&mut self) -> Option<(&'static str, &'static str)> {
        let known = self
            .status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Suspended")
            .map(|c| c.status.clone());
        match (is_suspended(self.spec), known.as_deref()) {
            (true, Some("True")) | (false, None | Some("False")) => None,
            (true, _) => {
                set_condition(
                    &mut self.status,
                    "Suspended",
                    "True",
                    "JobSuspended",
                    "Job suspended",
                    self.now,
                );
                Some(("Suspended", "Job suspended"))
            }
            (false, _) => {
                set_condition(
                    &mut self.status,
                    "Suspended",
                    "False",
                    "JobResumed",
                    "Job resumed",
                    self.now,
                );
                // The deadline counts the time of being active without a break.
                self.status.start_time = Some(clock::stamp(self.now));
                Some(("Resumed", "Job resumed"))
            }
        }
    }

    /// Enters finished pods as uncounted; returns those that may lose their finalizer once the
    /// status is written.
    fn track(&mut self, end: Option<&End>) -> Vec<Arc<Pod>> {
        let failing = end.is_some_and(|e| !e.success);
        let deleting = self.job.metadata.deletion_timestamp.is_some();
        let indexed = is_indexed(self.spec);
        let mut strip = Vec::new();
        for p in self.pods.iter().filter(|p| is_tracked(p)) {
            let failed = is_failed(p, self.spec);
            let succeeded = pod::phase(p) == "Succeeded";
            if !(deleting || end.is_some() || succeeded || failed) {
                continue;
            }
            let awaits_replacement = index_of(p)
                .and_then(|i| self.delayed.get(&i))
                .is_some_and(|d| d.metadata.uid == p.metadata.uid);
            if awaits_replacement && end.is_none() && !deleting {
                continue;
            }
            let (known_success, known_failure) = self.is_known(p);
            let in_range = !indexed || index_of(p).is_some_and(|i| i < self.completions());
            if succeeded && !known_failure {
                if !indexed && !known_success {
                    self.uncounted
                        .succeeded
                        .get_or_insert_default()
                        .push(uid(p));
                }
            } else if (failed || failing)
                && !known_failure
                && in_range
                && !is_ignored(self.spec.pod_failure_policy.as_ref(), p)
            {
                self.uncounted.failed.get_or_insert_default().push(uid(p));
            }
            strip.push(p.clone());
            if strip.len() >= MAX_UNCOUNTED {
                break;
            }
        }
        self.status.uncounted_terminated_pods = Some(self.uncounted.clone());
        strip
    }

    fn write_counts(&mut self, delete: &[Arc<Pod>], created: usize) {
        let gone: HashSet<&Option<String>> = delete.iter().map(|p| &p.metadata.uid).collect();
        let staying: Vec<_> = self
            .active
            .iter()
            .filter(|p| !gone.contains(&p.metadata.uid))
            .collect();
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        self.status.active = Some(number(staying.len() + created)).filter(|n| *n != 0);
        self.status.ready = Some(number(staying.iter().filter(|p| pod::is_ready(p)).count()));
        self.status.terminating = Some(self.terminating() + number(delete.len()));
        if is_indexed(self.spec) {
            self.status.succeeded = Some(self.succeeded).filter(|n| *n != 0);
            self.status.completed_indexes =
                Some(indexes::write(&self.succeeded_indexes)).filter(|s| !s.is_empty());
            if self.spec.backoff_limit_per_index.is_some() {
                self.status.failed_indexes = Some(indexes::write(&self.failed_indexes));
            }
        }
    }
}

pub(crate) fn set_condition(
    status: &mut JobStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    if conditions
        .iter()
        .any(|c| c.type_ == kind && c.status == value && c.reason.as_deref() == Some(reason))
    {
        return;
    }
    let next = JobCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(clock::stamp(now)),
        last_transition_time: Some(clock::stamp(now)),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(known) => *known = next,
        None => conditions.push(next),
    }
}

#[cfg(test)]
mod tests;
