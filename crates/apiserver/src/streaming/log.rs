//! Logs: asked of the kubelet in plain HTTP, and sent on as they come, to whoever wants it in the
//! messages of a WebSocket.

use std::sync::Arc;

use http::Method;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http_body_util::BodyExt;
use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::time;
use keelson_streaming::websocket::{self, Encoding};

use super::forward;
use super::pods::{container, kubelet, read_pod, with_query};
use crate::http::RequestBody;
use crate::registry::negotiate;
use crate::request::{Query, RequestContext, Response, empty, full, read_up_to};
use crate::server::Server;

/// What of a kubelet's refusal is passed on.
const MAX_ERROR_BYTES: usize = 64 * 1024;

pub(super) async fn log(
    server: &Arc<Server>,
    context: &RequestContext,
    mut parts: Parts,
) -> Result<Response, Status> {
    let info = &context.info;
    negotiate::log_output(context)?;
    let mut options = log_options(&info.query, &info.name)?;
    let pod = read_pod(server, context).await?;
    let container = container(
        &pod,
        &info.name,
        info.query.get("container").unwrap_or_default(),
    )?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        // A pod that runs nowhere yet has said nothing yet.
        let mut response = http::Response::new(empty());
        *response.status_mut() = http::StatusCode::NO_CONTENT;
        return Ok(response);
    }
    let path = format!(
        "/containerLogs/{}/{}/{container}",
        info.namespace, info.name
    );
    let kubelet = kubelet(server, node)?;
    let uri = with_query(path, &mut options);
    let failed = |reason: String| {
        let url = format!("https://{}{uri}", kubelet.authority());
        Status::unclassified(format!("Get {url:?}: {reason}"))
    };
    let connection = server.kubelets.dial(&kubelet).await.map_err(failed)?;
    // The kubelet is asked by this server, whatever the client said about itself.
    let headers = std::mem::take(&mut parts.headers);
    let client =
        websocket::is_upgrade(&headers, "websocket").then(|| forward::client_of(&mut parts));
    let nothing = RequestBody::Whole(bytes::Bytes::new());
    let host = kubelet.authority();
    let answer = forward::forward(connection, parts, &uri, &host, nothing).await;
    let response = answer.map_err(|failure| failed(failure.to_string()))?;
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    // Nobody knows how long a log will be, even when a kubelet says it.
    let body = response.into_body().map_frame(|frame| frame).boxed_unsync();
    let Some(client) = client else {
        let mut logs = http::Response::new(body);
        logs.headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        return Ok(logs);
    };
    Ok(
        match websocket::accept(&Method::GET, &headers, websocket::ONE_WAY_PROTOCOLS) {
            Ok((response, protocol)) => {
                let log = body.into_data_stream();
                tokio::spawn(websocket::send(client, Encoding::of(protocol), log));
                response.map(|()| empty())
            }
            Err(refusal) => {
                let mut response = http::Response::new(full(refusal.message));
                *response.status_mut() = refusal.status;
                response
            }
        },
    )
}

/// A kubelet's plain-text refusal as a Status.
async fn refusal(response: Response) -> Status {
    let code = response.status().as_u16();
    let (bytes, _) = read_up_to(response.into_body(), MAX_ERROR_BYTES).await;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    match code {
        400 => Status::bad_request(text),
        404 => Status {
            code: 404,
            reason: "NotFound".to_owned(),
            message: text,
            details: None,
        },
        401 | 403 => Status::internal(format!("the kubelet refused this server: {text}")),
        _ => Status::internal(text),
    }
}

fn log_options(query: &Query, pod: &str) -> Result<Vec<(&'static str, String)>, Status> {
    let mut errors = ErrorList::new();
    let mut options = Vec::new();
    for name in ["follow", "previous", "timestamps"] {
        if query.flag(name) {
            options.push((name, "true".to_owned()));
        }
    }
    let has_time = query.get("sinceTime").is_some();
    for (name, minimum, complaint) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
    ] {
        let Some(text) = query.get(name) else {
            continue;
        };
        let Ok(value) = text.parse::<i64>() else {
            return Err(Status::bad_request(format!(
                "strconv.ParseInt: parsing {text:?}: invalid syntax"
            )));
        };
        if name == "sinceSeconds" && has_time {
            errors.push(FieldError::forbidden(
                &Path::new("[]"),
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        } else if value < minimum {
            errors.push(FieldError::invalid(&Path::new(name), value, complaint));
        }
        options.push((name, text.to_owned()));
    }
    if let Some(text) = query.get("sinceTime") {
        let Some(at) = time::parse_unix(text) else {
            return Err(Status::bad_request(format!(
                "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
            )));
        };
        options.push(("sinceTime", time::format_unix(at)));
    }
    // Choosing one of the streams is behind a gate that is closed.
    if query.get("stream").is_some() {
        errors.push(FieldError::forbidden(
            &Path::new("stream"),
            "may not be specified",
        ));
    }
    if errors.is_empty() {
        Ok(options)
    } else {
        Err(Status::invalid("", "PodLogOptions", pod, &errors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_options_are_checked() {
        let checked = |query: &str| log_options(&Query::parse(query), "p");
        let mut options = checked("tailLines=5&follow=true&sinceTime=2020-01-01T00:00:00%2B02:00");
        assert_eq!(
            with_query(String::new(), options.as_mut().unwrap()),
            "?follow=true&sinceTime=2019-12-31T22%3A00%3A00Z&tailLines=5"
        );
        for (query, code, text) in [
            ("sinceSeconds=0", 422, "sinceSeconds: Invalid value: 0"),
            ("stream=All", 422, "stream: Forbidden: may not be specified"),
            (
                "sinceTime=2020-01-01T00:00:00Z&sinceSeconds=3",
                422,
                "[]: Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
            ),
            ("tailLines=x", 400, "strconv.ParseInt: parsing \"x\""),
        ] {
            let status = checked(query).unwrap_err();
            assert_eq!(status.code, code, "{query}");
            assert!(status.message.contains(text), "{}", status.message);
        }
    }
}
