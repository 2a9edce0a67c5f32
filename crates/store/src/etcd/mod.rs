//! The etcd engine: the same store kept by an etcd v3 cluster, shared by several servers.
//!
//! Works with etcd 3.4 and later. Keys and values in etcd are described in [`format`]; values
//! are written without their revision and stamped when they are read.

mod client;
mod compact;
mod format;
mod messages;
mod watch;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::{
    Error, Expect, KeyValue, RangeResult, Result, Revision, SharedStore, Stats, Store, Value,
    WatchMessage,
};
use client::{Client, Failure, STATUS};
use format::{Keys, encode, prefix_end, revision, signed};
use messages::{
    CompactionRequest, CompactionResponse, Compare, DeleteRangeRequest, PutRequest, PutResponse,
    RangeRequest, RangeResponse, Request, RequestOp, Response, ResponseHeader, StatusRequest,
    StatusResponse, Target, TxnRequest, TxnResponse,
};
use watch::{Handle, Watcher, progress_key};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const PUT: &str = "/etcdserverpb.KV/Put";
const COMPACT: &str = "/etcdserverpb.KV/Compact";

/// Keys asked for at once at first; adapted so that an answer has about `PAGE_BYTES`.
const PAGE_KEYS: i64 = 500;
const PAGE_KEYS_MAX: i64 = 20_000;
const PAGE_BYTES: usize = 8 << 20;
/// Time for the event that a reader waits for to arrive by itself before a mark is written.
const MARK_PAUSE: Duration = Duration::from_millis(10);

/// Where the etcd cluster is.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://` or `https://` URLs of members; any of them will do.
    pub endpoints: Vec<String>,
    /// Whom the members' certificates must be signed by; the system's authorities when absent.
    pub ca_pem: Option<Vec<u8>>,
    /// This client's certificate and key.
    pub client_pem: Option<(Vec<u8>, Vec<u8>)>,
    /// Takes the place of `/registry` in front of objects' keys.
    pub prefix: String,
    /// How often history is compacted, by whichever server is first; never when absent. History
    /// is kept for at least this long and at most twice as long.
    pub compact_every: Option<Duration>,
}

impl Options {
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            ca_pem: None,
            client_pem: None,
            prefix: "/registry".to_owned(),
            compact_every: Some(Duration::from_secs(300)),
        }
    }
}

/// The engine behind [`connect`].
pub struct Etcd {
    client: Arc<Client>,
    keys: Keys,
    watches: Arc<Mutex<Vec<Handle>>>,
    /// Whether a progress request is answered truthfully.
    reports_progress: bool,
    marking: Arc<AtomicBool>,
    compacted: Arc<AtomicU64>,
    compactor: Option<JoinHandle<()>>,
}

/// Returns once a member has answered. Fails when none does within ten seconds.
pub async fn connect(options: Options) -> Result<SharedStore> {
    let client = Arc::new(Client::new(&options)?);
    let shown = options.endpoints.join(",");
    let status: StatusResponse =
        client
            .call(STATUS, StatusRequest {})
            .await
            .map_err(|failure| Error::Open {
                path: shown,
                reason: Error::from(failure).to_string(),
            })?;
    let versions = client.versions().await;
    let reports_progress = versions
        .iter()
        .all(|version| version.as_deref().is_some_and(reports_progress));
    tracing::info!(version = %status.version, reports_progress, "connected to etcd");
    let compacted = Arc::new(AtomicU64::new(0));
    let compactor = options.compact_every.map(|interval| {
        tokio::spawn(compact::run(
            Arc::clone(&client),
            interval,
            Arc::clone(&compacted),
        ))
    });
    Ok(Arc::new(Etcd {
        client,
        keys: Keys::new(&options.prefix),
        watches: Arc::default(),
        reports_progress,
        marking: Arc::default(),
        compacted,
        compactor,
    }))
}

/// Before 3.4.25 and 3.5.8, the answer to a progress request could overtake events (etcd issue
/// 15220); before 3.4.31 and 3.5.13 it could be lost.
fn reports_progress(version: &str) -> bool {
    let mut parts = version
        .split(['.', '-', '+'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    match (part(), part(), part()) {
        (3, 4, patch) => patch >= 31,
        (3, 5, patch) => patch >= 13,
        (major, minor, _) => (major, minor) >= (3, 6),
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(compactor) = &self.compactor {
            compactor.abort();
        }
    }
}

impl Etcd {
    /// An error of a call that named a revision.
    async fn refused(&self, failure: Failure, requested: Revision) -> Error {
        match failure {
            Failure::Refused(status) if is_compacted(&status) => Error::Compacted {
                requested,
                oldest: self.compacted.load(Ordering::Relaxed).max(requested + 1),
            },
            Failure::Refused(status) if status.message().contains("future revision") => {
                Error::FutureRevision {
                    requested,
                    current: self.client.newest(),
                }
            }
            failure => failure.into(),
        }
    }

    async fn range_page(&self, request: RangeRequest) -> Result<RangeResponse> {
        let requested = revision(request.revision);
        match self.client.call(RANGE, request).await {
            Ok(page) => Ok(page),
            Err(failure) => Err(self.refused(failure, requested).await),
        }
    }

    /// Puts `expect` in front of `success`; a failed expectation answers with what is there.
    async fn transact(
        &self,
        key: &Bytes,
        expect: Expect,
        success: Vec<Request>,
    ) -> Result<TxnResponse> {
        let wanted = match expect {
            Expect::Any => None,
            Expect::Absent => Some(0),
            // etcd's 0 is a key that does not exist; for us it is a revision nothing has.
            Expect::Revision(0) => Some(-1),
            Expect::Revision(revision) => Some(signed(revision)),
        };
        let compare = wanted.map(|revision| {
            let target = Target::ModRevision(revision);
            Compare::equal(key.clone(), target)
        });
        let current = RangeRequest {
            key: key.clone(),
            ..RangeRequest::default()
        };
        let request = TxnRequest {
            compare: compare.into_iter().collect(),
            success: success.into_iter().map(op).collect(),
            failure: vec![op(Request::Range(current))],
        };
        Ok(self.client.call(TXN, request).await?)
    }

    /// Writes a mark after everything that watches of this prefix wait for. For members whose
    /// progress reports cannot be trusted.
    fn mark(&self, prefix: &str) {
        if self.marking.swap(true, Ordering::AcqRel) {
            return;
        }
        let request = PutRequest {
            key: progress_key(&self.keys.etcd_key(prefix)),
            value: Bytes::new(),
        };
        let (client, marking) = (Arc::clone(&self.client), Arc::clone(&self.marking));
        let (watches, prefix) = (Arc::clone(&self.watches), prefix.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(MARK_PAUSE).await;
            // Whoever asks from here on is not served by this mark.
            marking.store(false, Ordering::Release);
            let newest = client.newest();
            let behind = |watch: &Handle| {
                watch.prefix == prefix && watch.reached.load(Ordering::Acquire) < newest
            };
            let wanted = lock(&watches).iter().any(behind);
            if wanted && let Err(failure) = client.call::<_, PutResponse>(PUT, request).await {
                tracing::warn!(error = %Error::from(failure), "marking progress in etcd");
            }
        });
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn is_compacted(status: &Status) -> bool {
    status.message().contains("has been compacted")
}

fn revision_in(header: Option<&ResponseHeader>) -> Revision {
    header.map_or(0, |header| revision(header.revision))
}

fn lock(watches: &Mutex<Vec<Handle>>) -> std::sync::MutexGuard<'_, Vec<Handle>> {
    watches.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unexpected() -> Error {
    Error::Io("etcd answered something else than was asked".to_owned())
}

#[async_trait]
impl Store for Etcd {
    async fn current_revision(&self) -> Result<Revision> {
        let request = RangeRequest {
            key: self.keys.etcd_key("/"),
            count_only: true,
            ..RangeRequest::default()
        };
        let answer = self.range_page(request).await?;
        Ok(revision_in(answer.header.as_ref()))
    }

    async fn get(&self, key: &str, revision: Revision) -> Result<Option<KeyValue>> {
        let request = RangeRequest {
            key: self.keys.etcd_key(key),
            revision: signed(revision),
            ..RangeRequest::default()
        };
        let answer = self.range_page(request).await?;
        Ok(answer.kvs.first().and_then(|kv| self.keys.kv(kv)))
    }

    async fn range(
        &self,
        start: &str,
        end: &str,
        limit: usize,
        revision: Revision,
    ) -> Result<RangeResult> {
        let limit = match limit {
            0 => i64::MAX,
            limit => i64::try_from(limit).unwrap_or(i64::MAX),
        };
        let (mut key, range_end) = (self.keys.etcd_key(start), self.keys.etcd_key(end));
        let (mut at, mut page_keys, mut count) = (signed(revision), PAGE_KEYS, None);
        // etcd reads an empty range as an error, and one key where the end is empty.
        if end <= start {
            let request = RangeRequest {
                key,
                revision: at,
                count_only: true,
                ..RangeRequest::default()
            };
            let answer = self.range_page(request).await?;
            let now = revision_in(answer.header.as_ref());
            return Ok(RangeResult {
                items: Vec::new(),
                count: 0,
                revision: if revision == 0 { now } else { revision },
            });
        }
        let mut items: Vec<KeyValue> = Vec::new();
        loop {
            let left = limit.saturating_sub(i64::try_from(items.len()).unwrap_or(i64::MAX));
            let request = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: left.min(page_keys),
                revision: at,
                ..RangeRequest::default()
            };
            let page = self.range_page(request).await?;
            if at == 0 {
                at = page.header.map_or(0, |header| header.revision);
            }
            count.get_or_insert(page.count);
            items.extend(page.kvs.iter().filter_map(|kv| self.keys.kv(kv)));
            let Some(last) = page.kvs.last().filter(|_| page.more) else {
                break;
            };
            if i64::try_from(items.len()).is_ok_and(|taken| taken >= limit) {
                break;
            }
            key = [&last.key[..], &[0]].concat().into();
            let bytes: usize = page.kvs.iter().map(|kv| kv.value.len() + 64).sum();
            let average = bytes / page.kvs.len();
            page_keys = i64::try_from(PAGE_BYTES / average.max(1))
                .unwrap_or(PAGE_KEYS_MAX)
                .clamp(1, PAGE_KEYS_MAX);
        }
        Ok(RangeResult {
            items,
            count: count
                .and_then(|count| usize::try_from(count).ok())
                .unwrap_or(0),
            revision: format::revision(at),
        })
    }

    async fn put(&self, key: &str, value: Value, expect: Expect) -> Result<KeyValue> {
        let stored = encode(&value)?;
        let etcd_key = self.keys.etcd_key(key);
        let put = PutRequest {
            key: etcd_key.clone(),
            value: stored.clone(),
        };
        let revisions = RangeRequest {
            key: etcd_key.clone(),
            keys_only: true,
            ..RangeRequest::default()
        };
        let success = vec![Request::Put(put), Request::Range(revisions)];
        let answer = self.transact(&etcd_key, expect, success).await?;
        let found = answer
            .responses
            .into_iter()
            .find_map(|op| match op.response {
                Some(Response::Range(range)) => Some(range.kvs.into_iter().next()),
                _ => None,
            });
        let mut found = found.ok_or_else(unexpected)?;
        if answer.succeeded {
            let kv = found.as_mut().ok_or_else(unexpected)?;
            kv.value = stored;
            return self.keys.kv(kv).ok_or_else(unexpected);
        }
        let kv = found.as_ref().and_then(|kv| self.keys.kv(kv));
        // The write was repeated because the first answer was lost, and it had been carried out.
        if let (Some(found), Some(kv)) = (&found, &kv)
            && found.value == stored
        {
            return Ok(kv.clone());
        }
        Err(Error::Conflict(kv))
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)> {
        let etcd_key = self.keys.etcd_key(key);
        let delete = DeleteRangeRequest {
            key: etcd_key.clone(),
            prev_kv: true,
        };
        let answer = self
            .transact(&etcd_key, expect, vec![Request::DeleteRange(delete)])
            .await?;
        let at = revision_in(answer.header.as_ref());
        let kv = answer
            .responses
            .into_iter()
            .find_map(|op| match op.response? {
                Response::DeleteRange(deleted) => deleted.prev_kvs.into_iter().next(),
                Response::Range(range) => range.kvs.into_iter().next(),
                Response::Put(_) => None,
            });
        let kv = kv.and_then(|kv| self.keys.kv(&kv));
        match kv {
            Some(kv) if answer.succeeded => Ok((at, kv)),
            kv => Err(Error::Conflict(kv)),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<mpsc::Receiver<WatchMessage>> {
        let etcd_prefix = self.keys.etcd_key(prefix);
        let last = match from {
            0 => self.current_revision().await?,
            from => {
                let before = from - 1;
                let probe = RangeRequest {
                    key: etcd_prefix.clone(),
                    revision: signed(before),
                    count_only: true,
                    ..RangeRequest::default()
                };
                match self.range_page(probe).await {
                    // It begins when the store gets there.
                    Ok(_) | Err(Error::FutureRevision { .. }) => before,
                    Err(Error::Compacted { oldest, .. }) => {
                        return Err(Error::Compacted {
                            requested: from,
                            oldest: oldest.max(from + 1),
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let (out, receiver) = mpsc::channel(watch::BOUND);
        let (progress, reached) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(last)));
        {
            let mut watches = lock(&self.watches);
            watches.retain(|watch| watch.out.upgrade().is_some_and(|out| !out.is_closed()));
            watches.push(Handle {
                prefix: prefix.to_owned(),
                progress: Arc::clone(&progress),
                reached: Arc::clone(&reached),
                out: out.downgrade(),
            });
        }
        let watcher = Watcher {
            client: Arc::clone(&self.client),
            keys: self.keys.clone(),
            prefix: etcd_prefix,
            delivered: HashSet::new(),
            last,
            progress,
            wanted: 0,
            reached,
            out,
        };
        tokio::spawn(watcher.run());
        Ok(receiver)
    }

    async fn request_progress(&self, prefix: &str) -> Result<()> {
        if !self.reports_progress {
            self.mark(prefix);
            return Ok(());
        }
        for watch in lock(&self.watches).iter() {
            if watch.prefix == prefix {
                watch.progress.notify_one();
            }
        }
        Ok(())
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        let request = CompactionRequest {
            revision: signed(revision),
        };
        match self
            .client
            .call::<_, CompactionResponse>(COMPACT, request)
            .await
        {
            Ok(_) => {}
            // Exactly this revision is the oldest there is: nothing to do.
            Err(Failure::Refused(status))
                if is_compacted(&status) && self.get("/", revision).await.is_ok() => {}
            Err(failure) => return Err(self.refused(failure, revision).await),
        }
        self.compacted.fetch_max(revision, Ordering::AcqRel);
        Ok(())
    }

    async fn stats(&self) -> Result<Stats> {
        let status: StatusResponse = self.client.call(STATUS, StatusRequest {}).await?;
        let mut keys = 0;
        for prefix in ["/registry/", "/"] {
            let key = self.keys.etcd_key(prefix);
            let request = RangeRequest {
                range_end: prefix_end(&key),
                key,
                count_only: true,
                ..RangeRequest::default()
            };
            keys += u64::try_from(self.range_page(request).await?.count).unwrap_or(0);
        }
        Ok(Stats {
            size_bytes: u64::try_from(status.db_size).unwrap_or(0),
            keys,
            compacted_revision: self.compacted.load(Ordering::Relaxed),
            revision: revision_in(status.header.as_ref()),
        })
    }

    fn is_shared(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::reports_progress;

    #[test]
    fn old_members_are_not_trusted_with_progress() {
        for old in ["3.4.23", "3.4.30", "3.5.12", "3.3.99", "", "3.5.0-rc.1"] {
            assert!(!reports_progress(old), "{old}");
        }
        for new in ["3.4.31", "3.5.13", "3.6.0", "3.6.0-alpha.0", "4.0.0"] {
            assert!(reports_progress(new), "{new}");
        }
    }
}
