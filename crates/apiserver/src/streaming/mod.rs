//! What is passed on to somebody else: exec, attach, port-forward and logs to kubelets, proxies
//! to pods, services and nodes, and whole groups to aggregated servers.

mod backend;
mod forward;
mod html;
mod log;
mod pods;
mod proxy;
mod translate;
mod tunnel;

use std::sync::Arc;

use http::request::Parts;
use keelson_machinery::status::Status;
use serde_json::{Map, Value, json};

use crate::admission::{Attributes as Admission, Operation};
use crate::aggregation::Remote;
use crate::authz::Attributes;
use crate::http::RequestBody;
use crate::request::{RequestContext, RequestInfo, Response, respond_text};
use crate::server::Server;

pub(crate) use backend::{
    Kubelets, ServiceAddress, dial_tls, resolve_service, unverified_tls, verified_tls,
};
pub(crate) use forward::ClientAddress;

/// A subresource that is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connect {
    Exec,
    Attach,
    PortForward,
    Log,
    PodProxy,
    ServiceProxy,
    NodeProxy,
}

impl Connect {
    pub(crate) fn of(info: &RequestInfo) -> Option<Self> {
        if !info.group.is_empty() || info.version != "v1" || info.name.is_empty() {
            return None;
        }
        match (info.resource.as_str(), info.subresource.as_str()) {
            ("pods", "exec") => Some(Self::Exec),
            ("pods", "attach") => Some(Self::Attach),
            ("pods", "portforward") => Some(Self::PortForward),
            ("pods", "log") => Some(Self::Log),
            ("pods", "proxy") => Some(Self::PodProxy),
            ("services", "proxy") => Some(Self::ServiceProxy),
            ("nodes", "proxy") => Some(Self::NodeProxy),
            _ => None,
        }
    }

    fn options_kind(self) -> &'static str {
        match self {
            Self::Exec => "PodExecOptions",
            Self::Attach => "PodAttachOptions",
            Self::PortForward => "PodPortForwardOptions",
            Self::Log => "PodLogOptions",
            Self::PodProxy => "PodProxyOptions",
            Self::ServiceProxy => "ServiceProxyOptions",
            Self::NodeProxy => "NodeProxyOptions",
        }
    }
}

pub(crate) async fn connect(
    server: &Arc<Server>,
    context: &RequestContext,
    connect: Connect,
    mut parts: Parts,
    body: RequestBody,
) -> Result<Response, Status> {
    let proxies = matches!(
        connect,
        Connect::PodProxy | Connect::ServiceProxy | Connect::NodeProxy
    );
    if !proxies && context.info.parts.len() > 3 {
        return Err(Status::path_not_found());
    }
    let methods: &[&str] = match connect {
        Connect::Log => &["GET"],
        Connect::Exec | Connect::Attach | Connect::PortForward => &["GET", "POST"],
        _ => &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"],
    };
    if !methods.contains(&parts.method.as_str()) {
        return Err(Status::method_not_allowed(
            "the server does not allow this method on the requested resource",
        ));
    }
    forward::strip_identity(&mut parts.headers);
    match connect {
        Connect::Log => log::log(server, context, parts).await,
        Connect::Exec | Connect::Attach | Connect::PortForward => {
            require_create(server, context).await?;
            admit(server, context, connect).await?;
            pods::stream(server, context, connect, parts, body).await
        }
        Connect::PodProxy | Connect::ServiceProxy | Connect::NodeProxy => {
            admit(server, context, connect).await?;
            proxy::proxy(server, context, connect, parts, body).await
        }
    }
}

/// WebSockets are opened by GET, but running something in a pod is no reading: a right to get
/// does not do.
async fn require_create(server: &Arc<Server>, context: &RequestContext) -> Result<(), Status> {
    if context.info.verb != "get" {
        return Ok(());
    }
    server
        .authorizer
        .require(&Attributes {
            verb: "create",
            ..Attributes::of(&context.user, &context.info)
        })
        .await
}

async fn admit(
    server: &Arc<Server>,
    context: &RequestContext,
    connect: Connect,
) -> Result<(), Status> {
    let info = &context.info;
    let mut options = Map::new();
    options.insert("kind".to_owned(), json!(connect.options_kind()));
    options.insert("apiVersion".to_owned(), json!("v1"));
    for (key, value) in &info.query.0 {
        let value = match (key.as_str(), connect) {
            ("command" | "ports", _) => {
                let mut all = options
                    .get(key)
                    .and_then(Value::as_array)
                    .cloned()
                    .unwrap_or_default();
                all.push(json!(value));
                Value::Array(all)
            }
            ("stdin" | "stdout" | "stderr" | "tty", _) => json!(info.query.flag(key)),
            _ => json!(value),
        };
        options.insert(key.clone(), value);
    }
    let mut attributes = Admission {
        operation: Operation::Connect,
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        kind: connect.options_kind().to_owned(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        object: Some(Value::Object(options)),
        old_object: None,
        user: Arc::clone(&context.user),
        dry_run: false,
        options: Value::Null,
        warnings: context.warnings.clone(),
        rounds: Default::default(),
        annotations: context.annotations.clone(),
    };
    server.admission.admit(&mut attributes).await?;
    server.admission.validate(&attributes).await
}

/// Passes a request for a group served elsewhere on, with the caller's identity in headers.
pub(crate) async fn forward_to_aggregated(
    server: &Arc<Server>,
    context: &RequestContext,
    target: &Remote,
    mut parts: Parts,
    body: RequestBody,
) -> Result<Response, Status> {
    let unavailable = || {
        let mut response = respond_text(503, "service unavailable\n");
        response.headers_mut().insert(
            http::header::X_CONTENT_TYPE_OPTIONS,
            http::HeaderValue::from_static("nosniff"),
        );
        Ok(response)
    };
    if !target.available {
        return unavailable();
    }
    let Ok(address) = target.address(&server.objects) else {
        return unavailable();
    };
    let tls = target.tls(server).map_err(Status::unclassified)?;
    let failed = |reason: String| {
        Status::service_unavailable(format!("error trying to reach service: {reason}"))
    };
    let stream = backend::dial_tls(&address.to_string(), &target.host(), tls)
        .await
        .map_err(failed)?;
    forward::set_identity(&mut parts.headers, &context.user);
    let uri = parts
        .uri
        .path_and_query()
        .map_or("/", |p| p.as_str())
        .to_owned();
    let upgrading = forward::is_upgrade(&parts.headers);
    let host = address.to_string();
    let answer = forward::forward(stream, parts, &uri, &host, body).await;
    answer.map_err(|failure| refused(&failure, upgrading))
}

/// What a client is told when the other side gave no answer.
fn refused(failure: &forward::Failure, upgrading: bool) -> Status {
    use forward::Failure;
    match (failure, upgrading) {
        (Failure::Closed, true) => Status::unclassified("unexpected EOF"),
        (failure, true) => Status::unclassified(failure),
        (Failure::Malformed, false) => Status::service_unavailable(format!(
            "error trying to reach service: net/http: HTTP/1.x transport connection broken: {failure}"
        )),
        (failure, false) => {
            Status::service_unavailable(format!("error trying to reach service: {failure}"))
        }
    }
}
