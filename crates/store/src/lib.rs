//! The revisioned store: etcd's semantics over bytes. Knows keys, values and revisions; no kind.
//!
//! Two engines implement [`Store`]: [`embedded`] (the default) and [`etcd`]. Specified by etcd's
//! API guarantees (`etcd.io/docs/v3.6/learning/api_guarantees`).

pub mod embedded;
pub mod etcd;
pub mod snapshot;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::sync::mpsc;

/// One counter for the whole store; every write takes the next value.
pub type Revision = u64;

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest revision whose write is durable.
    async fn current_revision(&self) -> Result<Revision>;

    /// `revision` 0 reads the newest state. Linearizable: sees every acknowledged write.
    async fn get(&self, key: &str, revision: Revision) -> Result<Option<KeyValue>>;

    /// Keys in `[start, end)` in order; `limit` 0 is unlimited. A revision that was compacted is
    /// [`Error::Compacted`].
    async fn range(
        &self,
        start: &str,
        end: &str,
        limit: usize,
        revision: Revision,
    ) -> Result<RangeResult>;

    /// Writes when `expect` holds; returns the durable result. Writers that arrive together share
    /// one fsync. A failed expectation is [`Error::Conflict`] with what is there now.
    async fn put(&self, key: &str, value: Value, expect: Expect) -> Result<KeyValue>;

    /// Deletes when `expect` holds; returns the revision of the deletion and the value before it.
    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)>;

    /// Writes a last state when `expect` holds and deletes the key, as two revisions: whoever
    /// watches sees both. Returns the revision of the deletion and the last state. An engine that
    /// cannot do it in one step leaves the last state when somebody else writes in between, which
    /// is [`Error::Conflict`]; that somebody else deletes it is as good.
    async fn put_and_delete(
        &self,
        key: &str,
        value: Value,
        expect: Expect,
    ) -> Result<(Revision, KeyValue)> {
        let last = self.put(key, value, expect).await?;
        let deleted = self.delete(key, Expect::Revision(last.mod_revision));
        match deleted.await {
            Err(Error::Conflict(None)) => Ok((last.mod_revision, last)),
            outcome => outcome,
        }
    }

    /// Changes of keys with this prefix, from `from` on (inclusive; 0 is "from now on"), in
    /// revision order and without gaps, then as they happen. A receiver that falls more than the
    /// channel's bound behind sees it closed and resumes with the next revision.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<mpsc::Receiver<WatchMessage>>;

    /// Asks for a [`WatchMessage::Progress`] on every watch of exactly this prefix, once it has
    /// been sent everything up to the newest revision.
    async fn request_progress(&self, prefix: &str) -> Result<()>;

    /// Forgets history up to `revision`, which can still be read itself; live keys stay.
    async fn compact(&self, revision: Revision) -> Result<()>;

    /// Bytes on disk, live keys, oldest kept revision.
    async fn stats(&self) -> Result<Stats>;

    /// Whether other servers may write to the same store.
    fn is_shared(&self) -> bool;
}

pub type SharedStore = Arc<dyn Store>;

/// A value to write. When `stamp_at` is set, readers see the revision of the write in decimal
/// inserted at this offset, so that an object's resourceVersion is in place without decoding.
#[derive(Debug, Clone)]
pub struct Value {
    pub bytes: Bytes,
    pub stamp_at: Option<u32>,
}

/// A key as read; `value` is stamped and shared, never copied, with every reader and watcher.
#[derive(Debug, Clone)]
pub struct KeyValue {
    pub key: Arc<str>,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
}

#[derive(Debug, Clone)]
pub struct RangeResult {
    pub items: Vec<KeyValue>,
    /// Keys in the range, beyond the limit too.
    pub count: usize,
    /// The revision the range was read at.
    pub revision: Revision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// No condition.
    Any,
    /// The key does not exist.
    Absent,
    /// The key was last written at this revision.
    Revision(Revision),
}

#[derive(Debug, Clone)]
pub enum WatchMessage {
    Event(Event),
    /// Every event up to this revision has been sent.
    Progress(Revision),
}

#[derive(Debug, Clone)]
pub enum Event {
    /// Created when `kv.create_revision == kv.mod_revision`. `previous` is absent for a creation.
    Put {
        kv: KeyValue,
        previous: Option<KeyValue>,
    },
    Delete {
        key: Arc<str>,
        revision: Revision,
        previous: KeyValue,
    },
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Stats {
    pub size_bytes: u64,
    pub keys: u64,
    pub compacted_revision: Revision,
    pub revision: Revision,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the key was changed or its expected state does not hold")]
    Conflict(Option<KeyValue>),
    #[error("revision {requested} has been compacted; the oldest kept is {oldest}")]
    Compacted {
        requested: Revision,
        oldest: Revision,
    },
    #[error("revision {requested} is in the future; the newest is {current}")]
    FutureRevision {
        requested: Revision,
        current: Revision,
    },
    #[error("opening the store at {path}: {reason}")]
    Open { path: String, reason: String },
    #[error("the store is shut down")]
    Closed,
    /// Nobody answered: a write may or may not have been carried out.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// Nothing was written; reading works, and so does writing once there is room.
    #[error("the store is out of space: {0}")]
    Full(String),
    /// What is stored is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    #[error("store I/O: {0}")]
    Io(String),
}

/// The bytes with the revision in decimal at this offset, which is within them.
fn stamped(bytes: &[u8], at: usize, revision: Revision) -> Bytes {
    let digits = revision.to_string();
    let mut stamped = BytesMut::with_capacity(bytes.len() + digits.len());
    stamped.extend_from_slice(&bytes[..at]);
    stamped.extend_from_slice(digits.as_bytes());
    stamped.extend_from_slice(&bytes[at..]);
    stamped.freeze()
}
