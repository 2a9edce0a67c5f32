//! Resource arithmetic: quantities to cgroup values.

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_ports::CgroupResources;

use super::{init_containers, is_sidecar, regular_containers, spec};

const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const QUOTA_PERIOD_US: u64 = 100_000;
const MIN_QUOTA_US: i64 = 1_000;

/// The quantity in whole units, rounded up; an unparsable one counts as absent.
pub(crate) fn value(quantity: &Quantity) -> Option<i64> {
    keelson_machinery::quantity::Quantity::parse(&quantity.0)
        .ok()
        .map(|parsed| parsed.value())
}

pub(crate) fn milli_value(quantity: &Quantity) -> Option<i64> {
    keelson_machinery::quantity::Quantity::parse(&quantity.0)
        .ok()
        .map(|parsed| parsed.milli_value())
}

pub(crate) fn request<'a>(container: &'a Container, resource: &str) -> Option<&'a Quantity> {
    container
        .resources
        .as_ref()?
        .requests
        .as_ref()?
        .get(resource)
}

pub(crate) fn limit<'a>(container: &'a Container, resource: &str) -> Option<&'a Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(resource)
}

/// An absent request means the limit, as the API's defaulting has it.
pub(crate) fn cpu_request_milli(container: &Container) -> i64 {
    request(container, "cpu")
        .or_else(|| limit(container, "cpu"))
        .and_then(milli_value)
        .unwrap_or(0)
}

pub(crate) fn cpu_limit_milli(container: &Container) -> Option<i64> {
    limit(container, "cpu")
        .and_then(milli_value)
        .filter(|milli| *milli > 0)
}

pub(crate) fn memory_request_bytes(container: &Container) -> i64 {
    request(container, "memory")
        .or_else(|| limit(container, "memory"))
        .and_then(value)
        .unwrap_or(0)
}

pub(crate) fn memory_limit_bytes(container: &Container) -> Option<i64> {
    limit(container, "memory")
        .and_then(value)
        .filter(|bytes| *bytes > 0)
}

pub(crate) fn cpu_shares(milli: i64) -> u64 {
    let shares = u64::try_from(milli).unwrap_or(0).saturating_mul(1024) / 1000;
    shares.clamp(MIN_SHARES, MAX_SHARES)
}

pub(crate) fn cpu_quota_us(milli: i64) -> i64 {
    (milli.saturating_mul(QUOTA_PERIOD_US as i64) / 1000).max(MIN_QUOTA_US)
}

/// Limits of one container's cgroup.
pub(crate) fn container_cgroup(container: &Container, pids_limit: Option<i64>) -> CgroupResources {
    CgroupResources {
        cpu_shares: Some(cpu_shares(cpu_request_milli(container))),
        cpu_quota_us: cpu_limit_milli(container).map(cpu_quota_us),
        cpu_period_us: cpu_limit_milli(container).map(|_| QUOTA_PERIOD_US),
        memory_limit_bytes: memory_limit_bytes(container),
        pids_limit,
        hugepage_limits: hugepage_limits(container),
        ..CgroupResources::default()
    }
}

fn hugepage_limits(container: &Container) -> Vec<(u64, u64)> {
    let Some(limits) = container.resources.as_ref().and_then(|r| r.limits.as_ref()) else {
        return Vec::new();
    };
    limits
        .iter()
        .filter_map(|(name, quantity)| {
            let size = name.strip_prefix("hugepages-")?;
            let page = value(&Quantity(size.to_owned()))?;
            Some((
                u64::try_from(page).ok()?,
                u64::try_from(value(quantity)?).ok()?,
            ))
        })
        .collect()
}

/// Limits of the pod's own cgroup: the sum over containers that run together, at least the largest
/// init container. A limit is set only when every container has one.
pub(crate) fn pod_cgroup(pod: &Pod, pids_limit: Option<i64>) -> CgroupResources {
    let shares = cpu_shares(pod_sum(pod, cpu_request_milli));
    let cpu_limit = pod_level(pod, "cpu", milli_value).or_else(|| pod_limit(pod, cpu_limit_milli));
    let memory_limit =
        pod_level(pod, "memory", value).or_else(|| pod_limit(pod, memory_limit_bytes));
    CgroupResources {
        cpu_shares: Some(shares),
        cpu_quota_us: cpu_limit.map(cpu_quota_us),
        cpu_period_us: cpu_limit.map(|_| QUOTA_PERIOD_US),
        memory_limit_bytes: memory_limit,
        pids_limit,
        ..CgroupResources::default()
    }
}

fn pod_level(pod: &Pod, resource: &str, read: fn(&Quantity) -> Option<i64>) -> Option<i64> {
    spec(pod)
        .resources
        .as_ref()?
        .limits
        .as_ref()?
        .get(resource)
        .and_then(read)
        .filter(|v| *v > 0)
}

fn pod_limit(pod: &Pod, read: fn(&Container) -> Option<i64>) -> Option<i64> {
    let bounded = regular_containers(pod)
        .iter()
        .chain(init_containers(pod))
        .all(|c| read(c).is_some());
    let sum = pod_sum(pod, |c| read(c).unwrap_or(0));
    (bounded && sum > 0).then_some(sum)
}

/// What the pod needs at its peak: sidecars count from the moment they start.
pub(crate) fn pod_sum(pod: &Pod, read: impl Fn(&Container) -> i64) -> i64 {
    let mut sidecars = 0_i64;
    let mut init_peak = 0_i64;
    for container in init_containers(pod) {
        if is_sidecar(container) {
            sidecars = sidecars.saturating_add(read(container));
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(sidecars.saturating_add(read(container)));
        }
    }
    let regular = regular_containers(pod)
        .iter()
        .fold(sidecars, |sum, c| sum.saturating_add(read(c)));
    regular.max(init_peak)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn shares_and_quota_follow_the_kernel_bounds() {
        assert_eq!(cpu_shares(0), 2);
        assert_eq!(cpu_shares(100), 102);
        assert_eq!(cpu_shares(1_000_000_000), 262_144);
        assert_eq!(cpu_quota_us(500), 50_000);
        assert_eq!(cpu_quota_us(1), 1_000);
    }

    #[test]
    fn a_pod_without_a_limit_on_one_container_is_unlimited() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [
            {"name": "a", "resources": {"limits": {"memory": "1Mi", "cpu": "1"}}},
            {"name": "b", "resources": {"requests": {"memory": "1Mi"}, "limits": {"cpu": "500m"}}}]}}))
        .unwrap();
        let group = pod_cgroup(&pod, None);
        assert_eq!(group.memory_limit_bytes, None);
        assert_eq!(group.cpu_quota_us, Some(150_000));
    }

    #[test]
    fn init_containers_count_at_their_peak() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "2"}}}],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}}))
        .unwrap();
        assert_eq!(pod_sum(&pod, cpu_request_milli), 2_100);
    }
}
