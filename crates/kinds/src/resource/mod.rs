//! The group `resource.k8s.io`: devices and the claims on them.

mod convert;
mod device;
pub(crate) mod device_class;
pub(crate) mod device_taint_rule;
mod request_policy;
pub(crate) mod resource_claim;
pub(crate) mod resource_claim_template;
pub(crate) mod resource_pool_status_request;
pub(crate) mod resource_slice;

const GROUP: &str = "resource.k8s.io";
