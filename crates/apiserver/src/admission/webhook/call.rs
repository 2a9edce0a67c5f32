//! One call of a webhook.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use crate::objects::Objects;
use crate::streaming::{dial_tls, resolve_service, verified_tls};

/// An answer larger than this is no answer.
const MAX_ANSWER_BYTES: usize = 3 << 20;

/// Where a webhook is.
struct Place {
    /// `host:port` to connect to.
    authority: String,
    /// The name its certificate bears.
    host: String,
    path: String,
    /// For messages.
    url: String,
}

/// Sends a review to where `clientConfig` of the webhook points, and returns the answer.
pub(crate) async fn post(
    objects: &Arc<dyn Objects>,
    webhook: &Value,
    review: &Value,
) -> Result<Value, String> {
    let config = &webhook["clientConfig"];
    let place = place(objects, config)?;
    let seconds = webhook["timeoutSeconds"]
        .as_u64()
        .unwrap_or(10)
        .clamp(1, 30);
    let url = format!("{}?timeout={seconds}s", place.url);
    let failed = |reason: String| format!("failed to call webhook: Post {url:?}: {reason}");
    let timeout = Duration::from_secs(seconds);
    match tokio::time::timeout(timeout, exchange(&place, config, review, seconds)).await {
        Ok(outcome) => outcome.map_err(failed),
        Err(_) => Err(failed("context deadline exceeded".to_owned())),
    }
}

fn place(objects: &Arc<dyn Objects>, config: &Value) -> Result<Place, String> {
    if let Some(url) = config["url"].as_str() {
        let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
        let host = uri
            .host()
            .ok_or_else(|| format!("url {url:?} names no host"))?
            .to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        return Ok(Place {
            authority: format!("{host}:{port}"),
            host,
            path,
            url: url.to_owned(),
        });
    }
    let service = &config["service"];
    let text = |key: &str| service[key].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let port = service["port"].as_u64().unwrap_or(443);
    let path = format!("/{}", text("path").trim_start_matches('/'));
    let host = format!("{name}.{namespace}.svc");
    let url = format!("https://{host}:{port}{path}");
    let address = resolve_service(objects, namespace, name, &port.to_string())
        .map_err(|status| format!("failed to call webhook: Post {url:?}: {}", status.message))?;
    Ok(Place {
        authority: address.to_string(),
        host,
        path,
        url,
    })
}

async fn exchange(
    place: &Place,
    config: &Value,
    review: &Value,
    seconds: u64,
) -> Result<Value, String> {
    let bundle = config["caBundle"].as_str().unwrap_or_default();
    let pem = STANDARD
        .decode(bundle)
        .map_err(|e| format!("caBundle: {e}"))?;
    let authorities = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("caBundle: {e}"))?;
    let tls = verified_tls(&authorities, None).map_err(|e| e.to_string())?;
    let stream = dial_tls(&place.authority, &place.host, tls).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let separator = if place.path.contains('?') { '&' } else { '?' };
    let body = serde_json::to_vec(review).map_err(|e| e.to_string())?;
    let request = Request::post(format!("{}{separator}timeout={seconds}s", place.path))
        .header("host", &place.host)
        .header("content-type", "application/json")
        .header("accept", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|e| e.to_string())?;
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    if !status.is_success() {
        return Err(format!(
            "the server rejected our request: {status}: {}",
            String::from_utf8_lossy(&bytes).trim()
        ));
    }
    serde_json::from_slice(&bytes).map_err(|e| format!("the answer is no AdmissionReview: {e}"))
}
