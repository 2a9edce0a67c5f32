//! ComponentStatus: the scheduler, the controller manager and the store as they are when asked.
//! Deprecated upstream, and still what `kubectl get cs` and older checks look at.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use keelson_machinery::status::Status;
use keelson_store::KeyValue;
use serde_json::{Value, json};

use crate::cache::Object;
use crate::registry::options::ListOptions;
use crate::registry::render::{ListMeta, Renderer};
use crate::registry::selection::Selection;
use crate::registry::{ResourceEntry, negotiate};
use crate::request::{RequestContext, RequestInfo, Response};
use crate::server::Server;
use crate::streaming::{dial_tls, unverified_tls};

const RESOURCE: &str = "componentstatuses";
const STORE: &str = "etcd-0";
/// Where upstream's components answer on the same machine.
const COMPONENTS: [(&str, u16); 2] = [("controller-manager", 10_257), ("scheduler", 10_259)];
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 4096;

/// Components that run in this process, and whether they still do.
#[derive(Default)]
pub(crate) struct InProcessComponents(Mutex<BTreeMap<&'static str, Arc<AtomicBool>>>);

impl InProcessComponents {
    pub(crate) fn add(&self, name: &'static str) -> Arc<AtomicBool> {
        let running = Arc::new(AtomicBool::new(true));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name, Arc::clone(&running));
        running
    }

    fn is_running(&self, name: &str) -> Option<bool> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).map(|running| running.load(Ordering::Relaxed))
    }
}

pub(crate) fn is_asked(info: &RequestInfo) -> bool {
    info.group.is_empty()
        && info.version == "v1"
        && info.resource == RESOURCE
        && info.subresource.is_empty()
        && matches!(info.verb.as_str(), "get" | "list")
}

pub(crate) async fn answer(
    server: &Arc<Server>,
    context: &RequestContext,
) -> Result<Response, Status> {
    let info = &context.info;
    let entry = server
        .resources
        .lookup("", "v1", RESOURCE)
        .ok_or_else(Status::path_not_found)?;
    context.warnings.add(entry.rules.deprecation());
    let list = info.verb == "list";
    let output = negotiate::output(context, list, entry.has_protobuf())?;
    let renderer = Renderer::new(Arc::clone(&entry), output);
    let names = COMPONENTS.map(|(name, _)| name).into_iter().chain([STORE]);
    if !list {
        let known = names.into_iter().find(|name| *name == info.name);
        let name = known.ok_or_else(|| Status::not_found("", "componentstatus", &info.name))?;
        let value = component(server, name).await;
        let bytes = serde_json::to_vec(&value).map_err(Status::internal)?;
        return renderer.object(200, &Bytes::from(bytes));
    }
    let options = ListOptions::parse(context)?;
    let selection = Selection::parse(&entry, "", "", &options)?;
    let found = futures::future::join_all(names.map(|name| component(server, name))).await;
    let mut objects = Vec::new();
    for value in found {
        let object = Arc::new(object(&entry, &value)?);
        if selection.matches(&entry, &object) {
            objects.push(object);
        }
    }
    let meta = ListMeta {
        revision: 0,
        continue_token: String::new(),
        remaining: None,
    };
    renderer.list(objects, &meta)
}

fn object(entry: &ResourceEntry, value: &Value) -> Result<Object, Status> {
    let prefix = format!("/registry/{}/", entry.resource);
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    let kv = KeyValue {
        key: format!("{prefix}{name}").into(),
        value: serde_json::to_vec(value).map_err(Status::internal)?.into(),
        create_revision: 0,
        mod_revision: 0,
    };
    Ok(Object::new(kv, prefix.len()))
}

async fn component(server: &Arc<Server>, name: &str) -> Value {
    let outcome = match COMPONENTS.iter().find(|(known, _)| *known == name) {
        None => match server.registry.store().current_revision().await {
            Ok(_) => Ok("ok".to_owned()),
            Err(error) => Err(error.to_string()),
        },
        Some((_, port)) => match server.components.is_running(name) {
            Some(true) => Ok("ok".to_owned()),
            Some(false) => Err("it has ended; see the log of this server".to_owned()),
            None => health_of(*port).await,
        },
    };
    let (status, message) = match outcome {
        Ok(message) => ("True", message),
        Err(message) => ("False", message),
    };
    json!({
        "apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name},
        "conditions": [{"type": "Healthy", "status": status, "message": message}],
    })
}

/// What a component outside of this process says of itself.
async fn health_of(port: u16) -> Result<String, String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let url = format!("https://{address}/healthz");
    let failed = |reason: String| format!("Get {url:?}: {reason}");
    let ask = async {
        let connected = tokio::net::TcpStream::connect(address).await;
        connected.map(drop).map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                format!("dial tcp {address}: connect: connection refused")
            }
            _ => format!("dial tcp {address}: {error}"),
        })?;
        let tls = unverified_tls(None).map_err(|e| e.to_string())?;
        let stream = dial_tls(&address.to_string(), "localhost", tls).await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let request = http::Request::get("/healthz")
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let answer = sender.send_request(request).await;
        let (parts, body) = answer.map_err(|e| e.to_string())?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|e| e.to_string())?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        match parts.status.as_u16() {
            200 => Ok(text),
            code => Err(format!("unhealthy http status code: {code} body: {text}")),
        }
    };
    match tokio::time::timeout(PATIENCE, ask).await {
        Ok(outcome) => outcome.map_err(failed),
        Err(_) => Err(failed("no answer in time".to_owned())),
    }
}
