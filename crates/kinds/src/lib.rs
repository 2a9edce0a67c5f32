//! What the kinds of Kubernetes have of their own: defaults, validation, update rules, table
//! columns, selectable fields. One file a kind, one row in [`KINDS`]; names, scope, verbs and
//! versions come from the generated discovery facts in `keelson-api`, everything else from the
//! generic engine.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admissionregistration;
mod apiextensions;
mod apiregistration;
mod apps;
mod authorization;
mod autoscaling;
mod batch;
mod cell;
mod certificates;
mod check;
mod columns;
mod coordination;
mod core;
pub mod custom;
mod discovery;
pub mod expressions;
pub mod flowcontrol;
mod internal;
mod kind;
mod lifecycle;
mod networking;
mod node;
mod policy;
mod rbac;
mod resource;
mod rules;
mod scheduling;
mod storage;
mod tree;
mod workload;

pub use apiextensions::custom_resource_definition::CUSTOM_RESOURCE_CLEANUP;
pub use columns::column_description;
pub use core::service::addresses::service_addresses;
pub use kind::{Column, Kind, ResetFields, UpdateContext};
pub use lifecycle::deprecation;

/// Every kind with rules of its own, sorted by group and resource.
pub static KINDS: &[&Kind] = &[
    &core::binding::BINDING,
    &core::component_status::COMPONENT_STATUS,
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
    &admissionregistration::policy::MUTATING_ADMISSION_POLICY,
    &admissionregistration::policy_binding::MUTATING_ADMISSION_POLICY_BINDING,
    &admissionregistration::webhook::MUTATING_WEBHOOK_CONFIGURATION,
    &admissionregistration::policy::VALIDATING_ADMISSION_POLICY,
    &admissionregistration::policy_binding::VALIDATING_ADMISSION_POLICY_BINDING,
    &admissionregistration::webhook::VALIDATING_WEBHOOK_CONFIGURATION,
    &apiextensions::custom_resource_definition::CUSTOM_RESOURCE_DEFINITION,
    &apiregistration::api_service::API_SERVICE,
    &apps::controller_revision::CONTROLLER_REVISION,
    &apps::daemon_set::DAEMON_SET,
    &apps::deployment::DEPLOYMENT,
    &apps::replica_set::REPLICA_SET,
    &apps::stateful_set::STATEFUL_SET,
    &authorization::TOKEN_REVIEW,
    &authorization::LOCAL_SUBJECT_ACCESS_REVIEW,
    &authorization::SELF_SUBJECT_ACCESS_REVIEW,
    &authorization::SELF_SUBJECT_RULES_REVIEW,
    &authorization::SUBJECT_ACCESS_REVIEW,
    &autoscaling::horizontal_pod_autoscaler::HORIZONTAL_POD_AUTOSCALER,
    &batch::cron_job::CRON_JOB,
    &batch::job::JOB,
    &certificates::certificate_signing_request::CERTIFICATE_SIGNING_REQUEST,
    &certificates::cluster_trust_bundle::CLUSTER_TRUST_BUNDLE,
    &certificates::pod_certificate_request::POD_CERTIFICATE_REQUEST,
    &coordination::lease_candidate::LEASE_CANDIDATE,
    &coordination::lease::LEASE,
    &discovery::endpoint_slice::ENDPOINT_SLICE,
    &core::event::EVENT_OF_ITS_OWN_GROUP,
    &flowcontrol::flow_schema::FLOW_SCHEMA,
    &flowcontrol::priority_level_configuration::PRIORITY_LEVEL_CONFIGURATION,
    &internal::storage_version::STORAGE_VERSION,
    &networking::ingress_class::INGRESS_CLASS,
    &networking::ingress::INGRESS,
    &networking::ip_address::IP_ADDRESS,
    &networking::network_policy::NETWORK_POLICY,
    &networking::service_cidr::SERVICE_CIDR,
    &node::runtime_class::RUNTIME_CLASS,
    &policy::pod_disruption_budget::POD_DISRUPTION_BUDGET,
    &rbac::binding::CLUSTER_ROLE_BINDING,
    &rbac::role::CLUSTER_ROLE,
    &rbac::binding::ROLE_BINDING,
    &rbac::role::ROLE,
    &resource::device_class::DEVICE_CLASS,
    &resource::device_taint_rule::DEVICE_TAINT_RULE,
    &resource::resource_claim::RESOURCE_CLAIM,
    &resource::resource_claim_template::RESOURCE_CLAIM_TEMPLATE,
    &resource::resource_pool_status_request::RESOURCE_POOL_STATUS_REQUEST,
    &resource::resource_slice::RESOURCE_SLICE,
    &scheduling::pod_group::POD_GROUP,
    &scheduling::priority_class::PRIORITY_CLASS,
    &scheduling::workload::WORKLOAD,
    &storage::csi_driver::CSI_DRIVER,
    &storage::csi_node::CSI_NODE,
    &storage::csi_storage_capacity::CSI_STORAGE_CAPACITY,
    &storage::storage_class::STORAGE_CLASS,
    &storage::volume_attachment::VOLUME_ATTACHMENT,
    &storage::volume_attributes_class::VOLUME_ATTRIBUTES_CLASS,
    &internal::storage_version_migration::STORAGE_VERSION_MIGRATION,
];

/// The row of a resource; [`Kind::GENERIC`] for one without rules of its own.
pub fn kind(group: &str, resource: &str) -> &'static Kind {
    KINDS
        .iter()
        .find(|k| k.group == group && k.resource == resource)
        .copied()
        .unwrap_or(&Kind::GENERIC)
}
