//! Control groups: QoS and pod levels are the node's, container levels the runtime's.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::Result;

/// Paths are relative to the hierarchy's root and start with `/`; the implementation puts its
/// own root in front, so that instances on one machine do not meet.
#[async_trait]
pub trait Cgroups: Send + Sync + 'static {
    /// 1 or 2; a machine with neither is an error at start-up.
    fn version(&self) -> u8;
    /// Creates the group with its parents where absent and writes the limits. Idempotent.
    async fn ensure(&self, path: &str, resources: &CgroupResources) -> Result<()>;
    /// Kills what is left inside and removes the group with its children. Idempotent.
    async fn remove(&self, path: &str) -> Result<()>;
    async fn stats(&self, path: &str) -> Result<CgroupStats>;
    /// Names of the direct children of `path`; empty when it does not exist.
    async fn children(&self, path: &str) -> Result<Vec<String>>;
}

/// `None` leaves a value as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupResources {
    /// v1 shares (2..=262144); v2 gets the weight that upstream's formula gives.
    pub cpu_shares: Option<u64>,
    /// Microseconds per `cpu_period_us`; `-1` is unlimited.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    /// Bytes; `-1` is unlimited.
    pub memory_limit_bytes: Option<i64>,
    pub memory_min_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    pub cpuset_cpus: Option<String>,
    /// Page size (`2Mi` is 2097152) and limit, in bytes.
    pub hugepage_limits: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct CgroupStats {
    pub cpu_usage_ns: u64,
    pub cpu_throttled_ns: u64,
    pub memory_usage_bytes: u64,
    /// Usage less inactive file pages: what eviction and `kubectl top` go by.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    /// `None` when unlimited.
    pub memory_limit_bytes: Option<u64>,
    pub memory_page_faults: u64,
    pub memory_major_page_faults: u64,
    pub pids: u64,
    pub oom_kills: u64,
}
