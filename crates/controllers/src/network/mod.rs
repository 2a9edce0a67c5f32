//! Controllers of what Services need.

pub(crate) mod address;
pub(crate) mod endpoint_slice;
pub(crate) mod endpoint_slice_mirroring;
pub(crate) mod endpoints;
pub(crate) mod service_cidr;
pub(crate) mod slice_plan;
