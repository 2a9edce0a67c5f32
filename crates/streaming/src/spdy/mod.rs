//! SPDY/3.1, as far as remote commands and port forwarding use it: streams with headers and data
//! over one connection. Peers in the Kubernetes world neither send nor expect window updates, so
//! they are read and otherwise ignored.

mod connection;
mod frame;
mod headers;
mod stream;

use thiserror::Error;

pub use connection::Connection;
pub use frame::{Frame, MAX_DATA_BYTES, decode, encode};
pub use headers::{HeaderDecoder, HeaderEncoder, Headers};
pub use stream::{Stream, StreamReader, StreamWriter};

#[derive(Debug, Error)]
pub enum SpdyError {
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    #[error("a header block cannot be read or written: {0}")]
    Compression(String),
    #[error("a frame ends too early")]
    Truncated,
    #[error("a frame is too large")]
    TooLarge,
    #[error("frame version {0} is not 3")]
    Version(u16),
    #[error("the connection is closed")]
    Closed,
    #[error("Stream reset")]
    Reset,
    #[error("Timeout occurred")]
    Unanswered,
    #[error("too many streams are open")]
    TooManyStreams,
}
