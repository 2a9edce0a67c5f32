//! Controllers of what every namespace and every object needs.

pub(crate) mod cluster_role_aggregation;
pub(crate) mod garbage_collector;
pub(crate) mod graph;
pub(crate) mod namespace;
pub(crate) mod resource_quota;
pub(crate) mod root_ca;
pub(crate) mod service_account;
pub(crate) mod service_account_token;
