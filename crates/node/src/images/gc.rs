//! Image garbage collection by disk use: a pure choice, then removals.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use keelson_ports::{ImageFsUsage, ImageInfo, Images};

#[derive(Debug, Clone, Copy)]
pub(crate) struct GcPolicy {
    pub(crate) high_percent: u64,
    pub(crate) low_percent: u64,
    pub(crate) min_age: Duration,
}

impl Default for GcPolicy {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            min_age: Duration::from_secs(120),
        }
    }
}

/// Images to remove, least recently used first, until use falls below the lower threshold.
pub(crate) fn plan<'a>(
    policy: GcPolicy,
    usage: ImageFsUsage,
    images: &'a [ImageInfo],
    in_use: &BTreeSet<String>,
    now: SystemTime,
) -> Vec<&'a ImageInfo> {
    if usage.capacity_bytes == 0 {
        return Vec::new();
    }
    let used = usage.capacity_bytes.saturating_sub(usage.available_bytes);
    if used.saturating_mul(100) < usage.capacity_bytes.saturating_mul(policy.high_percent) {
        return Vec::new();
    }
    let target = usage.capacity_bytes / 100 * policy.low_percent;
    let mut to_free = used.saturating_sub(target);
    let mut candidates: Vec<&ImageInfo> = images
        .iter()
        .filter(|image| !image.pinned && !in_use.contains(&image.id))
        .filter(|image| {
            image
                .last_used_at
                .is_none_or(|used| now.duration_since(used).unwrap_or_default() >= policy.min_age)
        })
        .collect();
    candidates.sort_by_key(|image| image.last_used_at);
    let mut chosen = Vec::new();
    for image in candidates {
        if to_free == 0 {
            break;
        }
        to_free = to_free.saturating_sub(image.size_bytes);
        chosen.push(image);
    }
    chosen
}

/// Removes what the plan chose; returns how many bytes that freed at most.
pub(crate) async fn collect(
    images: &dyn Images,
    policy: GcPolicy,
    in_use: &BTreeSet<String>,
    now: SystemTime,
) -> keelson_ports::Result<u64> {
    let usage = images.fs_usage().await?;
    let list = images.list().await?;
    let mut freed = 0;
    for image in plan(policy, usage, &list, in_use, now) {
        let mut references: Vec<&String> =
            image.repo_tags.iter().chain(&image.repo_digests).collect();
        if references.is_empty() {
            references.push(&image.id);
        }
        for reference in references {
            images.remove(reference).await?;
        }
        freed += image.size_bytes;
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn image(id: &str, size: u64, used_s: u64, pinned: bool) -> ImageInfo {
        ImageInfo {
            id: id.into(),
            repo_tags: vec![],
            repo_digests: vec![],
            size_bytes: size,
            user: Default::default(),
            entrypoint: vec![],
            cmd: vec![],
            env: vec![],
            working_dir: String::new(),
            stop_signal: None,
            pinned,
            last_used_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(used_s)),
        }
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let images = [
            image("new", 4, 990, false),
            image("b", 4, 200, false),
            image("a", 4, 100, false),
            image("pin", 50, 1, true),
            image("used", 9, 2, false),
        ];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let in_use = BTreeSet::from(["used".to_owned()]);
        let chosen = |available| {
            let usage = ImageFsUsage {
                used_bytes: 0,
                used_inodes: 0,
                capacity_bytes: 100,
                available_bytes: available,
            };
            plan(GcPolicy::default(), usage, &images, &in_use, now)
                .iter()
                .map(|i| i.id.clone())
                .collect::<Vec<_>>()
        };
        assert!(chosen(20).is_empty());
        assert_eq!(chosen(14), ["a", "b"]);
        assert_eq!(chosen(16).len(), 0);
        assert_eq!(chosen(0), ["a", "b"]);
    }
}
