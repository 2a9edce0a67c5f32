//! A socket whose writes of one turn leave together.
//!
//! HTTP/2 flushes after each frame of data, and TLS writes each record at once: a list of some
//! megabytes would be one system call, and one wake-up of its reader, for each 16 KiB. Here what
//! a connection writes while it is polled is gathered and leaves at the end of the poll.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Gathered bytes that leave before more are taken: the kernel's largest piece holds as many.
const LIMIT: usize = 64 << 10;
/// What a record of TLS carries at most, and its size then.
const FULL: usize = 16 << 10;
const RECORD: usize = FULL + 256;
/// Room that a connection keeps while it has nothing to send.
const KEPT: usize = 4 << 10;

/// The socket, shared by the protocol above it and the task that drives this protocol.
#[derive(Clone)]
pub(super) struct Gather(Arc<Mutex<Socket>>);

struct Socket {
    stream: TcpStream,
    waiting: Vec<u8>,
    /// How much of `waiting` has left.
    sent: usize,
    /// Flushing is left to the end of the turn.
    holding: bool,
}

impl Gather {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(Mutex::new(Socket {
            stream,
            waiting: Vec::new(),
            sent: 0,
            holding: false,
        })))
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drives `connection`, which writes to this socket, and lets each turn's bytes leave at its
    /// end. Afterwards, when the connection may have been handed on to an upgrade, a flush is one.
    pub(super) async fn drive<F: Future + Unpin>(&self, mut connection: F) -> F::Output {
        self.socket().holding = true;
        let output = std::future::poll_fn(|cx| {
            let output = Pin::new(&mut connection).poll(cx);
            // An error shows again at the connection's next read or write.
            let _ = self.socket().send(cx);
            output
        })
        .await;
        self.socket().holding = false;
        let _ = std::future::poll_fn(|cx| self.socket().send(cx)).await;
        output
    }
}

impl Socket {
    /// Sends what waits.
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.waiting.len() {
            let rest = &self.waiting[self.sent..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                size => self.sent += size,
            }
        }
        self.sent = 0;
        self.waiting.clear();
        if self.waiting.capacity() > KEPT {
            self.waiting = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    fn put(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= LIMIT {
            ready!(self.send(cx))?;
        }
        let size = bufs.iter().map(|buf| buf.len()).sum();
        if size > FULL && self.waiting.capacity() == 0 {
            // More is likely to follow a full record.
            self.waiting.reserve_exact(LIMIT + RECORD);
        }
        for buf in bufs {
            self.waiting.extend_from_slice(buf);
        }
        Poll::Ready(Ok(size))
    }
}

impl AsyncRead for Gather {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gather {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.socket().put(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket().put(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.socket();
        if socket.holding {
            return Poll::Ready(Ok(()));
        }
        socket.send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.socket();
        ready!(socket.send(cx))?;
        Pin::new(&mut socket.stream).poll_shutdown(cx)
    }
}
