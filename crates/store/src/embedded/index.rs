//! The state in memory: every live key, recent history, and the watchers. Pure but for sending
//! on channels; the caller holds the lock.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::Retention;
use crate::{Error, Event, KeyValue, RangeResult, Result, Revision, Stats, WatchMessage};

/// Messages a watcher may be behind before it is cut off, on top of what it asked to replay.
const WATCHER_BOUND: usize = 4096;

pub(crate) struct Index {
    revision: Revision,
    /// History holds exactly the events after this revision.
    compacted: Revision,
    live: BTreeMap<Arc<str>, KeyValue>,
    history: VecDeque<Entry>,
    history_bytes: usize,
    watchers: Vec<Watcher>,
    size_bytes: u64,
}

struct Entry {
    at: Instant,
    event: Event,
}

struct Watcher {
    prefix: String,
    /// The first revision wanted, which may be one to come.
    from: Revision,
    sender: mpsc::Sender<WatchMessage>,
}

impl Index {
    pub(crate) fn new(
        revision: Revision,
        live: BTreeMap<Arc<str>, KeyValue>,
        size_bytes: u64,
    ) -> Self {
        Self {
            revision,
            compacted: revision,
            live,
            history: VecDeque::new(),
            history_bytes: 0,
            watchers: Vec::new(),
            size_bytes,
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn live(&self, key: &str) -> Option<&KeyValue> {
        self.live.get(key)
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            size_bytes: self.size_bytes,
            keys: self.live.len() as u64,
            compacted_revision: self.compacted,
            revision: self.revision,
        }
    }

    pub(crate) fn set_size_bytes(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
    }

    pub(crate) fn get(&self, key: &str, revision: Revision) -> Result<Option<KeyValue>> {
        let past = self.past(revision)?;
        if !past {
            return Ok(self.live.get(key).cloned());
        }
        // The first change after the revision carries the value that was there at the revision.
        for entry in self.after(revision) {
            if event_key(&entry.event) == key {
                return Ok(event_previous(&entry.event).cloned());
            }
        }
        Ok(self.live.get(key).cloned())
    }

    pub(crate) fn range(
        &self,
        start: &str,
        end: &str,
        limit: usize,
        revision: Revision,
    ) -> Result<RangeResult> {
        if end <= start {
            self.past(revision)?;
            return Ok(RangeResult {
                items: Vec::new(),
                count: 0,
                revision: self.read_revision(revision),
            });
        }
        let limit = if limit == 0 { usize::MAX } else { limit };
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        if !self.past(revision)? {
            let mut count = 0;
            let mut items = Vec::new();
            for kv in self.live.range::<str, _>(bounds).map(|(_, kv)| kv) {
                if count < limit {
                    items.push(kv.clone());
                }
                count += 1;
            }
            return Ok(RangeResult {
                items,
                count,
                revision: self.revision,
            });
        }
        let mut state: BTreeMap<&str, &KeyValue> = self
            .live
            .range::<str, _>(bounds)
            .map(|(k, kv)| (&**k, kv))
            .collect();
        for entry in self.history.iter().rev() {
            if event_revision(&entry.event) <= revision {
                break;
            }
            let key = event_key(&entry.event);
            if key < start || key >= end {
                continue;
            }
            match event_previous(&entry.event) {
                Some(previous) => state.insert(key, previous),
                None => state.remove(key),
            };
        }
        let count = state.len();
        let items = state.into_values().take(limit).cloned().collect();
        Ok(RangeResult {
            items,
            count,
            revision,
        })
    }

    /// Whether the revision is older than the newest, after checking that it can be read.
    fn past(&self, revision: Revision) -> Result<bool> {
        if revision == 0 || revision == self.revision {
            return Ok(false);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision {
                requested: revision,
                current: self.revision,
            });
        }
        if revision < self.compacted {
            return Err(Error::Compacted {
                requested: revision,
                oldest: self.compacted,
            });
        }
        Ok(true)
    }

    fn read_revision(&self, revision: Revision) -> Revision {
        if revision == 0 {
            self.revision
        } else {
            revision
        }
    }

    fn after(&self, revision: Revision) -> impl Iterator<Item = &Entry> {
        let first = self
            .history
            .partition_point(|entry| event_revision(&entry.event) <= revision);
        self.history.range(first..)
    }

    pub(crate) fn watch(
        &mut self,
        prefix: &str,
        from: Revision,
    ) -> Result<mpsc::Receiver<WatchMessage>> {
        if from != 0 && from <= self.compacted {
            return Err(Error::Compacted {
                requested: from,
                oldest: self.compacted + 1,
            });
        }
        let replay: Vec<Event> = if from == 0 {
            Vec::new()
        } else {
            self.after(from - 1)
                .map(|entry| &entry.event)
                .filter(|event| event_key(event).starts_with(prefix))
                .cloned()
                .collect()
        };
        let (sender, receiver) = mpsc::channel(WATCHER_BOUND + replay.len() + 1);
        for event in replay {
            // Cannot fail: the channel was made large enough and its receiver is in hand.
            let _ = sender.try_send(WatchMessage::Event(event));
        }
        let _ = sender.try_send(WatchMessage::Progress(self.revision));
        self.watchers.push(Watcher {
            prefix: prefix.to_owned(),
            from,
            sender,
        });
        Ok(receiver)
    }

    pub(crate) fn send_progress(&mut self, prefix: &str) {
        let revision = self.revision;
        self.watchers.retain(|w| {
            w.prefix != prefix || w.sender.try_send(WatchMessage::Progress(revision)).is_ok()
        });
    }

    /// Takes in a durable batch and tells the watchers, in revision order.
    pub(crate) fn publish(&mut self, revision: Revision, events: Vec<Event>, now: Instant) {
        self.revision = revision;
        for event in events {
            match &event {
                Event::Put { kv, .. } => {
                    self.live.insert(Arc::clone(&kv.key), kv.clone());
                }
                Event::Delete { key, .. } => {
                    self.live.remove(key);
                }
            }
            let (key, at) = (event_key(&event), event_revision(&event));
            self.watchers.retain(|w| {
                if at >= w.from && key.starts_with(w.prefix.as_str()) {
                    w.sender
                        .try_send(WatchMessage::Event(event.clone()))
                        .is_ok()
                } else {
                    !w.sender.is_closed()
                }
            });
            self.history_bytes += event_size(&event);
            self.history.push_back(Entry { at: now, event });
        }
    }

    /// Drops history beyond its bounds.
    pub(crate) fn trim(&mut self, retention: &Retention, now: Instant) {
        while let Some(oldest) = self.history.front() {
            let over = self.history.len() > retention.events
                || self.history_bytes > retention.size_bytes
                || now.duration_since(oldest.at) > retention.age;
            if !over {
                break;
            }
            self.forget_oldest();
        }
        // A burst grows the ring; give the memory back once it is over.
        if self.history.capacity() > 1024 && self.history.len() < self.history.capacity() / 4 {
            self.history.shrink_to(self.history.len() * 2);
        }
    }

    pub(crate) fn compact(&mut self, revision: Revision) -> Result<()> {
        if revision > self.revision {
            return Err(Error::FutureRevision {
                requested: revision,
                current: self.revision,
            });
        }
        if revision < self.compacted {
            return Err(Error::Compacted {
                requested: revision,
                oldest: self.compacted,
            });
        }
        while self
            .history
            .front()
            .is_some_and(|oldest| event_revision(&oldest.event) <= revision)
        {
            self.forget_oldest();
        }
        self.compacted = revision;
        Ok(())
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.history.pop_front() {
            self.history_bytes -= event_size(&oldest.event);
            self.compacted = self.compacted.max(event_revision(&oldest.event));
        }
    }
}

fn event_key(event: &Event) -> &str {
    match event {
        Event::Put { kv, .. } => &kv.key,
        Event::Delete { key, .. } => key,
    }
}

pub(crate) fn event_revision(event: &Event) -> Revision {
    match event {
        Event::Put { kv, .. } => kv.mod_revision,
        Event::Delete { revision, .. } => *revision,
    }
}

fn event_previous(event: &Event) -> Option<&KeyValue> {
    match event {
        Event::Put { previous, .. } => previous.as_ref(),
        Event::Delete { previous, .. } => Some(previous),
    }
}

/// The memory that forgetting the event would free: the value it replaced, and some overhead.
fn event_size(event: &Event) -> usize {
    256 + event_previous(event).map_or(0, |previous| previous.value.len())
}
