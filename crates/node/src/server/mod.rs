//! The kubelet's HTTP API: logs, exec, attach, port-forward, stats. TLS only; every request but
//! `/healthz` is authenticated and authorised through the API server.

mod auth;
mod logs;
mod metrics;
mod port_forward;
mod query;
mod remote;
mod stats;
mod system_logs;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::config::ServerConfig;
use crate::metrics::{
    HEALTHCHECKS, HTTP_INFLIGHT_REQUESTS, HTTP_REQUESTS, HTTP_REQUESTS_DURATION, Metrics,
};
use auth::Authenticator;
use query::Query;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Everything that handlers share.
struct Server {
    agent: Arc<Agent>,
    auth: Authenticator,
    shutdown: CancellationToken,
}

/// A request with its path taken apart.
struct Call {
    request: Request<Incoming>,
    /// Without empty segments, percent-decoded.
    path: Vec<String>,
    query: Query,
}

/// Binds the port and returns it with the future that serves it.
pub(crate) async fn start(
    agent: Arc<Agent>,
    config: &ServerConfig,
    shutdown: CancellationToken,
) -> crate::Result<(u16, BoxFuture<'static, ()>)> {
    let address = SocketAddr::new(config.address, config.port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| crate::Error::Listen { address, source })?;
    let port = listener
        .local_addr()
        .map_err(|source| crate::Error::Listen { address, source })?
        .port();
    let auth = Authenticator::new(
        agent.node.client.clone(),
        agent.node.config.node_name.clone(),
        &config.client_ca,
    )
    .map_err(crate::Error::Server)?;
    let server = Arc::new(Server {
        agent,
        auth,
        shutdown: shutdown.clone(),
    });
    let acceptor = TlsAcceptor::from(config.tls.clone());
    let serving = async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(shutdown.clone().run_until_cancelled_owned(serve(server.clone(), acceptor.clone(), stream)));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: give others time to close some.
                        tracing::warn!(%error, "accepting a connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    };
    Ok((port, Box::pin(serving)))
}

async fn serve(server: Arc<Server>, acceptor: TlsAcceptor, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await
    else {
        return;
    };
    let certificates: Arc<[rustls::pki_types::CertificateDer<'static>]> = stream
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|certificate| certificate.clone().into_owned())
        .collect();
    let service = hyper::service::service_fn(move |request| {
        let (server, certificates) = (server.clone(), certificates.clone());
        async move { Ok::<_, Infallible>(measured(server, &certificates, request).await) }
    });
    let served = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

/// First segments of paths by which requests are counted; others are strangers' own words.
const COUNTED_PATHS: &[&str] = &[
    "attach",
    "configz",
    "containerLogs",
    "exec",
    "healthz",
    "logs",
    "metrics",
    "pods",
    "portForward",
    "run",
    "runningpods",
    "stats",
];

async fn measured(
    server: Arc<Server>,
    certificates: &[rustls::pki_types::CertificateDer<'static>],
    request: Request<Incoming>,
) -> Response<Body> {
    let started = std::time::Instant::now();
    let node = server.agent.node.clone();
    let method = match *request.method() {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::DELETE => {
            request.method().to_string()
        }
        _ => "other".to_owned(),
    };
    let first = request.uri().path().trim_start_matches('/');
    let first = first.split('/').next().unwrap_or_default();
    let path = COUNTED_PATHS.iter().find(|path| **path == first);
    let path = *path.unwrap_or(&"other");
    let is_long = matches!(path, "exec" | "attach" | "portForward" | "run");
    let labels = [
        &*method,
        path,
        "readwrite",
        if is_long { "true" } else { "false" },
    ];
    node.metrics.count(&HTTP_REQUESTS, &labels);
    let _in_flight = InFlight::begin(&node.metrics, labels);
    let response = answer(server, certificates, request).await;
    node.metrics
        .observe(&HTTP_REQUESTS_DURATION, &labels, started.elapsed());
    response
}

/// Counts a request until it is answered, also when its client goes away first.
struct InFlight<'a> {
    metrics: &'a Metrics,
    labels: [&'a str; 4],
}

impl<'a> InFlight<'a> {
    fn begin(metrics: &'a Metrics, labels: [&'a str; 4]) -> Self {
        metrics.add(&HTTP_INFLIGHT_REQUESTS, &labels, 1.0);
        Self { metrics, labels }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.metrics
            .add(&HTTP_INFLIGHT_REQUESTS, &self.labels, -1.0);
    }
}

async fn answer(
    server: Arc<Server>,
    certificates: &[rustls::pki_types::CertificateDer<'static>],
    request: Request<Incoming>,
) -> Response<Body> {
    let path: Vec<String> = request
        .uri()
        .path()
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(query::percent_decode)
        .collect();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    if path.first().map(String::as_str) == Some("healthz") {
        let metrics = &server.agent.node.metrics;
        metrics.count(&HEALTHCHECKS, &["ping", "success", "healthz"]);
        return text(StatusCode::OK, "ok");
    }
    if let Err(refusal) = server.auth.check(certificates, &request).await {
        return refusal;
    }
    route(
        server,
        Call {
            request,
            path,
            query,
        },
    )
    .await
}

async fn route(server: Arc<Server>, call: Call) -> Response<Body> {
    let method = call.request.method().clone();
    let reads = method == Method::GET || method == Method::HEAD;
    let talks = method == Method::GET || method == Method::POST;
    let segments: Vec<&str> = call.path.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["pods"] if reads => pods(&server),
        ["runningpods"] if reads => pods(&server),
        ["configz"] if reads => configz(&server),
        ["stats", "summary"] if reads => stats::summary(&server).await,
        ["metrics"] if reads => metrics::metrics(&server).await,
        ["metrics", "slis"] if reads => metrics::slis(&server),
        ["logs", rest @ ..] if reads => {
            let rest: Vec<String> = rest.iter().map(|&segment| segment.to_owned()).collect();
            system_logs::handle(&server, &rest, &call.query).await
        }
        ["metrics", "resource"] if reads => stats::resource_metrics(&server).await,
        ["containerLogs", ..] if reads => logs::handle(&server, call).await,
        ["exec", ..] if talks => remote::exec(server, call).await,
        ["attach", ..] if talks => remote::attach(server, call).await,
        ["run", ..] if method == Method::POST => remote::run(&server, &call).await,
        ["portForward", ..] if talks => port_forward::handle(server, call).await,
        [
            "pods" | "configz" | "stats" | "metrics" | "logs" | "containerLogs" | "exec" | "attach"
            | "run" | "portForward",
            ..,
        ] => text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"),
        _ => text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn pods(server: &Server) -> Response<Body> {
    let items: Vec<serde_json::Value> = server
        .agent
        .pods()
        .iter()
        .filter_map(|pod| serde_json::to_value(&**pod).ok())
        .collect();
    json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

fn configz(server: &Server) -> Response<Body> {
    let config = &server.agent.node.config;
    json(&json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "maxPods": config.max_pods,
        "podPidsLimit": config.pod_pids_limit.unwrap_or(-1),
        "containerLogMaxSize": format!("{}Mi", config.container_log_max_bytes >> 20),
        "containerLogMaxFiles": config.container_log_max_files,
        "resolvConf": config.resolv_conf,
        "enableSystemLogHandler": config.enable_system_log_handler,
        "enableSystemLogQuery": config.enable_system_log_query,
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "5m0s",
        "nodeLeaseDurationSeconds": 40,
        "evictionHard": {
            "memory.available": format!("{}Mi", config.eviction_memory_available_bytes >> 20),
            "nodefs.available": format!("{}%", config.eviction_disk_available_percent),
        },
    }}))
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    response
}

/// A connection that switches protocols has no body of its own.
fn switched(response: Response<()>) -> Response<Body> {
    response.map(|()| full(Bytes::new()))
}

fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let mut message = message.into();
    if !message.ends_with('\n') && status.as_u16() >= 400 {
        message.push('\n');
    }
    response(status, "text/plain; charset=utf-8", full(message))
}

fn json(value: &serde_json::Value) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => response(StatusCode::OK, "application/json", full(bytes)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
