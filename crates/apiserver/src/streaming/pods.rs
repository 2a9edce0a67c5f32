//! exec, attach, port-forward and logs: the pod's node is found, the request checked, and the
//! kubelet asked in its own terms.

use std::fmt::Write;
use std::sync::Arc;

use http::request::Parts;
use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::time;
use serde_json::Value;

use super::{Connect, forward};
use crate::http::RequestBody;
use crate::request::{Query, RequestContext, Response, read_up_to, respond_text};
use crate::server::Server;

/// What of a kubelet's refusal is passed on.
const MAX_ERROR_BYTES: usize = 64 * 1024;

pub(super) async fn stream(
    server: &Arc<Server>,
    context: &RequestContext,
    connect: Connect,
    parts: Parts,
    body: RequestBody,
) -> Result<Response, Status> {
    let info = &context.info;
    let pod = read_pod(server, context).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let name = &info.name;
    let mut uri = match connect {
        Connect::PortForward => format!("/portForward/{}/{name}", info.namespace),
        _ => {
            let container = container(&pod, name, info.query.get("container").unwrap_or_default())?;
            let verb = if connect == Connect::Exec {
                "exec"
            } else {
                "attach"
            };
            format!("/{verb}/{}/{name}/{container}", info.namespace)
        }
    };
    if node.is_empty() {
        return Err(Status::bad_request(format!(
            "pod {name} does not have a host assigned"
        )));
    }
    let query = stream_query(connect, &info.query)?;
    if !query.is_empty() {
        uri.push('?');
        uri.push_str(&query);
    }
    let (kubelet, authority) = server.kubelets.dial(&server.objects, node, None).await?;
    forward::forward(kubelet, parts, &uri, &authority, body).await
}

/// The kubelet's names for the options of a stream.
fn stream_query(connect: Connect, query: &Query) -> Result<String, Status> {
    let mut out = String::new();
    let mut add = |name: &str, value: &str| {
        let separator = if out.is_empty() { "" } else { "&" };
        let _ = write!(out, "{separator}{name}={}", encode(value));
    };
    if connect == Connect::PortForward {
        for ports in query.all("ports") {
            for port in ports.split(',') {
                let valid = port.parse::<u16>().is_ok_and(|p| p != 0);
                if !valid {
                    return Err(Status::bad_request(format!("invalid port {port:?}")));
                }
                add("port", port);
            }
        }
        return Ok(out);
    }
    for (option, name) in [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ] {
        if query.flag(option) {
            add(name, "1");
        }
    }
    if connect == Connect::Exec {
        for argument in query.all("command") {
            add("command", argument);
        }
    }
    Ok(out)
}

pub(super) async fn log(
    server: &Arc<Server>,
    context: &RequestContext,
    parts: Parts,
) -> Result<Response, Status> {
    let info = &context.info;
    let query = log_query(&info.query, &info.name)?;
    let pod = read_pod(server, context).await?;
    let container = container(
        &pod,
        &info.name,
        info.query.get("container").unwrap_or_default(),
    )?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        // A pod that runs nowhere yet has said nothing yet.
        return Ok(respond_text(200, ""));
    }
    let mut uri = format!(
        "/containerLogs/{}/{}/{container}",
        info.namespace, info.name
    );
    if !query.is_empty() {
        uri.push('?');
        uri.push_str(&query);
    }
    let (kubelet, authority) = server.kubelets.dial(&server.objects, node, None).await?;
    let response = forward::forward(
        kubelet,
        parts,
        &uri,
        &authority,
        RequestBody::Whole(bytes::Bytes::new()),
    )
    .await?;
    if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    if response.status().is_success() {
        let (mut parts, body) = response.into_parts();
        parts.headers.insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("text/plain"),
        );
        return Ok(http::Response::from_parts(parts, body));
    }
    Err(refusal(response).await)
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

fn log_query(query: &Query, pod: &str) -> Result<String, Status> {
    let mut errors = ErrorList::new();
    let mut out = String::new();
    let mut add = |name: &str, value: &str| {
        let separator = if out.is_empty() { "" } else { "&" };
        let _ = write!(out, "{separator}{name}={}", encode(value));
    };
    for name in ["follow", "previous", "timestamps"] {
        if query.flag(name) {
            add(name, "true");
        }
    }
    for (name, minimum, complaint) in [
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("sinceSeconds", 1, "must be greater than 0"),
        ("limitBytes", 1, "must be greater than 0"),
    ] {
        let Some(text) = query.get(name) else {
            continue;
        };
        let Ok(value) = text.parse::<i64>() else {
            return Err(Status::bad_request(format!(
                "strconv.ParseInt: parsing {text:?}: invalid syntax"
            )));
        };
        if value < minimum {
            errors.push(FieldError::invalid(&Path::new(name), value, complaint));
        }
        add(name, text);
    }
    if let Some(text) = query.get("sinceTime") {
        if time::parse(text).is_none() {
            return Err(Status::bad_request(format!(
                "parsing time {text:?} as RFC 3339 failed"
            )));
        }
        if query.get("sinceSeconds").is_some() {
            errors.push(FieldError::forbidden(
                &Path::root(),
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
        add("sinceTime", text);
    }
    if let Some(stream) = query.get("stream") {
        if !matches!(stream, "All" | "Stdout" | "Stderr") {
            errors.push(FieldError::not_supported(
                &Path::new("stream"),
                stream,
                &["All", "Stdout", "Stderr"],
            ));
        }
        if stream != "All" && query.get("tailLines").is_some() {
            errors.push(FieldError::forbidden(
                &Path::new("tailLines"),
                "`tailLines` and specific `stream` are mutually exclusive for now",
            ));
        }
        add("stream", stream);
    }
    if errors.is_empty() {
        Ok(out)
    } else {
        Err(Status::invalid("", "PodLogOptions", pod, &errors))
    }
}

async fn read_pod(server: &Arc<Server>, context: &RequestContext) -> Result<Value, Status> {
    let info = &context.info;
    server
        .objects
        .read("", "pods", &info.namespace, &info.name)
        .await?
        .ok_or_else(|| Status::not_found("", "pods", &info.name))
}

/// The container asked for, or the only one.
fn container(pod: &Value, name: &str, wanted: &str) -> Result<String, Status> {
    let names = |key: &str| -> Vec<&str> {
        pod["spec"][key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|c| c["name"].as_str())
            .collect()
    };
    let (main, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    if !wanted.is_empty() {
        return if [&main, &init, &ephemeral]
            .iter()
            .any(|list| list.contains(&wanted))
        {
            Ok(wanted.to_owned())
        } else {
            Err(Status::bad_request(format!(
                "container {wanted} is not valid for pod {name}"
            )))
        };
    }
    match main.as_slice() {
        [only] if init.is_empty() && ephemeral.is_empty() => Ok((*only).to_owned()),
        [] => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}"
        ))),
        [only] if init.is_empty() => Ok((*only).to_owned()),
        [only] => Ok((*only).to_owned()),
        several => {
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                several.join(" ")
            );
            if !init.is_empty() {
                let _ = write!(text, " or one of the init containers: [{}]", init.join(" "));
            }
            Err(Status::bad_request(text))
        }
    }
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_container_is_asked_for_when_there_are_several() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(
            container(&pod, "p", "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&pod, "p", "i").unwrap(), "i");
        assert_eq!(
            container(&pod, "p", "x").unwrap_err().message,
            "container x is not valid for pod p"
        );
        assert_eq!(
            container(&json!({"spec": {"containers": [{"name": "a"}]}}), "p", "").unwrap(),
            "a"
        );
    }

    #[test]
    fn options_are_renamed_for_the_kubelet() {
        let query = Query::parse(
            "stdin=true&stdout=1&stderr=false&command=sh&command=-c&command=a%20b&container=x",
        );
        assert_eq!(
            stream_query(Connect::Exec, &query).unwrap(),
            "input=1&output=1&command=sh&command=-c&command=a%20b"
        );
        assert_eq!(
            stream_query(Connect::PortForward, &Query::parse("ports=80,81")).unwrap(),
            "port=80&port=81"
        );
        assert!(stream_query(Connect::PortForward, &Query::parse("ports=0")).is_err());
    }

    #[test]
    fn log_options_are_checked() {
        assert_eq!(
            log_query(&Query::parse("follow=true&tailLines=5"), "p").unwrap(),
            "follow=true&tailLines=5"
        );
        assert_eq!(
            log_query(&Query::parse("sinceSeconds=0"), "p")
                .unwrap_err()
                .code,
            422
        );
        assert_eq!(
            log_query(&Query::parse("tailLines=x"), "p")
                .unwrap_err()
                .code,
            400
        );
    }
}
