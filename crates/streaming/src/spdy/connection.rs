//! One connection: either side opens streams, both send data.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::headers::{HeaderDecoder, HeaderEncoder, Headers};
use super::stream::{Entry, Held, Stream, StreamReader, StreamWriter, Table, Waiting};
use super::{Frame, SpdyError, decode, encode};
use crate::idle::Activity;

/// Frames that wait for the consumer of a stream; then the whole connection waits.
const STREAM_QUEUE: usize = 64;
/// What all the streams of a connection may hold that nobody has taken yet.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// What a waiting frame costs beside its data.
const FRAME_COST_BYTES: usize = 256;
/// A small frame is copied out of the buffer that it came in, which it would otherwise keep.
const SMALL_FRAME_BYTES: usize = 4 << 10;
const WRITE_QUEUE: usize = 64;
/// Streams that may be open at once.
const MAX_STREAMS: usize = 1024;

/// How long the peer may take to acknowledge a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a peer may take to read what is still queued.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to close its own side.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// A silent connection is pinged this often by the side that opened it, for what lies between
/// forgets connections on which nothing moves. Half of what is usual there.
const PING_PERIOD: Duration = Duration::from_secs(15);

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;

/// Whose connection it is: its streams have odd numbers on the side that opened the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

pub(super) enum Write {
    Frame(Frame),
    /// Header blocks are made where they are written, for their order is that of the zlib stream.
    Open {
        id: u32,
        headers: Headers,
    },
    /// Sent with an empty header block.
    Reply {
        id: u32,
    },
}

/// A connection whose frames are read and written by tasks of its own. Dropping it breaks it off;
/// [`Connection::close`] says goodbye.
pub struct Connection {
    writer: mpsc::Sender<Write>,
    streams: mpsc::Receiver<Stream>,
    table: Table,
    activity: Activity,
    reading: AbortOnDropHandle<()>,
    writing: AbortOnDropHandle<()>,
}

impl Connection {
    /// The side that was connected to. Must be called within a tokio runtime.
    pub fn server(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<Self, SpdyError> {
        Self::new(io, Side::Server)
    }

    /// The side that connected. Must be called within a tokio runtime.
    pub fn client(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Result<Self, SpdyError> {
        Self::new(io, Side::Client)
    }

    fn new(
        io: impl AsyncRead + AsyncWrite + Send + 'static,
        side: Side,
    ) -> Result<Self, SpdyError> {
        let (read, write) = tokio::io::split(io);
        let (writer, writes) = mpsc::channel(WRITE_QUEUE);
        let (opened, streams) = mpsc::channel(MAX_STREAMS);
        let (table, activity) = (Table::default(), Activity::default());
        let writing = Writer {
            encoder: HeaderEncoder::new()?,
            activity: activity.clone(),
            side,
        };
        let reader = Reader {
            side,
            frames: writer.clone(),
            opened,
            decoder: HeaderDecoder::default(),
            table: table.clone(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING_BYTES)),
            activity: activity.clone(),
        };
        let ended = table.clone();
        let reading = tokio::spawn(async move {
            if let Err(error) = reader.read_all(read).await {
                tracing::debug!(%error, "a SPDY connection ended");
            }
            ended.end();
        });
        Ok(Self {
            writer,
            streams,
            table,
            activity,
            reading: AbortOnDropHandle::new(reading),
            writing: AbortOnDropHandle::new(tokio::spawn(writing.write_all(write, writes))),
        })
    }

    /// The next stream that the peer opens; `None` when the connection is over.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// When something last came or went, be it a ping.
    pub fn activity(&self) -> Activity {
        self.activity.clone()
    }

    /// Opens a stream and waits until the peer has acknowledged it. Only the side that connected
    /// opens streams in what travels here.
    pub async fn open(&self, headers: Headers) -> Result<Stream, SpdyError> {
        let (sender, data) = mpsc::channel(STREAM_QUEUE);
        let (opening, opened) = oneshot::channel();
        let reset = CancellationToken::new();
        let id = {
            let mut entries = self.table.lock();
            if entries.over {
                return Err(SpdyError::Closed);
            }
            if entries.streams.len() >= MAX_STREAMS {
                return Err(SpdyError::TooManyStreams);
            }
            let id = match entries.last {
                0 => 1,
                last => last + 2,
            };
            entries.last = id;
            let entry = Entry {
                data: Some(sender),
                opening: Some(opening),
                reset: reset.clone(),
            };
            entries.streams.insert(id, entry);
            id
        };
        let held = Arc::new(Held {
            id,
            table: self.table.clone(),
        });
        let open = Write::Open {
            id,
            headers: headers.clone(),
        };
        self.writer
            .send(open)
            .await
            .map_err(|_| SpdyError::Closed)?;
        match tokio::time::timeout(OPEN_TIMEOUT, opened).await {
            Ok(Ok(())) => Ok(Stream {
                id,
                headers,
                reader: StreamReader {
                    data,
                    _held: Arc::clone(&held),
                },
                writer: StreamWriter {
                    id,
                    frames: self.writer.clone(),
                    reset,
                    _held: held,
                },
            }),
            Ok(Err(_)) if reset.is_cancelled() => Err(SpdyError::Reset),
            Ok(Err(_)) => Err(SpdyError::Closed),
            Err(_) => Err(SpdyError::Unanswered),
        }
    }

    /// Sends what is queued, says goodbye and closes.
    pub async fn close(self) {
        let Self {
            writer,
            streams,
            mut reading,
            mut writing,
            ..
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

struct Writer {
    encoder: HeaderEncoder,
    activity: Activity,
    side: Side,
}

impl Writer {
    async fn write_all(
        mut self,
        mut io: impl AsyncWrite + Unpin,
        mut writes: mpsc::Receiver<Write>,
    ) {
        let mut buffer = BytesMut::new();
        let mut last_ping = 0_u32;
        loop {
            let next = match self.side {
                Side::Server => writes.recv().await,
                Side::Client => match tokio::time::timeout(PING_PERIOD, writes.recv()).await {
                    Ok(next) => next,
                    Err(_) => {
                        last_ping = last_ping.wrapping_add(1) | 1;
                        Some(Write::Frame(Frame::Ping { id: last_ping }))
                    }
                },
            };
            let Some(write) = next else { break };
            let mut next = Some(write);
            let mut goodbye = false;
            // Whatever waits already goes out with one write.
            while let Some(write) = next {
                goodbye |= matches!(write, Write::Frame(Frame::GoAway { .. }));
                let appended = self
                    .frame(write)
                    .and_then(|frame| encode(&frame, &mut buffer));
                if appended.is_err() {
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
            self.activity.note();
            buffer.clear();
            if goodbye {
                break;
            }
        }
        // The peer may be gone already.
        let _ = io.shutdown().await;
    }

    fn frame(&mut self, write: Write) -> Result<Frame, SpdyError> {
        Ok(match write {
            Write::Frame(frame) => frame,
            Write::Open { id, headers } => Frame::SynStream {
                id,
                fin: false,
                priority: 0,
                block: self.encoder.encode(&headers)?.into(),
            },
            Write::Reply { id } => Frame::SynReply {
                id,
                fin: false,
                block: self.encoder.encode(&[])?.into(),
            },
        })
    }
}

struct Reader {
    side: Side,
    frames: mpsc::Sender<Write>,
    opened: mpsc::Sender<Stream>,
    decoder: HeaderDecoder,
    table: Table,
    waiting: Arc<Semaphore>,
    activity: Activity,
}

impl Reader {
    async fn read_all(mut self, mut io: impl AsyncRead + Unpin) -> Result<(), SpdyError> {
        let mut buffer = BytesMut::with_capacity(64 << 10);
        loop {
            while let Some(frame) = decode(&mut buffer)? {
                self.activity.note();
                if !self.take(frame).await? {
                    return Ok(());
                }
            }
            buffer.reserve(16 << 10);
            if io.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    /// False when the peer has said goodbye.
    async fn take(&mut self, frame: Frame) -> Result<bool, SpdyError> {
        // Pings of the other side have the parity of its streams.
        let theirs = |id: u32| (id % 2 == 1) == (self.side == Side::Server);
        match frame {
            Frame::SynStream { id, fin, block, .. } => self.open(id, fin, &block).await?,
            Frame::Data { id, fin, data } => {
                self.data(id, data).await;
                if fin {
                    self.finished(id);
                }
            }
            Frame::RstStream { id, .. } => self.table.reset(id),
            Frame::Ping { id } if theirs(id) => self.send(Frame::Ping { id }).await?,
            Frame::Headers { id, fin, block } => {
                // Decoded even though nobody asks: the zlib stream must see every block.
                self.decoder.decode(&block)?;
                if fin {
                    self.finished(id);
                }
            }
            Frame::SynReply { id, fin, block } => {
                self.decoder.decode(&block)?;
                let opening = {
                    let mut entries = self.table.lock();
                    let entry = entries.streams.get_mut(&id);
                    entry.and_then(|entry| entry.opening.take())
                };
                if let Some(opening) = opening {
                    // Whoever opened it may have stopped waiting.
                    let _ = opening.send(());
                }
                if fin {
                    self.finished(id);
                }
            }
            Frame::GoAway { .. } => return Ok(false),
            Frame::Ping { .. }
            | Frame::Settings { .. }
            | Frame::WindowUpdate { .. }
            | Frame::Unknown { .. } => {}
        }
        Ok(true)
    }

    /// Waits until the stream's consumer has room.
    async fn data(&mut self, id: u32, data: Bytes) {
        let sender = {
            let entries = self.table.lock();
            let entry = entries.streams.get(&id);
            entry.and_then(|entry| entry.data.clone())
        };
        let Some(sender) = sender.filter(|_| !data.is_empty()) else {
            return;
        };
        let data = match data.len() {
            0..SMALL_FRAME_BYTES => Bytes::copy_from_slice(&data),
            _ => data,
        };
        let cost = u32::try_from(data.len() + FRAME_COST_BYTES).unwrap_or(u32::MAX);
        let waiting = Arc::clone(&self.waiting);
        let queued = tokio::select! {
            share = waiting.acquire_many_owned(cost) => match share {
                Ok(share) => sender.send(Waiting { data, share }).await.is_ok(),
                Err(_) => false,
            },
            () = sender.closed() => false,
        };
        if !queued {
            // Nobody reads it any more.
            self.finished(id);
        }
    }

    /// The peer has no more to say on this stream; it may still be told something.
    fn finished(&self, id: u32) {
        if let Some(entry) = self.table.lock().streams.get_mut(&id) {
            entry.data = None;
        }
    }

    async fn open(&mut self, id: u32, fin: bool, block: &[u8]) -> Result<(), SpdyError> {
        let headers = self.decoder.decode(block)?;
        let refusal = {
            let entries = self.table.lock();
            // Only the side that connected opens streams.
            let allowed = self.side == Side::Server && id % 2 == 1;
            if !allowed || entries.streams.contains_key(&id) {
                Some(PROTOCOL_ERROR)
            } else if entries.streams.len() >= MAX_STREAMS {
                Some(REFUSED_STREAM)
            } else {
                None
            }
        };
        if let Some(status) = refusal {
            return self.send(Frame::RstStream { id, status }).await;
        }
        let (sender, data) = mpsc::channel(STREAM_QUEUE);
        let reset = CancellationToken::new();
        let entry = Entry {
            data: (!fin).then_some(sender),
            opening: None,
            reset: reset.clone(),
        };
        self.table.lock().streams.insert(id, entry);
        let held = Arc::new(Held {
            id,
            table: self.table.clone(),
        });
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
            reset,
            _held: Arc::clone(&held),
        };
        let stream = Stream {
            id,
            headers,
            reader: StreamReader { data, _held: held },
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
    use super::super::MAX_DATA_BYTES;
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

    fn headers(kind: &str) -> Headers {
        vec![("streamtype".to_owned(), kind.to_owned())]
    }

    #[tokio::test]
    async fn both_sides_understand_each_other() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let client = Connection::client(client).unwrap();
        let mut server = Connection::server(server).unwrap();
        let stream = client.open(headers("stdout")).await.unwrap();
        let theirs = server.accept().await.unwrap();
        assert_eq!(theirs.header("streamtype"), Some("stdout"));
        let (mut reader, writer) = stream.split();
        writer.send(Bytes::from_static(b"to")).await.unwrap();
        writer.finish().await.unwrap();
        let (mut input, output) = theirs.split();
        assert_eq!(input.recv().await.as_deref(), Some(&b"to"[..]));
        assert_eq!(input.recv().await, None);
        output.send(Bytes::from_static(b"fro")).await.unwrap();
        output.reset().await.unwrap();
        assert_eq!(reader.recv().await.as_deref(), Some(&b"fro"[..]));
        assert_eq!(reader.recv().await, None);
        writer.gone().await;
        assert!(matches!(
            writer.send(Bytes::from_static(b"x")).await,
            Err(SpdyError::Reset)
        ));
        server.close().await;
        assert!(client.open(headers("stderr")).await.is_err());
    }

    #[tokio::test]
    async fn many_streams_after_one_another_do_not_fill_the_table() {
        let (client, server) = tokio::io::duplex(1 << 16);
        let client = Connection::client(client).unwrap();
        let mut server = Connection::server(server).unwrap();
        for _ in 0..MAX_STREAMS + 10 {
            let stream = client.open(headers("data")).await.unwrap();
            drop(server.accept().await.unwrap());
            drop(stream);
        }
        assert!(client.table.lock().streams.is_empty());
        assert!(server.table.lock().streams.is_empty());
    }

    #[tokio::test]
    async fn what_nobody_reads_stops_the_peer() {
        let (client, server) = tokio::io::duplex(1 << 12);
        let client = Connection::client(client).unwrap();
        let mut server = Connection::server(server).unwrap();
        let mut sent = 0;
        let mut held = Vec::new();
        // Several streams together get no more than one connection may hold.
        for _ in 0..4 {
            let Ok(stream) =
                tokio::time::timeout(Duration::from_millis(200), client.open(headers("data")))
                    .await
            else {
                break;
            };
            let stream = stream.unwrap();
            let part = Bytes::from(vec![0; MAX_DATA_BYTES]);
            while tokio::time::timeout(Duration::from_millis(100), stream.writer.send(part.clone()))
                .await
                .is_ok()
            {
                sent += part.len();
                assert!(sent < 32 << 20, "the server takes everything");
            }
            held.push((stream, server.accept().await.unwrap()));
        }
        assert!(sent >= 2 << 20);
        // It goes on as soon as somebody reads.
        let (_, theirs) = &mut held[0];
        for _ in 0..STREAM_QUEUE {
            assert!(theirs.reader.recv().await.is_some());
        }
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
