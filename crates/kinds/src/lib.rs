//! What the kinds of Kubernetes have of their own: defaults, validation, update rules, table
//! columns, selectable fields. One file a kind, one row in [`KINDS`]; names, scope, verbs and
//! versions come from the generated discovery facts in `keelson-api`, everything else from the
//! generic engine.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod apps;
mod batch;
mod cell;
mod certificates;
mod check;
mod core;
mod kind;
mod rules;
mod tree;
mod workload;

pub use kind::{Column, Kind, UpdateContext};

/// Every kind with rules of its own, sorted by group and resource.
pub static KINDS: &[&Kind] = &[
    &core::config_map::CONFIG_MAP,
    &core::endpoints::ENDPOINTS,
    &core::event::EVENT,
    &core::limit_range::LIMIT_RANGE,
    &core::namespace::NAMESPACE,
    &core::node::NODE,
    &core::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM,
    &core::persistent_volume::PERSISTENT_VOLUME,
    &core::pod::POD,
    &core::pod_template::POD_TEMPLATE,
    &core::replication_controller::REPLICATION_CONTROLLER,
    &core::resource_quota::RESOURCE_QUOTA,
    &core::secret::SECRET,
    &core::service_account::SERVICE_ACCOUNT,
    &core::service::SERVICE,
    &apps::controller_revision::CONTROLLER_REVISION,
    &apps::daemon_set::DAEMON_SET,
    &apps::deployment::DEPLOYMENT,
    &apps::replica_set::REPLICA_SET,
    &apps::stateful_set::STATEFUL_SET,
    &batch::cron_job::CRON_JOB,
    &batch::job::JOB,
    &core::event::EVENT_OF_ITS_OWN_GROUP,
];

/// The row of a resource; [`Kind::GENERIC`] for one without rules of its own.
pub fn kind(group: &str, resource: &str) -> &'static Kind {
    KINDS.iter().find(|k| k.group == group && k.resource == resource).copied().unwrap_or(&Kind::GENERIC)
}
