//! exec, attach and port-forward: the pod's node is found, the request checked, and the
//! kubelet asked in its own terms.

use std::fmt::Write;
use std::sync::Arc;

use http::request::Parts;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::backend::Kubelet;
use super::translate::Wanted;
use super::{Connect, forward, refused, translate, tunnel};
use crate::http::{Counter, RequestBody};
use crate::request::{Query, RequestContext, Response};
use crate::server::Server;

pub(super) async fn stream(
    server: &Arc<Server>,
    context: &RequestContext,
    connect: Connect,
    parts: Parts,
    body: RequestBody,
) -> Result<Response, Status> {
    let info = &context.info;
    let mut options = stream_options(connect, &info.query)?;
    let pod = read_pod(server, context).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let name = &info.name;
    let path = match connect {
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
    let kubelet = kubelet(server, node)?;
    if !forward::is_upgrade(&parts.headers) {
        return Err(Status::bad_request("Upgrade request required"));
    }
    let wanted = Wanted::of(&options);
    let uri = with_query(path, &mut options);
    let route = match kubelet.has_websockets {
        true => "proxied_to_kubelet",
        false => "translated_at_apiserver",
    };
    let subresource = info.subresource.as_str();
    let labels = [("subresource", subresource), ("proxy_type", route)];
    server.metrics.count(Counter::WebSocketStreaming, &labels);
    if !kubelet.has_websockets {
        if connect == Connect::PortForward && tunnel::is_asked_for(&parts.headers) {
            return tunnel::tunnel(server, &kubelet, parts, &uri).await;
        }
        if connect != Connect::PortForward && translate::is_asked_for(&parts.headers) {
            return Ok(translate::translate(server, kubelet, parts, uri, wanted));
        }
    }
    let connection = server.kubelets.dial(&kubelet).await.map_err(not_dialed)?;
    let host = forward::host_of(&parts).unwrap_or_else(|| kubelet.authority());
    let answer = forward::forward(connection, parts, &uri, &host, body).await;
    answer.map_err(|failure| refused(&failure, true))
}

pub(super) fn not_dialed(reason: String) -> Status {
    Status::unclassified(format!("error dialing backend: {reason}"))
}

pub(super) fn kubelet(server: &Arc<Server>, node: &str) -> Result<Kubelet, Status> {
    let found = server.kubelets.locate(&server.objects, node)?;
    // Upstream answers of the pod's resource, with the name of the node.
    found.ok_or_else(|| Status::not_found("", "pods", node))
}

/// In the order of their names, as upstream writes them.
pub(super) fn with_query(mut path: String, options: &mut [(&'static str, String)]) -> String {
    options.sort_by_key(|(name, _)| *name);
    for (index, (name, value)) in options.iter().enumerate() {
        let separator = if index == 0 { '?' } else { '&' };
        let _ = write!(path, "{separator}{name}={}", encode(value));
    }
    path
}

/// The kubelet's names for the options of a stream.
fn stream_options(connect: Connect, query: &Query) -> Result<Vec<(&'static str, String)>, Status> {
    if connect == Connect::PortForward {
        let listed: Vec<&str> = query
            .all("ports")
            .flat_map(|ports| ports.split(','))
            .collect();
        for port in &listed {
            if let Err(reason) = port_number(port) {
                return Err(Status::bad_request(format!(
                    "cannot convert to []int32: strconv.ParseUint: parsing {port:?}: {reason}"
                )));
            }
        }
        return Ok(match listed.is_empty() {
            true => Vec::new(),
            false => vec![("port", listed.join(","))],
        });
    }
    let named = [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ];
    let mut options: Vec<(&'static str, String)> = named
        .into_iter()
        .filter(|(option, _)| query.flag(option))
        .map(|(_, name)| (name, "1".to_owned()))
        .collect();
    if connect == Connect::Exec {
        options.extend(query.all("command").map(|c| ("command", c.to_owned())));
    }
    Ok(options)
}

fn port_number(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_| {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if is_number {
            "value out of range"
        } else {
            "invalid syntax"
        }
    })
}

pub(super) async fn read_pod(
    server: &Arc<Server>,
    context: &RequestContext,
) -> Result<Value, Status> {
    let info = &context.info;
    server
        .objects
        .read("", "pods", &info.namespace, &info.name)
        .await?
        .ok_or_else(|| Status::not_found("", "pods", &info.name))
}

/// The container asked for, or the only one.
pub(super) fn container(pod: &Value, name: &str, wanted: &str) -> Result<String, Status> {
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
        [only] => Ok((*only).to_owned()),
        [] => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}"
        ))),
        _ => {
            let all = [init, main, ephemeral].concat().join(" ");
            Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{all}]"
            )))
        }
    }
}

/// As a form's values are written.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte as char);
        } else if byte == b' ' {
            out.push('+');
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
            "a container name must be specified for pod p, choose one of: [i a b]"
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
        let uri = |connect: Connect, query: &str| {
            let options = stream_options(connect, &Query::parse(query));
            options.map(|mut options| with_query("/x".to_owned(), &mut options))
        };
        let query = "stdin=true&stdout=1&stderr=false&tty=&command=sh&command=-c&command=a%20b%26!&container=x";
        assert_eq!(
            uri(Connect::Exec, query).unwrap(),
            "/x?command=sh&command=-c&command=a+b%26%21&input=1&output=1&tty=1"
        );
        assert_eq!(
            uri(Connect::PortForward, "ports=80,81&ports=82").unwrap(),
            "/x?port=80%2C81%2C82"
        );
        assert_eq!(uri(Connect::PortForward, "").unwrap(), "/x");
        for (ports, reason) in [
            ("zz", "invalid syntax"),
            ("", "invalid syntax"),
            ("70000", "value out of range"),
        ] {
            let refused = uri(Connect::PortForward, &format!("ports={ports}"));
            assert_eq!(
                refused.unwrap_err().message,
                format!(
                    "cannot convert to []int32: strconv.ParseUint: parsing {ports:?}: {reason}"
                )
            );
        }
    }
}
