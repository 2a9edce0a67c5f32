//! Which handler answers: resources by what they are, other paths by table.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use keelson_machinery::status::Status;
use serde_json::json;

use super::{RequestBody, collect};
use crate::registry::codec;
use crate::request::{RequestContext, Response, respond, respond_indented, respond_json};
use crate::server::Server;
use crate::{component_status, discovery, openapi, reviews, streaming};

/// `parts` comes without its headers: they are the context's.
pub(super) async fn route(
    server: &Arc<Server>,
    context: &RequestContext,
    parts: Parts,
    body: RequestBody,
) -> Result<Response, Status> {
    if context.info.is_resource {
        if let Some(target) = server
            .aggregation
            .remote(&context.info.group, &context.info.version)
        {
            return streaming::forward_to_aggregated(
                server,
                context,
                &target,
                whole(parts, context),
                body,
            )
            .await;
        }
        return resource(server, context, parts, body).await;
    }
    other(server, context, parts, body).await
}

/// The request's head with the headers that its context holds, for what is passed on.
fn whole(mut parts: Parts, context: &RequestContext) -> Parts {
    parts.headers = (*context.headers).clone();
    parts
}

async fn resource(
    server: &Arc<Server>,
    context: &RequestContext,
    parts: Parts,
    body: RequestBody,
) -> Result<Response, Status> {
    let info = &context.info;
    if let Some(connect) = streaming::Connect::of(info) {
        return streaming::connect(server, context, connect, whole(parts, context), body).await;
    }
    // Upstream serves custom kinds behind its router, and what they do not have is no path.
    let served = server
        .resources
        .lookup(&info.group, &info.version, &info.resource);
    let across = matches!(info.verb.as_str(), "list" | "watch");
    let is_path = served.is_some_and(|entry| {
        let in_namespace = !info.namespace.is_empty();
        !entry.custom || entry.namespaced == in_namespace || entry.namespaced && across
    });
    if !is_path && !is_builtin(&info.group) {
        return Ok(super::health::no_such_path());
    }
    let bytes = collect(body).await?;
    if let Some(record) = context.record.as_ref().filter(|r| r.wants_request())
        && let Some(object) = codec::sent_object(context, &bytes)
    {
        record.request_object(object);
    }
    if let Some(review) = reviews::Review::of(info) {
        return reviews::answer(server, context, review, bytes).await;
    }
    if component_status::is_asked(info) {
        return component_status::answer(server, context).await;
    }
    Ok(server.registry.handle(context, bytes).await)
}

async fn other(
    server: &Arc<Server>,
    context: &RequestContext,
    parts: Parts,
    body: RequestBody,
) -> Result<Response, Status> {
    let info = &context.info;
    let path = info.path.trim_end_matches('/');
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    // What upstream's router serves has methods; the other paths do not look at them.
    let routed = discovery::is_routed(&segments)
        || matches!(
            segments.as_slice(),
            ["version"] | ["openid", "v1", "jwks"] | [".well-known", "openid-configuration"]
        );
    let reads =
        context.method == http::Method::GET || context.method == http::Method::HEAD && !routed;
    if routed && !reads && known(server, &segments) {
        return Err(Status::method_not_allowed(
            "the server does not allow this method on the requested resource",
        ));
    }
    match segments.as_slice() {
        [""] => Ok(respond_indented(200, &json!({"paths": root_paths(server)}))),
        ["version"] => Ok(respond_indented(200, &version())),
        ["healthz" | "livez" | "readyz", ..] => {
            look(server).await;
            Ok(server.health.answer(info))
        }
        ["metrics"] => Ok(respond(
            200,
            "text/plain; version=0.0.4; charset=utf-8",
            rendered(server),
        )),
        ["apis", group, version] if server.aggregation.remote(group, version).is_some() => {
            let target = server
                .aggregation
                .remote(group, version)
                .ok_or_else(Status::path_not_found)?;
            streaming::forward_to_aggregated(server, context, &target, whole(parts, context), body)
                .await
        }
        ["keelson", "snapshot"] if reads => snapshot(server, context).await,
        ["api" | "apis", ..] if known(server, &segments) => {
            discovery::answer(server, context, &segments)
        }
        ["openapi", "v2"] => openapi::v2::answer(server, context),
        ["openapi", "v3"] => openapi::v3::index(server),
        ["openapi", "v3", rest @ ..] => {
            let name = rest.join("/");
            let owner = server.aggregation.documents.v3_owner(&name);
            let target = owner.and_then(|(group, version)| {
                let remote = server.aggregation.remote(&group, &version);
                remote.filter(|remote| remote.available)
            });
            match target {
                Some(target) => {
                    let parts = whole(parts, context);
                    streaming::forward_to_aggregated(server, context, &target, parts, body).await
                }
                None => openapi::v3::document(server, context, &name),
            }
        }
        [".well-known", "openid-configuration"] => {
            let uri = format!("https://{}/openid/v1/jwks", server.endpoint());
            let mut response = respond_json(200, &server.tokens.openid_configuration(&uri));
            cacheable(&mut response);
            Ok(response)
        }
        ["openid", "v1", "jwks"] => {
            let bytes = serde_json::to_vec(&server.tokens.jwks()).unwrap_or_default();
            let mut response = respond(200, "application/jwk-set+json", bytes);
            cacheable(&mut response);
            Ok(response)
        }
        _ => Ok(super::health::no_such_path()),
    }
}

/// Checks of what may change at any time are made when they are asked for.
async fn look(server: &Server) {
    /// As upstream gives etcd.
    const STORE_PATIENCE: Duration = Duration::from_secs(2);
    let revision = server.registry.store().current_revision();
    let store = match tokio::time::timeout(STORE_PATIENCE, revision).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the store does not answer".to_owned()),
    };
    server.health.set("etcd", store.clone());
    server.health.set("etcd-readiness", store);
    // Being asked is how a key of the service that is new is noticed soonest.
    let Some(encryption) = &server.encryption else {
        return;
    };
    match encryption.health().await {
        Some(outcome) => server.health.set("kms-providers", outcome),
        None => server.health.withdraw("kms-providers"),
    }
}

/// The whole store, Secrets and the authorities' keys with it: for administrators by certificate
/// alone, whatever roles others were given.
async fn snapshot(server: &Server, context: &RequestContext) -> Result<Response, Status> {
    if !context.user.groups.iter().any(|g| g == "system:masters") {
        let why = "a snapshot of the store is for members of system:masters";
        return Err(Status::forbidden("", "", "", why));
    }
    let pieces = keelson_store::snapshot::take(server.registry.store()).await;
    let pieces = pieces.map_err(|error| Status::internal(error.to_string()))?;
    let frames = futures::stream::iter(pieces.map(|piece| Ok(Frame::data(piece))));
    let mut response = http::Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/octet-stream"),
    );
    Ok(response)
}

/// Whether the group is of this version of Kubernetes, and not of a definition's.
fn is_builtin(group: &str) -> bool {
    group.is_empty() || keelson_api::resources().iter().any(|r| r.group == group)
}

/// Whether discovery has anything to say of this group.
fn known(server: &Server, segments: &[&str]) -> bool {
    let ["apis", group, ..] = segments else {
        return !matches!(segments, ["api", _, _, ..]);
    };
    let groups = &server.discovery.current(server).groups;
    // A version of a custom group that is not served is no path; one of a built-in group is.
    let has_version = |g: &discovery::Group| match segments {
        [_, _, version] if !is_builtin(group) => g.versions.iter().any(|v| v.version == *version),
        _ => true,
    };
    groups.iter().any(|g| g.name == *group && has_version(g))
        || server
            .aggregation
            .groups()
            .iter()
            .any(|g| g["name"] == **group)
}

fn rendered(server: &Server) -> String {
    let mut out = server.metrics.render();
    server.flow.render(&mut out);
    super::metrics::objects(&mut out, &server.registry.object_counts());
    super::metrics::build(&mut out, &version());
    out
}

fn cacheable(response: &mut Response) {
    response.headers_mut().insert(
        "cache-control",
        http::HeaderValue::from_static("public, max-age=3600"),
    );
}

/// The version this server is compatible with, in the form clients parse.
pub(crate) fn version() -> serde_json::Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": "v1.36.2",
        "gitCommit": option_env!("KEELSON_COMMIT").unwrap_or("unknown"),
        "gitTreeState": "clean",
        "buildDate": option_env!("KEELSON_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        "goVersion": concat!("rust (keelson ", env!("CARGO_PKG_VERSION"), ")"),
        "compiler": "rustc",
        "platform": if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" },
    })
}

fn root_paths(server: &Server) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/",
    ]
    .iter()
    .map(|p| (*p).to_owned())
    .collect();
    for group in server
        .discovery
        .current(server)
        .groups
        .iter()
        .filter(|g| !g.name.is_empty())
    {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(
            group
                .versions
                .iter()
                .map(|v| format!("/apis/{}/{}", group.name, v.version)),
        );
    }
    let fixed = [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ];
    paths.extend(fixed.iter().map(|p| (*p).to_owned()));
    paths.sort();
    paths.dedup();
    paths
}
