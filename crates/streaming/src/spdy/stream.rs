//! The two ends of a stream, and the table of those that are open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::connection::Write;
use super::{Frame, Headers, MAX_DATA_BYTES, SpdyError};

const CANCEL: u32 = 5;

/// A stream that either side opened.
pub struct Stream {
    pub id: u32,
    pub headers: Headers,
    pub reader: StreamReader,
    pub writer: StreamWriter,
}

impl Stream {
    /// The value of a header; names are lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(header, _)| header == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }
}

/// Data that waits, and its share of what may wait.
pub(super) struct Waiting {
    pub(super) data: Bytes,
    pub(super) share: OwnedSemaphorePermit,
}

pub struct StreamReader {
    pub(super) data: mpsc::Receiver<Waiting>,
    pub(super) _held: Arc<Held>,
}

impl StreamReader {
    /// `None` when the peer has finished or reset the stream.
    pub async fn recv(&mut self) -> Option<Bytes> {
        let Waiting { data, share } = self.data.recv().await?;
        drop(share);
        Some(data)
    }
}

#[derive(Clone)]
pub struct StreamWriter {
    pub(super) id: u32,
    pub(super) frames: mpsc::Sender<Write>,
    pub(super) reset: CancellationToken,
    pub(super) _held: Arc<Held>,
}

/// A stream counts as open as long as somebody holds one of its ends.
pub(super) struct Held {
    pub(super) id: u32,
    pub(super) table: Table,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.table.remove(self.id);
    }
}

impl StreamWriter {
    pub async fn send(&self, mut data: Bytes) -> Result<(), SpdyError> {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MAX_DATA_BYTES));
            self.frame(Frame::Data {
                id: self.id,
                fin: false,
                data: part,
            })
            .await?;
        }
        Ok(())
    }

    /// Says that nothing more will be sent; the peer may still send.
    pub async fn finish(&self) -> Result<(), SpdyError> {
        self.frame(Frame::Data {
            id: self.id,
            fin: true,
            data: Bytes::new(),
        })
        .await
    }

    pub async fn reset(&self) -> Result<(), SpdyError> {
        self.frame(Frame::RstStream {
            id: self.id,
            status: CANCEL,
        })
        .await
    }

    /// Resolves when the peer has reset the stream or the connection is over: it reads nothing
    /// more of it.
    pub async fn gone(&self) {
        tokio::select! {
            () = self.reset.cancelled() => {}
            () = self.frames.closed() => {}
        }
    }

    async fn frame(&self, frame: Frame) -> Result<(), SpdyError> {
        if self.reset.is_cancelled() {
            return Err(SpdyError::Reset);
        }
        self.frames
            .send(Write::Frame(frame))
            .await
            .map_err(|_| SpdyError::Closed)
    }
}

/// The streams that are open.
#[derive(Clone, Default)]
pub(super) struct Table {
    inner: Arc<Mutex<Entries>>,
}

#[derive(Default)]
pub(super) struct Entries {
    pub(super) streams: HashMap<u32, Entry>,
    /// The newest stream that this side has opened; 0 before the first.
    pub(super) last: u32,
    /// No peer is left to open a stream to.
    pub(super) over: bool,
}

pub(super) struct Entry {
    /// Nothing once the peer has finished.
    pub(super) data: Option<mpsc::Sender<Waiting>>,
    /// Waits for the peer's acknowledgement.
    pub(super) opening: Option<oneshot::Sender<()>>,
    pub(super) reset: CancellationToken,
}

impl Table {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, id: u32) -> Option<Entry> {
        self.lock().streams.remove(&id)
    }

    /// The peer reads and writes nothing more of this stream.
    pub(super) fn reset(&self, id: u32) {
        // What waits for the acknowledgement is told after the reason is known.
        if let Some(entry) = self.remove(id) {
            entry.reset.cancel();
        }
    }

    pub(super) fn end(&self) {
        let mut entries = self.lock();
        entries.over = true;
        entries.streams.clear();
    }
}
