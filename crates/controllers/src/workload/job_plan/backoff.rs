//! How long after its failures a pod is replaced.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::{FAILURES, IGNORED_FAILURES};
use crate::{clock, pod};

const BACKOFF_SECONDS: i64 = 10;
const MAX_BACKOFF_SECONDS: i64 = 600;

/// Counted and ignored failures of a pod's index before this pod.
pub(super) fn failures(p: &Pod) -> (i32, i32) {
    let number = |key| {
        pod::annotation(&p.metadata, key)
            .and_then(|v| v.parse().ok())
            .unwrap_or(0)
    };
    (number(FAILURES), number(IGNORED_FAILURES))
}

pub(super) fn total_failures(p: &Pod) -> i32 {
    let (counted, ignored) = failures(p);
    counted + ignored
}

pub(super) fn delay_seconds(failures: i32) -> i64 {
    match failures {
        ..=0 => 0,
        n => BACKOFF_SECONDS
            .checked_shl(u32::try_from(n - 1).unwrap_or(0).min(32))
            .unwrap_or(MAX_BACKOFF_SECONDS)
            .clamp(0, MAX_BACKOFF_SECONDS),
    }
}

/// When a pod ended: its last container's end, else when it stopped being ready or was deleted.
pub(super) fn finish_time(p: &Pod) -> Option<Timestamp> {
    let ended = |s: &ContainerStatus| {
        s.state
            .as_ref()?
            .terminated
            .as_ref()?
            .finished_at
            .as_ref()
            .map(|t| t.0)
    };
    let containers = p
        .status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref());
    let by_containers = containers.filter(|c| !c.is_empty()).and_then(|c| {
        c.iter()
            .map(ended)
            .collect::<Option<Vec<_>>>()
            .and_then(|times| times.into_iter().max())
    });
    by_containers
        .or_else(|| {
            let ready = pod::condition(p, "Ready").filter(|c| c.status == "False")?;
            ready.last_transition_time.as_ref().map(|t| t.0)
        })
        .or_else(|| {
            let grace = p.metadata.deletion_grace_period_seconds.unwrap_or(0);
            p.metadata
                .deletion_timestamp
                .as_ref()
                .map(|t| clock::after(t.0, -grace))
        })
        .or_else(|| p.metadata.creation_timestamp.as_ref().map(|t| t.0))
}
