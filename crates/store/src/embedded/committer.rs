//! The only writer: batches, decides, commits, publishes, answers.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::Retention;
use super::disk::{Change, Disk};
use super::index::Index;
use crate::{Error, Event, Expect, KeyValue, Result, Revision, Value, stamped};

/// Writes that share one fsync at most.
const BATCH_LENGTH: usize = 1024;
/// Commits between two looks at the file for space to give back.
const RECLAIM_INTERVAL: u64 = 20_000;

pub(crate) enum Command {
    Put {
        key: Arc<str>,
        value: Value,
        expect: Expect,
        reply: oneshot::Sender<Result<Reply>>,
    },
    Delete {
        key: Arc<str>,
        expect: Expect,
        reply: oneshot::Sender<Result<Reply>>,
    },
}

pub(crate) enum Reply {
    Put(KeyValue),
    Delete(Revision, KeyValue),
}

pub(crate) struct Committer {
    disk: Disk,
    index: Arc<RwLock<Index>>,
    queue: mpsc::Receiver<Command>,
    retention: Retention,
    /// After a failed commit what is on disk is unknown, so nothing more may be acknowledged.
    failed: Option<String>,
    commits: u64,
}

/// What a batch has decided so far, on top of the index.
struct Batch {
    revision: Revision,
    pending: HashMap<Arc<str>, Option<KeyValue>>,
    events: Vec<Event>,
    replies: Vec<(oneshot::Sender<Result<Reply>>, Result<Reply>)>,
}

impl Committer {
    pub(crate) fn new(
        disk: Disk,
        index: Arc<RwLock<Index>>,
        queue: mpsc::Receiver<Command>,
        retention: Retention,
    ) -> Self {
        Self {
            disk,
            index,
            queue,
            retention,
            failed: None,
            commits: 0,
        }
    }

    pub(crate) fn run(mut self) {
        let mut commands = Vec::new();
        while let Some(first) = self.queue.blocking_recv() {
            commands.push(first);
            while commands.len() < BATCH_LENGTH {
                match self.queue.try_recv() {
                    Ok(next) => commands.push(next),
                    Err(_) => break,
                }
            }
            self.commit(commands.drain(..));
        }
    }

    fn commit(&mut self, commands: impl Iterator<Item = Command>) {
        let mut batch = Batch {
            revision: self
                .index
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .revision(),
            pending: HashMap::new(),
            events: Vec::new(),
            replies: Vec::new(),
        };
        {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            for command in commands {
                batch.decide(&index, command);
            }
        }
        if !batch.events.is_empty() {
            if self.failed.is_none()
                && let Err(reason) = self
                    .disk
                    .write(batch.revision, batch.events.iter().map(change))
            {
                tracing::error!(%reason, "the store cannot commit; no write is accepted until a restart");
                self.failed = Some(reason.to_string());
            }
            if let Some(reason) = &self.failed {
                for (reply, _) in batch.replies {
                    let _ = reply.send(Err(Error::Io(reason.clone())));
                }
                return;
            }
            let now = Instant::now();
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            index.publish(batch.revision, batch.events, now);
            index.trim(&self.retention, now);
        }
        for (reply, result) in batch.replies {
            // A writer that went away does not undo its write.
            let _ = reply.send(result);
        }
        self.commits += 1;
        if self.commits.is_multiple_of(RECLAIM_INTERVAL) {
            self.reclaim();
        }
    }

    fn reclaim(&mut self) {
        if let Err(reason) = self.disk.reclaim() {
            tracing::warn!(%reason, "reclaiming disk space");
        }
        let size_bytes = self.disk.size_bytes();
        self.index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .set_size_bytes(size_bytes);
    }
}

impl Batch {
    fn decide(&mut self, index: &Index, command: Command) {
        match command {
            Command::Put {
                key,
                value,
                expect,
                reply,
            } => {
                let result = self.put(index, key, &value, expect);
                self.replies.push((reply, result));
            }
            Command::Delete { key, expect, reply } => {
                let result = self.delete(index, key, expect);
                self.replies.push((reply, result));
            }
        }
    }

    fn current(&self, index: &Index, key: &str) -> Option<KeyValue> {
        match self.pending.get(key) {
            Some(pending) => pending.clone(),
            None => index.live(key).cloned(),
        }
    }

    fn put(
        &mut self,
        index: &Index,
        key: Arc<str>,
        value: &Value,
        expect: Expect,
    ) -> Result<Reply> {
        let previous = check(self.current(index, &key), expect)?;
        let revision = self.revision + 1;
        let kv = KeyValue {
            // One allocation per key, however often it is written.
            key: previous.as_ref().map_or(key, |p| Arc::clone(&p.key)),
            value: stamp(value, revision)?,
            create_revision: previous.as_ref().map_or(revision, |p| p.create_revision),
            mod_revision: revision,
        };
        self.revision = revision;
        self.pending.insert(Arc::clone(&kv.key), Some(kv.clone()));
        self.events.push(Event::Put {
            kv: kv.clone(),
            previous,
        });
        Ok(Reply::Put(kv))
    }

    fn delete(&mut self, index: &Index, key: Arc<str>, expect: Expect) -> Result<Reply> {
        let Some(previous) = check(self.current(index, &key), expect)? else {
            return Err(Error::Conflict(None));
        };
        self.revision += 1;
        let key = Arc::clone(&previous.key);
        self.pending.insert(Arc::clone(&key), None);
        self.events.push(Event::Delete {
            key,
            revision: self.revision,
            previous: previous.clone(),
        });
        Ok(Reply::Delete(self.revision, previous))
    }
}

fn check(current: Option<KeyValue>, expect: Expect) -> Result<Option<KeyValue>> {
    let holds = match expect {
        Expect::Any => true,
        Expect::Absent => current.is_none(),
        Expect::Revision(revision) => current
            .as_ref()
            .is_some_and(|kv| kv.mod_revision == revision),
    };
    if holds {
        Ok(current)
    } else {
        Err(Error::Conflict(current))
    }
}

/// The bytes with the revision in decimal at the stamp's offset.
fn stamp(value: &Value, revision: Revision) -> Result<Bytes> {
    let Some(at) = value.stamp_at else {
        return Ok(value.bytes.clone());
    };
    let at = at as usize;
    if at > value.bytes.len() {
        return Err(Error::Io(format!(
            "stamp at {at} of a value of {} bytes",
            value.bytes.len()
        )));
    }
    Ok(stamped(&value.bytes, at, revision))
}

fn change(event: &Event) -> Change<'_> {
    match event {
        Event::Put { kv, .. } => Change::Put(kv),
        Event::Delete { key, .. } => Change::Delete(key),
    }
}
