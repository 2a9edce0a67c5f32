//! exec and attach for clients that speak WebSocket, in front of kubelets that speak SPDY alone:
//! channels become streams. How a command ended, and what went wrong on the way to it, is told on
//! the error channel, for the WebSocket stands before the kubelet is asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::request::Parts;
use http::{Method, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_machinery::status::Status;
use keelson_streaming::idle::IDLE_TIMEOUT;
use keelson_streaming::spdy::{Connection, Headers, SpdyError, Stream, StreamReader, StreamWriter};
use keelson_streaming::websocket::{self, ChannelSender, Channels, Encoding};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::backend::Kubelet;
use super::forward;
use super::tunnel::{SPDY, STREAM_PROTOCOL};
use crate::http::Counter;
use crate::request::{Response, empty, full, read_up_to};
use crate::server::Server;

/// The one protocol that is translated: older ones cannot say that the input has ended, and every
/// kubelet understands them by itself.
const PROTOCOL: &str = "v5.channel.k8s.io";
/// What kubelets are offered, newest first.
const SPDY_PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// The next byte names the channel that the client has finished.
const CLOSE: u8 = 255;

/// How long a client may take to close its side of the connection.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it may take to read one message once the command has ended.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// What of a kubelet's refusal, and of how a command ended, is read.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// Which streams the client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    /// By the kubelet's names of the options.
    pub(super) fn of(options: &[(&'static str, String)]) -> Self {
        let has = |wanted| options.iter().any(|(name, _)| *name == wanted);
        Self {
            stdin: has("input"),
            stdout: has("output"),
            stderr: has("error"),
            tty: has("tty"),
        }
    }
}

/// Whether a WebSocket is asked for whose channels can be closed one by one.
pub(super) fn is_asked_for(headers: &HeaderMap) -> bool {
    websocket::is_upgrade(headers, "websocket")
        && websocket::header_list(headers, SEC_WEBSOCKET_PROTOCOL).any(|offer| offer == PROTOCOL)
}

pub(super) fn translate(
    server: &Arc<Server>,
    kubelet: Kubelet,
    mut parts: Parts,
    uri: String,
    wanted: Wanted,
) -> Response {
    match websocket::accept(&parts.method, &parts.headers, &[PROTOCOL]) {
        Ok((response, _)) => {
            let session = Session {
                server: Arc::clone(server),
                kubelet,
                uri,
                wanted,
            };
            tokio::spawn(session.run(forward::client_of(&mut parts)));
            response.map(|()| empty())
        }
        Err(refusal) => {
            count(server, 400);
            let mut response = http::Response::new(full(refusal.message));
            *response.status_mut() = refusal.status;
            response
        }
    }
}

fn count(server: &Server, code: u16) {
    let labels = [("code", &*code.to_string())];
    server.metrics.count(Counter::StreamTranslator, &labels);
}

struct Session {
    server: Arc<Server>,
    kubelet: Kubelet,
    uri: String,
    wanted: Wanted,
}

/// How a translated command ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Success,
    /// The code as the kubelet wrote it.
    Exit(u8),
    Failed(String),
}

impl Session {
    async fn run(self, upgrade: OnUpgrade) {
        let Ok(socket) = websocket::open(upgrade).await else {
            return;
        };
        let Channels {
            sender,
            received,
            writing,
            activity,
        } = websocket::channels(socket, Encoding::Binary);
        // An empty message on the lowest channel tells the client that the connection stands.
        let first = match self.wanted {
            Wanted { stdout: true, .. } => STDOUT,
            Wanted { stderr: true, .. } => STDERR,
            _ => ERROR,
        };
        if sender.send(first, &[]).await.is_err() {
            return;
        }
        let (stdin, input) = mpsc::channel(1);
        let (resize, sizes) = mpsc::channel(4);
        let client = Client {
            sender: sender.clone(),
            input,
            sizes,
        };
        let mut receiving = std::pin::pin!(receive(received, stdin, resize));
        let outcome = tokio::select! {
            outcome = self.drive(client) => Some(outcome),
            () = &mut receiving => None,
            () = activity.idle(IDLE_TIMEOUT) => None,
        };
        let Some(outcome) = outcome else {
            // Nobody is left who could be told.
            count(&self.server, 500);
            return;
        };
        count(&self.server, outcome.code());
        let telling = async {
            let status = outcome.status().to_string();
            // There is nobody to tell that this could not be told.
            let _ = sender.send(ERROR, status.as_bytes()).await;
            drop(sender);
            let _ = writing.await;
            // A socket that is closed with something unread in it loses what the client has not
            // read either: it gets a while to close its side.
            let _ = tokio::time::timeout(GOODBYE_TIMEOUT, receiving).await;
        };
        tokio::select! {
            () = telling => {}
            // A client that takes nothing for so long has heard all it wanted.
            () = activity.idle(WRITE_TIMEOUT) => {}
        }
    }

    /// From the first stream to the last byte of output.
    async fn drive(&self, client: Client) -> Outcome {
        let (connection, version) = match self.connect().await {
            Ok(connected) => connected,
            Err(reason) => return Outcome::Failed(reason),
        };
        let outcome = match Streams::open(&connection, self.wanted, version).await {
            Ok(streams) => streams.drive(client, version).await,
            Err(error) => Outcome::Failed(error.to_string()),
        };
        connection.close().await;
        outcome
    }

    /// A SPDY connection to the kubelet, and the version of the protocol that it chose.
    async fn connect(&self) -> Result<(Connection, u8), String> {
        let authority = self.kubelet.authority();
        let failed = |reason: String| {
            let url = format!("https://{authority}{}", self.uri);
            format!("error sending request: Post {url:?}: {reason}")
        };
        let stream = self.server.kubelets.dial(&self.kubelet).await;
        let stream = stream.map_err(failed)?;
        let mut headers = HeaderMap::new();
        if let Ok(host) = HeaderValue::from_str(&authority) {
            headers.insert(HOST, host);
        }
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, SPDY);
        for protocol in SPDY_PROTOCOLS {
            headers.append(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
        }
        let answer = forward::send(stream, Method::POST, &self.uri, headers, empty()).await;
        let mut answer = answer.map_err(|failure| failed(failure.to_string()))?;
        let names = |name, wanted: &str| {
            websocket::header_list(answer.response.headers(), name)
                .any(|value| value.eq_ignore_ascii_case(wanted))
        };
        let status = answer.response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS
            || !names(CONNECTION, "upgrade")
            || !names(UPGRADE, "SPDY/3.1")
        {
            if status.is_redirection() {
                return Err(failed("redirect not allowed".to_owned()));
            }
            let body = forward::passed_on(answer, true).into_body();
            let (bytes, _) = read_up_to(body, MAX_ERROR_BYTES).await;
            return Err(format!("unable to upgrade connection: {}", said(&bytes)));
        }
        let chosen = answer.response.headers().get(STREAM_PROTOCOL);
        let version = chosen.map_or(1, |protocol| match protocol.as_bytes() {
            [b'v', digit @ b'2'..=b'5', b'.', ..] => digit - b'0',
            _ => 1,
        });
        let upgraded = hyper::upgrade::on(&mut answer.response).await;
        let upgraded = upgraded.map_err(|error| failed(error.to_string()))?;
        let connection = Connection::client(TokioIo::new(upgraded));
        Ok((connection.map_err(|error| error.to_string())?, version))
    }
}

/// The message of a refusal, which may be a Status.
fn said(bytes: &[u8]) -> String {
    let status: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes);
    ["message", "error"]
        .iter()
        .filter_map(|field| status[*field].as_str())
        .chain([&*text])
        .map(str::trim)
        .find(|said| !said.is_empty())
        .unwrap_or("empty server response")
        .to_owned()
}

/// The client's side of a session.
struct Client {
    sender: ChannelSender,
    /// Its end is the end of the input.
    input: mpsc::Receiver<Bytes>,
    sizes: mpsc::Receiver<Bytes>,
}

/// Sorts what the client says, until it is gone or cannot be understood.
async fn receive(
    mut received: impl futures::Stream<Item = (u8, Bytes)> + Unpin,
    stdin: mpsc::Sender<Bytes>,
    resize: mpsc::Sender<Bytes>,
) {
    let (mut stdin, mut resize) = (Some(stdin), Some(resize));
    while let Some((channel, data)) = received.next().await {
        let sender = match channel {
            STDIN => &mut stdin,
            RESIZE => &mut resize,
            CLOSE => {
                match *data {
                    [STDIN] => stdin = None,
                    [RESIZE] => resize = None,
                    [STDOUT | STDERR | ERROR] => {}
                    _ => return,
                }
                continue;
            }
            _ => continue,
        };
        if let Some(open) = sender
            && !data.is_empty()
            && open.send(data).await.is_err()
        {
            *sender = None;
        }
    }
}

/// The kubelet's side of a session.
struct Streams {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    async fn open(connection: &Connection, wanted: Wanted, version: u8) -> Result<Self, SpdyError> {
        let open = async |kind: &str, wanted: bool| {
            let headers: Headers = vec![("streamtype".to_owned(), kind.to_owned())];
            match wanted {
                true => connection.open(headers).await.map(Some),
                false => Ok(None),
            }
        };
        Ok(Self {
            error: open("error", true).await?.ok_or(SpdyError::Closed)?,
            stdin: open("stdin", wanted.stdin).await?,
            stdout: open("stdout", wanted.stdout).await?,
            // A terminal has one output.
            stderr: open("stderr", wanted.stderr && !wanted.tty).await?,
            resize: open("resize", wanted.tty && version >= 3).await?,
        })
    }

    /// The outputs first, then how it ended: that is said last, but may be said early.
    async fn drive(self, client: Client, version: u8) -> Outcome {
        let Client {
            sender,
            input,
            sizes,
        } = client;
        let feeding = async {
            tokio::join!(feed(self.stdin, input), feed(self.resize, sizes));
            // The client's input may end; the session ends with the outputs.
            std::future::pending::<Outcome>().await
        };
        let outputs = async {
            let (_, _, error) = tokio::join!(
                copy(self.stdout, sender.clone(), STDOUT),
                copy(self.stderr, sender.clone(), STDERR),
                last_words(self.error.reader),
            );
            Outcome::of(&error, version)
        };
        tokio::select! {
            outcome = outputs => outcome,
            outcome = feeding => outcome,
        }
    }
}

/// Passes on what the client says until it or the kubelet has finished.
async fn feed(stream: Option<Stream>, mut data: mpsc::Receiver<Bytes>) {
    let Some((mut reader, writer)) = stream.map(Stream::split) else {
        return;
    };
    let sending = async {
        while let Some(data) = data.recv().await {
            if writer.send(data).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = sending => {}
        // A command that does not read any more closes its input.
        () = drained(&mut reader) => {}
    }
    data.close();
    // A kubelet that is gone has no use for an end.
    let _ = writer.finish().await;
}

async fn drained(reader: &mut StreamReader) {
    while reader.recv().await.is_some() {}
}

/// Output whose reader is gone is still taken, so that the other streams go on.
async fn copy(stream: Option<Stream>, sender: ChannelSender, channel: u8) {
    let Some((mut reader, _writer)): Option<(StreamReader, StreamWriter)> =
        stream.map(Stream::split)
    else {
        return;
    };
    while let Some(data) = reader.recv().await {
        if sender.send(channel, &data).await.is_err() {
            return drained(&mut reader).await;
        }
    }
}

/// What the kubelet says of the command's end.
async fn last_words(mut reader: StreamReader) -> Vec<u8> {
    let mut said = Vec::new();
    while let Some(data) = reader.recv().await {
        if said.len() + data.len() <= MAX_ERROR_BYTES {
            said.extend_from_slice(&data);
        }
    }
    said
}

impl Outcome {
    /// No words are good words. Before the fourth version there is text for failures alone.
    fn of(said: &[u8], version: u8) -> Self {
        let text = String::from_utf8_lossy(said);
        if text.is_empty() {
            return Self::Success;
        }
        if version < 4 {
            return Self::Failed(format!("error executing remote command: {text}"));
        }
        let protocol =
            |reason: &str| Self::Failed(format!("error stream protocol error: {reason}"));
        let status = match serde_json::from_slice::<Value>(said) {
            Ok(status) => status,
            Err(error) => return protocol(&format!("{error} in {text:?}")),
        };
        match status["status"].as_str() {
            Some("Success") => return Self::Success,
            Some("Failure") => {}
            _ => return protocol("unknown error"),
        }
        if status["reason"] != "NonZeroExitCode" {
            return Self::Failed(status["message"].as_str().unwrap_or_default().to_owned());
        }
        let Some(details) = status["details"].as_object() else {
            return protocol("details must be set");
        };
        let mut causes = details
            .get("causes")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let Some(cause) = causes.find(|cause| cause["reason"] == "ExitCode") else {
            return protocol("no ExitCode cause given");
        };
        let code = cause["message"].as_str().unwrap_or_default();
        match code.parse() {
            Ok(code) => Self::Exit(code),
            Err(_) => protocol(&format!("invalid exit code value {code:?}")),
        }
    }

    fn code(&self) -> u16 {
        match self {
            Outcome::Success | Outcome::Exit(_) => 200,
            Outcome::Failed(_) => 500,
        }
    }

    fn status(&self) -> Value {
        match self {
            Outcome::Success => json!({"metadata": {}, "status": "Success"}),
            Outcome::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!(
                    "command terminated with non-zero exit code: command terminated with exit code {code}"
                ),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Outcome::Failed(reason) => {
                let mut status = Status::internal(reason).to_value();
                for of_a_document in ["kind", "apiVersion"] {
                    if let Some(fields) = status.as_object_mut() {
                        fields.remove(of_a_document);
                    }
                }
                status
            }
        }
    }
}
