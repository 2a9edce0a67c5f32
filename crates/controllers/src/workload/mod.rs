//! Controllers of what runs pods.

pub(crate) mod deployment;
pub(crate) mod deployment_plan;
pub(crate) mod replica_controller;
pub(crate) mod replica_set;
pub(crate) mod replicas;
pub(crate) mod replication_controller;
