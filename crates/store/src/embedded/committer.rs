//! The only writer: batches, decides, commits, publishes, answers.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::Retention;
use super::disk::{Change, Disk, Outcome};
use super::index::Index;
use crate::{Error, Event, Expect, KeyValue, Result, Revision, Value, stamped};

/// Writes that share one fsync at most.
const BATCH_LENGTH: usize = 1024;
/// Commits and time between two looks at the file for space to give back; one comes first.
const RECLAIM_COMMITS: u64 = 20_000;
const RECLAIM_INTERVAL: Duration = Duration::from_secs(600);
/// Writers that came together come together again, and a moment gathers them for one fsync: up to
/// as long as the last commit took, since what is spent on gathering is saved on committing, but no
/// longer than this. A writer that is alone does not wait.
const LONGEST_LINGER: Duration = Duration::from_millis(2);
/// Between two looks at how many have come.
const LINGER_STEP: Duration = Duration::from_micros(100);

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
    PutAndDelete {
        key: Arc<str>,
        value: Value,
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
    /// When what is on disk cannot be told, as after a failed fsync, nothing more may be
    /// acknowledged.
    failed: Option<String>,
    commits: u64,
    reclaimed: Instant,
}

/// Why nothing of a batch was written; told to each of its writers.
enum Refused {
    Full(String),
    Broken(String),
}

impl Refused {
    fn again(&self) -> Error {
        match self {
            Refused::Full(reason) => Error::Full(reason.clone()),
            Refused::Broken(reason) => Error::Io(reason.clone()),
        }
    }
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
            reclaimed: Instant::now(),
        }
    }

    pub(crate) fn run(mut self) {
        let mut commands = Vec::new();
        let (mut last_length, mut last_took) = (0, Duration::ZERO);
        while let Some(first) = self.queue.blocking_recv() {
            commands.push(first);
            if last_length > 1 {
                // Twice as many is all that can be hoped for.
                self.linger(last_took, last_length * 2);
            }
            while commands.len() < BATCH_LENGTH {
                match self.queue.try_recv() {
                    Ok(next) => commands.push(next),
                    Err(_) => break,
                }
            }
            last_length = commands.len();
            let began = Instant::now();
            self.commit(commands.drain(..));
            last_took = began.elapsed();
        }
    }

    /// Waits for more writers than the one at hand.
    fn linger(&self, last_took: Duration, enough: usize) {
        let until = Instant::now() + last_took.min(LONGEST_LINGER);
        while self.queue.len() + 1 < enough && Instant::now() < until {
            std::thread::sleep(LINGER_STEP);
        }
    }

    fn commit(&mut self, commands: impl Iterator<Item = Command>) {
        let mut batch = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let mut batch = Batch {
                revision: index.revision(),
                pending: HashMap::new(),
                events: Vec::new(),
                replies: Vec::new(),
            };
            for command in commands {
                batch.decide(&index, command);
            }
            batch
        };
        if !batch.events.is_empty() {
            if let Err(refused) = self.write(&batch) {
                for (reply, _) in batch.replies {
                    let _ = reply.send(Err(refused.again()));
                }
                return;
            }
            let now = Instant::now();
            let events = std::mem::take(&mut batch.events);
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            index.publish(batch.revision, events, now);
            index.trim(&self.retention, now);
        }
        for (reply, result) in batch.replies {
            // A writer that went away does not undo its write.
            let _ = reply.send(result);
        }
        self.commits += 1;
        if self.commits.is_multiple_of(RECLAIM_COMMITS)
            || self.reclaimed.elapsed() > RECLAIM_INTERVAL
        {
            self.reclaim();
        }
    }

    /// Makes the batch durable, or says why none of it is.
    fn write(&mut self, batch: &Batch) -> Result<(), Refused> {
        if let Some(reason) = &self.failed {
            return Err(Refused::Broken(reason.clone()));
        }
        let (before, after) = (batch.first_revision(), batch.revision);
        let written = self
            .disk
            .write(before, after, batch.events.iter().map(change));
        let Err(error) = written else {
            return Ok(());
        };
        match self.disk.recover(before, after, error) {
            Outcome::Written => Ok(()),
            Outcome::NotWritten(Error::Full(reason)) => {
                tracing::error!(%reason, "there is no room for the store; writes are refused until there is");
                Err(Refused::Full(reason))
            }
            Outcome::NotWritten(error) => {
                tracing::error!(%error, "the store could not commit");
                Err(Refused::Broken(error.to_string()))
            }
            Outcome::Unknown(error) => {
                tracing::error!(%error, "the store cannot tell what is on disk; no write is accepted until a restart");
                self.failed = Some(error.to_string());
                Err(Refused::Broken(error.to_string()))
            }
        }
    }

    fn reclaim(&mut self) {
        self.reclaimed = Instant::now();
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
    /// The revision before the batch: each event took one.
    fn first_revision(&self) -> Revision {
        self.revision - self.events.len() as Revision
    }

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
            Command::PutAndDelete {
                key,
                value,
                expect,
                reply,
            } => {
                let result = self
                    .put(index, Arc::clone(&key), &value, expect)
                    .and_then(|_| self.delete(index, key, Expect::Any));
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
