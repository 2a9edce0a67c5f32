//! The group `scheduling.k8s.io`.

pub(crate) mod pod_group;
pub(crate) mod priority_class;
mod template;
pub(crate) mod workload;
