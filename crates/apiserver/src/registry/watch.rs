//! Watches: from the ring of the cache to a stream of frames.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use keelson_store::Revision;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Registry;
use super::negotiate::{Encoding, Output};
use super::options::ListOptions;
use super::render::{self, Renderer};
use super::resources::ResourceEntry;
use super::selection::Selection;
use crate::cache::{CacheEvent, Caches, Ended, Object, TooOld, Watcher};
use crate::request::{BoxError, Response};

/// Between two bookmarks while nothing else is sent; clients resume from them after a break.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Watches without a timeout of their own end after this and up to twice as long, so that not
/// all reconnect at once.
const MINIMUM_TIMEOUT_S: u64 = 1800;
/// Frames are joined into chunks of about this size.
const CHUNK: usize = 32 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EventType {
    Added,
    Modified,
    Deleted,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

impl Registry {
    pub(crate) async fn watch(
        &self,
        entry: &Arc<ResourceEntry>,
        selection: Selection,
        options: &ListOptions,
        output: Output,
    ) -> Result<Response, Status> {
        let cache = self
            .caches
            .get(&entry.storage_group, &entry.resource)
            .ok_or_else(|| Status::internal(format!("no cache of {}", entry.resource)))?;
        let revision = options.revision()?;
        let initial = options.send_initial_events;
        // Without a version the watch begins with everything there is; so does version 0.
        let replay = initial.unwrap_or(revision == 0);
        let (objects, watcher, sent) = if replay {
            if revision == 0 && options.resource_version.is_empty() || initial == Some(true) {
                self.caches.wait_current().await?;
            }
            self.caches.wait(revision).await?;
            let reached = self.caches.revision();
            let (objects, watcher) = cache.snapshot_and_watch(&selection.namespace);
            (objects, watcher, reached)
        } else {
            let from = if revision == 0 {
                self.caches.wait_current().await?;
                self.caches.revision()
            } else {
                revision
            };
            (
                Vec::new(),
                cache.watch_from(from).map_err(|err| too_old(from, err))?,
                from,
            )
        };
        let seconds = options
            .timeout_seconds
            .unwrap_or_else(|| MINIMUM_TIMEOUT_S + rand::random_range(0..MINIMUM_TIMEOUT_S));
        let bookmark_after_initial = initial == Some(true) && options.allow_watch_bookmarks;
        let stream = Stream {
            caches: Arc::clone(&self.caches),
            renderer: Renderer::new(Arc::clone(entry), output.clone()),
            entry: Arc::clone(entry),
            selection,
            watcher,
            initial: objects.into(),
            initial_bookmark: bookmark_after_initial,
            bookmarks: options.allow_watch_bookmarks,
            sent,
            deadline: Instant::now() + Duration::from_secs(seconds),
            ended: false,
        };
        let frames = futures::stream::unfold(stream, |mut stream| async move {
            let chunk = stream.next_chunk().await?;
            Some((Ok::<_, BoxError>(Frame::data(chunk)), stream))
        });
        let mut response = Response::new(StreamBody::new(frames.boxed()).boxed_unsync());
        render::set_content_type(&mut response, &watch_content_type(&output));
        Ok(response)
    }
}

fn watch_content_type(output: &Output) -> String {
    match output.encoding {
        Encoding::Protobuf => format!("{};stream=watch", output.encoding.content_type()),
        Encoding::Cbor => keelson_machinery::cbor::SEQUENCE_CONTENT_TYPE.to_owned(),
        other => other.content_type().to_owned(),
    }
}

fn too_old(requested: Revision, err: TooOld) -> Status {
    Status::expired(format!(
        "too old resource version: {requested} ({})",
        err.oldest
    ))
}

struct Stream {
    caches: Arc<Caches>,
    renderer: Renderer,
    entry: Arc<ResourceEntry>,
    selection: Selection,
    watcher: Watcher,
    /// Objects that were there when the watch began and are still to be sent.
    initial: VecDeque<Arc<Object>>,
    /// The bookmark that ends the initial events is still to be sent.
    initial_bookmark: bool,
    bookmarks: bool,
    /// Everything up to this revision has been sent or did not match.
    sent: Revision,
    deadline: Instant,
    ended: bool,
}

impl Stream {
    /// The next frames together; nothing at the end of the watch.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = BytesMut::new();
        while let Some(object) = self.initial.pop_front() {
            if self.selection.matches(&self.entry, &object) {
                self.frame(&mut out, EventType::Added, &object);
            }
            if out.len() >= CHUNK {
                return Some(out.freeze());
            }
        }
        if std::mem::take(&mut self.initial_bookmark) {
            self.bookmark(&mut out, true);
        }
        if !out.is_empty() {
            return Some(out.freeze());
        }
        let next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
        loop {
            // Read before the ring: every event up to here is then in it.
            let reached = self.caches.revision();
            match self.watcher.try_next() {
                Ok(events) if !events.is_empty() => {
                    for event in events {
                        self.sent = self.sent.max(event.revision);
                        self.event(&mut out, &event);
                    }
                    if !out.is_empty() {
                        return Some(out.freeze());
                    }
                    continue;
                }
                Ok(_) => self.sent = self.sent.max(reached),
                Err(Ended::Closed) => return None,
                Err(Ended::Lagged) => {
                    self.ended = true;
                    let status =
                        Status::expired(format!("too old resource version: {}", self.sent));
                    self.error(&mut out, &status);
                    return Some(out.freeze());
                }
            }
            let wake = if self.bookmarks {
                self.deadline.min(next_bookmark)
            } else {
                self.deadline
            };
            tokio::select! {
                () = self.watcher.changed() => {}
                () = tokio::time::sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= self.deadline {
                        return None;
                    }
                    if self.bookmarks && now >= next_bookmark {
                        self.sent = self.sent.max(self.caught_up());
                        self.bookmark(&mut out, false);
                        return Some(out.freeze());
                    }
                }
            }
        }
    }

    /// The revision up to which this watcher has seen everything, if it has.
    fn caught_up(&self) -> Revision {
        // Read first: what comes after it is not in what the watcher has seen.
        let reached = self.caches.revision();
        if self.watcher.is_behind() {
            self.sent
        } else {
            reached
        }
    }

    /// Objects that come to match are added, those that cease to match deleted.
    fn event(&self, out: &mut BytesMut, event: &CacheEvent) {
        let matches = |object: &Arc<Object>| self.selection.matches(&self.entry, object);
        let before = event.previous.as_ref().is_some_and(matches);
        let now = event.current().filter(|object| matches(object));
        match (before, now) {
            (false, Some(object)) => self.frame(out, EventType::Added, object),
            (true, Some(object)) => self.frame(out, EventType::Modified, object),
            (true, None) => {
                if let Some(object) = event.gone() {
                    self.frame(out, EventType::Deleted, object);
                }
            }
            (false, None) => {}
        }
    }

    fn frame(&self, out: &mut BytesMut, kind: EventType, object: &Object) {
        match self.renderer.watch_object(object) {
            Ok(bytes) => self.renderer.watch_frame(out, kind.as_str(), &bytes),
            Err(status) => self.error(out, &status),
        }
    }

    fn error(&self, out: &mut BytesMut, status: &Status) {
        let bytes = self.renderer.status(status);
        self.renderer.watch_frame(out, "ERROR", &bytes);
    }

    fn bookmark(&self, out: &mut BytesMut, initial_end: bool) {
        let mut object = json!({
            "kind": self.entry.kind,
            "apiVersion": self.entry.api_version(),
            "metadata": {"resourceVersion": self.sent.to_string(), "creationTimestamp": Value::Null},
        });
        if initial_end {
            meta::set_annotation(&mut object, "k8s.io/initial-events-end", "true");
        }
        match self.renderer.watch_bookmark(object) {
            Ok(bytes) => self.renderer.watch_frame(out, "BOOKMARK", &bytes),
            Err(status) => self.error(out, &status),
        }
    }
}

/// `{"type":…,"object":…}` and a newline.
pub(crate) fn json_frame(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.reserve(object.len() + kind.len() + 24);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}
