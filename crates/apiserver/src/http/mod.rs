//! The way of a request: info → authentication → impersonation → authorization → flow control →
//! handler, with a panic, a time limit and the answer's headers taken care of around it.

mod encoding;
mod executor;
mod flow;
mod frames;
mod gather;
mod guarded;
mod health;
mod listen;
mod metrics;
mod recorded;
mod route;
mod tls;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use keelson_machinery::status::Status;

use crate::audit::Record;
use crate::authn::Seen;
use crate::authz::{Attributes, Decision};
use crate::request::{
    Annotations, RequestContext, RequestInfo, Response, UserInfo, Warnings, respond_status,
};
use crate::server::Server;

pub(crate) use flow::FlowControl;
pub(crate) use health::Health;
pub(crate) use listen::{Peer, Serve, listen};
pub(crate) use metrics::{Counter, Metrics};
use recorded::Recorded;
pub(crate) use tls::server_config;

/// Upstream's limit on request bodies.
pub(crate) const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// What a request carries: in process it is there at once, over the network it arrives.
pub(crate) enum RequestBody {
    Whole(Bytes),
    Stream(Incoming),
}

/// Whose request it is: to be found out, or known because it never left the process.
pub(crate) enum Caller {
    Peer(Peer),
    Known(Arc<UserInfo>),
}

impl Serve for Server {
    async fn serve(self: Arc<Self>, request: http::Request<Incoming>, peer: Peer) -> Response {
        let (parts, body) = request.into_parts();
        self.handle(parts, RequestBody::Stream(body), Caller::Peer(peer))
            .await
    }
}

impl Server {
    /// Serves one request; never panics, never hangs unless it is a long-running one.
    pub(crate) async fn handle(
        self: Arc<Self>,
        parts: Parts,
        body: RequestBody,
        caller: Caller,
    ) -> Response {
        let started = Instant::now();
        let info = Arc::new(RequestInfo::parse(&parts.method, &parts.uri));
        let recorded = self.audit.as_ref().map(|_| Recorded::default());
        let about = About {
            info: Arc::clone(&info),
            warnings: Warnings::default(),
            annotations: match &recorded {
                Some(_) => Annotations::kept(),
                None => Annotations::default(),
            },
            audit_id: audit_id(&parts),
        };
        let gzip = encoding::may_compress(&info, &parts.headers);
        let long_running = info.is_long_running();
        let measured = self.metrics.begin(&info);
        let way = self.admitted(about.clone(), parts, body, caller, recorded.clone());
        let work = AssertUnwindSafe(way).catch_unwind();
        let outcome = if long_running {
            work.await
        } else {
            let limited = match time_limit(&info) {
                Ok(limit) => tokio::time::timeout(limit, work).await,
                Err(status) => Ok(Ok(Err(status))),
            };
            match limited {
                Ok(outcome) => outcome,
                Err(_) => Ok(Err(Status::timeout(
                    "request did not complete within the allotted timeout",
                ))),
            }
        };
        let panicked = outcome.is_err();
        let mut refusal = None;
        let mut response = match outcome {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => {
                let response = respond_status(&status);
                refusal = recorded.is_some().then_some(status);
                response
            }
            Err(_) => {
                tracing::error!(path = %info.path, verb = %info.verb, "a handler panicked");
                respond_status(&Status::internal("apiserver panicked"))
            }
        };
        encoding::finish_headers(&about.audit_id, &about.warnings, &mut response);
        if let Some(record) = recorded.as_ref().and_then(|slot| slot.get()) {
            response = match panicked {
                true => record.panic(response),
                false => {
                    record
                        .answer(response, refusal.as_ref(), long_running)
                        .await
                }
            };
        }
        if gzip {
            response = encoding::compress(response);
        }
        measured.answered(response.status().as_u16(), started.elapsed());
        tracing::debug!(
            verb = %info.verb, path = %info.path, code = response.status().as_u16(),
            ms = started.elapsed().as_millis() as u64, "request"
        );
        measured.hold(response)
    }

    async fn admitted(
        self: &Arc<Self>,
        about: About,
        mut parts: Parts,
        body: RequestBody,
        caller: Caller,
        recorded: Option<Recorded>,
    ) -> Result<Response, Status> {
        let (user, address) = match caller {
            Caller::Known(user) => (Ok(user), None),
            Caller::Peer(peer) => {
                let seen = Seen {
                    warnings: &about.warnings,
                    annotations: &about.annotations,
                    metrics: &self.metrics,
                };
                let found = self
                    .authenticator
                    .authenticate(&parts.headers, &peer.chain, &about.info.path, &seen)
                    .await;
                parts
                    .extensions
                    .insert(crate::streaming::ClientAddress(peer.address.ip()));
                (found, Some(peer.address))
            }
        };
        let mut record = None;
        if let (Some(slot), Some(audit)) = (&recorded, &self.audit) {
            let nobody = UserInfo::default();
            let known = user.as_ref().map_or(&nobody, |user| &**user);
            let from = address.map(|address| address.ip());
            let (info, id) = (&about.info, &about.audit_id);
            record = Record::begin(audit, info, id, &about.annotations, known, &parts, from)
                .map(Arc::new);
            slot.set(record.clone());
        }
        let user = user.inspect_err(|_| tracing::debug!(from = ?address, "not authenticated"))?;
        parts.headers.remove(http::header::AUTHORIZATION);
        let authorizer = &self.authorizer;
        let headers = &mut parts.headers;
        let acting =
            crate::authn::impersonate::apply(authorizer, user, &about.info, headers).await?;
        if acting.impersonated
            && let Some(record) = &record
        {
            record.impersonated(&acting.user, &acting.constraint);
        }
        let user = acting.user;
        let context = RequestContext {
            method: parts.method.clone(),
            info: about.info,
            user,
            headers: Arc::new(std::mem::take(&mut parts.headers)),
            warnings: about.warnings,
            annotations: about.annotations,
            audit_id: about.audit_id,
            features: self.features,
            record,
        };
        if !health::is_always_allowed(&context.info.path) {
            self.authorize(&context).await?;
        }
        let permit = self.flow.enter(&context).await?;
        let mut response = Box::pin(route::route(self, &context, parts, body)).await?;
        permit.mark(&mut response);
        Ok(response)
    }

    async fn authorize(&self, context: &RequestContext) -> Result<(), Status> {
        let question = Attributes::of(&context.user, &context.info);
        let verdict = self.authorizer.authorize(&question).await;
        if context.annotations.is_kept() {
            let (word, reason) = match (&verdict.decision, &verdict.error) {
                (Decision::Allow(reason), _) => ("allow", reason.as_str()),
                (_, Some(_)) => ("forbid", "internal error"),
                (Decision::Deny(reason) | Decision::NoOpinion(reason), None) => {
                    ("forbid", reason.as_str())
                }
            };
            context
                .annotations
                .add("authorization.k8s.io/decision", word);
            context
                .annotations
                .add("authorization.k8s.io/reason", reason);
        }
        question.settle(verdict)
    }
}

/// How long a request may take: as its client says, and never longer than the server lets any.
fn time_limit(info: &RequestInfo) -> Result<Duration, Status> {
    let Some(text) = info.query.get("timeout").filter(|text| !text.is_empty()) else {
        return Ok(REQUEST_TIMEOUT);
    };
    let asked = keelson_semantics::duration::parse_ns(text).map_err(|error| {
        Status::bad_request(format!(
            "invalid timeout specified in the request URL - {error}"
        ))
    })?;
    Ok(match u64::try_from(asked).map(Duration::from_nanos) {
        Ok(asked) if !asked.is_zero() => asked.min(REQUEST_TIMEOUT),
        _ => REQUEST_TIMEOUT,
    })
}

/// What is known of a request before anybody has looked at its caller.
#[derive(Clone)]
struct About {
    info: Arc<RequestInfo>,
    warnings: Warnings,
    annotations: Annotations,
    audit_id: Arc<str>,
}

/// Reads a body to its end, up to the limit.
pub(crate) async fn collect(body: RequestBody) -> Result<Bytes, Status> {
    match body {
        RequestBody::Whole(bytes) if bytes.len() > MAX_BODY_BYTES => Err(too_large()),
        RequestBody::Whole(bytes) => Ok(bytes),
        RequestBody::Stream(stream) => match Limited::new(stream, MAX_BODY_BYTES).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(too_large()),
            Err(error) => Err(Status::bad_request(format!(
                "reading the request body: {error}"
            ))),
        },
    }
}

fn too_large() -> Status {
    Status::request_entity_too_large(format!("limit is {MAX_BODY_BYTES}"))
}

/// The client's own id when it is a sane one.
fn audit_id(parts: &Parts) -> Arc<str> {
    parts
        .headers
        .get("audit-id")
        .and_then(|v| v.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= 64)
        .map_or_else(|| uuid::Uuid::new_v4().to_string().into(), Into::into)
}
