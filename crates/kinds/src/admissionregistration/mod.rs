//! The group `admissionregistration.k8s.io`.

pub(crate) mod policy;
pub(crate) mod policy_binding;
mod rule;
pub(crate) mod webhook;

const GROUP: &str = "admissionregistration.k8s.io";

pub(crate) use rule::client_config as rule_of_client;
