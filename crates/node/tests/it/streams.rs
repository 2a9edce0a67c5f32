//! Remote commands over the node's HTTPS server.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use keelson_node::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::{Fixture, condition};

struct Pki {
    client: Arc<rustls::ClientConfig>,
    stranger: Arc<rustls::ClientConfig>,
    server: ServerConfig,
}

fn pki() -> Pki {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca_params = rcgen::CertificateParams::new(vec![]).unwrap();
    ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = ca_params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca_params, ca_key);
    let issue = |group: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "someone");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, group);
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let (chain, key) = issue("server");
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        roots.clone(),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()
    .unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let builder = || {
        rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
    };
    let (chain, key) = issue("system:masters");
    Pki {
        client: Arc::new(builder().with_client_auth_cert(chain, key).unwrap()),
        stranger: Arc::new(builder().with_no_client_auth()),
        server: ServerConfig {
            address: "127.0.0.1".parse().unwrap(),
            port: 0,
            tls: Arc::new(tls),
            client_ca: ca.pem().into_bytes(),
            certificate: None,
        },
    }
}

async fn start(pki: &Pki) -> (Fixture, u16) {
    let fixture = Fixture::start_with(Some(pki.server.clone()));
    let path = fixture.create(
        "p",
        json!({"containers": [{"name": "c", "image": "img:1"}]}),
    );
    fixture
        .until(&path, |pod| condition(pod, "Ready") == "True")
        .await;
    let node = fixture
        .until("/api/v1/nodes/n1", |node| {
            node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].is_u64()
        })
        .await;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        .as_u64()
        .unwrap();
    (fixture, u16::try_from(port).unwrap())
}

async fn connect(config: &Arc<rustls::ClientConfig>, port: u16) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    TlsConnector::from(config.clone())
        .connect("localhost".try_into().unwrap(), stream)
        .await
        .unwrap()
}

async fn get(config: &Arc<rustls::ClientConfig>, port: u16, path: &str) -> String {
    let mut stream = connect(config, port).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // A peer that closes without a TLS goodbye still answered.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_and_the_cluster_is_served() {
    let pki = pki();
    let (_fixture, port) = start(&pki).await;
    assert!(
        get(&pki.stranger, port, "/healthz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        get(&pki.stranger, port, "/pods")
            .await
            .starts_with("HTTP/1.1 401")
    );
    assert!(get(&pki.client, port, "/pods").await.contains("uid-p"));
    assert!(
        get(&pki.client, port, "/stats/summary")
            .await
            .contains("\"nodeName\":\"n1\"")
    );
    assert!(
        get(&pki.client, port, "/metrics/resource")
            .await
            .contains("container_cpu_usage_seconds_total{container=\"c\"")
    );
    assert!(
        get(&pki.client, port, "/nothing")
            .await
            .starts_with("HTTP/1.1 404")
    );
}

/// What dashboards and alerts ask for: `(name, type, the labels of one of its series)`.
const METRICS: &[(&str, &str, &str)] = &[
    ("kubelet_node_name", "gauge", "{node=\"n1\"}"),
    ("kubelet_running_pods", "gauge", ""),
    (
        "kubelet_running_containers",
        "gauge",
        "{container_state=\"running\"}",
    ),
    ("kubelet_desired_pods", "gauge", "{static=\"\"}"),
    ("kubelet_active_pods", "gauge", "{static=\"\"}"),
    ("kubelet_managed_ephemeral_containers", "gauge", ""),
    ("kubelet_cgroup_version", "gauge", ""),
    ("kubelet_pleg_last_seen_seconds", "gauge", ""),
    ("kubelet_started_pods_total", "counter", ""),
    ("kubelet_started_pods_errors_total", "counter", ""),
    (
        "kubelet_started_containers_total",
        "counter",
        "{container_type=\"container\"}",
    ),
    (
        "kubelet_runtime_operations_total",
        "counter",
        "{operation_type=\"run_podsandbox\"}",
    ),
    (
        "kubelet_runtime_operations_total",
        "counter",
        "{operation_type=\"image_status\"}",
    ),
    (
        "kubelet_http_requests_total",
        "counter",
        "{method=\"GET\",path=\"metrics\",server_type=\"readwrite\",long_running=\"false\"}",
    ),
    (
        "kubelet_http_inflight_requests",
        "gauge",
        "{method=\"GET\",path=\"metrics\",server_type=\"readwrite\",long_running=\"false\"}",
    ),
    (
        "kubelet_pod_worker_duration_seconds",
        "histogram",
        "_count{operation_type=\"sync\"}",
    ),
    (
        "kubelet_pod_worker_start_duration_seconds",
        "histogram",
        "_count",
    ),
    ("kubelet_pod_start_duration_seconds", "histogram", "_count"),
    (
        "kubelet_pod_start_total_duration_seconds",
        "histogram",
        "_count",
    ),
    (
        "kubelet_pod_status_sync_duration_seconds",
        "histogram",
        "_count",
    ),
    (
        "kubelet_pleg_relist_duration_seconds",
        "histogram",
        "_bucket{le=\"+Inf\"}",
    ),
    (
        "kubelet_runtime_operations_duration_seconds",
        "histogram",
        "_count{operation_type=\"create_container\"}",
    ),
    (
        "kubelet_run_podsandbox_duration_seconds",
        "histogram",
        "_count{runtime_handler=\"\"}",
    ),
    (
        "kubelet_cgroup_manager_duration_seconds",
        "histogram",
        "_count{operation_type=\"update\"}",
    ),
    ("process_cpu_seconds_total", "counter", ""),
    ("process_resident_memory_bytes", "gauge", ""),
    ("process_virtual_memory_bytes", "gauge", ""),
    ("process_open_fds", "gauge", ""),
    ("process_max_fds", "gauge", ""),
    ("process_start_time_seconds", "gauge", ""),
];

/// Families without a series until what they count happens.
const SILENT: &[(&str, &str)] = &[
    ("kubelet_runtime_operations_errors_total", "counter"),
    ("kubelet_run_podsandbox_errors_total", "counter"),
    ("kubelet_started_containers_errors_total", "counter"),
    ("kubelet_terminated_containers_total", "counter"),
    ("kubelet_volume_stats_capacity_bytes", "gauge"),
    ("kubelet_volume_stats_available_bytes", "gauge"),
    ("kubelet_volume_stats_used_bytes", "gauge"),
    ("kubelet_volume_stats_inodes", "gauge"),
    ("kubelet_volume_stats_inodes_free", "gauge"),
    ("kubelet_volume_stats_inodes_used", "gauge"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_upstreams_names_types_and_labels() {
    let pki = pki();
    let (fixture, port) = start(&pki).await;
    let page = get(&pki.client, port, "/metrics").await;
    for (name, kind, series) in METRICS {
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        assert!(
            page.contains(&format!("\n{name}{series} ")),
            "{name}{series}: {page}"
        );
    }
    for (name, kind) in SILENT {
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        assert!(!page.contains(&format!("\n{name}{{")), "{name}");
    }
    for value in [
        "kubelet_running_pods 1\n",
        "kubelet_running_containers{container_state=\"running\"} 1\n",
        "kubelet_started_containers_total{container_type=\"container\"} 1\n",
        "kubelet_pod_start_duration_seconds_count 1\n",
    ] {
        assert!(page.contains(value), "{value}: {page}");
    }
    let id = fixture.runtime.running("c").unwrap();
    fixture.runtime.end(&id, 3);
    let ended = "kubelet_terminated_containers_total{container_type=\"container\",exit_code=\"3\",reason=\"Error\"} 1\n";
    let told = async {
        while !get(&pki.client, port, "/metrics").await.contains(ended) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), told)
        .await
        .unwrap();

    get(&pki.client, port, "/healthz").await;
    let slis = get(&pki.client, port, "/metrics/slis").await;
    for line in [
        "# TYPE kubernetes_healthcheck gauge\n",
        "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n",
        "# TYPE kubernetes_healthchecks_total counter\n",
        "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1\n",
    ] {
        assert!(slis.contains(line), "{line}: {slis}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machines_logs_are_shown_and_nothing_else() {
    let pki = pki();
    let (_fixture, port) = start(&pki).await;
    let listing = get(&pki.client, port, "/logs/").await;
    assert!(listing.starts_with("HTTP/1.1 200"), "{listing}");
    assert!(listing.contains("<pre>\n"), "{listing}");
    for (path, status) in [
        ("/logs/no-such-log", "404"),
        ("/logs/..%2f..%2fetc/passwd", "403"),
        ("/logs/../etc/passwd", "403"),
    ] {
        let answer = get(&pki.client, port, path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{path}: {answer}"
        );
    }
    let stranger = get(&pki.stranger, port, "/logs/").await;
    assert!(stranger.starts_with("HTTP/1.1 401"), "{stranger}");
}

/// Runs a command over WebSocket: what came on each channel.
async fn exec(pki: &Pki, port: u16, query: &str, input: &[&[u8]]) -> (String, String, Value) {
    let mut request = format!("wss://localhost/exec/ns/p/c?{query}")
        .into_client_request()
        .unwrap();
    request.headers_mut().insert(
        "Sec-WebSocket-Protocol",
        "v5.channel.k8s.io".parse().unwrap(),
    );
    let stream = connect(&pki.client, port).await;
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(
        response.headers()["sec-websocket-protocol"],
        "v5.channel.k8s.io"
    );
    for message in input {
        socket
            .send(Message::binary(message.to_vec()))
            .await
            .unwrap();
    }
    let mut channels = [String::new(), String::new(), String::new(), String::new()];
    let mut goodbye = None;
    while let Some(Ok(message)) = socket.next().await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Close(frame) => {
                goodbye = frame;
                continue;
            }
            _ => continue,
        };
        channels[usize::from(data[0])].push_str(std::str::from_utf8(&data[1..]).unwrap());
    }
    // Stock clients take any other code, and none, for a failure.
    assert_eq!(u16::from(goodbye.unwrap().code), 1000);
    let [_, stdout, stderr, error] = channels;
    (stdout, stderr, serde_json::from_str(&error).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_over_websocket() {
    let pki = pki();
    let (_fixture, port) = start(&pki).await;
    let query = "command=cat&stdin=true&stdout=true";
    let (stdout, _, status) =
        exec(&pki, port, query, &[b"\x00hello", b"\x00 world", &[255, 0]]).await;
    assert_eq!(
        (stdout.as_str(), status["status"].as_str()),
        ("hello world", Some("Success"))
    );
    let (_, stderr, status) =
        exec(&pki, port, "command=exit&command=3&output=1&error=1", &[]).await;
    assert_eq!(stderr, "bye\n");
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(
        status["details"]["causes"][0],
        json!({"reason": "ExitCode", "message": "3"})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_server_may_speak_first() {
    let pki = pki();
    let (_fixture, port) = start(&pki).await;
    let greeter = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = greeter.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = greeter.accept().await.unwrap();
        stream.write_all(b"220 hello").await.unwrap();
    });
    let mut request = format!("wss://localhost/portForward/ns/p?port={target}")
        .into_client_request()
        .unwrap();
    request.headers_mut().insert(
        "Sec-WebSocket-Protocol",
        "v4.channel.k8s.io".parse().unwrap(),
    );
    let stream = connect(&pki.client, port).await;
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    let mut said = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(data) = message
            && data[0] == 0
        {
            said.extend_from_slice(&data[1..]);
        }
    }
    // The channel begins with the port.
    assert_eq!(said, [&target.to_le_bytes()[..], b"220 hello"].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded_through_spdy_in_websocket() {
    use keelson_streaming::spdy::{Frame, HeaderEncoder, decode, encode};
    let pki = pki();
    let (_fixture, port) = start(&pki).await;
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = echo.accept().await.unwrap();
        let mut buffer = [0; 64];
        let count = stream.read(&mut buffer).await.unwrap();
        stream.write_all(&buffer[..count]).await.unwrap();
    });
    let mut request = "wss://localhost/portForward/ns/p"
        .into_client_request()
        .unwrap();
    request.headers_mut().insert(
        "Sec-WebSocket-Protocol",
        "SPDY/3.1+portforward.k8s.io".parse().unwrap(),
    );
    let stream = connect(&pki.client, port).await;
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    let mut encoder = HeaderEncoder::new().unwrap();
    let mut wire = bytes::BytesMut::new();
    for (id, kind) in [(1, "error"), (3, "data")] {
        let headers: Vec<(String, String)> = [
            ("streamtype", kind),
            ("port", &target.to_string()),
            ("requestid", "0"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let block = encoder.encode(&headers).unwrap().into();
        encode(
            &Frame::SynStream {
                id,
                fin: id == 1,
                priority: 0,
                block,
            },
            &mut wire,
        )
        .unwrap();
    }
    encode(
        &Frame::Data {
            id: 3,
            fin: false,
            data: "ping".into(),
        },
        &mut wire,
    )
    .unwrap();
    socket.send(Message::binary(wire.freeze())).await.unwrap();
    let mut received = bytes::BytesMut::new();
    let mut data = Vec::new();
    let mut finished = false;
    while !finished {
        let Some(Ok(message)) = socket.next().await else {
            panic!("the connection ended")
        };
        let Message::Binary(part) = message else {
            continue;
        };
        received.extend_from_slice(&part);
        while let Some(frame) = decode(&mut received).unwrap() {
            if let Frame::Data {
                id: 3,
                fin,
                data: part,
            } = frame
            {
                data.extend_from_slice(&part);
                finished |= fin;
            }
        }
    }
    assert_eq!(data, b"ping");
}
