//! The group `autoscaling`.

mod convert;
pub(crate) mod horizontal_pod_autoscaler;
