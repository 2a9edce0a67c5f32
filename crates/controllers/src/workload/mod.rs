//! Controllers of what runs pods.

pub(crate) mod cron_job;
pub(crate) mod daemon_set;
pub(crate) mod daemon_set_plan;
pub(crate) mod deployment;
pub(crate) mod deployment_plan;
pub(crate) mod disruption;
pub(crate) mod history;
pub(crate) mod job;
pub(crate) mod job_plan;
pub(crate) mod replica_controller;
pub(crate) mod replica_set;
pub(crate) mod replicas;
pub(crate) mod replication_controller;
pub(crate) mod stateful_set;
pub(crate) mod stateful_set_plan;
pub(crate) mod ttl_after_finished;
