//! `/openapi/v3`: an index with fingerprints, one document per group version.

use std::sync::{Arc, PoisonError};

use keelson_machinery::status::Status;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::Dialect;
use super::general;
use super::paths;
use super::render::Definitions;
use crate::discovery::{Group, Version};
use crate::request::{RequestContext, Response, empty, respond, respond_json};
use crate::server::Server;

fn name_of(group: &Group, version: &Version) -> String {
    if group.name.is_empty() {
        format!("api/{}", version.version)
    } else {
        format!("apis/{}/{}", group.name, version.version)
    }
}

pub(crate) fn index(server: &Arc<Server>) -> Result<Response, Status> {
    let snapshot = server.discovery.current(server);
    let mut listed = Map::new();
    let mut scratch = Definitions::new(Dialect::V3, None);
    for (name, ..) in general::all(Dialect::V3, &snapshot, &mut scratch) {
        let hash = general_fingerprint(&name);
        let url = format!("/openapi/v3/{name}?hash={hash}");
        listed.insert(name, json!({"serverRelativeURL": url}));
    }
    for group in &snapshot.groups {
        for version in &group.versions {
            let name = name_of(group, version);
            let hash = fingerprint(server, group, version);
            let url = format!("/openapi/v3/{name}?hash={hash}");
            listed.insert(name, json!({"serverRelativeURL": url}));
        }
    }
    for (name, url) in server.aggregation.documents.v3() {
        listed.insert(name, json!({"serverRelativeURL": url}));
    }
    Ok(respond_json(200, &json!({"paths": listed})))
}

pub(crate) fn document(
    server: &Arc<Server>,
    context: &RequestContext,
    name: &str,
) -> Result<Response, Status> {
    let snapshot = server.discovery.current(server);
    let found = snapshot
        .groups
        .iter()
        .flat_map(|g| g.versions.iter().map(move |v| (g, v)))
        .find(|(g, v)| name_of(g, v) == name);
    let (hash, general) = match found {
        Some((group, version)) => (fingerprint(server, group, version), None),
        None => {
            let document = general::document(&snapshot, name).ok_or_else(Status::path_not_found)?;
            (general_fingerprint(name), Some(document))
        }
    };
    let etag = format!("\"{hash}\"");
    let mut response = if context.header("if-none-match") == Some(etag.as_str()) {
        let mut response = http::Response::new(empty());
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        response
    } else {
        let document = match found {
            Some((group, version)) => render(group, version),
            None => general.unwrap_or_default(),
        };
        respond(
            200,
            "application/json",
            serde_json::to_vec(&document).unwrap_or_default(),
        )
    };
    let immutable = context.query().get("hash") == Some(hash.as_str());
    let cache = if immutable {
        "public, immutable"
    } else {
        "no-cache, private"
    };
    for (name, value) in [
        ("etag", etag.as_str()),
        ("cache-control", cache),
        ("vary", "Accept"),
    ] {
        if let Ok(value) = http::HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

fn render(group: &Group, version: &Version) -> Value {
    let about = (group.name.clone(), version.version.clone());
    let custom = version.resources.iter().all(|entry| entry.custom);
    let mut definitions = Definitions::new(Dialect::V3, (!custom).then_some(about));
    let mut all = Map::new();
    paths::add(Dialect::V3, group, version, &mut all, &mut definitions);
    document_of(all, definitions, custom)
}

/// Documents of custom resources are another program's upstream.
pub(super) fn document_of(
    paths: Map<String, Value>,
    definitions: Definitions,
    custom: bool,
) -> Value {
    let mut out = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "1.36"},
        "paths": paths,
        "components": {"schemas": definitions.finish()},
    });
    if custom {
        out["info"] = json!({"title": "Kubernetes CRD Swagger", "version": "v0.1.0"});
        return out;
    }
    out["components"]["securitySchemes"] = json!({"BearerToken": {
        "type": "apiKey", "in": "header", "name": "authorization",
        "description": "Bearer Token authentication",
    }});
    out
}

fn general_fingerprint(name: &str) -> String {
    hex(format!("{} {name}", env!("CARGO_PKG_VERSION")).as_bytes())
}

/// Built-in groups change with the program alone, custom ones with their definitions.
fn fingerprint(server: &Arc<Server>, group: &Group, version: &Version) -> String {
    if version.resources.iter().all(|r| !r.custom) {
        let text = format!("{} {}", env!("CARGO_PKG_VERSION"), name_of(group, version));
        return hex(text.as_bytes());
    }
    let generation = *server.resources.changes().borrow();
    let name = name_of(group, version);
    let mut hashes = server
        .openapi
        .hashes
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    match hashes.get(&name) {
        Some((at, hash)) if *at == generation => hash.clone(),
        _ => {
            let hash = hex(&serde_json::to_vec(&render(group, version)).unwrap_or_default());
            hashes.insert(name, (generation, hash.clone()));
            hash
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect()
}
