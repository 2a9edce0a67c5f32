//! When watchers hear of what is in the caches.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::WatchCache;

/// What waking one watcher and writing to its connection takes, about.
const COST: Duration = Duration::from_micros(20);
/// Events do not wait longer than this, however many watch.
const LONGEST: Duration = Duration::from_millis(5);

/// Caches with events whose watchers were not woken yet. A change is told at once when the last
/// one was long ago; under load watchers are woken no more often than they can keep up with, and
/// find several events, which then share one frame, one record and one system call.
#[derive(Default)]
pub(super) struct Wakes {
    waiting: Vec<(Instant, Arc<WatchCache>)>,
}

impl Wakes {
    /// The cache has a new event.
    pub(super) fn add(&mut self, cache: &Arc<WatchCache>) {
        if !self
            .waiting
            .iter()
            .any(|(_, other)| Arc::ptr_eq(other, cache))
        {
            let watchers = u32::try_from(cache.watchers()).unwrap_or(u32::MAX);
            let pause = COST.saturating_mul(watchers).min(LONGEST);
            self.waiting
                .push((cache.woken() + pause, Arc::clone(cache)));
        }
    }

    /// Wakes those whose time has come.
    pub(super) fn fire(&mut self, now: Instant) {
        self.waiting.retain(|(due, cache)| {
            if *due <= now {
                cache.wake(now);
            }
            *due > now
        });
    }

    /// When to fire next, if anybody waits.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|(due, _)| *due).min()
    }
}
