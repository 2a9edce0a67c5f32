//! Controllers of nodes and of the pods on them.

pub(crate) mod ipam;
pub(crate) mod lifecycle;
pub(crate) mod pod_gc;
pub(crate) mod taint_eviction;
