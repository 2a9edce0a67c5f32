//! Services that the server under test calls: over TLS, and over a unix socket.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What a service answers to a path and a body: a status and a body, or nothing, ever.
pub(crate) type Answer = Option<(u16, Value)>;

/// A path that is answered after half a second.
pub(crate) const SLOW: &str = "/slow";

pub(crate) struct Service {
    pub(crate) url: String,
    /// PEM, of itself.
    pub(crate) certificate: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Service {
    pub(crate) async fn start(
        answer: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let (answer, noted) = (Arc::new(answer), Arc::clone(&seen));
        let connections: Arc<AtomicUsize> = Arc::default();
        let accepted = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                let (acceptor, answer, noted) =
                    (acceptor.clone(), Arc::clone(&answer), Arc::clone(&noted));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let serve = hyper::service::service_fn(move |request| {
                        let (answer, noted) = (Arc::clone(&answer), Arc::clone(&noted));
                        async move { Ok::<_, Infallible>(respond(request, &*answer, &noted).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), serve)
                        .await;
                });
            }
        });
        Self {
            url,
            certificate: own.cert.pem(),
            seen,
            connections,
            task,
        }
    }

    /// How many connections there were so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Every path and body so far.
    pub(crate) fn seen(&self) -> Vec<(String, Value)> {
        self.seen.lock().unwrap().clone()
    }

    /// A kubeconfig that leads to a path of the service, in a file.
    pub(crate) fn kubeconfig(&self, path: &str) -> PathBuf {
        use base64::Engine;
        let authority = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": {
                "server": format!("{}{path}", self.url), "certificate-authority-data": authority}}]});
        let file = temporary("kubeconfig");
        std::fs::write(&file, text.to_string()).unwrap();
        file
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A path nobody else uses.
pub(crate) fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("keelson-{name}-{}", uuid::Uuid::new_v4()))
}

async fn respond(
    request: http::Request<hyper::body::Incoming>,
    answer: &(dyn Fn(&str, &Value) -> Answer + Send + Sync),
    noted: &Mutex<Vec<(String, Value)>>,
) -> http::Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let answer = answer(&path, &body);
    if path == SLOW {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    noted.lock().unwrap().push((path, body));
    let Some((status, body)) = answer else {
        return std::future::pending().await;
    };
    http::Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
        .unwrap()
}

/// Serves gRPC's unary calls on a unix socket: `answer` gets the method and the message, and gives
/// the message of the answer, or why there is none.
pub(crate) fn grpc(
    socket: &std::path::Path,
    answer: impl Fn(&str, &[u8]) -> Result<Vec<u8>, String> + Send + Sync + 'static,
) -> JoinHandle<()> {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            let serve = hyper::service::service_fn(move |request| {
                let answer = Arc::clone(&answer);
                async move { Ok::<_, Infallible>(call(request, &*answer).await) }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), serve);
            tokio::spawn(connection);
        }
    })
}

async fn call(
    request: http::Request<hyper::body::Incoming>,
    answer: &(dyn Fn(&str, &[u8]) -> Result<Vec<u8>, String> + Send + Sync),
) -> http::Response<http_body_util::StreamBody<Frames>> {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    // A byte that says whether it is compressed, four with the length, the message.
    let mut trailers = http::HeaderMap::new();
    let mut frames = Vec::new();
    match answer(&method, &body[5..]) {
        Ok(message) => {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            let whole = [&[0][..], &length, &message].concat();
            frames.push(Ok(hyper::body::Frame::data(Bytes::from(whole))));
            trailers.insert("grpc-status", "0".parse().unwrap());
        }
        Err(reason) => {
            trailers.insert("grpc-status", "2".parse().unwrap());
            trailers.insert("grpc-message", reason.parse().unwrap());
        }
    }
    frames.push(Ok(hyper::body::Frame::trailers(trailers)));
    http::Response::builder()
        .header("content-type", "application/grpc")
        .body(http_body_util::StreamBody::new(futures::stream::iter(
            frames,
        )))
        .unwrap()
}

type Frames =
    futures::stream::Iter<std::vec::IntoIter<Result<hyper::body::Frame<Bytes>, Infallible>>>;
