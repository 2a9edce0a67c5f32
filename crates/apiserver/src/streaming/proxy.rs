//! `proxy` of pods, services and nodes: HTTP passed on, with redirects and links in pages turned
//! to come back through the proxy.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use http::request::Parts;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::backend::{self, Kubelet, unverified_tls};
use super::{Connect, forward, html, refused};
use crate::http::RequestBody;
use crate::objects::Objects;
use crate::request::{
    RequestContext, Response, full, percent_decode, percent_decode_bytes, read_up_to,
};
use crate::server::Server;

/// Pages larger than this are passed on as they are.
const MAX_REWRITE_BYTES: usize = 8 << 20;

pub(super) async fn proxy(
    server: &Arc<Server>,
    context: &RequestContext,
    connect: Connect,
    mut parts: Parts,
    body: RequestBody,
) -> Result<Response, Status> {
    let target = locate(server, context, connect).await?;
    let (prefix, rest) = split(parts.uri.path());
    let upgrading = forward::is_upgrade(&parts.headers);
    let reads = matches!(parts.method.as_str(), "GET" | "HEAD");
    if rest.is_empty() && reads && !upgrading {
        return Ok(redirect(&parts, &prefix));
    }
    let path = clean(&rest);
    let uri = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.clone(),
    };
    if !upgrading {
        if let Ok(value) = HeaderValue::from_str(&format!("{prefix}{path}")) {
            parts.headers.insert("x-forwarded-uri", value);
        }
        // Pages are rewritten, which a compressed one cannot be.
        parts.headers.remove(http::header::ACCEPT_ENCODING);
    }
    let authority = target.authority();
    let host = forward::host_of(&parts).unwrap_or_else(|| authority.clone());
    let unreachable = |reason: String| match upgrading {
        true => Status::unclassified(format!("error dialing backend: {reason}")),
        false => Status::service_unavailable(format!("error trying to reach service: {reason}")),
    };
    let answer = match &target {
        Target::Kubelet(kubelet) => {
            let stream = server.kubelets.dial(kubelet).await.map_err(unreachable)?;
            forward::forward(stream, parts, &uri, &host, body).await
        }
        Target::Plain(authority) => {
            let stream = backend::dial(authority).await.map_err(unreachable)?;
            forward::forward(stream, parts, &uri, &host, body).await
        }
        Target::Tls(authority, name) => {
            let tls = unverified_tls(None).map_err(Status::internal)?;
            let stream = backend::dial_tls(authority, name, tls);
            let stream = stream.await.map_err(unreachable)?;
            forward::forward(stream, parts, &uri, &host, body).await
        }
    };
    let response = answer.map_err(|failure| refused(&failure, upgrading))?;
    if upgrading {
        Ok(response)
    } else {
        rewrite(response, &prefix, &authority).await
    }
}

enum Target {
    Kubelet(Kubelet),
    Plain(String),
    /// Address and host name.
    Tls(String, String),
}

impl Target {
    fn authority(&self) -> String {
        match self {
            Target::Kubelet(kubelet) => kubelet.authority(),
            Target::Plain(authority) | Target::Tls(authority, _) => authority.clone(),
        }
    }

    fn of(scheme: &str, host: &str, port: u16) -> Self {
        let authority = backend::authority(host, port);
        if scheme == "https" {
            Target::Tls(authority, host.to_owned())
        } else {
            Target::Plain(authority)
        }
    }
}

/// `[scheme:]name[:port]`.
fn split_name(id: &str) -> Option<(&str, &str, &str)> {
    let parts: Vec<&str> = id.split(':').collect();
    match parts.as_slice() {
        [name] if !name.is_empty() => Some(("", name, "")),
        [name, port] if !name.is_empty() => Some(("", name, port)),
        [scheme @ ("" | "http" | "https"), name, port] if !name.is_empty() => {
            Some((scheme, name, port))
        }
        _ => None,
    }
}

async fn locate(
    server: &Arc<Server>,
    context: &RequestContext,
    connect: Connect,
) -> Result<Target, Status> {
    let info = &context.info;
    let kind = match connect {
        Connect::NodeProxy => "node",
        Connect::ServiceProxy => "service",
        _ => "pod",
    };
    let Some((scheme, name, port)) = split_name(&info.name) else {
        let id = &info.name;
        return Err(Status::bad_request(format!(
            "invalid {kind} request {id:?}"
        )));
    };
    match connect {
        Connect::NodeProxy => {
            let kubelet = server.kubelets.locate(&server.objects, name)?;
            let kubelet = kubelet.ok_or_else(|| Status::not_found("", "nodes", name))?;
            if port.is_empty() || port == kubelet.port.to_string() {
                return Ok(Target::Kubelet(kubelet));
            }
            // Whatever else listens there does not get to see this server's certificate.
            if let Ok(ip) = kubelet.host.parse() {
                proxyable(ip)?;
            }
            Ok(Target::of(scheme, &kubelet.host, number(port)?))
        }
        Connect::ServiceProxy => {
            let namespace = &info.namespace;
            let (ip, port) = endpoint(&server.objects, namespace, &info.name, name, port)?;
            proxyable(ip)?;
            Ok(Target::of(scheme, &ip.to_string(), port))
        }
        _ => {
            let pod = server
                .objects
                .read("", "pods", &info.namespace, name)
                .await?
                .ok_or_else(|| Status::not_found("", "pods", name))?;
            let ip: IpAddr = pod["status"]["podIP"]
                .as_str()
                .and_then(|ip| ip.parse().ok())
                .ok_or_else(|| Status::bad_request("address not allowed"))?;
            proxyable(ip)?;
            let fallback = if scheme == "https" { 443 } else { 80 };
            let port = match port {
                "" => {
                    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
                    let mut ports =
                        containers.filter_map(|c| c["ports"][0]["containerPort"].as_u64());
                    let first = ports.next().and_then(|port| u16::try_from(port).ok());
                    first.unwrap_or(fallback)
                }
                port => number(port)?,
            };
            Ok(Target::of(scheme, &ip.to_string(), port))
        }
    }
}

fn number(port: &str) -> Result<u16, Status> {
    port.parse().map_err(|_| {
        if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) {
            Status::service_unavailable(format!(
                "error trying to reach service: dial tcp: address {port}: invalid port"
            ))
        } else {
            Status::bad_request(format!("invalid port {port:?}"))
        }
    })
}

/// A ready pod behind a service's port, given by the number or the name of the service's port.
/// What Endpoints name and is no pod of the namespace is not reached: whoever may write Endpoints
/// may not for that go wherever this server can.
fn endpoint(
    objects: &Arc<dyn Objects>,
    namespace: &str,
    id: &str,
    name: &str,
    port: &str,
) -> Result<(IpAddr, u16), Status> {
    let not_found = || Status::not_found("", "services", name);
    let mut port_name = port.to_owned();
    if let Ok(number) = port.parse::<i64>() {
        let service = objects.get("", "services", namespace, name);
        let service = service.ok_or_else(not_found)?;
        let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
        let chosen = ports.find(|p| p["port"].as_i64() == Some(number));
        let chosen = chosen.ok_or_else(|| {
            Status::service_unavailable(format!(
                "no service port {number} found for service {name:?}"
            ))
        })?;
        port_name = chosen["name"].as_str().unwrap_or_default().to_owned();
    }
    let endpoints = objects.get("", "endpoints", namespace, name);
    let endpoints = endpoints.ok_or_else(not_found)?;
    let subsets = endpoints["subsets"].as_array().into_iter().flatten();
    let mut found: Vec<(IpAddr, u16)> = Vec::new();
    for subset in subsets {
        let mut ports = subset["ports"].as_array().into_iter().flatten();
        let port = ports.find(|p| p["name"].as_str().unwrap_or_default() == port_name);
        let port = port.and_then(|p| u16::try_from(p["port"].as_u64()?).ok());
        let Some(port) = port else { continue };
        let addresses = subset["addresses"].as_array().into_iter().flatten();
        let addresses = addresses.filter(|address| is_pod(objects, namespace, address));
        let addresses = addresses.filter_map(|address| address["ip"].as_str()?.parse().ok());
        found.extend(addresses.map(|ip| (ip, port)));
    }
    if found.is_empty() {
        return Err(Status::service_unavailable(format!(
            "no endpoints available for service {id:?}"
        )));
    }
    Ok(found[rand::random_range(0..found.len())])
}

fn is_pod(objects: &Arc<dyn Objects>, namespace: &str, address: &Value) -> bool {
    let target = &address["targetRef"];
    let name = target["name"].as_str().unwrap_or_default();
    let pod = (target["namespace"] == namespace)
        .then(|| objects.get("", "pods", namespace, name))
        .flatten();
    pod.is_some_and(|pod| {
        let mut ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
        ips.any(|ip| ip["ip"] == address["ip"])
    })
}

/// What a pod claims as its address must not lead into this host.
fn proxyable(ip: IpAddr) -> Result<(), Status> {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        Err(Status::bad_request("address not allowed"))
    } else {
        Ok(())
    }
}

/// The path for the other side: decoded, without `.`, `..` and empty segments, and encoded again,
/// so that nothing in it means more there than it meant to who authorized it.
fn clean(rest: &str) -> String {
    let decoded = percent_decode_bytes(rest, false);
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(rest.len() + 1);
    for segment in &kept {
        out.push('/');
        for byte in *segment {
            if byte.is_ascii_alphanumeric() || b"-_.~$&+,:;=@".contains(byte) {
                out.push(char::from(*byte));
            } else {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    if out.is_empty() || decoded.ends_with(b"/") {
        out.push('/');
    }
    out
}

/// The path up to and with `/proxy`, and what follows it, as the client wrote them.
fn split(path: &str) -> (String, String) {
    let segments: Vec<&str> = path.split('/').collect();
    // Skips names: an object may be called `proxy` too, so the segment after kind and name counts.
    let start = segments.iter().position(|s| {
        matches!(
            percent_decode(s, false).as_str(),
            "pods" | "services" | "nodes"
        )
    });
    let at = start
        .into_iter()
        .flat_map(|start| start + 2..segments.len())
        .find(|i| segments[*i] == "proxy")
        .unwrap_or(segments.len() - 1);
    let prefix = segments[..=at].join("/");
    let rest = if at + 1 < segments.len() {
        format!("/{}", segments[at + 1..].join("/"))
    } else {
        String::new()
    };
    (prefix, rest)
}

fn redirect(parts: &Parts, prefix: &str) -> Response {
    let query = parts
        .uri
        .query()
        .map(|q| format!("?{q}"))
        .unwrap_or_default();
    let mut response = http::Response::new(crate::request::empty());
    *response.status_mut() = http::StatusCode::MOVED_PERMANENTLY;
    if let Ok(value) = HeaderValue::from_str(&format!("{prefix}/{query}")) {
        response.headers_mut().insert(LOCATION, value);
    }
    response
}

async fn rewrite(response: Response, prefix: &str, host: &str) -> Result<Response, Status> {
    let (mut parts, body) = response.into_parts();
    if let Some(location) = parts.headers.get(LOCATION).and_then(|v| v.to_str().ok())
        && let Some(rewritten) = html::rewrite_url(location, prefix, host)
        && let Ok(value) = HeaderValue::from_str(&rewritten)
    {
        parts.headers.insert(LOCATION, value);
    }
    let is_page = parts
        .headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|t| t.starts_with("text/html"));
    let small = http_body::Body::size_hint(&body)
        .upper()
        .is_none_or(|size| size <= MAX_REWRITE_BYTES as u64);
    if !is_page || !small || parts.headers.contains_key(CONTENT_ENCODING) {
        return Ok(http::Response::from_parts(parts, body));
    }
    let (bytes, whole) = read_up_to(body, MAX_REWRITE_BYTES).await;
    if !whole {
        return Err(Status::internal(
            "the page is too large, or its server broke off",
        ));
    }
    let page = html::rewrite_page(&String::from_utf8_lossy(&bytes), prefix, host);
    parts.headers.remove(CONTENT_LENGTH);
    Ok(http::Response::from_parts(parts, full(page)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_splits_after_the_proxy_segment() {
        let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let base = "/api/v1/namespaces/n/services/http:proxy:80/proxy";
        assert_eq!(split(base), own(base, ""));
        assert_eq!(split(&format!("{base}/")), own(base, "/"));
        assert_eq!(split(&format!("{base}/a/proxy/b")), own(base, "/a/proxy/b"));
        assert_eq!(
            split("/api/v1/nodes/x/proxy/pods/"),
            own("/api/v1/nodes/x/proxy", "/pods/")
        );
    }

    #[test]
    fn names_carry_scheme_and_port() {
        assert_eq!(split_name("a"), Some(("", "a", "")));
        assert_eq!(split_name("a:http"), Some(("", "a", "http")));
        assert_eq!(split_name("https:a:443"), Some(("https", "a", "443")));
        assert_eq!(split_name("ftp:a:21"), None);
        assert_eq!(split_name("http:a:1:2"), None);
        assert_eq!(split_name(":1"), None);
    }

    #[test]
    fn the_path_cannot_leave_what_it_names() {
        for (given, expected) in [
            ("", "/"),
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a%2Fb/%20c/%E4", "/a/b/%20c/%E4"),
            ("/../x", "/x"),
            ("/a/%2e%2e/%2E%2e/x/", "/x/"),
            ("//x//y/", "/x/y/"),
            ("/a?b!", "/a%3Fb%21"),
            ("/100%", "/100%25"),
        ] {
            assert_eq!(clean(given), expected, "{given}");
        }
    }

    #[test]
    fn a_pod_cannot_point_the_proxy_at_this_host() {
        assert!(proxyable("127.0.0.1".parse().unwrap()).is_err());
        assert!(proxyable("169.254.169.254".parse().unwrap()).is_err());
        assert!(proxyable("10.0.0.1".parse().unwrap()).is_ok());
    }
}
