//! From resources to the files of either version: pure.

use keelson_ports::CgroupResources;

/// One value for one file of one controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: &'static str,
    pub(crate) file: String,
    pub(crate) value: String,
    /// Kernels without the file are obeyed in silence.
    pub(crate) optional: bool,
}

fn setting(controller: &'static str, file: &str, value: impl ToString) -> Setting {
    Setting {
        controller,
        file: file.to_owned(),
        value: value.to_string(),
        optional: false,
    }
}

fn optional(controller: &'static str, file: &str, value: impl ToString) -> Setting {
    Setting {
        optional: true,
        ..setting(controller, file, value)
    }
}

pub(crate) fn plan_v1(resources: &CgroupResources) -> Vec<Setting> {
    let mut out = Vec::new();
    if let Some(shares) = resources.cpu_shares {
        out.push(setting("cpu", "cpu.shares", shares.clamp(2, 262_144)));
    }
    if let Some(period) = resources.cpu_period_us {
        out.push(setting("cpu", "cpu.cfs_period_us", period));
    }
    if let Some(quota) = resources.cpu_quota_us {
        out.push(setting(
            "cpu",
            "cpu.cfs_quota_us",
            if quota <= 0 { -1 } else { quota },
        ));
    }
    if let Some(limit) = resources.memory_limit_bytes {
        let limit = if limit <= 0 { -1 } else { limit };
        out.push(setting("memory", "memory.limit_in_bytes", limit));
        out.push(optional("memory", "memory.memsw.limit_in_bytes", limit));
    }
    if let Some(limit) = resources.pids_limit {
        out.push(setting("pids", "pids.max", max_or(limit)));
    }
    if let Some(cpus) = &resources.cpuset_cpus {
        out.push(setting("cpuset", "cpuset.cpus", cpus));
    }
    for (page, limit) in &resources.hugepage_limits {
        out.push(optional(
            "hugetlb",
            &format!("hugetlb.{}.limit_in_bytes", page_name(*page)),
            limit,
        ));
    }
    out
}

pub(crate) fn plan_v2(resources: &CgroupResources) -> Vec<Setting> {
    let mut out = Vec::new();
    if let Some(shares) = resources.cpu_shares {
        out.push(setting("cpu", "cpu.weight", weight(shares)));
    }
    match (resources.cpu_quota_us, resources.cpu_period_us) {
        (None, None) => {}
        (quota, period) => {
            let quota = quota
                .filter(|quota| *quota > 0)
                .map_or("max".to_owned(), |quota| quota.to_string());
            out.push(setting(
                "cpu",
                "cpu.max",
                format!("{quota} {}", period.unwrap_or(100_000)),
            ));
        }
    }
    if let Some(bytes) = resources.memory_min_bytes {
        out.push(setting("memory", "memory.min", bytes.max(0)));
    }
    if let Some(limit) = resources.memory_limit_bytes {
        out.push(setting("memory", "memory.max", max_or(limit)));
        out.push(optional("memory", "memory.swap.max", 0));
    }
    if let Some(limit) = resources.pids_limit {
        out.push(setting("pids", "pids.max", max_or(limit)));
    }
    if let Some(cpus) = &resources.cpuset_cpus {
        out.push(setting("cpuset", "cpuset.cpus", cpus));
    }
    for (page, limit) in &resources.hugepage_limits {
        out.push(optional(
            "hugetlb",
            &format!("hugetlb.{}.max", page_name(*page)),
            limit,
        ));
    }
    out
}

fn max_or(limit: i64) -> String {
    if limit <= 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

/// Shares 2..=262144 onto weights 1..=10000, as the kubelet maps them.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9_999 / 262_142
}

fn page_name(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_span_the_range() {
        assert_eq!(
            [weight(0), weight(2), weight(1024), weight(262_144)],
            [1, 1, 39, 10_000]
        );
    }

    #[test]
    fn unlimited_is_spelled_per_version() {
        let resources = CgroupResources {
            cpu_quota_us: Some(-1),
            memory_limit_bytes: Some(-1),
            pids_limit: Some(-1),
            ..CgroupResources::default()
        };
        let values =
            |settings: Vec<Setting>| settings.into_iter().map(|s| s.value).collect::<Vec<_>>();
        assert_eq!(values(plan_v1(&resources)), ["-1", "-1", "-1", "max"]);
        assert_eq!(
            values(plan_v2(&resources)),
            ["max 100000", "max", "0", "max"]
        );
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        assert!(plan_v1(&CgroupResources::default()).is_empty());
        assert!(plan_v2(&CgroupResources::default()).is_empty());
    }

    #[test]
    fn huge_pages_are_named_by_size() {
        assert_eq!(
            [page_name(2 << 20), page_name(1 << 30), page_name(64 << 10)],
            ["2MB", "1GB", "64KB"]
        );
    }
}
