//! One call of a webhook.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use keelson_machinery::{go, json_syntax};
use serde_json::Value;

use super::connections::{Connection, Target};
use crate::objects::Objects;
use crate::streaming::resolve_service;

/// An answer larger than this is no answer.
const MAX_ANSWER_BYTES: usize = 3 << 20;
/// Of what a webhook says instead of an answer.
const MAX_REMARK_BYTES: usize = 2048;

/// Where a webhook is.
struct Place {
    host: String,
    port: u64,
    path: String,
    /// For messages.
    url: String,
}

/// Sends a review to where `clientConfig` of the webhook points, and returns the answer, which may
/// be any document.
pub(crate) async fn post(
    objects: &Arc<dyn Objects>,
    webhook: &Value,
    review: &Value,
) -> Result<Value, String> {
    let config = &webhook["clientConfig"];
    let place = place(config)?;
    let seconds = webhook["timeoutSeconds"]
        .as_u64()
        .unwrap_or(10)
        .clamp(1, 30);
    let unreachable = |reason: String| {
        let url = format!("{}?timeout={seconds}s", place.url);
        format!("Post {url:?}: {reason}")
    };
    let timeout = Duration::from_secs(seconds);
    let exchange = exchange(objects, &place, config, review, seconds);
    let answer = match tokio::time::timeout(timeout, exchange).await {
        Ok(outcome) => outcome.map_err(unreachable)?,
        Err(_) => return Err(unreachable("context deadline exceeded".to_owned())),
    };
    document(&answer)
}

fn place(config: &Value) -> Result<Place, String> {
    if let Some(url) = config["url"].as_str() {
        let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
        let host = uri
            .host()
            .ok_or_else(|| format!("url {url:?} names no host"))?
            .to_owned();
        return Ok(Place {
            host,
            port: u64::from(uri.port_u16().unwrap_or(443)),
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            url: url.to_owned(),
        });
    }
    let service = &config["service"];
    let text = |key: &str| service[key].as_str().unwrap_or_default();
    let port = service["port"].as_u64().unwrap_or(443);
    let path = format!("/{}", text("path").trim_start_matches('/'));
    let host = format!("{}.{}.svc", text("name"), text("namespace"));
    let url = format!("https://{host}:{port}{path}");
    Ok(Place {
        host,
        port,
        path,
        url,
    })
}

/// `host:port` to connect to.
fn authority(objects: &Arc<dyn Objects>, place: &Place, config: &Value) -> Result<String, String> {
    let service = &config["service"];
    if !service.is_object() {
        return Ok(format!("{}:{}", place.host, place.port));
    }
    let text = |key: &str| service[key].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let found = objects
        .get("", "services", namespace, name)
        .ok_or_else(|| format!("service {name:?} not found"))?;
    if found["spec"]["type"] == "ExternalName" {
        let external = found["spec"]["externalName"].as_str().unwrap_or_default();
        return Ok(format!("{external}:{}", place.port));
    }
    let mut ports = found["spec"]["ports"].as_array().into_iter().flatten();
    if !ports.any(|port| port["port"] == place.port) {
        return Err(format!(
            "no service port {} found for service {name:?}",
            place.port
        ));
    }
    resolve_service(objects, namespace, name, &place.port.to_string())
        .map(|address| address.to_string())
        .map_err(|status| status.message)
}

struct Answer {
    status: StatusCode,
    content_type: String,
    body: Bytes,
}

async fn exchange(
    objects: &Arc<dyn Objects>,
    place: &Place,
    config: &Value,
    review: &Value,
    seconds: u64,
) -> Result<Answer, String> {
    let authority = authority(objects, place, config)?;
    let separator = if place.path.contains('?') { '&' } else { '?' };
    let body = serde_json::to_vec(review).map_err(|e| e.to_string())?;
    let request = Request::post(format!("{}{separator}timeout={seconds}s", place.path))
        .header("host", format!("{}:{}", place.host, place.port))
        .header("content-type", "application/json")
        .header("accept", "application/json, */*")
        .header("user-agent", "kube-apiserver-admission")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let target = Target {
        authority,
        name: place.host.clone(),
        bundle: config["caBundle"].as_str().unwrap_or_default().to_owned(),
    };
    let (connection, response) = Connection::call(target, request).await?;
    let status = response.status();
    let content_type = response.headers().get(http::header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or("application/json").to_owned();
    let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
    connection.keep();
    Ok(Answer {
        status,
        content_type,
        body,
    })
}

/// The document of an answer that is a success.
fn document(answer: &Answer) -> Result<Value, String> {
    let parsed = serde_json::from_slice::<Value>(&answer.body);
    if !answer.status.is_success() {
        let status = parsed.ok().filter(|body| body["kind"] == "Status");
        let message = status
            .as_ref()
            .and_then(|status| status["message"].as_str());
        return Err(message.map_or_else(|| refused(answer), str::to_owned));
    }
    if answer.body.is_empty() {
        return Err(format!(
            "0-length response with status code: {} and content type: {}",
            answer.status.as_u16(),
            answer.content_type
        ));
    }
    let wrong_kind = |value: &Value| {
        format!(
            "json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            go::json_kind(value)
        )
    };
    let problem = match parsed {
        Ok(document) if document.is_object() => return Ok(document),
        Ok(other) => wrong_kind(&other),
        // What looks like no JSON is taken for YAML.
        Err(_) if !answer.body.starts_with(b"{") && answer.body.is_ascii() => {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            wrong_kind(&Value::String(text))
        }
        Err(error) => json_syntax::error(&answer.body).unwrap_or_else(|| error.to_string()),
    };
    Err(format!(
        "couldn't get version/kind; json parse error: {problem}"
    ))
}

/// What is known of an answer by its status alone.
fn refused(answer: &Answer) -> String {
    let end = answer.body.len().min(MAX_REMARK_BYTES);
    let remark = String::from_utf8_lossy(&answer.body[..end]);
    let remark = match remark.trim() {
        text if answer.content_type.starts_with("text/") => text,
        _ => "unknown",
    };
    let known = match answer.status.as_u16() {
        400 => "the server rejected our request for an unknown reason",
        401 => "the server has asked for the client to provide credentials",
        403 | 406 | 415 => remark,
        404 => "the server could not find the requested resource",
        405 => "the server does not allow this method on the requested resource",
        409 => "the server reported a conflict",
        422 => "the server rejected our request due to an error in our request",
        429 => "the server has received too many requests and has asked us to try again later",
        503 => "the server is currently unable to handle the request",
        504 => {
            "the server was unable to return a response in the time allotted, but may still be processing the request"
        }
        code if code >= 500 => {
            return format!(
                "an error on the server ({}) has prevented the request from succeeding",
                go::quote(remark)
            );
        }
        code => {
            return format!(
                "the server responded with the status code {code} but did not return more information"
            );
        }
    };
    known.to_owned()
}
