//! CronJob: Jobs at set times.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use keelson_client::{
    Controller, ControllerContext, DeleteOptions, Informer, Key, Outcome, ReconcileError, Watches,
};
use keelson_semantics::schedule::Schedule;

use super::job_plan::{finished_condition, is_finished};
use crate::owner::{Owner, controller_of};
use crate::{children, clock, pod};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are reported: the clock jumped or the controller was away for long.
const MANY_MISSED: usize = 100;

pub(crate) struct CronJobController {
    context: ControllerContext,
    cron_jobs: Informer<CronJob>,
    jobs: Informer<Job>,
}

/// What the clock asks for.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    /// The newest time that has come and was not served.
    at: Option<Timestamp>,
    next: Option<Timestamp>,
    many_missed: bool,
}

/// Times between the last run and now. Pure.
fn due(
    schedule: &Schedule,
    zone: &TimeZone,
    since: Timestamp,
    deadline_seconds: Option<i64>,
    now: Timestamp,
) -> Due {
    let earliest = match deadline_seconds {
        Some(seconds) => since.max(clock::after(now, -seconds)),
        None => since,
    };
    let mut at = None;
    let mut missed = 0_usize;
    let mut next = schedule.next(earliest, zone);
    while let Some(time) = next.filter(|t| *t <= now) {
        at = Some(time);
        missed += 1;
        // After a long absence the times are skipped, not walked through one by one.
        let from = if missed > MANY_MISSED {
            time.max(clock::after(now, -(7 * 86_400)))
        } else {
            time
        };
        if missed > 100_000 {
            next = schedule.next(now, zone);
            break;
        }
        next = schedule.next(from, zone);
    }
    Due {
        at,
        next,
        many_missed: missed > MANY_MISSED,
    }
}

impl CronJobController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            context: context.clone(),
            cron_jobs: context.informer(),
            jobs: context.informer(),
        };
        children::index(&this.jobs);
        this
    }

    /// Brings the list of active Jobs and the time of the last success up to date.
    async fn refresh(&self, cron: &mut CronJob, jobs: &[Arc<Job>]) {
        let events = &self.context.events;
        let observed = cron.clone();
        let status = cron.status.get_or_insert_default();
        let mut active = status.active.take().unwrap_or_default();
        for job in jobs {
            let listed = active.iter().position(|r| r.uid == job.metadata.uid);
            let name = pod::name(&job.metadata);
            match (listed, finished_condition(job)) {
                (Some(position), Some(condition)) => {
                    active.remove(position);
                    let message =
                        format!("Saw completed job: {name}, condition: {}", condition.type_);
                    events.normal(&observed, "SawCompletedJob", message);
                }
                (None, None) => {
                    let message =
                        format!("Saw a job that the controller did not create or forgot: {name}");
                    events.warning(&observed, "UnexpectedJob", message);
                }
                _ => {}
            }
            let completed = job.status.as_ref().and_then(|s| s.completion_time.as_ref());
            if let Some(time) =
                completed.filter(|_| finished_condition(job).is_some_and(|c| c.type_ == "Complete"))
            {
                let newer = status
                    .last_successful_time
                    .as_ref()
                    .is_none_or(|t| t.0 < time.0);
                if newer {
                    status.last_successful_time = Some(time.clone());
                }
            }
        }
        active.retain(|r| {
            let there = jobs.iter().any(|j| j.metadata.uid == r.uid);
            if !there {
                let name = r.name.as_deref().unwrap_or_default();
                events.normal(
                    &observed,
                    "MissingJob",
                    format!("Active job went missing: {name}"),
                );
            }
            there
        });
        status.active = Some(active).filter(|a| !a.is_empty());
    }

    async fn delete_job(&self, cron: &CronJob, job: &Job) -> Result<(), ReconcileError> {
        let name = pod::name(&job.metadata);
        let options = DeleteOptions::background().uid(pod::uid(&job.metadata));
        match self
            .context
            .client
            .delete::<Job>(pod::namespace(&job.metadata), name, &options)
            .await
        {
            Err(error) if !error.is_not_found() => {
                self.context
                    .events
                    .warning(cron, "FailedDelete", format!("Deleted job: {error}"));
                Err(error.into())
            }
            _ => {
                self.context
                    .events
                    .normal(cron, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
        }
    }

    async fn clean_up(&self, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<(), ReconcileError> {
        let spec = &cron.spec;
        let limits = [
            ("Complete", spec.successful_jobs_history_limit),
            ("Failed", spec.failed_jobs_history_limit),
        ];
        for (kind, limit) in limits {
            let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else {
                continue;
            };
            let mut finished: Vec<&Arc<Job>> = jobs
                .iter()
                .filter(|j| finished_condition(j).is_some_and(|c| c.type_ == kind))
                .collect();
            finished.sort_by_key(|j| {
                (
                    j.status
                        .as_ref()
                        .and_then(|s| s.start_time.as_ref())
                        .map(|t| t.0),
                    j.metadata.name.clone(),
                )
            });
            let surplus = finished.len().saturating_sub(limit);
            for job in finished.into_iter().take(surplus) {
                self.delete_job(cron, job).await?;
            }
        }
        Ok(())
    }

    /// Starts the Job of a time; returns whether that time is served.
    async fn start(
        &self,
        cron: &mut CronJob,
        jobs: &[Arc<Job>],
        at: Timestamp,
    ) -> Result<(), ReconcileError> {
        let events = &self.context.events;
        let spec = cron.spec.clone();
        let active = cron
            .status
            .as_ref()
            .and_then(|s| s.active.clone())
            .unwrap_or_default();
        let name = format!("{}-{}", pod::name(&cron.metadata), at.as_second() / 60);
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                events.normal(cron, "JobAlreadyActive", message);
                return Ok(());
            }
            Some("Replace") => {
                for reference in &active {
                    if let Some(job) = jobs.iter().find(|j| j.metadata.uid == reference.uid) {
                        self.delete_job(cron, job).await?;
                    }
                }
                cron.status.get_or_insert_default().active = None;
            }
            _ => {}
        }
        let owner = Owner::new("batch/v1", "CronJob", &cron.metadata);
        let template = spec.job_template;
        let from = template.metadata.unwrap_or_default();
        let mut annotations = from.annotations.unwrap_or_default();
        annotations.insert(
            SCHEDULED_AT.to_owned(),
            at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        );
        let job = Job {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: cron.metadata.namespace.clone(),
                labels: from.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![owner.reference()]),
                ..ObjectMeta::default()
            },
            spec: template.spec,
            status: None,
        };
        let created = match self.context.client.create(&job).await {
            Ok(created) => {
                events.normal(cron, "SuccessfulCreate", format!("Created job {name}"));
                created
            }
            Err(error) if error.is_already_exists() => {
                // Made by an earlier pass that did not get to write the status.
                let known = self
                    .context
                    .client
                    .get::<Job>(&owner.namespace, &name)
                    .await?;
                if !owner.owns(&known.metadata) {
                    return Err(error.into());
                }
                known
            }
            Err(error) if error.is_namespace_terminating() => return Ok(()),
            Err(error) => {
                events.warning(cron, "FailedCreate", format!("Error creating job: {error}"));
                return Err(error.into());
            }
        };
        let status = cron.status.get_or_insert_default();
        let active = status.active.get_or_insert_default();
        if !is_finished(&created) && !active.iter().any(|r| r.uid == created.metadata.uid) {
            active.push(ObjectReference {
                api_version: Some("batch/v1".into()),
                kind: Some("Job".into()),
                name: created.metadata.name,
                namespace: created.metadata.namespace,
                uid: created.metadata.uid,
                resource_version: created.metadata.resource_version,
                field_path: None,
            });
        }
        status.last_schedule_time = Some(Time(at));
        Ok(())
    }

    /// Everything that the clock asks for; returns when to look again.
    async fn run_due(
        &self,
        cron: &mut CronJob,
        jobs: &[Arc<Job>],
    ) -> Result<Option<Duration>, ReconcileError> {
        let spec = cron.spec.clone();
        let events = &self.context.events;
        if cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
            return Ok(None);
        }
        let zone = match spec.time_zone.as_deref() {
            None => TimeZone::system(),
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(error) => {
                    events.warning(
                        cron,
                        "UnknownTimeZone",
                        format!("invalid timeZone: {name:?}: {error}"),
                    );
                    return Ok(None);
                }
            },
        };
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
                events.warning(cron, "UnparseableSchedule", message);
                return Ok(None);
            }
        };
        let now = clock::now();
        let last = cron
            .status
            .as_ref()
            .and_then(|s| s.last_schedule_time.as_ref());
        let since = last
            .or(cron.metadata.creation_timestamp.as_ref())
            .map_or(now, |t| t.0);
        let due = due(&schedule, &zone, since, spec.starting_deadline_seconds, now);
        if due.many_missed {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            events.warning(cron, "TooManyMissedTimes", message);
        }
        if let Some(at) = due.at {
            self.start(cron, jobs, at).await?;
        }
        Ok(due
            .next
            .and_then(|next| clock::until(now, next))
            .map(|left| left + Duration::from_millis(100)))
    }
}

#[async_trait]
impl Controller for CronJobController {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn workers(&self) -> usize {
        5
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.cron_jobs);
        watches.mapped(&self.jobs, |change| {
            let meta = &change.object().metadata;
            controller_of(meta)
                .filter(|r| r.kind == "CronJob")
                .map(|r| Key::new(pod::namespace(meta), &*r.name))
                .into_iter()
                .collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(known) = self.cron_jobs.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let jobs = children::controlled(&self.jobs, pod::uid(&known.metadata));
        let mut cron = CronJob::clone(&known);
        self.refresh(&mut cron, &jobs).await;
        self.clean_up(&cron, &jobs).await?;
        let requeue = self.run_due(&mut cron, &jobs).await?;
        if cron.status.clone().unwrap_or_default() != known.status.clone().unwrap_or_default() {
            match self.context.client.update_status(&cron).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(requeue.map_or(Outcome::Done, Outcome::RequeueAfter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_newest_missed_time_is_run() {
        let schedule = Schedule::parse("*/10 * * * *").unwrap();
        let found = due(
            &schedule,
            &TimeZone::UTC,
            at("2026-01-01T00:00:00Z"),
            None,
            at("2026-01-01T00:35:00Z"),
        );
        assert_eq!(found.at, Some(at("2026-01-01T00:30:00Z")));
        assert_eq!(found.next, Some(at("2026-01-01T00:40:00Z")));
        assert!(!found.many_missed);
    }

    #[test]
    fn a_deadline_forgets_older_times() {
        let schedule = Schedule::parse("0 * * * *").unwrap();
        let found = due(
            &schedule,
            &TimeZone::UTC,
            at("2026-01-01T00:00:00Z"),
            Some(60),
            at("2026-01-01T03:30:00Z"),
        );
        assert_eq!(found.at, None);
        assert_eq!(found.next, Some(at("2026-01-01T04:00:00Z")));
    }

    #[test]
    fn a_long_absence_is_reported_and_bounded() {
        let schedule = Schedule::parse("* * * * *").unwrap();
        let found = due(
            &schedule,
            &TimeZone::UTC,
            at("2020-01-01T00:00:00Z"),
            None,
            at("2026-01-01T00:00:30Z"),
        );
        assert!(found.many_missed);
        assert_eq!(found.at, Some(at("2026-01-01T00:00:00Z")));
    }
}
