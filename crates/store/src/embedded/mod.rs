//! The embedded engine: redb on disk, every live key in memory, one committer thread.
//!
//! The committer drains its queue, decides every write against the index, commits them in one
//! redb transaction (one fsync), then publishes to the index and to watchers and answers the
//! writers. Readers touch the index alone, under a lock that is never held across I/O.

mod committer;
mod disk;
mod file;
mod index;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::{
    Error, Expect, KeyValue, RangeResult, Result, Revision, SharedStore, Stats, Store, Value,
    WatchMessage,
};
use committer::{Command, Committer, Reply};
use disk::Disk;
pub(crate) use disk::Restore;
pub use file::Opener;
use index::Index;

/// Writers beyond this wait for the committer before they are queued.
const QUEUE_LENGTH: usize = 4096;

/// How much history is kept for reads at older revisions and for watches that resume. Looked at
/// with every write: a store that nobody writes to keeps what it has.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    pub age: Duration,
    pub events: usize,
    pub size_bytes: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(300),
            events: 8192,
            size_bytes: 12 << 20,
        }
    }
}

/// Opens (or creates) the store in this directory. Fails when another process has it open and
/// when a newer version wrote it.
pub fn open(dir: &Path) -> Result<SharedStore> {
    open_with(dir, Retention::default())
}

/// As [`open`], with other bounds on history.
pub fn open_with(dir: &Path, retention: Retention) -> Result<SharedStore> {
    Ok(Arc::new(Embedded::start(Disk::open(dir)?, retention)?))
}

/// As [`open`], on storage that can be opened again after a failure.
pub fn open_on(opener: Opener, retention: Retention) -> Result<SharedStore> {
    Ok(Arc::new(Embedded::start(
        Disk::open_on(opener)?,
        retention,
    )?))
}

/// A store without a file, for tests; the same code over redb's memory backend.
pub fn memory() -> SharedStore {
    memory_with(Retention::default())
}

/// As [`memory`], with other bounds on history.
pub fn memory_with(retention: Retention) -> SharedStore {
    let disk = Disk::memory().expect("redb's memory backend has no I/O that could fail");
    Arc::new(Embedded::start(disk, retention).expect("a thread can be started and memory read"))
}

/// The engine behind [`open`] and [`memory`].
pub struct Embedded {
    index: Arc<RwLock<Index>>,
    commands: Option<mpsc::Sender<Command>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    retention: Retention,
}

impl Embedded {
    fn start(disk: Disk, retention: Retention) -> Result<Self> {
        let (revision, live) = disk.load()?;
        let size_bytes = disk.size_bytes();
        let index = Arc::new(RwLock::new(Index::new(revision, live, size_bytes)));
        let (commands, queue) = mpsc::channel(QUEUE_LENGTH);
        let committer = Committer::new(disk, Arc::clone(&index), queue, retention);
        let thread = std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || committer.run())
            .map_err(|err| Error::Io(err.to_string()))?;
        Ok(Self {
            index,
            commands: Some(commands),
            thread: Mutex::new(Some(thread)),
            retention,
        })
    }

    fn read<T>(&self, f: impl FnOnce(&Index) -> T) -> T {
        f(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads as of `revision`, 0 for now. History ends where it should even when no write has come
    /// for long that would have cut it off.
    fn read_at<T>(&self, revision: Revision, f: impl FnOnce(&Index) -> T) -> T {
        if revision > 0 {
            self.write(|index| index.trim(&self.retention, Instant::now()));
        }
        self.read(f)
    }

    fn write<T>(&self, f: impl FnOnce(&mut Index) -> T) -> T {
        f(&mut self.index.write().unwrap_or_else(PoisonError::into_inner))
    }

    async fn submit(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<Reply>>) -> Command,
    ) -> Result<Reply> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or(Error::Closed)?;
        commands
            .send(command(reply))
            .await
            .map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

impl Drop for Embedded {
    /// Waits for the committer, so that the file is closed and its lock free when this returns.
    fn drop(&mut self) {
        self.commands = None;
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the store's committer thread panicked");
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn current_revision(&self) -> Result<Revision> {
        Ok(self.read(Index::revision))
    }

    async fn get(&self, key: &str, revision: Revision) -> Result<Option<KeyValue>> {
        self.read_at(revision, |index| index.get(key, revision))
    }

    async fn range(
        &self,
        start: &str,
        end: &str,
        limit: usize,
        revision: Revision,
    ) -> Result<RangeResult> {
        self.read_at(revision, |index| index.range(start, end, limit, revision))
    }

    async fn put(&self, key: &str, value: Value, expect: Expect) -> Result<KeyValue> {
        let key: Arc<str> = key.into();
        match self
            .submit(|reply| Command::Put {
                key,
                value,
                expect,
                reply,
            })
            .await?
        {
            Reply::Put(kv) => Ok(kv),
            Reply::Delete(..) => Err(Error::Io("the committer answered another request".into())),
        }
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)> {
        let key: Arc<str> = key.into();
        match self
            .submit(|reply| Command::Delete { key, expect, reply })
            .await?
        {
            Reply::Delete(revision, previous) => Ok((revision, previous)),
            Reply::Put(_) => Err(Error::Io("the committer answered another request".into())),
        }
    }

    async fn put_and_delete(
        &self,
        key: &str,
        value: Value,
        expect: Expect,
    ) -> Result<(Revision, KeyValue)> {
        let key: Arc<str> = key.into();
        match self
            .submit(|reply| Command::PutAndDelete {
                key,
                value,
                expect,
                reply,
            })
            .await?
        {
            Reply::Delete(revision, last) => Ok((revision, last)),
            Reply::Put(_) => Err(Error::Io("the committer answered another request".into())),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<mpsc::Receiver<WatchMessage>> {
        self.write(|index| index.watch(prefix, from))
    }

    async fn request_progress(&self, prefix: &str) -> Result<()> {
        self.write(|index| index.send_progress(prefix));
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.write(|index| index.compact(revision))
    }

    async fn stats(&self) -> Result<Stats> {
        Ok(self.read(Index::stats))
    }

    fn is_shared(&self) -> bool {
        false
    }
}
