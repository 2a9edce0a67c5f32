//! exec and port-forward in front of a kubelet that speaks SPDY alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use keelson_streaming::spdy::{Connection, Stream};
use keelson_streaming::websocket;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::{Cluster, post};

/// A kubelet without WebSocket, whose commands are `cat`, `exit CODE` and `flood`.
struct Kubelet {
    port: u16,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What `flood` says at once.
const FLOOD_BYTES: usize = 16 << 20;

impl Kubelet {
    async fn start() -> Self {
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await.unwrap();
                    let service = hyper::service::service_fn(answer);
                    // The peer decides when it has had enough.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        Self { port, serving }
    }
}

async fn answer(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, http::Error> {
    if request.uri().path().starts_with("/containerLogs/") {
        assert!(!request.headers().contains_key("upgrade"));
        return Ok(Response::new(Full::new(Bytes::from_static(b"said\n"))));
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let ok = websocket::is_upgrade(request.headers(), "SPDY/3.1") && request.method() == "POST";
    if !ok || query.contains("refuse") {
        let body = Full::new(Bytes::from_static(b"this kubelet does not like it"));
        return Response::builder().status(StatusCode::FORBIDDEN).body(body);
    }
    let offered: Vec<_> =
        websocket::header_list(request.headers(), "x-stream-protocol-version").collect();
    let forwards = offered == ["portforward.k8s.io"];
    assert!(forwards || offered.contains(&"v4.channel.k8s.io"));
    let protocol = if forwards {
        offered[0]
    } else {
        "v4.channel.k8s.io"
    };
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", protocol)
        .body(Full::default());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let upgraded = TokioIo::new(upgrade.await.unwrap());
        let connection = Connection::server(upgraded).unwrap();
        match forwards {
            true => forward(connection).await,
            false => command(connection, &query).await,
        }
    });
    response
}

async fn command(mut connection: Connection, query: &str) {
    let has = |option: &str| query.split('&').any(|given| given == option);
    let wanted: Vec<&str> = [
        ("error", true),
        ("stdin", has("input=1")),
        ("stdout", has("output=1")),
        ("stderr", has("error=1") && !has("tty=1")),
        ("resize", has("tty=1")),
    ]
    .into_iter()
    .filter_map(|(kind, wanted)| wanted.then_some(kind))
    .collect();
    let mut streams: Vec<Stream> = Vec::new();
    for _ in &wanted {
        streams.push(connection.accept().await.unwrap());
    }
    let kinds: Vec<&str> = streams
        .iter()
        .map(|s| s.header("streamtype").unwrap())
        .collect();
    assert_eq!(kinds, wanted);
    let mut take = |kind: &str| {
        let at = streams
            .iter()
            .position(|s| s.header("streamtype") == Some(kind))?;
        Some(streams.remove(at))
    };
    let (error, stdin, stdout) = (take("error").unwrap(), take("stdin"), take("stdout"));
    let (stderr, resize) = (take("stderr"), take("resize"));
    let mut status = json!({"metadata": {}, "status": "Success"});
    if has("command=cat") {
        let (mut stdin, stdout) = (stdin.unwrap(), stdout.as_ref().unwrap());
        while let Some(data) = stdin.reader.recv().await {
            stdout.writer.send(data).await.unwrap();
        }
    } else if has("command=size") {
        let size = resize.unwrap().reader.recv().await.unwrap();
        stdout.as_ref().unwrap().writer.send(size).await.unwrap();
    } else if has("command=flood") {
        let part = Bytes::from(vec![b'x'; 1 << 20]);
        for _ in 0..FLOOD_BYTES >> 20 {
            stdout
                .as_ref()
                .unwrap()
                .writer
                .send(part.clone())
                .await
                .unwrap();
        }
    } else {
        stderr.unwrap().writer.send("bye\n".into()).await.unwrap();
        status = json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": "command terminated with non-zero exit code: exit status 3",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
    }
    let said = Bytes::from(status.to_string());
    error.writer.send(said).await.unwrap();
    // As kubelets end: every stream is reset.
    error.writer.reset().await.unwrap();
    if let Some(stdout) = stdout {
        stdout.writer.reset().await.unwrap();
    }
    connection.close().await;
}

/// Every pair of streams is an echo.
async fn forward(mut connection: Connection) {
    while let (Some(_error), Some(mut data)) =
        (connection.accept().await, connection.accept().await)
    {
        assert_eq!(data.header("streamtype"), Some("data"));
        while let Some(said) = data.reader.recv().await {
            data.writer.send(said).await.unwrap();
        }
        data.writer.finish().await.unwrap();
    }
    connection.close().await;
}

struct Lab {
    cluster: Cluster,
    _kubelet: Kubelet,
    tls: Arc<rustls::ClientConfig>,
}

type Socket = WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

impl Lab {
    async fn start(declared: &[&str]) -> Self {
        let cluster = Cluster::start().await;
        let kubelet = Kubelet::start().await;
        let admin = cluster.admin();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port}},
            "declaredFeatures": declared}});
        post(&admin, "/api/v1/nodes", node.clone()).await.unwrap();
        let account = json!({"metadata": {"name": "default"}});
        // A controller would have made it.
        let _ = post(
            &admin,
            "/api/v1/namespaces/default/serviceaccounts",
            account,
        )
        .await;
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "nodeName": "n1", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "i"}]}});
        post(&admin, "/api/v1/namespaces/default/pods", pod)
            .await
            .unwrap();
        let identity = cluster.server.pki().admin().unwrap();
        let mut roots = rustls::RootCertStore::empty();
        let authority = &cluster.server.pki().cluster_ca.certificate_pem;
        roots
            .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
            .unwrap();
        let chain = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![chain], key)
            .unwrap();
        Self {
            cluster,
            _kubelet: kubelet,
            tls: Arc::new(tls),
        }
    }

    /// Opens a WebSocket on a subresource of the pod.
    async fn open(&self, path: &str, protocols: &str) -> Result<(Socket, String), Error> {
        let port = self.cluster.port;
        let url = format!("wss://127.0.0.1:{port}/api/v1/namespaces/default/pods/p/{path}");
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert("sec-websocket-protocol", protocols.parse().unwrap());
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        let stream = TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
            .unwrap();
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
        let chosen = response.headers().get("sec-websocket-protocol");
        Ok((
            socket,
            chosen.map_or_else(String::new, |c| c.to_str().unwrap().to_owned()),
        ))
    }

    /// What came on each channel of a command.
    async fn exec(&self, query: &str, input: &[&[u8]]) -> ([Vec<u8>; 3], Value) {
        let protocols = "v4.channel.k8s.io,v5.channel.k8s.io";
        let (mut socket, chosen) = self
            .open(&format!("exec?{query}"), protocols)
            .await
            .unwrap();
        assert_eq!(chosen, "v5.channel.k8s.io");
        for message in input {
            socket
                .send(Message::binary(message.to_vec()))
                .await
                .unwrap();
        }
        let mut channels: [Vec<u8>; 4] = Default::default();
        let mut goodbye = None;
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(data) => {
                    channels[usize::from(data[0])].extend_from_slice(&data[1..])
                }
                Message::Close(frame) => goodbye = frame,
                _ => {}
            }
        }
        // Stock clients take any other code, and none, for a failure.
        assert_eq!(u16::from(goodbye.unwrap().code), 1000);
        let [stdin, stdout, stderr, error] = channels;
        (
            [stdin, stdout, stderr],
            serde_json::from_slice(&error).unwrap(),
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_translated_for_a_kubelet_without_websocket() {
    let lab = Lab::start(&[]).await;
    let input: [&[u8]; 3] = [b"\x00hello", b"\x00 world", &[255, 0]];
    let (channels, status) = lab.exec("command=cat&stdin=1&stdout=1", &input).await;
    assert_eq!(channels[1], b"hello world");
    assert_eq!(status, json!({"metadata": {}, "status": "Success"}));

    let (channels, status) = lab.exec("command=exit&stdout=1&stderr=1", &[]).await;
    assert_eq!(channels[2], b"bye\n");
    assert_eq!(
        status,
        json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": "command terminated with non-zero exit code: command terminated with exit code 3",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}})
    );

    let size = br#"{"Width":80,"Height":25}"#;
    let resize = [&[4], &size[..]].concat();
    let query = "command=size&stdin=1&stdout=1&stderr=1&tty=1";
    let (channels, _) = lab.exec(query, &[&resize]).await;
    assert_eq!(channels[1], size);

    let (channels, status) = lab.exec("command=flood&stdout=1", &[]).await;
    assert_eq!(channels[1].len(), FLOOD_BYTES);
    assert_eq!(status["status"], "Success");

    let (_, status) = lab.exec("command=refuse&stdout=1", &[]).await;
    assert_eq!(
        (status["code"].as_u64(), status["message"].as_str()),
        (
            Some(500),
            Some(
                "Internal error occurred: unable to upgrade connection: this kubelet does not like it"
            )
        )
    );
    let request = Request::get("/metrics").body(Bytes::new()).unwrap();
    let answer = lab.cluster.admin().call(request).await.unwrap();
    let metrics = answer.into_body().collect().await.unwrap().to_bytes();
    let metrics = String::from_utf8_lossy(&metrics);
    for line in [
        "apiserver_stream_translator_requests_total{code=\"200\"} 4",
        "apiserver_stream_translator_requests_total{code=\"500\"} 1",
        "apiserver_websocket_streaming_requests_total{subresource=\"exec\",proxy_type=\"translated_at_apiserver\"} 5",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    lab.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_protocols_and_newer_kubelets_are_left_alone() {
    let lab = Lab::start(&[]).await;
    let path = "exec?command=cat&stdin=1&stdout=1";
    // This kubelet understands no WebSocket at all.
    let refused =
        |outcome: Result<_, Error>| match outcome.map(|(_, chosen): (Socket, String)| chosen) {
            Err(Error::Http(response)) => response.status(),
            other => panic!("{other:?}"),
        };
    let older = lab.open(path, "v4.channel.k8s.io").await;
    assert_eq!(refused(older), StatusCode::FORBIDDEN);
    lab.cluster.stop().await;
    let lab = Lab::start(&["ExtendWebSocketsToKubelet"]).await;
    let newer = lab.open(path, "v5.channel.k8s.io").await;
    assert_eq!(refused(newer), StatusCode::FORBIDDEN);
    lab.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_in_messages_from_a_kubelet_that_sends_text() {
    let lab = Lab::start(&[]).await;
    for (protocol, expected) in [
        ("binary.k8s.io", Message::binary(&b"said\n"[..])),
        ("base64.binary.k8s.io", Message::text("c2FpZAo=")),
    ] {
        let (mut socket, chosen) = lab.open("log", protocol).await.unwrap();
        assert_eq!(chosen, protocol);
        assert_eq!(socket.next().await.unwrap().unwrap(), expected);
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
    }
    lab.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_ends_with_its_client() {
    let lab = Lab::start(&[]).await;
    let path = "exec?command=cat&stdin=1&stdout=1";
    let (mut socket, _) = lab.open(path, "v5.channel.k8s.io").await.unwrap();
    socket
        .send(Message::binary(b"\x00x".to_vec()))
        .await
        .unwrap();
    // A close signal that names no channel cannot be understood.
    socket.send(Message::binary(vec![255, 9])).await.unwrap();
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(Duration::from_secs(10), ended)
        .await
        .unwrap();
    lab.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarded_ports_are_tunnelled_to_a_kubelet_without_websocket() {
    let lab = Lab::start(&[]).await;
    let protocols = "SPDY/3.1+portforward.k8s.io,v4.channel.k8s.io";
    let (socket, chosen) = lab.open("portforward", protocols).await.unwrap();
    assert_eq!(chosen, "SPDY/3.1+portforward.k8s.io");
    let (tunnel, far) = tokio::io::duplex(1 << 16);
    let piping = tokio::spawn(carry(socket, far));
    let connection = Connection::client(tunnel).unwrap();
    for round in ["0", "1"] {
        let headers = |kind: &str| {
            let pairs = [("streamtype", kind), ("port", "80"), ("requestid", round)];
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec()
        };
        let _error = connection.open(headers("error")).await.unwrap();
        let mut data = connection.open(headers("data")).await.unwrap();
        data.writer.send("ping".into()).await.unwrap();
        assert_eq!(data.reader.recv().await.unwrap(), "ping");
        data.writer.finish().await.unwrap();
        assert!(data.reader.recv().await.is_none());
    }
    connection.close().await;
    piping.abort();
    lab.cluster.stop().await;
}

/// The client's end of a tunnel: bytes in messages.
async fn carry(mut socket: Socket, mut bytes: tokio::io::DuplexStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            count = bytes.read(&mut buffer) => {
                let Ok(count @ 1..) = count else { return };
                socket.send(Message::binary(buffer[..count].to_vec())).await.unwrap();
            }
            message = socket.next() => match message {
                Some(Ok(Message::Binary(data))) => bytes.write_all(&data).await.unwrap(),
                Some(Ok(_)) => {}
                _ => return,
            }
        }
    }
}
