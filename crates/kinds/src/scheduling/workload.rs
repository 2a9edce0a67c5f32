//! Workload.

use crate::kind::Kind;

pub(crate) static WORKLOAD: Kind = Kind {
    group: "scheduling.k8s.io",
    resource: "workloads",
    storage_version: "v1alpha2",
    ..Kind::GENERIC
};
