//! Job: pods that run to completion, counted exactly once through a finalizer on each.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    Change, Controller, ControllerContext, Error, Informer, Key, Outcome, Patch, ReconcileError,
    Watches,
};
use keelson_semantics::label_selector;
use serde_json::json;

use super::job_plan::indexes::INDEX;
use super::job_plan::{
    self as plan, FAILURES, FINALIZER, IGNORED_FAILURES, NewPod, Plan, is_tracked,
};
use crate::owner::{Owner, controller_of};
use crate::{children, clock, pod};

const MANAGED_BY: &str = "kubernetes.io/job-controller";
const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";

pub(crate) struct JobController {
    context: ControllerContext,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
}

impl JobController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            context: context.clone(),
            jobs: context.informer(),
            pods: context.informer(),
        };
        children::index(&this.pods);
        this
    }

    async fn strip(&self, pods: &[Arc<Pod>]) -> Result<(), Error> {
        children::side_by_side(pods.iter().cloned().map(|p| async move {
            let rest: Vec<&String> = p
                .metadata
                .finalizers
                .iter()
                .flatten()
                .filter(|f| *f != FINALIZER)
                .collect();
            let patch = Patch::Merge(json!({"metadata": {
                "uid": p.metadata.uid,
                "resourceVersion": p.metadata.resource_version,
                "finalizers": rest,
            }}));
            let (namespace, name) = (pod::namespace(&p.metadata), pod::name(&p.metadata));
            match self
                .context
                .client
                .patch::<Pod>(namespace, name, &patch, None)
                .await
            {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        }))
        .await
    }

    /// The Job is gone: its pods must not be held by a finalizer that nobody would remove.
    async fn release_orphans(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let orphans: Vec<Arc<Pod>> = self
            .pods
            .list_in(&key.namespace)
            .into_iter()
            .filter(|p| is_tracked(p))
            .filter(|p| {
                controller_of(&p.metadata).is_none_or(|r| r.kind == "Job" && r.name == key.name)
            })
            .filter(|p| {
                controller_of(&p.metadata).is_some()
                    || pod::label(&p.metadata, "job-name") == Some(&key.name)
            })
            .collect();
        self.strip(&orphans).await?;
        Ok(Outcome::Done)
    }

    async fn write(&self, job: &Job, status: JobStatus) -> Result<Job, ReconcileError> {
        if job
            .status
            .as_ref()
            .is_some_and(|known| same(known, &status))
        {
            return Ok(job.clone());
        }
        let next = Job {
            status: Some(status),
            ..job.clone()
        };
        Ok(self.context.client.update_status(&next).await?)
    }

    async fn create(&self, job: &Job, owner: &Owner, new: &[NewPod]) -> Option<Error> {
        let template = job
            .spec
            .as_ref()
            .map(|s| s.template.clone())
            .unwrap_or_default();
        let error = children::slow_start(new.len(), |position| {
            let p = draft(owner, &template, &new[position]);
            async move {
                children::create_pod(&self.context.client, &self.context.events, job, &p)
                    .await
                    .map(drop)
            }
        })
        .await;
        error.filter(|e| !e.is_namespace_terminating())
    }

    async fn apply(
        &self,
        job: &Job,
        owner: &Owner,
        pods: &[Arc<Pod>],
        plan: Plan,
    ) -> Result<Outcome, ReconcileError> {
        let mut failed = children::delete_pods(
            &self.context.client,
            &self.context.events,
            job,
            &plan.delete,
        )
        .await;
        let mut status = plan.status;
        if let Some(error) = self.create(job, owner, &plan.create).await {
            // How many were created is not known exactly; the next pass counts.
            status.active = job.status.as_ref().and_then(|s| s.active);
            failed.get_or_insert(error);
        }
        if let Some((reason, message)) = plan.suspension {
            self.context.events.normal(job, reason, message);
        }
        let written = self.write(job, status.clone()).await?;
        self.strip(&plan.strip).await?;
        let stripped: HashSet<&Option<String>> =
            plan.strip.iter().map(|p| &p.metadata.uid).collect();
        let tracked: HashSet<String> = pods
            .iter()
            .filter(|p| is_tracked(p) && !stripped.contains(&p.metadata.uid))
            .map(|p| pod::uid(&p.metadata).to_owned())
            .collect();
        plan::fold(&mut status, &tracked);
        let finished =
            plan.may_finish && failed.is_none() && plan::is_counted(&status) && tracked.is_empty();
        if let Some(end) = plan.end.as_ref().filter(|_| finished) {
            let now = clock::now();
            let kind = if end.success { "Complete" } else { "Failed" };
            plan::set_condition(&mut status, kind, "True", &end.reason, &end.message, now);
            if end.success {
                status.completion_time = Some(clock::stamp(now));
            }
        }
        self.write(&written, status).await?;
        if let Some(end) = plan.end.as_ref().filter(|_| finished) {
            if end.success {
                self.context
                    .events
                    .normal(job, "Completed", "Job completed");
            } else {
                self.context
                    .events
                    .warning(job, &end.reason, end.message.clone());
            }
        }
        match (failed, plan.requeue) {
            (Some(error), _) => Err(error.into()),
            (None, Some(delay)) => Ok(Outcome::RequeueAfter(delay)),
            (None, None) => Ok(Outcome::Done),
        }
    }
}

/// Equal up to the difference between absent and zero or empty.
fn same(a: &JobStatus, b: &JobStatus) -> bool {
    let plain = |s: &JobStatus| {
        let mut s = s.clone();
        for number in [
            &mut s.active,
            &mut s.succeeded,
            &mut s.failed,
            &mut s.ready,
            &mut s.terminating,
        ] {
            *number = Some(number.unwrap_or(0));
        }
        let uncounted = s.uncounted_terminated_pods.get_or_insert_default();
        uncounted.succeeded.get_or_insert_default();
        uncounted.failed.get_or_insert_default();
        s.conditions.get_or_insert_default();
        s
    };
    plain(a) == plain(b)
}

/// A pod of the Job.
fn draft(owner: &Owner, template: &PodTemplateSpec, new: &NewPod) -> Pod {
    let prefix = match new.index {
        Some(index) => format!("{}-{index}-", owner.name),
        None => format!("{}-", owner.name),
    };
    let mut p = pod::from_template(template, &owner.namespace, Some(prefix), owner.reference());
    let finalizers = p.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let Some(index) = new.index else { return p };
    let annotations = p.metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some((counted, ignored)) = new.failures {
        annotations.insert(FAILURES.to_owned(), counted.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURES.to_owned(), ignored.to_string());
        }
    }
    p.metadata
        .labels
        .get_or_insert_with(BTreeMap::new)
        .insert(INDEX.to_owned(), index.to_string());
    if let Some(spec) = &mut p.spec {
        spec.hostname = Some(format!("{}-{index}", owner.name));
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            let env = container.env.get_or_insert_default();
            if !env.iter().any(|e| e.name == INDEX_ENV) {
                env.push(EnvVar {
                    name: INDEX_ENV.to_owned(),
                    value: None,
                    value_from: Some(EnvVarSource {
                        field_ref: Some(ObjectFieldSelector {
                            field_path: format!("metadata.labels['{INDEX}']"),
                            api_version: None,
                        }),
                        ..EnvVarSource::default()
                    }),
                });
            }
        }
    }
    p
}

fn selects(job: &Job, meta: &ObjectMeta) -> bool {
    let chosen = job.spec.as_ref().and_then(|s| s.selector.as_ref());
    chosen.is_some_and(|s| {
        !label_selector::is_empty(s) && label_selector::matches(s, meta.labels.as_ref())
    })
}

#[async_trait]
impl Controller for JobController {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn workers(&self) -> usize {
        5
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.jobs);
        watches.owned(&self.pods, "Job");
        let jobs = self.jobs.clone();
        watches.mapped(&self.pods, move |change| {
            let mut keys = children::adopters(&jobs, change, selects);
            let p = change.object();
            // A tracked pod that was orphaned on purpose still has to be let go.
            if !matches!(change, Change::Deleted(_))
                && is_tracked(p)
                && controller_of(&p.metadata).is_none()
            {
                keys.extend(
                    pod::label(&p.metadata, "job-name")
                        .map(|n| Key::new(pod::namespace(&p.metadata), n)),
                );
            }
            keys
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(job) = self.jobs.get(&key.namespace, &key.name) else {
            return self.release_orphans(key).await;
        };
        let Some(spec) = &job.spec else {
            return Ok(Outcome::Done);
        };
        if spec.managed_by.as_deref().is_some_and(|m| m != MANAGED_BY) || plan::is_finished(&job) {
            return Ok(Outcome::Done);
        }
        if !matches!(
            spec.completion_mode.as_deref(),
            None | Some("NonIndexed" | "Indexed")
        ) {
            let message = "Skipped Job sync because completion mode is unknown";
            self.context
                .events
                .warning(&*job, "UnknownCompletionMode", message);
            return Ok(Outcome::Done);
        }
        let owner = Owner::new("batch/v1", "Job", &job.metadata).with_finalizer(FINALIZER);
        let candidates = children::candidates(&self.pods, &owner);
        let pods = children::claim::<Job, Pod>(&self.context.client, &owner, candidates, |meta| {
            selects(&job, meta)
        })
        .await?;
        let Some(plan) = plan::plan(&job, &pods, clock::now()) else {
            return Ok(Outcome::Done);
        };
        self.apply(&job, &owner, &pods, plan).await
    }
}
