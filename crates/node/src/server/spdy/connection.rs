//! The server's side of a connection: the peer opens streams, both send data.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::headers::{HeaderDecoder, HeaderEncoder, Headers};
use super::{Frame, MAX_DATA_BYTES, SpdyError, decode, encode};

/// Frames that wait for the consumer of a stream; then the whole connection waits.
const STREAM_QUEUE: usize = 64;
const WRITE_QUEUE: usize = 64;
/// Streams that may be open at once.
const MAX_STREAMS: usize = 1024;

/// How long a peer may take to read what is still queued.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to close its own side.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

enum Write {
    Frame(Frame),
    /// Sent with an empty header block.
    Reply {
        id: u32,
    },
}

/// A connection whose frames are read and written by tasks of its own. Dropping it ends the reading
/// of new streams; [`Connection::close`] says goodbye.
pub struct Connection {
    writer: mpsc::Sender<Write>,
    streams: mpsc::Receiver<Stream>,
    reading: tokio::task::JoinHandle<()>,
    writing: tokio::task::JoinHandle<()>,
}

/// A stream that the peer opened.
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

pub struct StreamReader {
    data: mpsc::Receiver<Bytes>,
}

impl StreamReader {
    /// `None` when the peer has finished or reset the stream.
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.data.recv().await
    }
}

#[derive(Clone)]
pub struct StreamWriter {
    id: u32,
    frames: mpsc::Sender<Write>,
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

    async fn frame(&self, frame: Frame) -> Result<(), SpdyError> {
        self.frames
            .send(Write::Frame(frame))
            .await
            .map_err(|_| SpdyError::Closed)
    }
}

impl Connection {
    /// Must be called within a tokio runtime.
    pub fn server(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<Self, SpdyError> {
        let (read, write) = tokio::io::split(io);
        let (writer, writes) = mpsc::channel(WRITE_QUEUE);
        let (opened, streams) = mpsc::channel(MAX_STREAMS);
        let encoder = HeaderEncoder::new()?;
        let writing = tokio::spawn(write_all(write, writes, encoder));
        let frames = writer.clone();
        let reading = tokio::spawn(async move {
            if let Err(error) = read_all(read, frames, opened).await {
                tracing::debug!(%error, "a SPDY connection ended");
            }
        });
        Ok(Self {
            writer,
            streams,
            reading,
            writing,
        })
    }

    /// The next stream that the peer opens; `None` when the connection is over.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Sends what is queued, says goodbye and closes.
    pub async fn close(self) {
        let Self {
            writer,
            streams,
            mut reading,
            mut writing,
        } = self;
        let farewell = async {
            let goodbye = Write::Frame(Frame::GoAway {
                last_id: 0,
                status: 0,
            });
            // A peer that has gone needs no goodbye.
            let _ = writer.send(goodbye).await;
            let _ = (&mut writing).await;
        };
        // Nor does one that does not read.
        if tokio::time::timeout(CLOSE_TIMEOUT, farewell).await.is_err() {
            writing.abort();
        }
        drop(streams);
        // Closing with something unread would throw away what the peer has not read yet.
        if tokio::time::timeout(GOODBYE_TIMEOUT, &mut reading)
            .await
            .is_err()
        {
            reading.abort();
        }
    }
}

async fn write_all(
    mut io: impl AsyncWrite + Unpin,
    mut writes: mpsc::Receiver<Write>,
    mut encoder: HeaderEncoder,
) {
    let mut buffer = BytesMut::new();
    while let Some(write) = writes.recv().await {
        let mut next = Some(write);
        let mut goodbye = false;
        // Whatever waits already goes out with one write.
        while let Some(write) = next {
            goodbye |= matches!(write, Write::Frame(Frame::GoAway { .. }));
            let frame = match write {
                Write::Frame(frame) => frame,
                Write::Reply { id } => match encoder.encode(&[]) {
                    Ok(block) => Frame::SynReply {
                        id,
                        fin: false,
                        block: block.into(),
                    },
                    Err(_) => return,
                },
            };
            if encode(&frame, &mut buffer).is_err() {
                return;
            }
            next = if goodbye || buffer.len() > 256 << 10 {
                None
            } else {
                writes.try_recv().ok()
            };
        }
        if io.write_all(&buffer).await.is_err() || io.flush().await.is_err() {
            return;
        }
        buffer.clear();
        if goodbye {
            break;
        }
    }
    // The peer may be gone already.
    let _ = io.shutdown().await;
}

struct Reader {
    frames: mpsc::Sender<Write>,
    opened: mpsc::Sender<Stream>,
    decoder: HeaderDecoder,
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
}

async fn read_all(
    mut io: impl AsyncRead + Unpin,
    frames: mpsc::Sender<Write>,
    opened: mpsc::Sender<Stream>,
) -> Result<(), SpdyError> {
    let mut reader = Reader {
        frames,
        opened,
        decoder: HeaderDecoder::default(),
        streams: HashMap::new(),
    };
    let mut buffer = BytesMut::with_capacity(64 << 10);
    loop {
        while let Some(frame) = decode(&mut buffer)? {
            if !reader.take(frame).await? {
                return Ok(());
            }
        }
        buffer.reserve(16 << 10);
        if io.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

impl Reader {
    /// False when the peer has said goodbye.
    async fn take(&mut self, frame: Frame) -> Result<bool, SpdyError> {
        match frame {
            Frame::SynStream { id, fin, block, .. } => self.open(id, fin, &block).await?,
            Frame::Data { id, fin, data } => {
                if let Some(stream) = self.streams.get(&id)
                    && !data.is_empty()
                    && stream.send(data).await.is_err()
                {
                    // Nobody reads it any more.
                    self.streams.remove(&id);
                }
                if fin {
                    self.streams.remove(&id);
                }
            }
            Frame::RstStream { id, .. } => {
                self.streams.remove(&id);
            }
            Frame::Ping { id } if id % 2 == 1 => self.send(Frame::Ping { id }).await?,
            Frame::Headers { id, fin, block } => {
                // Decoded even though nobody asks: the zlib stream must see every block.
                self.decoder.decode(&block)?;
                if fin {
                    self.streams.remove(&id);
                }
            }
            Frame::SynReply { block, .. } => {
                self.decoder.decode(&block)?;
            }
            Frame::GoAway { .. } => return Ok(false),
            Frame::Ping { .. }
            | Frame::Settings { .. }
            | Frame::WindowUpdate { .. }
            | Frame::Unknown { .. } => {}
        }
        Ok(true)
    }

    async fn open(&mut self, id: u32, fin: bool, block: &[u8]) -> Result<(), SpdyError> {
        let headers = self.decoder.decode(block)?;
        if id == 0 || id.is_multiple_of(2) || self.streams.contains_key(&id) {
            return self
                .send(Frame::RstStream {
                    id,
                    status: PROTOCOL_ERROR,
                })
                .await;
        }
        if self.streams.len() >= MAX_STREAMS {
            return self
                .send(Frame::RstStream {
                    id,
                    status: REFUSED_STREAM,
                })
                .await;
        }
        let (sender, data) = mpsc::channel(STREAM_QUEUE);
        if !fin {
            self.streams.insert(id, sender);
        }
        self.frames
            .send(Write::Reply { id })
            .await
            .map_err(|_| SpdyError::Closed)?;
        let headers = headers
            .into_iter()
            .map(|(name, value)| (name.to_lowercase(), value))
            .collect();
        let writer = StreamWriter {
            id,
            frames: self.frames.clone(),
        };
        let stream = Stream {
            id,
            headers,
            reader: StreamReader { data },
            writer,
        };
        self.opened
            .send(stream)
            .await
            .map_err(|_| SpdyError::Closed)
    }

    async fn send(&self, frame: Frame) -> Result<(), SpdyError> {
        self.frames
            .send(Write::Frame(frame))
            .await
            .map_err(|_| SpdyError::Closed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn read_frame(io: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Frame {
        loop {
            if let Some(frame) = decode(buffer).unwrap() {
                return frame;
            }
            assert_ne!(
                io.read_buf(buffer).await.unwrap(),
                0,
                "the connection ended"
            );
        }
    }

    async fn write_frame(io: &mut (impl AsyncWrite + Unpin), frame: &Frame) {
        let mut bytes = BytesMut::new();
        encode(frame, &mut bytes).unwrap();
        io.write_all(&bytes).await.unwrap();
    }

    #[tokio::test]
    async fn a_stream_goes_both_ways_and_the_connection_ends_politely() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::server(server).unwrap();
        let mut encoder = HeaderEncoder::new().unwrap();
        let block = encoder
            .encode(&[("StreamType".into(), "stdin".into())])
            .unwrap()
            .into();
        write_frame(
            &mut client,
            &Frame::SynStream {
                id: 1,
                fin: false,
                priority: 0,
                block,
            },
        )
        .await;
        write_frame(&mut client, &Frame::Ping { id: 1 }).await;
        write_frame(
            &mut client,
            &Frame::Data {
                id: 1,
                fin: true,
                data: Bytes::from_static(b"in"),
            },
        )
        .await;
        let stream = connection.accept().await.unwrap();
        assert_eq!(stream.header("streamtype"), Some("stdin"));
        let (mut reader, writer) = stream.split();
        assert_eq!(reader.recv().await.as_deref(), Some(&b"in"[..]));
        assert_eq!(reader.recv().await, None);
        writer
            .send(Bytes::from(vec![7; MAX_DATA_BYTES + 1]))
            .await
            .unwrap();
        writer.finish().await.unwrap();
        connection.close().await;
        let mut buffer = BytesMut::new();
        let mut received = 0;
        let mut kinds = Vec::new();
        loop {
            match read_frame(&mut client, &mut buffer).await {
                Frame::SynReply { id: 1, .. } => kinds.push("reply"),
                Frame::Ping { id: 1 } => kinds.push("ping"),
                Frame::Data {
                    id: 1,
                    fin: false,
                    data,
                } => received += data.len(),
                Frame::Data {
                    id: 1, fin: true, ..
                } => kinds.push("fin"),
                Frame::GoAway { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received, MAX_DATA_BYTES + 1);
        assert_eq!(kinds, ["reply", "ping", "fin"]);
    }

    #[tokio::test]
    async fn a_stream_that_the_peer_may_not_open_is_reset() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let _connection = Connection::server(server).unwrap();
        let block = HeaderEncoder::new().unwrap().encode(&[]).unwrap().into();
        write_frame(
            &mut client,
            &Frame::SynStream {
                id: 2,
                fin: false,
                priority: 0,
                block,
            },
        )
        .await;
        let mut buffer = BytesMut::new();
        assert_eq!(
            read_frame(&mut client, &mut buffer).await,
            Frame::RstStream {
                id: 2,
                status: PROTOCOL_ERROR
            }
        );
    }
}
