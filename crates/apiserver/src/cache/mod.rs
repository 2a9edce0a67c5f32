//! The watch caches: every stored resource's objects and recent events in memory, fed by one
//! watch of the store. Lists and watches are served from here; a list first waits until the
//! caches have what the store had acknowledged.

mod object;
mod wakes;
mod watch_cache;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use keelson_machinery::status::Status;
use keelson_store::{Error, Event, KeyValue, Revision, SharedStore, WatchMessage};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use object::Object;
use wakes::Wakes;
pub(crate) use watch_cache::{CacheEvent, WatchCache};
pub(crate) use watch_cache::{Ended, TooOld, Watcher};

/// Under this prefix are all objects.
pub(crate) const ROOT: &str = "/registry/";
const ROOT_END: &str = "/registry0";
/// How long a reader waits for the caches before it is told to try again.
const FRESH_TIMEOUT: Duration = Duration::from_secs(3);

/// Resources that authentication, authorization and admission read on every request.
const KEPT_DECODED: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "serviceaccounts"),
    ("", "nodes"),
    ("", "services"),
    ("", "limitranges"),
    ("", "resourcequotas"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("scheduling.k8s.io", "priorityclasses"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
];

/// `/registry/<group or core>/<resource>/`.
pub(crate) fn prefix(group: &str, resource: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    format!("{ROOT}{group}/{resource}/")
}

pub(crate) struct Caches {
    store: SharedStore,
    by_prefix: RwLock<HashMap<String, Arc<WatchCache>>>,
    /// Every event up to this revision is in its cache.
    revision: watch::Sender<Revision>,
}

impl Caches {
    /// Reads the whole store and follows it until the returned task is aborted.
    pub(crate) async fn start(
        store: SharedStore,
        resources: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Arc<Self>, JoinHandle<()>), Error> {
        let by_prefix = resources
            .into_iter()
            .map(|(group, resource)| new_cache(&group, &resource))
            .collect();
        let caches = Arc::new(Self {
            store,
            by_prefix: RwLock::new(by_prefix),
            revision: watch::Sender::new(0),
        });
        let events = loop {
            let start = caches.load_all().await?;
            match caches.store.watch(ROOT, start + 1).await {
                // Whoever shares the store may compact it in this moment.
                Err(Error::Compacted { .. }) => {}
                opened => break opened?,
            }
        };
        let follower = Arc::clone(&caches);
        Ok((
            caches,
            tokio::spawn(async move { follower.follow(events).await }),
        ))
    }

    pub(crate) fn get(&self, group: &str, resource: &str) -> Option<Arc<WatchCache>> {
        self.by_prefix
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(prefix(group, resource).as_str())
            .cloned()
    }

    /// Starts caching a resource that appeared at run time.
    pub(crate) async fn add(&self, group: &str, resource: &str) -> Result<Arc<WatchCache>, Error> {
        if let Some(cache) = self.get(group, resource) {
            return Ok(cache);
        }
        let (prefix, cache) = new_cache(group, resource);
        // In the table first: events that arrive during the read are merged by `load`.
        let cache = Arc::clone(
            self.by_prefix
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(prefix)
                .or_insert(cache),
        );
        let (start, end) = cache.bounds("");
        let range = self.store.range(&start, &end, 0, 0).await?;
        cache.load(range.items, range.revision);
        Ok(cache)
    }

    pub(crate) fn remove(&self, group: &str, resource: &str) {
        let removed = self
            .by_prefix
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(prefix(group, resource).as_str());
        if let Some(cache) = removed {
            cache.close();
        }
    }

    /// Ends every watch.
    pub(crate) fn close(&self) {
        for cache in self
            .by_prefix
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
        {
            cache.close();
        }
    }

    /// The revision all caches have reached.
    pub(crate) fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Waits until every event up to `revision` is in its cache.
    pub(crate) async fn wait(&self, revision: Revision) -> Result<(), Status> {
        if self.revision() >= revision {
            return Ok(());
        }
        let mut receiver = self.revision.subscribe();
        let reached =
            tokio::time::timeout(FRESH_TIMEOUT, receiver.wait_for(|now| *now >= revision)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(too_large(revision, self.revision())),
        }
    }

    /// Waits until the caches have everything the store has acknowledged so far.
    pub(crate) async fn wait_current(&self) -> Result<(), Status> {
        let newest = self
            .store
            .current_revision()
            .await
            .map_err(|err| Status::internal(err.to_string()))?;
        if self.revision() >= newest {
            return Ok(());
        }
        // Other writers of a shared store may be under keys outside the watch.
        self.store
            .request_progress(ROOT)
            .await
            .map_err(|err| Status::internal(err.to_string()))?;
        self.wait(newest).await
    }

    async fn load_all(&self) -> Result<Revision, Error> {
        let range = self.store.range(ROOT, ROOT_END, 0, 0).await?;
        let mut items: HashMap<&str, Vec<KeyValue>> = HashMap::new();
        for kv in &range.items {
            if let Some(prefix) = prefix_of(&kv.key) {
                items.entry(prefix).or_default().push(kv.clone());
            }
        }
        let caches = self
            .by_prefix
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for (prefix, cache) in caches.iter() {
            cache.reset(
                items.remove(prefix.as_str()).unwrap_or_default(),
                range.revision,
            );
        }
        drop(caches);
        self.revision.send_replace(range.revision);
        Ok(range.revision)
    }

    async fn follow(&self, mut events: mpsc::Receiver<WatchMessage>) {
        let mut batch = Vec::new();
        let mut wakes = Wakes::default();
        loop {
            loop {
                let due = wakes.due();
                tokio::select! {
                    received = events.recv_many(&mut batch, 256) => {
                        if received == 0 {
                            break;
                        }
                        self.apply(batch.drain(..), &mut wakes);
                    }
                    // Never polled when nobody waits.
                    () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                }
                wakes.fire(Instant::now());
            }
            // The channel closes when this task fell behind, or with the store.
            match self.resume().await {
                Some(resumed) => events = resumed,
                None => return,
            }
        }
    }

    async fn resume(&self) -> Option<mpsc::Receiver<WatchMessage>> {
        loop {
            let from = self.revision() + 1;
            match self.store.watch(ROOT, from).await {
                Ok(events) => return Some(events),
                Err(Error::Closed) => return None,
                Err(Error::Compacted { .. }) => {
                    tracing::warn!(
                        from,
                        "the watch caches fell behind the store's history and start again"
                    );
                    match self.load_all().await {
                        Ok(_) => continue,
                        Err(Error::Closed) => return None,
                        Err(err) => tracing::error!(%err, "reading the store"),
                    }
                }
                Err(err) => tracing::error!(%err, "watching the store"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn apply(&self, messages: impl Iterator<Item = WatchMessage>, wakes: &mut Wakes) {
        let mut reached = self.revision();
        let caches = self
            .by_prefix
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for message in messages {
            match message {
                WatchMessage::Event(event) => {
                    let (key, revision) = match &event {
                        Event::Put { kv, .. } => (&kv.key, kv.mod_revision),
                        Event::Delete { key, revision, .. } => (key, *revision),
                    };
                    reached = reached.max(revision);
                    if let Some(cache) = prefix_of(key).and_then(|prefix| caches.get(prefix)) {
                        cache.apply(event);
                        wakes.add(cache);
                    }
                }
                WatchMessage::Progress(revision) => reached = reached.max(revision),
            }
        }
        drop(caches);
        self.revision.send_if_modified(|now| {
            let newer = reached > *now;
            *now = reached.max(*now);
            newer
        });
    }
}

/// Clients know this cause and try again.
pub(crate) fn too_large(requested: Revision, current: Revision) -> Status {
    Status::timeout(format!(
        "Too large resource version: {requested}, current: {current}"
    ))
    .with_cause("ResourceVersionTooLarge", "", "Too large resource version")
    .with_retry_after(1)
}

fn new_cache(group: &str, resource: &str) -> (String, Arc<WatchCache>) {
    let prefix = prefix(group, resource);
    let cache = WatchCache::new(prefix.clone(), KEPT_DECODED.contains(&(group, resource)));
    (prefix, Arc::new(cache))
}

/// The prefix of the resource that a key belongs to.
fn prefix_of(key: &str) -> Option<&str> {
    let rest = key.strip_prefix(ROOT)?;
    let group = rest.find('/')?;
    let resource = rest[group + 1..].find('/')?;
    Some(&key[..ROOT.len() + group + 1 + resource + 1])
}
