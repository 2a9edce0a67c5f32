//! HTTP probes and hooks. Certificates are not verified: the pod has no name to verify.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Outcome, port, tcp};

const MAX_BODY_BYTES: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;
const USER_AGENT: &str = "kube-probe/1.36";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpTarget {
    pub(crate) tls: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// With query.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl HttpTarget {
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn url(&self) -> String {
        format!(
            "{}://{}{}",
            if self.tls { "https" } else { "http" },
            self.authority(),
            self.path
        )
    }
}

pub(crate) fn target(
    action: &HTTPGetAction,
    pod_ip: &str,
    container: &Container,
) -> Result<HttpTarget, String> {
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    Ok(HttpTarget {
        tls: action
            .scheme
            .as_deref()
            .unwrap_or("HTTP")
            .eq_ignore_ascii_case("https"),
        host: action
            .host
            .clone()
            .filter(|host| !host.is_empty())
            .unwrap_or_else(|| pod_ip.to_owned()),
        port: port(&action.port, container)?,
        path,
        headers: action
            .http_headers
            .iter()
            .flatten()
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
    })
}

pub(super) async fn probe(target: &HttpTarget, timeout: Duration) -> Outcome {
    match tokio::time::timeout(timeout, follow(target, timeout)).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Failure(format!(
            "Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            target.url()
        )),
    }
}

/// Redirects within the host are followed; one that leaves it is a success with a warning.
async fn follow(target: &HttpTarget, timeout: Duration) -> Outcome {
    let mut current = target.clone();
    for _ in 0..MAX_REDIRECTS {
        let (status, location, body) = match get(&current, timeout).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Failure(format!("Get \"{}\": {error}", current.url())),
        };
        if !(200..400).contains(&status) {
            return Outcome::Failure(format!("HTTP probe failed with statuscode: {status}"));
        }
        let Some(location) = location.filter(|_| (300..400).contains(&status)) else {
            return Outcome::Success;
        };
        match redirect(&current, &location) {
            Some(next) => current = next,
            None => {
                return Outcome::Warning(format!(
                    "Probe terminated redirects, Response body: {}",
                    String::from_utf8_lossy(&body)
                ));
            }
        }
    }
    Outcome::Failure(format!(
        "Get \"{}\": stopped after {MAX_REDIRECTS} redirects",
        current.url()
    ))
}

fn redirect(from: &HttpTarget, location: &str) -> Option<HttpTarget> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(HttpTarget {
            path: location.to_owned(),
            ..from.clone()
        });
    }
    let uri: http::Uri = location.parse().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    if host != from.host {
        return None;
    }
    let tls = uri.scheme_str() == Some("https");
    let path = uri
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    Some(HttpTarget {
        tls,
        port,
        path,
        ..from.clone()
    })
}

/// One GET: status, `Location`, the body's beginning.
pub(crate) async fn get(
    target: &HttpTarget,
    timeout: Duration,
) -> Result<(u16, Option<String>, Bytes), String> {
    let stream = tcp::connect(&target.host, target.port, timeout).await?;
    if !target.tls {
        return send(target, stream).await;
    }
    let name = rustls::pki_types::ServerName::try_from(target.host.clone())
        .map_err(|error| error.to_string())?;
    let config = TLS.clone().ok_or("TLS is not available")?;
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|e| e.to_string())?;
    send(target, stream).await
}

async fn send(
    target: &HttpTarget,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<(u16, Option<String>, Bytes), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let answer = exchange(target, &mut sender).await;
    connection.abort();
    answer
}

async fn exchange(
    target: &HttpTarget,
    sender: &mut hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
) -> Result<(u16, Option<String>, Bytes), String> {
    let mut request = http::Request::get(&target.path);
    let given = |name: &str| {
        target
            .headers
            .iter()
            .any(|(header, _)| header.eq_ignore_ascii_case(name))
    };
    if !given("host") {
        request = request.header("Host", target.authority());
    }
    if !given("user-agent") {
        request = request.header("User-Agent", USER_AGENT);
    }
    if !given("accept") {
        request = request.header("Accept", "*/*");
    }
    request = request.header("Connection", "close");
    for (name, value) in target.headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(name, value);
    }
    let request = request
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| {
        match error.is_incomplete_message() {
            true => "EOF".to_owned(),
            false => error.to_string(),
        }
    })?;
    let status = response.status().as_u16();
    let location = response
        .headers()
        .get("Location")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    // What matters is the status; a body that is long or breaks off changes nothing.
    let body = match Limited::new(response.into_body(), MAX_BODY_BYTES)
        .collect()
        .await
    {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    Ok((status, location, body))
}

static TLS: LazyLock<Option<Arc<rustls::ClientConfig>>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .ok()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        .with_no_client_auth();
    Some(Arc::new(config))
});

/// Accepts any certificate; the handshake's signature is still checked.
#[derive(Debug)]
struct AcceptAny(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn serve(answers: Vec<String>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 2048];
                let read = stream.read(&mut buffer).await.unwrap();
                assert!(
                    String::from_utf8_lossy(&buffer[..read])
                        .to_lowercase()
                        .contains("user-agent: kube-probe/1.36")
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn local(port: u16) -> HttpTarget {
        HttpTarget {
            tls: false,
            host: "127.0.0.1".into(),
            port,
            path: "/x".into(),
            headers: vec![],
        }
    }

    #[tokio::test]
    async fn statuses_decide() {
        let answer = |line: &str| format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n");
        let port = serve(vec![
            answer("200 OK"),
            answer("500 No"),
            answer("302 Found\r\nLocation: /y"),
            answer("204 No Content"),
            answer("302 Found\r\nLocation: http://example.com/"),
        ])
        .await;
        let second = Duration::from_secs(5);
        assert_eq!(probe(&local(port), second).await, Outcome::Success);
        assert_eq!(
            probe(&local(port), second).await,
            Outcome::Failure("HTTP probe failed with statuscode: 500".into())
        );
        assert_eq!(probe(&local(port), second).await, Outcome::Success);
        assert!(matches!(
            probe(&local(port), second).await,
            Outcome::Warning(_)
        ));
    }

    #[tokio::test]
    async fn refusal_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let outcome = probe(&local(port), Duration::from_secs(5)).await;
        assert_eq!(
            outcome,
            Outcome::Failure(format!(
                "Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            ))
        );
    }
}
