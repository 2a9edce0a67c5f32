//! One request passed on over a connection of its own; upgrades are piped byte for byte.

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use keelson_machinery::status::Status;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::http::RequestBody;
use crate::request::{Body, BoxError, Response, UserInfo, empty};

const HOP_BY_HOP: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
];

/// Sends the request to `stream` as `uri` and returns the answer, streaming.
pub(super) async fn forward<S>(
    stream: S,
    mut parts: Parts,
    uri: &str,
    host: &str,
    body: RequestBody,
) -> Result<Response, Status>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |e: String| Status::internal(format!("error trying to reach backend: {e}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(e.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "backend connection ended");
        }
    });
    let upgrading = parts.headers.contains_key(UPGRADE);
    let client =
        upgrading.then(|| hyper::upgrade::on(Request::from_parts(upgrade_parts(&mut parts), ())));
    let request = Request::builder()
        .method(parts.method.clone())
        .uri(uri)
        .body(outgoing(body))
        .map_err(|e| failed(e.to_string()))?;
    let mut request = request;
    *request.headers_mut() = headers(&parts.headers, upgrading, host);
    let mut response = sender
        .send_request(request)
        .await
        .map_err(|e| failed(e.to_string()))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return Err(failed("an upgrade nobody asked for".to_owned()));
        };
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            match tokio::try_join!(client, backend) {
                Ok((client, backend)) => {
                    let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
                    if let Err(error) =
                        tokio::io::copy_bidirectional(&mut client, &mut backend).await
                    {
                        tracing::debug!(%error, "a piped connection ended");
                    }
                }
                Err(error) => tracing::debug!(%error, "an upgrade was not completed"),
            }
        });
        let (parts, _) = response.into_parts();
        return Ok(http::Response::from_parts(parts, empty()));
    }
    let (mut parts, body) = response.into_parts();
    for name in HOP_BY_HOP {
        parts.headers.remove(name);
    }
    let body: Body = Sending {
        body,
        _sender: sender,
    }
    .boxed_unsync();
    Ok(http::Response::from_parts(parts, body))
}

/// The upgrade future lives in the request's extensions, which are needed whole.
fn upgrade_parts(parts: &mut Parts) -> Parts {
    let mut taken = Request::new(()).into_parts().0;
    std::mem::swap(&mut taken.extensions, &mut parts.extensions);
    taken
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

fn headers(original: &HeaderMap, upgrading: bool, host: &str) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(original.len());
    for (name, value) in original {
        if HOP_BY_HOP.contains(&name.as_str()) || *name == HOST || *name == UPGRADE {
            continue;
        }
        if *name == SEC_WEBSOCKET_PROTOCOL {
            // The caller's token is for this server alone.
            let text = value.to_str().unwrap_or_default();
            let kept: Vec<_> = text
                .split(',')
                .map(str::trim)
                .filter(|p| !p.starts_with("base64url.bearer."))
                .collect();
            if let Ok(value) = HeaderValue::from_str(&kept.join(", ")) {
                out.append(name, value);
            }
            continue;
        }
        out.append(name, value.clone());
    }
    if upgrading && let Some(protocol) = original.get(UPGRADE) {
        out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        out.insert(UPGRADE, protocol.clone());
    }
    if let Ok(value) = HeaderValue::from_str(host) {
        out.insert(HOST, value);
    }
    out
}

/// Tells an aggregated server who is asking.
pub(super) fn set_identity(headers: &mut HeaderMap, user: &UserInfo) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-remote-"))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
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
