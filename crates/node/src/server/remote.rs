//! `exec`, `attach` and `run`: a container's streams over WebSocket or SPDY.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_ports::{AttachRequest, ContainerState, ExecRequest, ExecSession};
use keelson_streaming::idle::IDLE_TIMEOUT;
use keelson_streaming::spdy::{Connection, Stream, StreamReader, StreamWriter};
use keelson_streaming::websocket::{self, ChannelSender, Channels};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Body, Call, Server, full, switched, text};
use crate::pod;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// v5 only: the next byte names the channel that the client has finished.
const CLOSE: u8 = 255;

/// Taken whenever the client offers it, be it last.
const CLOSING_PROTOCOL: &str = "v5.channel.k8s.io";
/// Those before the fourth version tell how a command ended only when it failed, as text.
const WEBSOCKET_PROTOCOLS: &[&str] = &[
    "",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
];
const SPDY_PROTOCOLS: &[&str] = &[
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
pub(super) const PROTOCOL_HEADER: &str = "X-Stream-Protocol-Version";
/// A client opens its streams right after the upgrade.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
const RUN_TIMEOUT: Duration = Duration::from_secs(600);
const CHUNK_BYTES: usize = 32 << 10;
/// A socket that is closed with something unread in it loses what the client has not read either:
/// the client gets this long to close its side.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Output that is under way when a process ends gets this long to arrive: a child that keeps the
/// streams open must not keep the client waiting.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Which streams the client wants.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn of(call: &Call) -> Result<Self, String> {
        let query = &call.query;
        let tty = query.any(&["tty"]);
        let wanted = Self {
            stdin: query.any(&["input", "stdin"]),
            stdout: query.any(&["output", "stdout"]),
            // A terminal has one output.
            stderr: query.any(&["error", "stderr"]) && !tty,
            tty,
        };
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            return Err("you must specify at least 1 of stdin, stdout, stderr".to_owned());
        }
        Ok(wanted)
    }
}

enum Operation {
    Exec(Vec<String>),
    Attach,
}

pub(super) async fn exec(server: Arc<Server>, call: Call) -> Response<Body> {
    let command = call.query.all("command");
    if command.is_empty() {
        return text(
            StatusCode::BAD_REQUEST,
            "you must specify at least one command",
        );
    }
    upgrade(server, call, Operation::Exec(command)).await
}

pub(super) async fn attach(server: Arc<Server>, call: Call) -> Response<Body> {
    upgrade(server, call, Operation::Attach).await
}

/// Runs a command and answers with its output.
pub(super) async fn run(server: &Arc<Server>, call: &Call) -> Response<Body> {
    let id = match container_id(server, call) {
        Ok((id, _)) => id,
        Err((status, message)) => return text(status, message),
    };
    let mut command = call.query.all("command");
    if command.is_empty() {
        command = call
            .query
            .all("cmd")
            .iter()
            .flat_map(|line| line.split(' ').map(str::to_owned))
            .collect();
    }
    match server
        .agent
        .node
        .runtime
        .exec_sync(&id, command, RUN_TIMEOUT)
        .await
    {
        Ok(mut output) => {
            output.stdout.append(&mut output.stderr);
            super::response(StatusCode::OK, "text/plain", full(output.stdout))
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// The running container that a path names: `/<verb>/<namespace>/<pod>[/<uid>]/<container>`; and
/// whether its specification has a terminal.
fn container_id(server: &Server, call: &Call) -> Result<(String, bool), (StatusCode, String)> {
    let (namespace, pod_name, uid, container) = match call.path.as_slice() {
        [_, namespace, pod, container] => (namespace, pod, None, container),
        [_, namespace, pod, uid, container] => (namespace, pod, Some(uid), container),
        _ => {
            return Err((
                StatusCode::BAD_REQUEST,
                "the path must be /<namespace>/<pod>/<container>".to_owned(),
            ));
        }
    };
    let pod = server
        .agent
        .pod(namespace, pod_name)
        .filter(|pod| uid.is_none_or(|uid| pod::uid(pod) == uid))
        .ok_or_else(|| {
            (
                StatusCode::NOT_FOUND,
                format!("pod \"{pod_name}\" does not exist"),
            )
        })?;
    let tty = pod::find_container(&pod, container)
        .is_some_and(|(_, container)| container.tty.unwrap_or(false));
    let runtime = server.agent.node.state.pod(pod::uid(&pod));
    runtime
        .latest(container)
        .filter(|status| status.state == ContainerState::Running)
        .map(|status| (status.id.clone(), tty))
        .ok_or_else(|| {
            (
                StatusCode::NOT_FOUND,
                format!("container not found (\"{container}\")"),
            )
        })
}

async fn upgrade(server: Arc<Server>, mut call: Call, operation: Operation) -> Response<Body> {
    let (id, container_tty) = match container_id(&server, &call) {
        Ok(found) => found,
        Err((status, message)) => return text(status, message),
    };
    let mut wanted = match Wanted::of(&call) {
        Ok(wanted) => wanted,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    if matches!(operation, Operation::Attach) {
        // The container has a terminal or has not; the client's wish does not change that.
        wanted.tty = container_tty;
        wanted.stderr &= !container_tty;
    }
    let headers = call.request.headers();
    if websocket::is_upgrade(headers, "websocket") {
        let closes = websocket::header_list(headers, SEC_WEBSOCKET_PROTOCOL)
            .any(|offer| offer == CLOSING_PROTOCOL);
        let supported = match closes {
            true => &[CLOSING_PROTOCOL],
            false => WEBSOCKET_PROTOCOLS,
        };
        return match websocket::accept(call.request.method(), headers, supported) {
            Ok((response, protocol)) => {
                let upgrade = hyper::upgrade::on(&mut call.request);
                tokio::spawn(over_websocket(
                    server, id, operation, wanted, upgrade, protocol,
                ));
                switched(response)
            }
            Err(refusal) => text(refusal.status, refusal.message),
        };
    }
    if websocket::is_upgrade(headers, "SPDY/3.1") {
        return match spdy_response(headers, SPDY_PROTOCOLS) {
            Ok((response, protocol)) => {
                let upgrade = hyper::upgrade::on(&mut call.request);
                tokio::spawn(over_spdy(server, id, operation, wanted, upgrade, protocol));
                response
            }
            Err(response) => *response,
        };
    }
    text(StatusCode::BAD_REQUEST, "Upgrade request required")
}

/// Switches to SPDY with the client's first protocol that is supported.
pub(super) fn spdy_response(
    headers: &HeaderMap,
    supported: &[&'static str],
) -> Result<(Response<Body>, &'static str), Box<Response<Body>>> {
    let offered: Vec<&str> = websocket::header_list(headers, PROTOCOL_HEADER).collect();
    if offered.is_empty() {
        let others = headers.keys().filter(|name| *name != http::header::HOST);
        let message = match headers.get(PROTOCOL_HEADER) {
            None => format!(
                "unable to upgrade: header {PROTOCOL_HEADER} does not exist in request with {} headers",
                others.count()
            ),
            Some(value) => format!(
                "unable to upgrade: header {PROTOCOL_HEADER} contains [{}], but no valid protocols",
                String::from_utf8_lossy(value.as_bytes())
            ),
        };
        return Err(Box::new(text(StatusCode::BAD_REQUEST, message)));
    }
    let known = |offer: &&str| supported.iter().find(|name| *name == offer);
    let Some(chosen) = offered.iter().find_map(known) else {
        let mut refusal = text(
            StatusCode::FORBIDDEN,
            format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
                offered.join(" "),
                supported.join(" ")
            ),
        );
        for protocol in supported {
            refusal.headers_mut().append(
                "X-Accepted-Stream-Protocol-Versions",
                HeaderValue::from_static(protocol),
            );
        }
        return Err(Box::new(refusal));
    };
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONNECTION,
        HeaderValue::from_static("Upgrade"),
    );
    headers.insert(http::header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(PROTOCOL_HEADER, HeaderValue::from_static(chosen));
    Ok((response, *chosen))
}

async fn session(
    server: &Server,
    id: &str,
    operation: &Operation,
    wanted: Wanted,
) -> keelson_ports::Result<ExecSession> {
    let runtime = &server.agent.node.runtime;
    match operation {
        Operation::Exec(command) => {
            let request = ExecRequest {
                command: command.clone(),
                tty: wanted.tty,
                stdin: wanted.stdin,
                stdout: wanted.stdout,
                stderr: wanted.stderr,
            };
            runtime.exec(id, request).await
        }
        Operation::Attach => {
            let request = AttachRequest {
                tty: wanted.tty,
                stdin: wanted.stdin,
                stdout: wanted.stdout,
                stderr: wanted.stderr,
            };
            runtime.attach(id, request).await
        }
    }
}

/// Where one output of the process goes.
#[derive(Clone)]
enum Output {
    WebSocket(ChannelSender, u8),
    Spdy(StreamWriter),
}

impl Output {
    /// False when the client is gone.
    async fn send(&self, data: &[u8]) -> bool {
        match self {
            Output::WebSocket(sender, channel) => sender.send(*channel, data).await.is_ok(),
            Output::Spdy(writer) => writer.send(Bytes::copy_from_slice(data)).await.is_ok(),
        }
    }

    async fn finish(&self) {
        if let Output::Spdy(writer) = self {
            // A client that is gone has finished as well.
            let _ = writer.finish().await;
        }
    }
}

/// The client's side of a session.
struct Remote {
    /// Data for the process; the end of the channel is the end of its input.
    stdin: Option<mpsc::Receiver<Bytes>>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    resize: Option<mpsc::Receiver<(u16, u16)>>,
    error: Output,
    version: Version,
    /// Resolves when the client has gone away.
    gone: futures::future::BoxFuture<'static, ()>,
}

/// How the client is told how a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// Failures alone, as text.
    Text,
    /// A Status.
    Status,
    /// A Status as a client of the former makes one of what it has heard: upstream's servers
    /// translate the newest protocol, and what they say has passed through two mouths.
    Translated,
}

/// Moves bytes until the process ends; then tells how it ended.
async fn drive(operation: &Operation, session: keelson_ports::Result<ExecSession>, remote: Remote) {
    let Remote {
        stdin,
        stdout,
        stderr,
        resize,
        error,
        version,
        gone,
    } = remote;
    let failed = |cause: keelson_ports::Error| {
        let doing = match operation {
            Operation::Exec(_) => "error executing command in container",
            Operation::Attach => "error attaching to container",
        };
        failure(&format!("{doing}: {cause}"), version)
    };
    let session = match session {
        Ok(session) => session,
        Err(cause) => {
            let status = failed(cause);
            finish(&[stdout, stderr], &error, &status, version).await;
            return;
        }
    };
    let input = tokio::spawn(async move {
        let (Some(mut stdin), Some(mut process)) = (stdin, session.stdin) else {
            return;
        };
        while let Some(data) = stdin.recv().await {
            if process.write_all(&data).await.is_err() || process.flush().await.is_err() {
                return;
            }
        }
        // A process that has ended needs no end of input.
        let _ = process.shutdown().await;
    });
    let sizes = tokio::spawn(async move {
        let (Some(mut resize), Some(process)) = (resize, session.resize) else {
            return;
        };
        while let Some(size) = resize.recv().await {
            if process.send(size).await.is_err() {
                return;
            }
        }
    });
    let mut stdout_copy = tokio::spawn(copy_output(session.stdout, stdout.clone()));
    let mut stderr_copy = tokio::spawn(copy_output(session.stderr, stderr.clone()));
    let ended = tokio::select! {
        code = session.exit => Some(code),
        () = gone => None,
    };
    input.abort();
    sizes.abort();
    if ended.is_some() {
        let drain = async { tokio::join!(&mut stdout_copy, &mut stderr_copy) };
        // What has not arrived by then belongs to a process that outlived the command.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
    }
    stdout_copy.abort();
    stderr_copy.abort();
    let status = match ended {
        None => return,
        Some(Ok(0)) => json!({"metadata": {}, "status": "Success"}),
        Some(Ok(code)) => non_zero(code, version),
        Some(Err(cause)) => failed(cause),
    };
    finish(&[stdout, stderr], &error, &status, version).await;
}

async fn copy_output(stream: Option<Box<dyn AsyncRead + Send + Unpin>>, output: Option<Output>) {
    let (Some(mut stream), Some(output)) = (stream, output) else {
        return;
    };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match stream.read(&mut buffer).await {
            // A terminal whose other side closed reports an error instead of an end.
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if !output.send(&buffer[..count]).await {
                    return;
                }
            }
        }
    }
}

async fn finish(outputs: &[Option<Output>], error: &Output, status: &Value, version: Version) {
    for output in outputs.iter().flatten() {
        output.finish().await;
    }
    if version != Version::Text {
        error.send(status.to_string().as_bytes()).await;
    } else if let Some(message) = status["message"].as_str() {
        error.send(message.as_bytes()).await;
    }
    error.finish().await;
}

fn non_zero(code: i32, version: Version) -> Value {
    let how = match version {
        Version::Translated => "command terminated with exit code",
        Version::Status | Version::Text => "exit status",
    };
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: {how} {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure(cause: &str, version: Version) -> Value {
    let said = format!("Internal error occurred: {cause}");
    let (message, cause) = match version {
        Version::Translated => (format!("Internal error occurred: {said}"), said),
        Version::Status | Version::Text => (said, cause.to_owned()),
    };
    json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "details": {"causes": [{"message": cause}]},
        "code": 500,
    })
}

#[derive(serde::Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

async fn over_websocket(
    server: Arc<Server>,
    id: String,
    operation: Operation,
    wanted: Wanted,
    upgrade: OnUpgrade,
    protocol: &'static str,
) {
    let closes = protocol == CLOSING_PROTOCOL;
    let version = match protocol.starts_with("v4") {
        true => Version::Status,
        false if closes => Version::Translated,
        false => Version::Text,
    };
    let Ok(socket) = websocket::open(upgrade).await else {
        return;
    };
    let Channels {
        sender,
        mut received,
        writing,
        activity,
    } = websocket::channels(socket, websocket::Encoding::of(protocol));
    let (stdin_sender, stdin) = mpsc::channel::<Bytes>(16);
    let (resize_sender, resize) = mpsc::channel(4);
    let (alive, gone) = tokio::sync::oneshot::channel::<()>();
    let reading = tokio::spawn(async move {
        let mut stdin = Some(stdin_sender);
        while let Some((channel, data)) = received.next().await {
            match channel {
                STDIN => {
                    if let Some(sender) = &stdin
                        && !data.is_empty()
                        && sender.send(data).await.is_err()
                    {
                        stdin = None;
                    }
                }
                RESIZE => {
                    if let Ok(size) = serde_json::from_slice::<Size>(&data) {
                        // A process that has ended has no terminal to resize.
                        let _ = resize_sender.send((size.width, size.height)).await;
                    }
                }
                CLOSE if closes => match *data {
                    [STDIN] => stdin = None,
                    [channel] if channel <= RESIZE => {}
                    // Nobody knows what the client meant.
                    _ => break,
                },
                _ => {}
            }
        }
        drop(alive);
    });
    // An empty message on the lowest channel tells the client that the connection stands.
    let first = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        ERROR
    };
    if sender.send(first, &[]).await.is_err() {
        return;
    }
    let output = |channel| Output::WebSocket(sender.clone(), channel);
    let remote = Remote {
        stdin: wanted.stdin.then_some(stdin),
        stdout: wanted.stdout.then(|| output(STDOUT)),
        stderr: wanted.stderr.then(|| output(STDERR)),
        resize: wanted.tty.then_some(resize),
        error: output(ERROR),
        version,
        gone: Box::pin(async move {
            tokio::select! {
                // The sender is dropped when the client is gone.
                _ = gone => {}
                () = activity.idle(IDLE_TIMEOUT) => {}
            }
        }),
    };
    let session = session(&server, &id, &operation, wanted).await;
    drive(&operation, session, remote).await;
    drop(sender);
    // A client that does not answer the goodbye has heard all there is nevertheless.
    let mut reading = reading;
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, async {
        let _ = writing.await;
        let _ = tokio::time::timeout(GOODBYE_TIMEOUT, &mut reading).await;
    })
    .await;
    reading.abort();
}

async fn over_spdy(
    server: Arc<Server>,
    id: String,
    operation: Operation,
    wanted: Wanted,
    upgrade: OnUpgrade,
    protocol: &'static str,
) {
    let resizes = protocol.starts_with("v4") || protocol.starts_with("v3");
    let Ok(upgraded) = upgrade.await else { return };
    let Ok(mut connection) = Connection::server(TokioIo::new(upgraded)) else {
        return;
    };
    let collected = Streams::collect(&mut connection, wanted, wanted.tty && resizes);
    let Ok(Some(streams)) = tokio::time::timeout(STREAMS_TIMEOUT, collected).await else {
        tracing::debug!("a client did not open its streams in time");
        connection.close().await;
        return;
    };
    let (alive, gone) = tokio::sync::oneshot::channel::<()>();
    let activity = connection.activity();
    let done = CancellationToken::new();
    let finished = done.clone();
    let watching = tokio::spawn(async move {
        tokio::select! {
            // No more streams are expected: this ends with the connection.
            () = async { while connection.accept().await.is_some() {} } => drop(alive),
            () = finished.cancelled() => {}
        }
        connection.close().await;
    });
    let remote = Remote {
        stdin: streams.stdin.map(|stream| data_of(stream.reader)),
        stdout: streams.stdout.map(|stream| Output::Spdy(stream.writer)),
        stderr: streams.stderr.map(|stream| Output::Spdy(stream.writer)),
        resize: streams.resize.map(|stream| sizes_of(stream.reader)),
        error: Output::Spdy(streams.error.writer),
        version: match protocol.starts_with("v4") {
            true => Version::Status,
            false => Version::Text,
        },
        gone: Box::pin(async move {
            tokio::select! {
                // The sender is dropped when the client is gone.
                _ = gone => {}
                () = activity.idle(IDLE_TIMEOUT) => {}
            }
        }),
    };
    let session = session(&server, &id, &operation, wanted).await;
    drive(&operation, session, remote).await;
    done.cancel();
    // Its result says nothing that the client could still be told.
    let _ = watching.await;
}

/// The streams of a remote command, by their `streamType` header.
struct Streams {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    /// `None` when the connection ends first.
    async fn collect(connection: &mut Connection, wanted: Wanted, resizes: bool) -> Option<Self> {
        let (mut error, mut stdin, mut stdout, mut stderr, mut resize) =
            (None, None, None, None, None);
        loop {
            let complete = error.is_some()
                && stdin.is_some() == wanted.stdin
                && stdout.is_some() == wanted.stdout
                && stderr.is_some() == wanted.stderr
                && resize.is_some() == resizes;
            if complete {
                return Some(Self {
                    error: error?,
                    stdin,
                    stdout,
                    stderr,
                    resize,
                });
            }
            let stream = connection.accept().await?;
            let slot = match stream.header("streamtype") {
                Some("error") => &mut error,
                Some("stdin") if wanted.stdin => &mut stdin,
                Some("stdout") if wanted.stdout => &mut stdout,
                Some("stderr") if wanted.stderr => &mut stderr,
                Some("resize") if resizes => &mut resize,
                other => {
                    tracing::debug!(kind = other, "an unexpected stream was reset");
                    // Only the peer could miss it.
                    let _ = stream.writer.reset().await;
                    continue;
                }
            };
            *slot = Some(stream);
        }
    }
}

fn data_of(mut reader: StreamReader) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(data) = reader.recv().await {
            if sender.send(data).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// Terminal sizes are JSON objects, one after another.
fn sizes_of(mut reader: StreamReader) -> mpsc::Receiver<(u16, u16)> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let mut buffer: Vec<u8> = Vec::new();
        while let Some(data) = reader.recv().await {
            buffer.extend_from_slice(&data);
            let mut sizes = serde_json::Deserializer::from_slice(&buffer).into_iter::<Size>();
            let mut read = Vec::new();
            while let Some(Ok(size)) = sizes.next() {
                read.push((size.width, size.height));
            }
            let consumed = sizes.byte_offset();
            buffer.drain(..consumed.min(buffer.len()));
            if buffer.len() > 1024 {
                return;
            }
            for size in read {
                if sender.send(size).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}
