//! How many pods a rollout may have and lack, and how ReplicaSets share a changed count.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{DESIRED, Input, MAX, Step, available, created, is_recreate, replicas, size};
use crate::pod;

/// `maxSurge` and `maxUnavailable` as counts. Percentages round up and down respectively; both
/// zero would make no progress possible, so one pod may then be unavailable.
pub(super) fn fence_posts(deployment: &Deployment) -> (i32, i32) {
    if is_recreate(deployment) {
        return (0, 0);
    }
    let rolling = deployment
        .spec
        .as_ref()
        .and_then(|s| s.strategy.as_ref())
        .and_then(|s| s.rolling_update.as_ref());
    let total = replicas(deployment);
    let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()), total, true);
    let unavailable = scaled(
        rolling.and_then(|r| r.max_unavailable.as_ref()),
        total,
        false,
    );
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// An absolute number, or a percentage of `total`.
pub(crate) fn scaled(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.saturating_mul(i64::from(total));
            let rounded = if round_up {
                (product + 99).div_euclid(100)
            } else {
                product.div_euclid(100)
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// `maxUnavailable`, never more than there are replicas.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    fence_posts(deployment).1.min(replicas(deployment))
}

/// Whether somebody changed `spec.replicas` since the ReplicaSets were last sized.
pub(super) fn is_scaling_event(input: &Input) -> bool {
    input.sets.iter().filter(|s| size(s) > 0).any(|set| {
        pod::annotation(&set.metadata, DESIRED)
            .and_then(|v| v.parse::<i32>().ok())
            .is_some_and(|desired| desired != replicas(input.deployment))
    })
}

impl Step<'_> {
    /// A changed replica count while paused or in the middle of a rollout: one active ReplicaSet
    /// takes it all, several share the difference in proportion to their sizes.
    pub(super) fn scale(&mut self, new: Option<ReplicaSet>, old: &[&Arc<ReplicaSet>]) {
        let wanted = self.replicas();
        let mut active: Vec<ReplicaSet> = old
            .iter()
            .filter(|s| size(s) > 0)
            .map(|s| ReplicaSet::clone(s))
            .collect();
        active.extend(new.clone().filter(|s| size(s) > 0));
        if active.len() <= 1 {
            let newest_old = || old.last().map(|s| ReplicaSet::clone(s));
            if let Some(only) = active.pop().or(new).or_else(newest_old) {
                self.resize(&only, wanted);
            }
            return;
        }
        if let Some(new) = &new
            && size(new) == wanted
            && available(new) == wanted
        {
            for set in old.iter().filter(|s| size(s) > 0) {
                self.resize(set, 0);
            }
            return;
        }
        if is_recreate(self.input.deployment) {
            return;
        }
        let total: i32 = active.iter().map(size).sum();
        let allowed = if wanted > 0 {
            wanted.saturating_add(fence_posts(self.input.deployment).0)
        } else {
            0
        };
        let to_add = allowed - total;
        for (set, count) in self.proportional(active, to_add, allowed) {
            self.resize(&set, count);
        }
    }

    fn proportional(
        &self,
        mut sets: Vec<ReplicaSet>,
        to_add: i32,
        allowed: i32,
    ) -> Vec<(ReplicaSet, i32)> {
        // The larger sets come first and, among equals, the newer when growing and the older when
        // shrinking, because whatever is left over after rounding goes to the first.
        sets.sort_by(|a, b| {
            let by_age = created(a).cmp(&created(b));
            size(b)
                .cmp(&size(a))
                .then(if to_add > 0 { by_age.reverse() } else { by_age })
        });
        let mut added = 0;
        let mut sizes = Vec::with_capacity(sets.len());
        for set in &sets {
            let mut count = size(set);
            if to_add != 0 {
                let part = self.share(set, allowed, to_add, added);
                count += part;
                added += part;
            }
            sizes.push(count);
        }
        if let Some(first) = sizes.first_mut() {
            *first = (*first + to_add - added).max(0);
        }
        sets.into_iter().zip(sizes).collect()
    }

    fn share(&self, set: &ReplicaSet, allowed: i32, to_add: i32, added: i32) -> i32 {
        let count = size(set);
        if count == 0 {
            return 0;
        }
        let fraction = if self.replicas() == 0 {
            -count
        } else {
            let annotated = pod::annotation(&set.metadata, MAX)
                .and_then(|v| v.parse::<i32>().ok())
                .filter(|m| *m > 0)
                .unwrap_or_else(|| {
                    self.input
                        .deployment
                        .status
                        .as_ref()
                        .and_then(|s| s.replicas)
                        .unwrap_or(0)
                        .max(1)
                });
            let exact = f64::from(count) * f64::from(allowed) / f64::from(annotated);
            #[allow(clippy::cast_possible_truncation)]
            let rounded = exact.round() as i32;
            rounded - count
        };
        let left = to_add - added;
        if to_add > 0 {
            fraction.min(left)
        } else {
            fraction.max(left)
        }
    }
}
