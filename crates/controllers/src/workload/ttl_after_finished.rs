//! Deletes Jobs some time after they have finished.

use async_trait::async_trait;
use k8s_openapi::api::batch::v1::Job;
use keelson_client::{
    Client, Controller, ControllerContext, DeleteOptions, Informer, Key, Outcome, Propagation,
    ReconcileError, Watches,
};

use super::job_plan;
use crate::{clock, pod};

pub(crate) struct TtlAfterFinishedController {
    client: Client,
    jobs: Informer<Job>,
}

impl TtlAfterFinishedController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            jobs: context.informer(),
        }
    }
}

/// When the Job is due, if it ever is. Pure.
fn due(job: &Job) -> Option<jiff::Timestamp> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let finished = job_plan::finished_condition(job)?
        .last_transition_time
        .as_ref()?
        .0;
    Some(clock::after(finished, i64::from(ttl)))
}

#[async_trait]
impl Controller for TtlAfterFinishedController {
    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.mapped(&self.jobs, |change| match due(change.object()) {
            Some(_) => vec![Key::of(&change.object().metadata)],
            None => Vec::new(),
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(at) = self
            .jobs
            .get(&key.namespace, &key.name)
            .and_then(|job| due(&job))
        else {
            return Ok(Outcome::Done);
        };
        if let Some(left) = clock::until(clock::now(), at) {
            return Ok(Outcome::RequeueAfter(left));
        }
        // The lifetime may just have been prolonged: the deletion is decided on the newest form.
        let Some(fresh) = self
            .client
            .try_get::<Job>(&key.namespace, &key.name)
            .await?
        else {
            return Ok(Outcome::Done);
        };
        match due(&fresh) {
            Some(at) if clock::until(clock::now(), at).is_none() => {}
            _ => return Ok(Outcome::Done),
        }
        let options = DeleteOptions {
            propagation: Some(Propagation::Foreground),
            ..DeleteOptions::default()
        };
        let options = options.uid(pod::uid(&fresh.metadata));
        match self
            .client
            .delete::<Job>(&key.namespace, &key.name, &options)
            .await
        {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_finished_jobs_with_a_lifetime_are_due() {
        let job = |ttl: Option<i32>, kind: &str| -> Job {
            serde_json::from_value(json!({
                "spec": {"template": {}, "ttlSecondsAfterFinished": ttl},
                "status": {"conditions": [{"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            }))
            .unwrap()
        };
        assert_eq!(
            due(&job(Some(60), "Complete")).unwrap().to_string(),
            "2026-01-01T00:01:00Z"
        );
        assert!(due(&job(Some(0), "Failed")).is_some());
        assert!(due(&job(None, "Complete")).is_none());
        assert!(due(&job(Some(5), "Suspended")).is_none());
    }
}
