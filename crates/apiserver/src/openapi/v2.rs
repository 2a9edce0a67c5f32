//! `/openapi/v2`: everything in one document.

use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::Dialect;
use super::general;
use super::parameters;
use super::paths;
use super::render::Definitions;
use super::v2_protobuf;
use crate::discovery::Snapshot;
use crate::request::{RequestContext, Response, empty, respond};
use crate::server::Server;

pub(crate) fn answer(server: &Arc<Server>, context: &RequestContext) -> Result<Response, Status> {
    let accept = context.header("accept").unwrap_or_default();
    let takes = |wanted: &[&str]| {
        accept.split(',').any(|clause| {
            let media_type = clause.split(';').next().unwrap_or_default().trim();
            wanted.contains(&media_type)
        })
    };
    let json = accept.is_empty() || takes(&["*/*", "application/*", "application/json"]);
    if !json && !takes(v2_protobuf::ASKED_FOR) {
        return Err(Status::not_acceptable(format!(
            "only the following media types are accepted: application/json, {}",
            v2_protobuf::MEDIA_TYPE
        )));
    }
    let snapshot = server.discovery.current(server);
    let mut document = render(&snapshot);
    server.aggregation.documents.merge_v2(&mut document);
    let (media_type, bytes) = if json {
        (
            "application/json",
            serde_json::to_vec(&document).unwrap_or_default(),
        )
    } else {
        (v2_protobuf::MEDIA_TYPE, v2_protobuf::encode(&document))
    };
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let etag = format!("\"{digest}\"");
    let mut response = if context.header("if-none-match") == Some(etag.as_str()) {
        let mut response = http::Response::new(empty());
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        response
    } else {
        respond(200, media_type, bytes)
    };
    if let Ok(value) = http::HeaderValue::from_str(&etag) {
        response.headers_mut().insert("etag", value);
    }
    response
        .headers_mut()
        .insert("vary", http::HeaderValue::from_static("Accept"));
    Ok(response)
}

fn render(snapshot: &Snapshot) -> Value {
    let mut definitions = Definitions::new(Dialect::V2, None);
    let mut all = Map::new();
    for group in &snapshot.groups {
        for version in &group.versions {
            paths::add(Dialect::V2, group, version, &mut all, &mut definitions);
        }
    }
    for (_, at, path) in general::all(Dialect::V2, snapshot, &mut definitions) {
        all.insert(at, path);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "1.36"},
        "paths": all,
        "definitions": definitions.finish(),
        "parameters": parameters::shared(),
        "security": [{"BearerToken": []}],
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey",
        }},
    })
}
