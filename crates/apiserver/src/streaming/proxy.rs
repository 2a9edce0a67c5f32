//! `proxy` of pods, services and nodes: HTTP passed on, with redirects and links in pages turned
//! to come back through the proxy.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use http::request::Parts;
use keelson_machinery::status::Status;

use super::backend::{self, unverified_tls};
use super::{Connect, forward, html};
use crate::http::RequestBody;
use crate::request::{RequestContext, Response, full, percent_decode, read_up_to};
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
    let (prefix, rest) = split(parts.uri.path());
    if rest.is_empty() && matches!(parts.method.as_str(), "GET" | "HEAD") {
        return Ok(redirect(&parts, &prefix));
    }
    let path = if rest.is_empty() { "/" } else { &rest };
    let uri = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    forwarded_headers(&mut parts, &prefix, path);
    let reached = reach(server, context, connect).await?;
    let upgrading = parts.headers.contains_key(http::header::UPGRADE);
    let (response, host) = match reached {
        Reached::Kubelet(node, port) => {
            let (stream, authority) = server.kubelets.dial(&server.objects, &node, port).await?;
            (
                forward::forward(stream, parts, &uri, &authority, body).await?,
                authority,
            )
        }
        Reached::Plain(authority) => {
            let stream = backend::dial(&authority).await.map_err(unreachable)?;
            (
                forward::forward(stream, parts, &uri, &authority, body).await?,
                authority,
            )
        }
        Reached::Tls(authority, host) => {
            let tls = unverified_tls(None).map_err(Status::internal)?;
            let stream = backend::dial_tls(&authority, &host, tls)
                .await
                .map_err(unreachable)?;
            (
                forward::forward(stream, parts, &uri, &authority, body).await?,
                authority,
            )
        }
    };
    if upgrading {
        Ok(response)
    } else {
        rewrite(response, &prefix, &host).await
    }
}

enum Reached {
    Kubelet(String, Option<u16>),
    Plain(String),
    /// Address and host name.
    Tls(String, String),
}

fn unreachable(reason: String) -> Status {
    Status::service_unavailable(format!("error trying to reach service: {reason}"))
}

/// `[scheme:]name[:port]`.
fn split_name(name: &str) -> Result<(&str, &str, &str), Status> {
    let parts: Vec<&str> = name.split(':').collect();
    match parts.as_slice() {
        [name] if !name.is_empty() => Ok(("", name, "")),
        [name, port] if !name.is_empty() => Ok(("", name, port)),
        [scheme @ ("" | "http" | "https"), name, port] if !name.is_empty() => {
            Ok((scheme, name, port))
        }
        _ => Err(Status::bad_request(format!(
            "invalid proxy request {name:?}"
        ))),
    }
}

async fn reach(
    server: &Arc<Server>,
    context: &RequestContext,
    connect: Connect,
) -> Result<Reached, Status> {
    let info = &context.info;
    let (scheme, name, port) = split_name(&info.name)?;
    match connect {
        Connect::NodeProxy => {
            let port = if port.is_empty() {
                None
            } else {
                Some(
                    port.parse()
                        .map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?,
                )
            };
            Ok(Reached::Kubelet(name.to_owned(), port))
        }
        Connect::ServiceProxy => {
            let address = backend::resolve_service(&server.objects, &info.namespace, name, port)?;
            proxyable(address.0.ip())?;
            Ok(by_scheme(
                scheme,
                address.to_string(),
                format!("{name}.{}.svc", info.namespace),
            ))
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
            let first = || {
                let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
                containers
                    .filter_map(|c| c["ports"][0]["containerPort"].as_u64())
                    .next()
            };
            let number: u16 = if port.is_empty() {
                let fallback = if scheme == "https" { 443 } else { 80 };
                first()
                    .and_then(|p| u16::try_from(p).ok())
                    .unwrap_or(fallback)
            } else {
                port.parse()
                    .map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?
            };
            let authority = std::net::SocketAddr::new(ip, number).to_string();
            Ok(by_scheme(scheme, authority, ip.to_string()))
        }
    }
}

fn by_scheme(scheme: &str, authority: String, host: String) -> Reached {
    if scheme == "https" {
        Reached::Tls(authority, host)
    } else {
        Reached::Plain(authority)
    }
}

/// What a pod claims as its address must not lead into this host.
fn proxyable(ip: IpAddr) -> Result<(), Status> {
    let local = match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast()
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
        }
    };
    if local {
        Err(Status::bad_request("address not allowed"))
    } else {
        Ok(())
    }
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

fn forwarded_headers(parts: &mut Parts, prefix: &str, path: &str) {
    let host = parts
        .uri
        .authority()
        .map(ToString::to_string)
        .or_else(|| {
            parts
                .headers
                .get(http::header::HOST)
                .and_then(|v| v.to_str().ok())
                .map(ToOwned::to_owned)
        })
        .unwrap_or_default();
    for (name, value) in [
        ("x-forwarded-uri", format!("{prefix}{path}")),
        ("x-forwarded-host", host),
        ("x-forwarded-proto", "https".to_owned()),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            parts.headers.insert(name, value);
        }
    }
    // Pages are rewritten, which a compressed one cannot be.
    parts.headers.remove(http::header::ACCEPT_ENCODING);
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
        assert_eq!(split_name("a").unwrap(), ("", "a", ""));
        assert_eq!(split_name("a:http").unwrap(), ("", "a", "http"));
        assert_eq!(split_name("https:a:443").unwrap(), ("https", "a", "443"));
        assert!(split_name("ftp:a:21").is_err());
    }

    #[test]
    fn a_pod_cannot_point_the_proxy_at_this_host() {
        assert!(proxyable("127.0.0.1".parse().unwrap()).is_err());
        assert!(proxyable("169.254.169.254".parse().unwrap()).is_err());
        assert!(proxyable("10.0.0.1".parse().unwrap()).is_ok());
    }
}
