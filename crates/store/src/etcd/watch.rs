//! One watch of a prefix: a stream that is opened again after each break, from the revision after
//! the last one that was handed on.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc as stream;
use tokio::sync::{Notify, mpsc};
use tonic::Streaming;

use super::client::{Client, Failure};
use super::format::{Keys, prefix_end, revision, signed};
use super::messages::{
    Event as EtcdEvent, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchRequestKind,
    WatchResponse,
};
use crate::{Event, Revision, WatchMessage};

/// Messages a watcher may be behind before etcd is held back.
pub(crate) const BOUND: usize = 4096;
/// How long etcd is held back for a watcher that does not read before the watcher is cut off.
const STALL: Duration = Duration::from_secs(1);
/// A request for progress goes unanswered while etcd still brings the watch up to date, so it is
/// repeated, as often as upstream does.
const REPEAT: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What the engine keeps of a running watch.
pub(crate) struct Handle {
    pub(crate) prefix: String,
    /// Asks for a progress message.
    pub(crate) progress: Arc<Notify>,
    /// Everything up to here was handed on.
    pub(crate) reached: Arc<AtomicU64>,
    /// Weak, because the channel closes when the watch ends.
    pub(crate) out: mpsc::WeakSender<WatchMessage>,
}

pub(crate) struct Watcher {
    pub(crate) client: Arc<Client>,
    pub(crate) keys: Keys,
    pub(crate) prefix: Bytes,
    /// Keys of the revision before `next` that were handed on: an answer may be cut in the middle
    /// of a revision.
    pub(crate) delivered: HashSet<Arc<str>>,
    /// The revision of the last event handed on, or the one before the first wanted.
    pub(crate) last: Revision,
    pub(crate) progress: Arc<Notify>,
    /// The newest revision when progress was asked for last.
    pub(crate) wanted: Revision,
    pub(crate) reached: Arc<AtomicU64>,
    pub(crate) out: mpsc::Sender<WatchMessage>,
}

/// Why a stream is read no longer.
enum End {
    /// Opened again after a pause.
    Broken(String),
    /// The receiver is gone, asleep, or has to start again from a full read. Closing its channel
    /// says so; it finds out which when it watches again.
    Over,
}

/// The key that a progress mark is written to: behind the prefix, so that no range of it sees the
/// mark, and near enough that one watch covers both.
pub(crate) fn progress_key(prefix: &[u8]) -> Bytes {
    [&prefix_end(prefix), &b"\0progress"[..]].concat().into()
}

impl Watcher {
    pub(crate) async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let out = self.out.clone();
        loop {
            let before = self.last;
            let end = tokio::select! {
                end = self.stream() => end,
                () = out.closed() => return,
            };
            match end {
                End::Over => return,
                End::Broken(reason) => {
                    tracing::warn!(%reason, from = self.last, "a watch of etcd is opened again");
                }
            }
            pause = match self.last > before {
                true => FIRST_PAUSE,
                false => (pause * 2).min(LONGEST_PAUSE),
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = out.closed() => return,
            }
        }
    }

    async fn stream(&mut self) -> End {
        let (requests, queue) = stream::unbounded();
        let mut range_end = progress_key(&self.prefix).to_vec();
        range_end.push(0);
        let create = WatchCreateRequest {
            key: self.prefix.clone(),
            range_end: range_end.into(),
            // One revision more than is wanted: etcd refuses what is older than its compaction,
            // but not what is exactly as old, where a deletion may be missing already.
            start_revision: signed(self.last.max(1)),
            prev_kv: true,
            fragment: true,
        };
        let send = |kind| {
            requests
                .unbounded_send(WatchRequest {
                    request: Some(kind),
                })
                .is_ok()
        };
        send(WatchRequestKind::Create(create));
        let (turn, mut answers) = match self.client.watch(queue).await {
            Ok(opened) => opened,
            Err(Failure::Unanswered(reason)) => return End::Broken(reason),
            Err(Failure::Refused(status)) => return End::Broken(status.message().to_owned()),
        };
        let progress = Arc::clone(&self.progress);
        let end = loop {
            tokio::select! {
                asked = asked(&progress, self.last < self.wanted) => {
                    if asked {
                        self.wanted = self.client.newest();
                    }
                    if !send(WatchRequestKind::Progress(WatchProgressRequest {})) {
                        break End::Broken("the stream is closed".to_owned());
                    }
                }
                answer = next(&mut answers) => match answer {
                    Ok(answer) => if let Err(end) = self.take(answer).await {
                        break end;
                    },
                    Err(reason) => break End::Broken(reason),
                }
            }
        };
        if let End::Broken(_) = &end {
            self.client.give_up_on(turn);
        }
        end
    }

    async fn take(&mut self, answer: WatchResponse) -> Result<(), End> {
        if answer.compact_revision > 0 {
            return Err(End::Over);
        }
        if answer.canceled {
            return Err(End::Broken(answer.cancel_reason));
        }
        let is_progress = answer.events.is_empty() && !answer.created;
        for event in answer.events {
            self.event(event).await?;
        }
        if is_progress && let Some(header) = answer.header {
            let reached = revision(header.revision);
            self.client.saw(reached);
            if reached > self.last {
                self.last = reached;
                self.delivered.clear();
            }
            self.send(WatchMessage::Progress(reached)).await?;
            self.reached.fetch_max(reached, Ordering::AcqRel);
        }
        Ok(())
    }

    async fn event(&mut self, event: EtcdEvent) -> Result<(), End> {
        let Some(kv) = event.kv else {
            return Ok(());
        };
        let at = revision(kv.mod_revision);
        self.client.saw(at);
        let key = self.keys.read_key(&kv.key).unwrap_or_default();
        if at < self.last || (at == self.last && self.is_delivered(&key)) {
            return Ok(());
        }
        let message = if !kv.key.starts_with(&self.prefix) {
            // The mark, or a neighbour of it: a revision at which nothing of ours changed.
            WatchMessage::Progress(at)
        } else if event.kind == 0 {
            let Some(put) = self.keys.kv(&kv) else {
                return Ok(());
            };
            let previous = event.prev_kv.and_then(|kv| self.keys.kv(&kv));
            WatchMessage::Event(Event::Put { kv: put, previous })
        } else {
            let Some(previous) = event.prev_kv.and_then(|kv| self.keys.kv(&kv)) else {
                // Compacted in this moment, so the next attempt to watch is told so.
                return Err(End::Over);
            };
            WatchMessage::Event(Event::Delete {
                key: Arc::clone(&key),
                revision: at,
                previous,
            })
        };
        self.send(message).await?;
        if at > self.last {
            self.last = at;
            self.delivered.clear();
        }
        self.delivered.insert(key);
        self.reached.fetch_max(at, Ordering::AcqRel);
        Ok(())
    }

    /// At the revision that a watch begins after, everything was delivered, by whoever read it.
    fn is_delivered(&self, key: &str) -> bool {
        self.delivered.is_empty() || self.delivered.contains(key)
    }

    async fn send(&self, message: WatchMessage) -> Result<(), End> {
        self.out
            .send_timeout(message, STALL)
            .await
            .map_err(|_| End::Over)
    }
}

/// Waits until progress is asked for, or until it is time to ask again.
async fn asked(progress: &Notify, again: bool) -> bool {
    match again {
        false => progress.notified().await,
        true => {
            return tokio::time::timeout(REPEAT, progress.notified())
                .await
                .is_ok();
        }
    }
    true
}

async fn next(answers: &mut Streaming<WatchResponse>) -> Result<WatchResponse, String> {
    match answers.next().await {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(status)) => Err(status.message().to_owned()),
        None => Err("the stream ended".to_owned()),
    }
}
