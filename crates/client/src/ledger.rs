//! Read-your-writes for controllers: what was written and which informers must have seen it.
//!
//! Upstream's controllers keep "expectations" of creations and deletions. Resource versions are
//! comparable (one counter for the whole store), so it suffices to remember the newest version
//! written per resource and to wait until the informer has come that far.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::ResourceType;
use crate::informer::{AnyInformer, Informers};

/// A watch that has stalled must not stall the controller for good: reconciling is idempotent and
/// the API server refuses stale updates.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Ledger {
    informers: Informers,
    pending: Mutex<HashMap<ResourceType, Pending>>,
}

#[derive(Default, Clone)]
struct Pending {
    version: u64,
    deletions: Vec<(String, Option<String>)>,
}

impl Ledger {
    pub(crate) fn new(informers: Informers) -> Self {
        Self {
            informers,
            pending: Mutex::default(),
        }
    }

    pub(crate) fn written(&self, resource: &ResourceType, version: u64) {
        self.enter(resource, |pending| {
            pending.version = pending.version.max(version)
        });
    }

    pub(crate) fn deleted(&self, resource: &ResourceType, key: String, uid: Option<String>) {
        self.enter(resource, |pending| pending.deletions.push((key, uid)));
    }

    fn enter(&self, resource: &ResourceType, change: impl FnOnce(&mut Pending)) {
        if self.informers.unfiltered(resource).is_some() {
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            change(pending.entry(resource.clone()).or_default());
        }
    }

    /// Returns when every informer that this controller reads has seen what it wrote until now.
    ///
    /// Entries stay until they were seen: several workers may wait for the same one.
    pub(crate) async fn settle(&self) {
        let pending = self
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (resource, pending) in pending {
            let Some(informer) = self.informers.unfiltered(&resource) else {
                continue;
            };
            if tokio::time::timeout(PATIENCE, seen(&informer, &pending))
                .await
                .is_err()
            {
                tracing::warn!(resource = %resource.resource, "the informer has not seen this controller's last writes; going on");
            }
            self.strike(&resource, &pending);
        }
    }

    fn strike(&self, resource: &ResourceType, seen: &Pending) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = pending.get_mut(resource) {
            entry
                .deletions
                .retain(|deletion| !seen.deletions.contains(deletion));
            if entry.version <= seen.version && entry.deletions.is_empty() {
                pending.remove(resource);
            }
        }
    }
}

async fn seen(informer: &Arc<dyn AnyInformer>, pending: &Pending) {
    let mut progress = informer.progress();
    loop {
        let arrived = *progress.borrow_and_update() >= pending.version
            && pending
                .deletions
                .iter()
                .all(|(key, uid)| informer.gone_or_terminating(key, uid.as_deref()));
        if arrived || progress.changed().await.is_err() {
            return;
        }
    }
}
