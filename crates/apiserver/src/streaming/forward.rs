//! One request passed on over a connection of its own; upgrades are piped byte for byte.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL, TE, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::http::RequestBody;
use crate::request::{Body, BoxError, Response, UserInfo, empty};

const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
];
/// What a page may do with this server is this server's to say.
const CORS: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];
/// How long a side may take to hear that a connection is over.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Where a request came from, as an extension of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);

/// Why there is no answer, in the words of upstream's HTTP library.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error("EOF")]
    Closed,
    #[error("malformed HTTP response")]
    Malformed,
    #[error("invalid upgrade response: status code {}", .0.as_u16())]
    NotUpgraded(StatusCode),
    #[error("{0}")]
    Other(String),
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() {
            Failure::Malformed
        } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
            Failure::Closed
        } else {
            let ended = std::error::Error::source(&error)
                .and_then(|cause| cause.downcast_ref::<std::io::Error>())
                .is_some_and(|cause| cause.kind() == std::io::ErrorKind::UnexpectedEof);
            match ended {
                true => Failure::Closed,
                false => Failure::Other(error.to_string()),
            }
        }
    }
}

/// Whether the client wants another protocol on this connection.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    let named = headers.get_all(CONNECTION).iter();
    let mut tokens = named
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    tokens.any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        && headers.contains_key(UPGRADE)
}

/// The host that the client asked, which is passed on.
pub(super) fn host_of(parts: &Parts) -> Option<String> {
    let authority = parts.uri.authority().map(ToString::to_string);
    authority.or_else(|| {
        let host = parts.headers.get(HOST)?.to_str().ok()?;
        (!host.is_empty()).then(|| host.to_owned())
    })
}

/// What the other side answered, and the connection that it came over.
pub(super) struct Answer {
    pub(super) response: http::Response<Incoming>,
    sender: hyper::client::conn::http1::SendRequest<Body>,
}

/// Sends a request with these headers as they are.
pub(super) async fn send<S>(
    stream: S,
    method: Method,
    uri: &str,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "backend connection ended");
        }
    });
    let mut request = Request::builder()
        .method(method)
        .uri(uri)
        .body(body)
        .map_err(|error| Failure::Other(error.to_string()))?;
    *request.headers_mut() = headers;
    let response = sender.send_request(request).await?;
    Ok(Answer { response, sender })
}

/// Sends the request to `stream` as `uri` and returns the answer, streaming.
pub(super) async fn forward<S>(
    stream: S,
    mut parts: Parts,
    uri: &str,
    host: &str,
    body: RequestBody,
) -> Result<Response, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let upgrading = is_upgrade(&parts.headers);
    let mut headers = headers(&parts, upgrading, host);
    let sends = [Method::POST, Method::PUT, Method::PATCH].contains(&parts.method);
    if sends && is_empty(&body) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    let client = upgrading.then(|| client_of(&mut parts));
    let mut answer = send(stream, parts.method, uri, headers, outgoing(body)).await?;
    let response = &mut answer.response;
    if !upgrading {
        let reason = response.extensions_mut();
        reason.remove::<hyper::ext::ReasonPhrase>();
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return Err(Failure::NotUpgraded(StatusCode::SWITCHING_PROTOCOLS));
        };
        let backend = hyper::upgrade::on(response);
        tokio::spawn(async move {
            match tokio::try_join!(client, backend) {
                Ok((client, backend)) => pipe(TokioIo::new(client), TokioIo::new(backend)).await,
                Err(error) => tracing::debug!(%error, "an upgrade was not completed"),
            }
        });
        let (parts, _) = answer.response.into_parts();
        return Ok(http::Response::from_parts(parts, empty()));
    }
    if upgrading && response.status().as_u16() < 400 {
        return Err(Failure::NotUpgraded(response.status()));
    }
    Ok(passed_on(answer, upgrading))
}

/// Copies both ways until either side has nothing more to say: a connection with one end open
/// would be kept for as long as the other end likes.
pub(super) async fn pipe(
    client: impl AsyncRead + AsyncWrite + Unpin,
    backend: impl AsyncRead + AsyncWrite + Unpin,
) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_backend, mut to_backend) = tokio::io::split(backend);
    let ended = tokio::select! {
        ended = tokio::io::copy(&mut from_client, &mut to_backend) => ended,
        ended = tokio::io::copy(&mut from_backend, &mut to_client) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a piped connection ended");
    }
    let goodbye = async { tokio::join!(to_client.shutdown(), to_backend.shutdown()) };
    // Whoever does not listen any more needs no goodbye.
    let _ = tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await;
}

/// An answer as it goes to the client, without what was said of the connection alone.
pub(super) fn passed_on(answer: Answer, upgrading: bool) -> Response {
    let Answer { response, sender } = answer;
    let (mut parts, body) = response.into_parts();
    for name in HOP_BY_HOP.iter().chain(&CORS) {
        parts.headers.remove(*name);
    }
    if upgrading {
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let body: Body = Sending {
        body,
        _sender: sender,
    }
    .boxed_unsync();
    http::Response::from_parts(parts, body)
}

/// What becomes the client's connection once it is told to switch protocols. It lives in the
/// request's extensions, which are needed whole.
pub(super) fn client_of(parts: &mut Parts) -> OnUpgrade {
    let mut taken = Request::new(()).into_parts().0;
    std::mem::swap(&mut taken.extensions, &mut parts.extensions);
    hyper::upgrade::on(Request::from_parts(taken, ()))
}

fn is_empty(body: &RequestBody) -> bool {
    match body {
        RequestBody::Whole(bytes) => bytes.is_empty(),
        RequestBody::Stream(stream) => stream.is_end_stream(),
    }
}

fn outgoing(body: RequestBody) -> Body {
    match body {
        RequestBody::Whole(bytes) => Full::new(bytes)
            .map_err(|never| match never {})
            .boxed_unsync(),
        RequestBody::Stream(stream) => stream
            .map_err(|error| -> BoxError { Box::new(error) })
            .boxed_unsync(),
    }
}

/// The headers that are passed on.
pub(super) fn headers(parts: &Parts, upgrading: bool, host: &str) -> HeaderMap {
    let original = &parts.headers;
    // What `Connection` names is for this connection alone.
    let named: Vec<String> = original
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut out = HeaderMap::with_capacity(original.len());
    for (name, value) in original {
        let text = name.as_str();
        if HOP_BY_HOP.contains(&text)
            || *name == HOST
            || *name == UPGRADE
            || *name == FORWARDED_FOR
            || named.iter().any(|named| named == text)
        {
            continue;
        }
        if *name == SEC_WEBSOCKET_PROTOCOL {
            // The caller's token is for this server alone.
            let text = value.to_str().unwrap_or_default();
            let is_token = |p: &str| p.trim().starts_with("base64url.bearer.");
            if text.split(',').any(is_token) {
                let kept: Vec<_> = text.split(',').filter(|p| !is_token(p)).collect();
                if let Ok(value) = HeaderValue::from_str(kept.join(",").trim()) {
                    out.append(name, value);
                }
                continue;
            }
        }
        out.append(name, value.clone());
    }
    let te = original.get(TE).and_then(|value| value.to_str().ok());
    if te.is_some_and(|te| te.split(',').any(|te| te.trim() == "trailers")) {
        out.insert(TE, HeaderValue::from_static("trailers"));
    }
    if upgrading && let Some(protocol) = original.get(UPGRADE) {
        out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        out.insert(UPGRADE, protocol.clone());
    }
    let before = original.get_all(FORWARDED_FOR).iter();
    let mut through: Vec<String> = before
        .filter_map(|value| value.to_str().ok().map(str::to_owned))
        .collect();
    let client = parts.extensions.get::<ClientAddress>();
    through.extend(client.map(|client| client.0.to_string()));
    if let Ok(value) = HeaderValue::from_str(&through.join(", "))
        && !through.is_empty()
    {
        out.insert(FORWARDED_FOR, value);
    }
    if let Ok(value) = HeaderValue::from_str(host) {
        out.insert(HOST, value);
    }
    out
}

/// Drops what only this server may say of a caller.
pub(super) fn strip_identity(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-remote-"))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// Tells an aggregated server who is asking.
pub(super) fn set_identity(headers: &mut HeaderMap, user: &UserInfo) {
    strip_identity(headers);
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.username);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        for value in values {
            add(
                &format!("x-remote-extra-{}", key.replace('/', "%2f")),
                value,
            );
        }
    }
}

/// Keeps the connection's sender alive as long as the answer is read.
struct Sending {
    body: hyper::body::Incoming,
    _sender: hyper::client::conn::http1::SendRequest<Body>,
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::pin::Pin::new(&mut self.body)
            .poll_frame(cx)
            .map(|frame| frame.map(|f| f.map_err(|error| -> BoxError { Box::new(error) })))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
