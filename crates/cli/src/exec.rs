//! The client side of `v5.channel.k8s.io`: a WebSocket with a channel number before each message.

use std::io::{Read, Write};
use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use keelson_client::ClientConfig;
use rustix::termios;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::Error;
use crate::resources::{list, text};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Runs to the end of the remote command; its exit code.
pub(crate) async fn run(
    config: &ClientConfig,
    path: &str,
    stdin: bool,
    tty: bool,
) -> Result<i32, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Stream(error.to_string());
    let uri: http::Uri = format!("{}{path}", config.server)
        .parse()
        .map_err(|error| failed(&error))?;
    let host = uri
        .host()
        .unwrap_or_default()
        .trim_matches(['[', ']'])
        .to_owned();
    let tcp = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
    let _ = tcp.set_nodelay(true);
    let name = config.tls_server_name.clone().unwrap_or(host);
    let name = ServerName::try_from(name).map_err(|error| failed(&error))?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config.tls()?))
        .connect(name, tcp)
        .await?;
    let mut request = uri
        .to_string()
        .replacen("https://", "wss://", 1)
        .into_client_request()
        .map_err(|error| failed(&error))?;
    let headers = request.headers_mut();
    headers.insert(
        "sec-websocket-protocol",
        http::HeaderValue::from_static("v5.channel.k8s.io"),
    );
    if !config.token.is_empty() {
        let value = format!("Bearer {}", config.token)
            .parse()
            .map_err(|_| Error::Stream("the token cannot be sent".to_owned()))?;
        headers.insert("authorization", value);
    }
    let (socket, _) = tokio_tungstenite::client_async(request, tls)
        .await
        .map_err(|error| refusal(&error))?;
    let (mut sink, mut stream) = socket.split();
    let _raw = if tty { RawTerminal::enter() } else { None };
    if tty && let Ok(size) = termios::tcgetwinsize(std::io::stdout()) {
        let size = format!(r#"{{"Width":{},"Height":{}}}"#, size.ws_col, size.ws_row);
        sink.send(message(RESIZE, size.as_bytes()))
            .await
            .map_err(|error| failed(&error))?;
    }
    let input = async {
        if !stdin {
            return std::future::pending().await;
        }
        let mut input = read_input();
        loop {
            let data = input.recv().await;
            let sent = match &data {
                None => sink.send(message(CLOSE, &[STDIN])).await,
                Some(data) => sink.send(message(STDIN, data)).await,
            };
            if data.is_none() || sent.is_err() {
                return std::future::pending::<()>().await;
            }
        }
    };
    let output = async {
        while let Some(received) = stream.next().await {
            let received = received.map_err(|error| failed(&error))?;
            let Message::Binary(bytes) = received else {
                continue;
            };
            match bytes.split_first() {
                Some((&STDOUT, data)) => write(&mut std::io::stdout(), data)?,
                Some((&STDERR, data)) => write(&mut std::io::stderr(), data)?,
                Some((&STATUS, data)) => return exit_code(data),
                _ => {}
            }
        }
        Err(Error::Stream(
            "the connection ended before the command did".to_owned(),
        ))
    };
    tokio::select! {
        () = input => unreachable_input(),
        code = output => code,
    }
}

/// Standard input cannot be read without blocking, hence a thread; it ends with the process.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0_u8; 8192];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The input side never ends by itself.
fn unreachable_input() -> Result<i32, Error> {
    Err(Error::Stream("standard input ended the session".to_owned()))
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(bytes.into())
}

fn write(out: &mut dyn Write, data: &[u8]) -> Result<(), Error> {
    out.write_all(data)?;
    Ok(out.flush()?)
}

/// The server's own words when it answers the upgrade with a `Status`.
fn refusal(error: &tokio_tungstenite::tungstenite::Error) -> Error {
    if let tokio_tungstenite::tungstenite::Error::Http(response) = error
        && let Some(body) = response.body()
        && let Ok(status) = serde_json::from_slice::<Value>(body)
    {
        return Error::Stream(text(&status, "message").to_owned());
    }
    Error::Stream(error.to_string())
}

fn exit_code(status: &[u8]) -> Result<i32, Error> {
    let status: Value = serde_json::from_slice(status).map_err(keelson_client::Error::Decode)?;
    if text(&status, "status") == "Success" {
        return Ok(0);
    }
    let code = list(&status["details"], "causes")
        .iter()
        .find(|cause| text(cause, "reason") == "ExitCode")
        .and_then(|cause| text(cause, "message").parse().ok());
    code.ok_or_else(|| Error::Stream(text(&status, "message").to_owned()))
}

/// The terminal passes every key through; dropped, it is as it was.
struct RawTerminal {
    before: termios::Termios,
}

impl RawTerminal {
    fn enter() -> Option<Self> {
        let before = termios::tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(std::io::stdin(), termios::OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = termios::tcsetattr(
            std::io::stdin(),
            termios::OptionalActions::Now,
            &self.before,
        );
    }
}
