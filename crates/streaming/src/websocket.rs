//! WebSocket upgrades, and messages whose first byte names a channel.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, Bytes};
use futures::{SinkExt, Stream, StreamExt};
use http::header::{
    AsHeaderName, CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::idle::Activity;

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Clients send messages up to this size; Go's servers take no larger ones either.
const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// Whether the headers ask for another protocol on the connection, this one.
pub fn is_upgrade(headers: &HeaderMap, protocol: &str) -> bool {
    let lists = |name, wanted: &str| {
        let mut parts = header_list(headers, name);
        parts.any(|part| part.eq_ignore_ascii_case(wanted))
    };
    lists(CONNECTION, "upgrade") && lists(UPGRADE, protocol)
}

/// Values of a header that may be given several times and in comma-separated lists.
pub fn header_list(headers: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

/// Why there is no WebSocket, as Go's servers say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: &'static str,
}

/// The answer that switches protocols, and the protocol chosen: the client's first that is
/// supported. A client that names none is served when the empty name is supported.
pub fn accept(
    method: &Method,
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Result<(Response<()>, &'static str), Refusal> {
    let refused = |status, message| Err(Refusal { status, message });
    if method != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "bad method");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty());
    let Some(key) = key else {
        return refused(StatusCode::BAD_REQUEST, "mismatch challenge/response");
    };
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return refused(StatusCode::BAD_REQUEST, "missing or bad WebSocket Version");
    }
    let known = |offer: &str| supported.iter().copied().find(|name| *name == offer);
    let mut offered = header_list(headers, SEC_WEBSOCKET_PROTOCOL).peekable();
    let chosen = match offered.peek() {
        None => known(""),
        Some(_) => offered.find_map(known),
    };
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let (Some(chosen), Ok(accept)) = (chosen, accept) else {
        return refused(StatusCode::FORBIDDEN, "");
    };
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !chosen.is_empty() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok((response, chosen))
}

pub async fn open(upgrade: OnUpgrade) -> Result<Socket, hyper::Error> {
    let upgraded = TokioIo::new(upgrade.await?);
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await)
}

/// How bytes travel in messages; browsers of old could send text only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    Base64,
}

impl Encoding {
    pub fn of(protocol: &str) -> Self {
        if protocol.contains("base64") {
            Self::Base64
        } else {
            Self::Binary
        }
    }

    pub fn message(self, data: &[u8]) -> Message {
        match self {
            Self::Binary => Message::Binary(Bytes::copy_from_slice(data)),
            Self::Base64 => Message::Text(BASE64.encode(data).into()),
        }
    }

    /// A message whose first byte is the channel, in text the channel's digit.
    fn channel_message(self, channel: u8, data: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut message = Vec::with_capacity(data.len() + 1);
                message.push(channel);
                message.extend_from_slice(data);
                Message::Binary(message.into())
            }
            Self::Base64 => {
                let digit = char::from(b'0'.saturating_add(channel.min(9)));
                Message::Text(format!("{digit}{}", BASE64.encode(data)).into())
            }
        }
    }

    /// Channel and data of a received message; nothing for what cannot be understood.
    fn split(self, mut data: Bytes) -> Option<(u8, Bytes)> {
        if data.is_empty() {
            return None;
        }
        let channel = data.get_u8();
        match self {
            Self::Binary => Some((channel, data)),
            Self::Base64 => {
                let channel = channel.checked_sub(b'0')?;
                Some((channel, BASE64.decode(&data).ok()?.into()))
            }
        }
    }
}

/// One writer per socket: channels share it through a queue.
#[derive(Clone)]
pub struct ChannelSender {
    queue: mpsc::Sender<Message>,
    encoding: Encoding,
}

impl ChannelSender {
    pub async fn send(&self, channel: u8, data: &[u8]) -> Result<(), ()> {
        self.queue
            .send(self.encoding.channel_message(channel, data))
            .await
            .map_err(drop)
    }
}

/// A socket taken apart.
pub struct Channels<S> {
    pub sender: ChannelSender,
    /// `(channel, data)`; ends with the client.
    pub received: S,
    /// Ends when every sender is gone, with a goodbye.
    pub writing: tokio::task::JoinHandle<()>,
    /// Messages alone count: a ping says nothing about use.
    pub activity: Activity,
}

pub fn channels(
    socket: Socket,
    encoding: Encoding,
) -> Channels<impl Stream<Item = (u8, Bytes)> + Send + Unpin> {
    let activity = Activity::default();
    let (read, written) = (activity.clone(), activity.clone());
    let (mut sink, stream) = socket.split();
    let (queue, mut messages) = mpsc::channel::<Message>(64);
    let writing = tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
            written.note();
        }
        // The peer may have closed first.
        let _ = sink.send(goodbye()).await;
        let _ = sink.close().await;
    });
    let received = stream
        .take_while(|message| std::future::ready(message.is_ok()))
        .filter_map(|message| {
            std::future::ready(match message {
                Ok(Message::Binary(data)) => Some(data),
                Ok(Message::Text(text)) => Some(Bytes::from(text)),
                _ => None,
            })
        })
        .inspect(move |_| read.note())
        .filter_map(move |data| std::future::ready(encoding.split(data)));
    Channels {
        sender: ChannelSender { queue, encoding },
        received,
        writing,
        activity,
    }
}

/// What a one-way stream of bytes is sent in. The first is for clients that name no protocol.
pub const ONE_WAY_PROTOCOLS: &[&str] = &["", "binary.k8s.io", "base64.binary.k8s.io"];
/// How long a client may take to close its side.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends bytes in messages as they come, up to the first error; what the client says is of no
/// interest.
pub async fn send<E>(
    upgrade: OnUpgrade,
    encoding: Encoding,
    bytes: impl Stream<Item = Result<Bytes, E>>,
) {
    let Ok(socket) = open(upgrade).await else {
        return;
    };
    let (mut sink, mut received) = socket.split();
    let mut bytes = std::pin::pin!(bytes);
    let sending = async {
        while let Some(Ok(data)) = bytes.next().await {
            if sink.send(encoding.message(&data)).await.is_err() {
                return;
            }
        }
        // The peer may have closed first.
        let _ = sink.send(goodbye()).await;
        let _ = sink.close().await;
    };
    let leaving = async { while let Some(Ok(_)) = received.next().await {} };
    tokio::select! {
        () = sending => {}
        () = leaving => return,
    }
    // A socket closed with something unread in it loses what the client has not read either.
    let leaving = async { while let Some(Ok(_)) = received.next().await {} };
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, leaving).await;
}

/// Clients take any close but a normal one for a failure.
pub fn goodbye() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: Utf8Bytes::from_static(""),
    }))
}

/// A byte stream inside a socket's binary messages: what tunnels SPDY.
pub struct Tunnel {
    socket: Socket,
    rest: Bytes,
    said_goodbye: bool,
}

impl Tunnel {
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            rest: Bytes::new(),
            said_goodbye: false,
        }
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> std::io::Error {
    std::io::Error::other(error)
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        loop {
            if !self.rest.is_empty() {
                let count = self.rest.len().min(buffer.remaining());
                buffer.put_slice(&self.rest[..count]);
                self.rest.advance(count);
                return Poll::Ready(Ok(()));
            }
            match self.socket.poll_next_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                // Text is not bytes: whoever sends it has not understood what this is.
                Poll::Ready(None | Some(Ok(Message::Close(_) | Message::Text(_)))) => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Ok(Message::Binary(data)))) => self.rest = data,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
            }
        }
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.socket.poll_ready_unpin(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
            Poll::Ready(Ok(())) => {}
        }
        let message = Message::Binary(Bytes::copy_from_slice(data));
        Poll::Ready(
            self.socket
                .start_send_unpin(message)
                .map(|()| data.len())
                .map_err(broken),
        )
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.socket.poll_flush_unpin(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if !self.said_goodbye {
            match self.socket.poll_ready_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                // A socket that the peer has closed needs no goodbye.
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {}
            }
            self.said_goodbye = true;
            if self.socket.start_send_unpin(goodbye()).is_err() {
                return Poll::Ready(Ok(()));
            }
        }
        self.socket.poll_flush_unpin(cx).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_travel_as_bytes_or_as_text() {
        assert_eq!(
            Encoding::Binary.channel_message(1, b"ab"),
            Message::Binary(Bytes::from_static(b"\x01ab"))
        );
        assert_eq!(
            Encoding::Base64.channel_message(1, b"ab"),
            Message::Text("1YWI=".into())
        );
        let split = Encoding::Base64.split(Bytes::from_static(b"0YWI="));
        assert_eq!(split, Some((0, Bytes::from_static(b"ab"))));
        assert_eq!(Encoding::Base64.split(Bytes::from_static(b"0?")), None);
        assert_eq!(Encoding::Binary.split(Bytes::new()), None);
    }
}
