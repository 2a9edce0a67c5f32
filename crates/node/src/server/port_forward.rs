//! `/portForward/<namespace>/<pod>`: TCP connections into a pod, over SPDY, SPDY tunnelled in
//! WebSocket, or plain WebSocket channels.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_ports::Duplex;
use keelson_streaming::idle::IDLE_TIMEOUT;
use keelson_streaming::spdy::{Connection, Stream, StreamReader, StreamWriter};
use keelson_streaming::websocket::{self, ChannelSender, Channels, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::remote::spdy_response;
use super::{Body, Call, Server, switched, text};
use crate::pod;

const PROTOCOL: &str = "portforward.k8s.io";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const TUNNEL_PREFIX: &str = "SPDY/3.1+";
const TUNNEL_SUFFIX: &str = ".k8s.io";
const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNEL_PROTOCOLS: &[&str] = &["", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
const CHUNK_BYTES: usize = 32 << 10;
/// The second stream of a pair must follow the first within this time.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client of a WebSocket may take to close its side.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_CHANNEL_PORTS: usize = 100;

pub(super) async fn handle(server: Arc<Server>, mut call: Call) -> Response<Body> {
    let (namespace, pod_name, uid) = match call.path.as_slice() {
        [_, namespace, pod] => (namespace, pod, None),
        [_, namespace, pod, uid] => (namespace, pod, Some(uid)),
        _ => {
            return text(
                StatusCode::BAD_REQUEST,
                "the path must be /portForward/<namespace>/<pod>",
            );
        }
    };
    let pod = server
        .agent
        .pod(namespace, pod_name)
        .filter(|pod| uid.is_none_or(|uid| pod::uid(pod) == uid));
    let Some(pod) = pod else {
        return text(
            StatusCode::NOT_FOUND,
            format!("pod \"{pod_name}\" does not exist"),
        );
    };
    let Some(sandbox) = server
        .agent
        .node
        .state
        .pod(pod::uid(&pod))
        .ready_sandbox()
        .map(|sandbox| sandbox.id.clone())
    else {
        return text(
            StatusCode::NOT_FOUND,
            format!("pod not found (\"{pod_name}_{namespace}\")"),
        );
    };
    let forward = Forward {
        server,
        sandbox,
        pod: format!("{pod_name}, uid {}", pod::uid(&pod)),
    };
    let headers = call.request.headers();
    if websocket::is_upgrade(headers, "websocket") {
        if let Some(headers) = tunnel_headers(headers) {
            return forward.tunnel(call, &headers);
        }
        let ports = match ports(&call) {
            Ok(ports) => ports,
            Err(message) => return text(StatusCode::BAD_REQUEST, message),
        };
        return match websocket::accept(call.request.method(), headers, CHANNEL_PROTOCOLS) {
            Ok((response, protocol)) => {
                let upgrade = hyper::upgrade::on(&mut call.request);
                let encoding = websocket::Encoding::of(protocol);
                tokio::spawn(forward.channels(upgrade, ports, encoding));
                switched(response)
            }
            Err(refusal) => text(refusal.status, refusal.message),
        };
    }
    if websocket::is_upgrade(headers, "SPDY/3.1") {
        return match spdy_response(headers, &[PROTOCOL]) {
            Ok((response, _)) => {
                tokio::spawn(forward.spdy(hyper::upgrade::on(&mut call.request)));
                response
            }
            Err(response) => *response,
        };
    }
    text(StatusCode::BAD_REQUEST, "Upgrade request required")
}

/// What a client offers to speak in the SPDY that it tunnels, as SPDY's own headers say it; nothing
/// when it does not want a tunnel.
fn tunnel_headers(headers: &HeaderMap) -> Option<HeaderMap> {
    let offered = websocket::header_list(headers, SEC_WEBSOCKET_PROTOCOL)
        .filter(|protocol| protocol.ends_with(TUNNEL_SUFFIX))
        .filter_map(|protocol| protocol.strip_prefix(TUNNEL_PREFIX))
        .filter_map(|protocol| HeaderValue::from_str(protocol).ok());
    let headers: HeaderMap = offered.map(|value| (STREAM_PROTOCOL, value)).collect();
    (!headers.is_empty()).then_some(headers)
}

/// Ports of the plain WebSocket protocol: `ports` or `port`, repeated or comma-separated.
fn ports(call: &Call) -> Result<Vec<u16>, String> {
    let listed = call
        .query
        .all("port")
        .into_iter()
        .chain(call.query.all("ports"));
    let ports: Result<Vec<u16>, String> = listed
        .flat_map(|value| value.split(',').map(str::to_owned).collect::<Vec<_>>())
        .filter(|value| !value.is_empty())
        .map(|value| {
            value
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| format!("invalid port {value:?}"))
        })
        .collect();
    let ports = ports?;
    match ports.len() {
        0 => Err("query parameter \"port\" is required".to_owned()),
        count if count > MAX_CHANNEL_PORTS => Err(format!("too many ports: {count}")),
        _ => Ok(ports),
    }
}

#[derive(Clone)]
struct Forward {
    server: Arc<Server>,
    sandbox: String,
    /// Name and uid, for messages.
    pod: String,
}

/// The two streams of one forwarded connection.
#[derive(Default)]
struct Pair {
    error: Option<Stream>,
    data: Option<Stream>,
}

impl Forward {
    async fn spdy(self, upgrade: OnUpgrade) {
        let Ok(upgraded) = upgrade.await else { return };
        match Connection::server(TokioIo::new(upgraded)) {
            Ok(connection) => self.serve(connection).await,
            Err(error) => tracing::debug!(%error, "port forwarding did not begin"),
        }
    }

    /// SPDY's protocol is agreed upon first, the WebSocket's then.
    fn tunnel(self, mut call: Call, offered: &HeaderMap) -> Response<Body> {
        if let Err(refusal) = spdy_response(offered, &[PROTOCOL]) {
            return *refusal;
        }
        let (method, headers) = (call.request.method(), call.request.headers());
        match websocket::accept(method, headers, &[TUNNEL_PROTOCOL]) {
            Ok((response, _)) => {
                tokio::spawn(self.tunnelled(hyper::upgrade::on(&mut call.request)));
                switched(response)
            }
            Err(refusal) => text(refusal.status, refusal.message),
        }
    }

    async fn tunnelled(self, upgrade: OnUpgrade) {
        let Ok(socket) = websocket::open(upgrade).await else {
            return;
        };
        match Connection::server(Tunnel::new(socket)) {
            Ok(connection) => self.serve(connection).await,
            Err(error) => tracing::debug!(%error, "port forwarding did not begin"),
        }
    }

    /// Pairs streams up by their request id and forwards each pair on its own.
    async fn serve(self, mut connection: Connection) {
        let mut pairs: HashMap<String, (Pair, tokio::time::Instant)> = HashMap::new();
        let activity = connection.activity();
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let stream = tokio::select! {
                stream = connection.accept() => stream,
                () = self.server.shutdown.cancelled() => None,
                () = activity.idle(IDLE_TIMEOUT) => None,
            };
            let Some(stream) = stream else { break };
            pairs.retain(|_, (_, since)| since.elapsed() < PAIR_TIMEOUT);
            while tasks.try_join_next().is_some() {}
            let id = stream
                .header("requestid")
                .map_or_else(|| implied_request_id(&stream), str::to_owned);
            let (pair, _) = pairs
                .entry(id.clone())
                .or_insert_with(|| (Pair::default(), tokio::time::Instant::now()));
            match stream.header("streamtype") {
                Some("error") => pair.error = Some(stream),
                Some("data") => pair.data = Some(stream),
                other => {
                    tracing::debug!(kind = other, "an unexpected stream was reset");
                    // Only the peer could miss it.
                    let _ = stream.writer.reset().await;
                    continue;
                }
            }
            if let Some((
                Pair {
                    error: Some(_),
                    data: Some(_),
                },
                _,
            )) = pairs.get(&id)
                && let Some((
                    Pair {
                        error: Some(error),
                        data: Some(data),
                    },
                    _,
                )) = pairs.remove(&id)
            {
                tasks.spawn(self.clone().forward(error, data));
            }
        }
        tasks.abort_all();
        connection.close().await;
    }

    async fn forward(self, error: Stream, data: Stream) {
        let port = data
            .header("port")
            .and_then(|port| port.parse::<u16>().ok())
            .filter(|port| *port > 0);
        let writer = data.writer.clone();
        let failed = match port {
            Some(port) => match self
                .server
                .agent
                .node
                .runtime
                .port_forward(&self.sandbox, port)
                .await
            {
                Ok(target) => {
                    copy(target, data.reader, &data.writer).await;
                    None
                }
                Err(cause) => Some(format!(
                    "error forwarding port {port} to pod {}: {cause}",
                    self.pod
                )),
            },
            None => Some(format!("invalid port {:?}", data.header("port"))),
        };
        if let Some(message) = failed {
            // A client that is gone needs no explanation.
            let _ = error.writer.send(Bytes::from(message)).await;
        }
        let _ = error.writer.finish().await;
        let _ = writer.finish().await;
    }

    /// Two channels per port: data and error, each beginning with the port in little-endian.
    async fn channels(self, upgrade: OnUpgrade, ports: Vec<u16>, encoding: websocket::Encoding) {
        let Ok(socket) = websocket::open(upgrade).await else {
            return;
        };
        let Channels {
            sender,
            mut received,
            mut writing,
            activity,
        } = websocket::channels(socket, encoding);
        let mut inputs: HashMap<u8, mpsc::Sender<Bytes>> = HashMap::new();
        let mut tasks = tokio::task::JoinSet::new();
        for (index, port) in ports.into_iter().enumerate() {
            let Ok(data_channel) = u8::try_from(index * 2) else {
                return;
            };
            for channel in [data_channel, data_channel + 1] {
                if sender.send(channel, &port.to_le_bytes()).await.is_err() {
                    return;
                }
            }
            let (input, data) = mpsc::channel(64);
            inputs.insert(data_channel, input);
            tasks.spawn(
                self.clone()
                    .channel(port, data_channel, data, sender.clone()),
            );
        }
        drop(sender);
        loop {
            let next = tokio::select! {
                next = received.next() => next,
                () = activity.idle(IDLE_TIMEOUT) => None,
                // Every port has had its say, and so has the goodbye.
                _ = &mut writing => None,
            };
            let Some((channel, data)) = next else { break };
            if let Some(input) = inputs.get(&channel)
                && input.send(data).await.is_err()
            {
                inputs.remove(&channel);
            }
        }
        tasks.abort_all();
        writing.abort();
        // A socket closed with something unread in it loses what the client has not read either.
        let leaving = async { while received.next().await.is_some() {} };
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, leaving).await;
    }

    async fn channel(
        self,
        port: u16,
        channel: u8,
        mut input: mpsc::Receiver<Bytes>,
        sender: ChannelSender,
    ) {
        // At once: there are protocols in which the server speaks first.
        let target = match self
            .server
            .agent
            .node
            .runtime
            .port_forward(&self.sandbox, port)
            .await
        {
            Ok(target) => target,
            Err(cause) => {
                let message = format!("error forwarding port {port} to pod {}: {cause}", self.pod);
                // A client that is gone needs no explanation.
                let _ = sender.send(channel + 1, message.as_bytes()).await;
                return;
            }
        };
        let (mut read, mut write) = tokio::io::split(target);
        let inbound = async {
            while let Some(data) = input.recv().await {
                if write.write_all(&data).await.is_err() {
                    break;
                }
            }
            // The other side may have closed first.
            let _ = write.shutdown().await;
            std::future::pending::<()>().await;
        };
        let outbound = async {
            let mut buffer = vec![0; CHUNK_BYTES];
            while let Ok(count) = read.read(&mut buffer).await {
                if count == 0 || sender.send(channel, &buffer[..count]).await.is_err() {
                    break;
                }
            }
        };
        // A target that has ended is not written to; one that is not written to may go on talking.
        tokio::select! {
            () = inbound => {}
            () = outbound => {}
        }
    }
}

/// Old clients send no request id: a data stream follows its error stream by two.
fn implied_request_id(stream: &Stream) -> String {
    match stream.header("streamtype") {
        Some("error") => stream.id.to_string(),
        _ => stream.id.saturating_sub(2).to_string(),
    }
}

/// Copies both ways until both sides have ended, or the target has.
async fn copy(target: Box<dyn Duplex>, mut reader: StreamReader, writer: &StreamWriter) {
    let (mut read, mut write) = tokio::io::split(target);
    let inbound = tokio::spawn(async move {
        while let Some(data) = reader.recv().await {
            if write.write_all(&data).await.is_err() {
                return;
            }
        }
        // The other side may have closed first.
        let _ = write.shutdown().await;
    });
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = tokio::select! {
            read = read.read(&mut buffer) => read,
            // Nobody is left to read what the target says.
            () = writer.gone() => break,
        };
        match read {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if writer
                    .send(Bytes::copy_from_slice(&buffer[..count]))
                    .await
                    .is_err()
                {
                    break;
                }
            }
        }
    }
    inbound.abort();
}
