//! Reaching the other side: kubelets over TLS, pods and services by their addresses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keelson_machinery::meta;
use keelson_machinery::status::Status;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::objects::Objects;
use crate::pki::{self, Identity, Pki};

/// What a node declares whose kubelet needs no translation.
const WEBSOCKETS: &str = "ExtendWebSocketsToKubelet";
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How this server shows itself to kubelets.
pub(crate) struct Kubelets {
    tls: Arc<ClientConfig>,
}

impl Kubelets {
    pub(crate) fn new(pki: &Pki, verify: bool) -> Result<Self, pki::Error> {
        let tls = if verify {
            verified_tls(
                &[pki.cluster_ca.certificate_der()?],
                Some(&pki.kubelet_client),
            )?
        } else {
            unverified_tls(Some(&pki.kubelet_client))?
        };
        Ok(Self { tls })
    }

    /// Where the node's kubelet is; nothing when there is no such node.
    pub(super) fn locate(
        &self,
        objects: &Arc<dyn Objects>,
        node: &str,
    ) -> Result<Option<Kubelet>, Status> {
        let Some(object) = objects.get("", "nodes", "", node) else {
            return Ok(None);
        };
        let host = kubelet_host(&object).ok_or_else(|| {
            let known = object["status"]["addresses"]
                .as_array()
                .into_iter()
                .flatten();
            let text = |address: &Value, field: &str| {
                address[field].as_str().unwrap_or_default().to_owned()
            };
            let known: Vec<String> = known
                .map(|a| format!("{{{} {}}}", text(a, "type"), text(a, "address")))
                .collect();
            Status::unclassified(format!(
                "no preferred addresses found; known addresses: [{}]",
                known.join(" ")
            ))
        })?;
        let port = object["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64();
        let port = port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
            .unwrap_or(10250);
        let declared = object["status"]["declaredFeatures"].as_array();
        let has_websockets = declared.is_some_and(|all| all.contains(&WEBSOCKETS.into()));
        Ok(Some(Kubelet {
            host,
            port,
            has_websockets,
        }))
    }

    /// A connection that shows this server's certificate.
    pub(super) async fn dial(&self, kubelet: &Kubelet) -> Result<TlsStream<TcpStream>, String> {
        dial_tls(&kubelet.authority(), &kubelet.host, Arc::clone(&self.tls)).await
    }
}

pub(super) struct Kubelet {
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether it understands the newer protocols in WebSocket by itself.
    pub(super) has_websockets: bool,
}

impl Kubelet {
    pub(super) fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The address types upstream prefers, in order.
fn kubelet_host(node: &Value) -> Option<String> {
    let addresses = node["status"]["addresses"].as_array()?;
    [
        "InternalDNS",
        "InternalIP",
        "ExternalDNS",
        "ExternalIP",
        // Upstream tries it first; names of hosts are seldom known where this server runs.
        "Hostname",
    ]
    .iter()
    .find_map(|kind| addresses.iter().find(|a| a["type"] == **kind))
    .and_then(|a| a["address"].as_str())
    .map(ToOwned::to_owned)
}

pub(super) async fn dial(authority: &str) -> Result<TcpStream, String> {
    match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(authority)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(format!("dial tcp {authority}: {}", reason(&error))),
        Err(_) => Err(format!("dial tcp {authority}: i/o timeout")),
    }
}

/// Why a connection could not be made, as upstream's messages say it.
fn reason(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let known = match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::ConnectionReset => "connection reset by peer",
        ErrorKind::HostUnreachable => "no route to host",
        ErrorKind::NetworkUnreachable => "network is unreachable",
        ErrorKind::TimedOut => "connection timed out",
        ErrorKind::AddrNotAvailable => "cannot assign requested address",
        _ => return error.to_string(),
    };
    format!("connect: {known}")
}

pub(crate) async fn dial_tls(
    authority: &str,
    name: &str,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, String> {
    let stream = dial(authority).await?;
    let name = ServerName::try_from(name.to_owned()).map_err(|e| format!("{name}: {e}"))?;
    match tokio::time::timeout(DIAL_TIMEOUT, TlsConnector::from(tls).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("tls: {}", distrust(&error))),
        Err(_) => Err(format!("tls handshake with {authority}: i/o timeout")),
    }
}

/// Why a server is not trusted, as upstream's messages say it.
fn distrust(error: &std::io::Error) -> String {
    use rustls::CertificateError::{Expired, UnknownIssuer};
    let inner = error.get_ref().and_then(|e| e.downcast_ref());
    let known = match inner {
        Some(rustls::Error::InvalidCertificate(UnknownIssuer)) => {
            "certificate signed by unknown authority"
        }
        Some(rustls::Error::InvalidCertificate(Expired)) => {
            "certificate has expired or is not yet valid"
        }
        _ => return error.to_string(),
    };
    format!("failed to verify certificate: x509: {known}")
}

pub(crate) fn verified_tls(
    authorities: &[CertificateDer<'static>],
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, pki::Error> {
    let unusable = |reason: String| pki::Error::Unusable {
        what: "a certificate authority".to_owned(),
        reason,
    };
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority.clone())
            .map_err(|e| unusable(e.to_string()))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| unusable(e.to_string()))?;
    client_config(verifier, identity)
}

/// Encrypts without knowing to whom, as upstream does towards kubelets by default.
pub(crate) fn unverified_tls(identity: Option<&Identity>) -> Result<Arc<ClientConfig>, pki::Error> {
    client_config(Arc::new(AnyServer), identity)
}

fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: Option<&Identity>,
) -> Result<Arc<ClientConfig>, pki::Error> {
    let unusable = |e: rustls::Error| pki::Error::Unusable {
        what: "TLS".to_owned(),
        reason: e.to_string(),
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let config = match identity {
        Some(identity) => {
            let (chain, key) = pki::chain_and_key(identity)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(unusable)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// One ready endpoint of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServiceAddress(pub(crate) SocketAddr);

impl std::fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A ready endpoint behind a service's port, given by name or number; any port when empty and
/// the service has one.
pub(crate) fn resolve_service(
    objects: &Arc<dyn Objects>,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<ServiceAddress, Status> {
    let service = objects
        .get("", "services", namespace, name)
        .ok_or_else(|| Status::not_found("", "services", name))?;
    let ports = service["spec"]["ports"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let chosen = ports.iter().find(|p| {
        (port.is_empty() && ports.len() == 1)
            || p["name"].as_str().unwrap_or_default() == port
            || p["port"]
                .as_u64()
                .is_some_and(|number| number.to_string() == port)
    });
    let unavailable =
        || Status::service_unavailable(format!("no endpoints available for service {name:?}"));
    let chosen = chosen.ok_or_else(|| {
        Status::service_unavailable(format!(
            "no service port {port:?} found for service {name:?}"
        ))
    })?;
    if service["spec"]["type"] == "ExternalName" {
        return Err(unavailable());
    }
    let port_name = chosen["name"].as_str().unwrap_or_default();
    let mut found: Vec<SocketAddr> = Vec::new();
    for slice in objects.list("discovery.k8s.io", "endpointslices", namespace) {
        if meta::label(&slice, "kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let number = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .and_then(|p| p["port"].as_u64())
            .and_then(|p| u16::try_from(p).ok());
        let Some(number) = number else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            let addresses = endpoint["addresses"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            found.extend(
                addresses
                    .filter_map(|a| a.parse::<IpAddr>().ok())
                    .map(|ip| SocketAddr::new(ip, number)),
            );
        }
    }
    if found.is_empty() {
        return Err(unavailable());
    }
    let at = rand::random_range(0..found.len());
    Ok(ServiceAddress(found[at]))
}
