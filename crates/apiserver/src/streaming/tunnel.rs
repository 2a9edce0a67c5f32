//! Port forwarding for clients that carry SPDY in WebSocket, in front of kubelets that speak SPDY
//! alone: the WebSocket ends here.

use std::sync::Arc;

use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use keelson_machinery::status::Status;
use keelson_streaming::websocket::{self, Tunnel};

use super::backend::Kubelet;
use super::{forward, pods, refused};
use crate::http::Counter;
use crate::request::{Response, empty, respond_text};
use crate::server::Server;

const PREFIX: &str = "SPDY/3.1+";
const SUFFIX: &str = ".k8s.io";
pub(super) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
pub(super) const SPDY: HeaderValue = HeaderValue::from_static("SPDY/3.1");

/// Whether a WebSocket is to carry SPDY.
pub(super) fn is_asked_for(headers: &HeaderMap) -> bool {
    websocket::is_upgrade(headers, "websocket") && offered(headers).next().is_some()
}

/// What the client would speak inside of SPDY.
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    websocket::header_list(headers, SEC_WEBSOCKET_PROTOCOL)
        .filter(|protocol| protocol.ends_with(SUFFIX))
        .filter_map(|protocol| protocol.strip_prefix(PREFIX))
}

/// Asks the kubelet for SPDY first: what it refuses, the client is told as it was said.
pub(super) async fn tunnel(
    server: &Arc<Server>,
    kubelet: &Kubelet,
    mut parts: Parts,
    uri: &str,
) -> Result<Response, Status> {
    let count = |status: StatusCode| {
        let labels = [("code", status.as_str())];
        server.metrics.count(Counter::StreamTunnel, &labels);
    };
    let stream = server.kubelets.dial(kubelet).await;
    let stream = stream.map_err(pods::not_dialed)?;
    let host = forward::host_of(&parts).unwrap_or_else(|| kubelet.authority());
    let headers = spdy_headers(&parts, &host);
    let answer = forward::send(stream, Method::POST, uri, headers, empty()).await;
    let mut answer = answer.map_err(|failure| refused(&failure, true))?;
    let status = answer.response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        if status.as_u16() < 400 {
            return Err(refused(&forward::Failure::NotUpgraded(status), true));
        }
        count(status);
        return Ok(forward::passed_on(answer, true));
    }
    let names = |name: HeaderName, wanted: &str| {
        websocket::header_list(answer.response.headers(), name)
            .any(|value| value.eq_ignore_ascii_case(wanted))
    };
    if !names(CONNECTION, "upgrade") || !names(UPGRADE, "SPDY/3.1") {
        count(StatusCode::INTERNAL_SERVER_ERROR);
        return Ok(respond_text(
            500,
            "unable to upgrade: missing upgrade headers in response\n",
        ));
    }
    let chosen = answer.response.headers().get(STREAM_PROTOCOL);
    let chosen = chosen.and_then(|value| value.to_str().ok()).map(str::trim);
    let accepted = accept(&parts.method, &parts.headers, chosen.unwrap_or_default());
    let response = match accepted {
        Ok(response) => response,
        Err(status) => {
            count(StatusCode::INTERNAL_SERVER_ERROR);
            let reason = status.canonical_reason().unwrap_or_default();
            let mut response = respond_text(status.as_u16(), format!("{reason}\n"));
            let version = HeaderValue::from_static("13");
            response
                .headers_mut()
                .insert(SEC_WEBSOCKET_VERSION, version);
            return Ok(response);
        }
    };
    count(status);
    let client = forward::client_of(&mut parts);
    let backend = hyper::upgrade::on(&mut answer.response);
    tokio::spawn(async move {
        match tokio::try_join!(websocket::open(client), backend) {
            Ok((socket, backend)) => {
                forward::pipe(Tunnel::new(socket), TokioIo::new(backend)).await;
            }
            Err(error) => tracing::debug!(%error, "an upgrade was not completed"),
        }
    });
    Ok(response)
}

/// The client's headers, but for those of its WebSocket.
fn spdy_headers(parts: &Parts, host: &str) -> HeaderMap {
    let mut headers = forward::headers(parts, true, host);
    for name in [
        SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION,
        STREAM_PROTOCOL,
    ] {
        headers.remove(name);
    }
    headers.insert(UPGRADE, SPDY);
    for protocol in offered(&parts.headers) {
        if let Ok(value) = HeaderValue::from_str(protocol) {
            headers.append(STREAM_PROTOCOL, value);
        }
    }
    headers
}

/// The client learns which of its protocols the kubelet has chosen, if it has chosen one of them.
fn accept(method: &Method, headers: &HeaderMap, chosen: &str) -> Result<Response, StatusCode> {
    let mut without = headers.clone();
    without.remove(SEC_WEBSOCKET_PROTOCOL);
    let accepted = websocket::accept(method, &without, &[""]);
    let (answer, _) = accepted.map_err(|refusal| refusal.status)?;
    let mut response = answer.map(|()| empty());
    if offered(headers).any(|protocol| protocol == chosen)
        && let Ok(value) = HeaderValue::from_str(&format!("{PREFIX}{chosen}"))
    {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
    Ok(response)
}
