//! The live objects of one stored resource and its recent events.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use keelson_store::{Event, KeyValue, Revision};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::object::Object;

/// Events kept for watches that resume, whatever their size.
const RING_MINIMUM: usize = 128;
const RING_MAXIMUM: usize = 2048;
const RING_BYTES: usize = 2 << 20;

/// A change as watchers see it. `object` is the new state, or the last one with the revision of
/// the deletion.
#[derive(Debug)]
pub(crate) struct CacheEvent {
    pub(crate) revision: Revision,
    current: Option<Arc<Object>>,
    pub(crate) previous: Option<Arc<Object>>,
    /// Rendered when the first watcher asks.
    deleted: OnceLock<Arc<Object>>,
}

impl CacheEvent {
    /// The new state; nothing for a deletion.
    pub(crate) fn current(&self) -> Option<&Arc<Object>> {
        self.current.as_ref()
    }

    /// What a DELETED event carries: the state before, at the revision of this event.
    pub(crate) fn gone(&self) -> Option<&Arc<Object>> {
        let previous = self.previous.as_ref()?;
        Some(
            self.deleted
                .get_or_init(|| Arc::new(previous.deleted_at(self.revision))),
        )
    }

    fn size(&self) -> usize {
        256 + self.previous.as_ref().map_or(0, |o| o.bytes().len())
    }
}

/// The watch asked for events that are no longer kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooOld {
    pub(crate) oldest: Revision,
}

pub(crate) struct WatchCache {
    prefix: String,
    keep_decoded: bool,
    state: RwLock<State>,
    /// The sequence number of the next event; wakes those who look at the objects themselves.
    next: watch::Sender<u64>,
    /// The same for watchers, who may be told later, and when they were told last.
    told: watch::Sender<u64>,
    woken: Mutex<Instant>,
}

struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    ring: VecDeque<Arc<CacheEvent>>,
    ring_bytes: usize,
    /// Sequence number of the first event in the ring.
    first: u64,
    /// Every event after this revision is in the ring.
    floor: Revision,
    /// The resource is served no longer.
    closed: bool,
}

impl WatchCache {
    pub(crate) fn new(prefix: String, keep_decoded: bool) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            first: 0,
            floor: 0,
            closed: false,
        };
        Self {
            prefix,
            keep_decoded,
            state: RwLock::new(state),
            next: watch::Sender::new(0),
            told: watch::Sender::new(0),
            woken: Mutex::new(Instant::now()),
        }
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let key = if namespace.is_empty() {
            format!("{}{name}", self.prefix)
        } else {
            format!("{}{namespace}/{name}", self.prefix)
        };
        self.read().objects.get(key.as_str()).cloned()
    }

    /// Objects of a namespace (all if empty) in the order of their keys.
    pub(crate) fn list(&self, namespace: &str) -> Vec<Arc<Object>> {
        let (start, end) = self.bounds(namespace);
        self.read()
            .objects
            .range::<str, _>((
                Bound::Included(start.as_str()),
                Bound::Excluded(end.as_str()),
            ))
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// Objects of a namespace, or of all.
    pub(crate) fn count(&self, namespace: &str) -> usize {
        let state = self.read();
        if namespace.is_empty() {
            return state.objects.len();
        }
        let (start, end) = self.bounds(namespace);
        let bounds = (
            Bound::Included(start.as_str()),
            Bound::Excluded(end.as_str()),
        );
        state.objects.range::<str, _>(bounds).count()
    }

    /// The decoded form, kept between calls for the resources the server itself reads.
    pub(crate) fn decode(&self, object: &Object) -> Arc<Value> {
        if self.keep_decoded {
            object.decode_kept()
        } else {
            object.decode()
        }
    }

    /// Wakes after every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    /// Lets the watchers look for events.
    pub(super) fn wake(&self, now: Instant) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.told.send_replace(*self.next.borrow());
    }

    pub(super) fn woken(&self) -> Instant {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watchers(&self) -> usize {
        self.told.receiver_count()
    }

    /// Keys of a namespace, or of the whole resource: `[start, end)`.
    pub(crate) fn bounds(&self, namespace: &str) -> (String, String) {
        let start = if namespace.is_empty() {
            self.prefix.clone()
        } else {
            format!("{}{namespace}/", self.prefix)
        };
        // `0` follows `/`.
        let end = format!("{}0", &start[..start.len() - 1]);
        (start, end)
    }

    /// Events after `revision` from the ring on.
    pub(crate) fn watch_from(self: &Arc<Self>, revision: Revision) -> Result<Watcher, TooOld> {
        let receiver = self.told.subscribe();
        let state = self.read();
        if revision < state.floor {
            return Err(TooOld {
                oldest: state.floor,
            });
        }
        let skip = state
            .ring
            .partition_point(|event| event.revision <= revision);
        let next = state.first + skip as u64;
        Ok(Watcher {
            cache: Arc::clone(self),
            receiver,
            next,
            after: revision,
        })
    }

    /// The objects now, and the events after them without a gap.
    pub(crate) fn snapshot_and_watch(
        self: &Arc<Self>,
        namespace: &str,
    ) -> (Vec<Arc<Object>>, Watcher) {
        let receiver = self.told.subscribe();
        let (start, end) = self.bounds(namespace);
        let state = self.read();
        let objects = state
            .objects
            .range::<str, _>((
                Bound::Included(start.as_str()),
                Bound::Excluded(end.as_str()),
            ))
            .map(|(_, object)| Arc::clone(object))
            .collect();
        let next = state.first + state.ring.len() as u64;
        (
            objects,
            Watcher {
                cache: Arc::clone(self),
                receiver,
                next,
                after: 0,
            },
        )
    }

    pub(crate) fn apply(&self, event: Event) {
        let mut state = self.write();
        let event = match event {
            Event::Put { kv, .. } => {
                let object = Arc::new(Object::new(kv, self.prefix.len()));
                if state
                    .objects
                    .get(object.key())
                    .is_some_and(|known| known.revision >= object.revision)
                {
                    return;
                }
                let previous = state
                    .objects
                    .insert(Arc::clone(object.key()), Arc::clone(&object));
                CacheEvent {
                    revision: object.revision,
                    current: Some(object),
                    previous,
                    deleted: OnceLock::new(),
                }
            }
            Event::Delete {
                key,
                revision,
                previous,
            } => {
                let known = state.objects.remove(&key);
                let previous =
                    known.unwrap_or_else(|| Arc::new(Object::new(previous, self.prefix.len())));
                CacheEvent {
                    revision,
                    current: None,
                    previous: Some(previous),
                    deleted: OnceLock::new(),
                }
            }
        };
        state.push(event);
        let next = state.first + state.ring.len() as u64;
        drop(state);
        self.next.send_replace(next);
    }

    /// Takes in what was there at `revision`, while events may already be coming in.
    pub(crate) fn load(&self, items: impl IntoIterator<Item = KeyValue>, revision: Revision) {
        let mut state = self.write();
        state.floor = state.floor.max(revision);
        for kv in items {
            let newer = |object: &Object| object.revision >= kv.mod_revision;
            if state
                .objects
                .get(&kv.key)
                .is_some_and(|object| newer(object))
            {
                continue;
            }
            let gone = state.ring.iter().any(|event| {
                event.current.is_none()
                    && event.revision > kv.mod_revision
                    && event
                        .previous
                        .as_ref()
                        .is_some_and(|object| object.key() == &kv.key)
            });
            if !gone {
                state.objects.insert(
                    Arc::clone(&kv.key),
                    Arc::new(Object::new(kv, self.prefix.len())),
                );
            }
        }
    }

    /// Starts again from a full read, after events were missed: every watcher is cut off.
    pub(crate) fn reset(&self, items: impl IntoIterator<Item = KeyValue>, revision: Revision) {
        let mut state = self.write();
        state.first += state.ring.len() as u64 + 1;
        state.ring.clear();
        state.ring_bytes = 0;
        state.objects.clear();
        state.floor = revision;
        for kv in items {
            state.objects.insert(
                Arc::clone(&kv.key),
                Arc::new(Object::new(kv, self.prefix.len())),
            );
        }
        let next = state.first;
        drop(state);
        self.next.send_replace(next);
        self.wake(Instant::now());
    }

    pub(crate) fn close(&self) {
        self.write().closed = true;
        self.next.send_modify(|next| *next += 1);
        self.wake(Instant::now());
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, event: CacheEvent) {
        self.ring_bytes += event.size();
        self.ring.push_back(Arc::new(event));
        while self.ring.len() > RING_MAXIMUM
            || (self.ring_bytes > RING_BYTES && self.ring.len() > RING_MINIMUM)
        {
            let Some(oldest) = self.ring.pop_front() else {
                break;
            };
            self.ring_bytes -= oldest.size();
            self.first += 1;
            self.floor = self.floor.max(oldest.revision);
        }
    }
}

/// A reader of the ring. Holds no events of its own: one that falls behind the ring is cut off.
pub(crate) struct Watcher {
    cache: Arc<WatchCache>,
    receiver: watch::Receiver<u64>,
    next: u64,
    /// Events up to this revision are not wanted.
    after: Revision,
}

/// Why a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Lagged,
    Closed,
}

impl Watcher {
    /// The events since the last call; nothing when there are none yet.
    pub(crate) fn try_next(&mut self) -> Result<Vec<Arc<CacheEvent>>, Ended> {
        /// Bounds what one reader copies under the lock.
        const BATCH: usize = 256;
        self.receiver.mark_unchanged();
        let state = self.cache.read();
        if state.closed {
            return Err(Ended::Closed);
        }
        let Some(skip) = self.next.checked_sub(state.first) else {
            return Err(Ended::Lagged);
        };
        let skip = usize::try_from(skip)
            .unwrap_or(usize::MAX)
            .min(state.ring.len());
        let events: Vec<_> = state.ring.range(skip..).take(BATCH).cloned().collect();
        drop(state);
        self.next += events.len() as u64;
        let after = self.after;
        let events: Vec<_> = events
            .into_iter()
            .filter(|event| event.revision > after)
            .collect();
        Ok(events)
    }

    /// Whether events wait in the ring.
    pub(crate) fn is_behind(&self) -> bool {
        *self.cache.next.borrow() > self.next
    }

    pub(crate) async fn changed(&mut self) {
        // The sender lives in the cache this reader holds. What came since the last look either
        // has been told, which ends the wait, or will be.
        let _ = self.receiver.changed().await;
    }
}
