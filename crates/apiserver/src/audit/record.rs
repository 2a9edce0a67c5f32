//! One request on its way into the log: an event per stage, each with what is known by then.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::request::Parts;
use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use serde_json::{Map, Value, json};

use super::policy::{Stage, Verdict};
use super::{Audit, Level};
use crate::request::{Annotations, RequestInfo, UserInfo};

/// Longer ones are cut, as upstream does.
const MAX_USER_AGENT: usize = 1024;
/// Larger objects are left out of the log.
pub(crate) const MAX_OBJECT_BYTES: usize = 4 << 20;

pub(crate) struct Record {
    audit: Arc<Audit>,
    verdict: Verdict,
    annotations: Annotations,
    event: Mutex<Value>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("verdict", &self.verdict)
            .finish_non_exhaustive()
    }
}

impl Record {
    /// Begins the record of a request when the policy wants one, and writes that it came.
    pub(crate) fn begin(
        audit: &Arc<Audit>,
        info: &RequestInfo,
        audit_id: &str,
        annotations: &Annotations,
        user: &UserInfo,
        parts: &Parts,
        peer: Option<IpAddr>,
    ) -> Option<Self> {
        let verdict = audit.policy().verdict(user, info);
        if verdict.level == Level::None {
            return None;
        }
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": verdict.level.as_str(),
            "auditID": audit_id,
            "requestURI": parts.uri.path_and_query().map_or("/", |p| p.as_str()),
            "verb": info.verb,
            "user": user.to_json(),
            "requestReceivedTimestamp": time::now_micro(),
        });
        let sources = sources(parts, peer);
        if !sources.is_empty() {
            event["sourceIPs"] = json!(sources);
        }
        let agent = parts.headers.get(http::header::USER_AGENT);
        if let Some(agent) = agent.and_then(|value| value.to_str().ok()) {
            event["userAgent"] = match agent.get(..MAX_USER_AGENT) {
                Some(cut) if agent.len() > MAX_USER_AGENT => json!(format!("{cut}...TRUNCATED")),
                _ => json!(agent),
            };
        }
        if info.is_resource {
            event["objectRef"] = object_ref(info);
        }
        let record = Self {
            audit: Arc::clone(audit),
            verdict,
            annotations: annotations.clone(),
            event: Mutex::new(event),
        };
        record.write(Stage::RequestReceived);
        Some(record)
    }

    pub(crate) fn wants_request(&self) -> bool {
        self.verdict.level >= Level::Request
    }

    pub(crate) fn wants_response(&self) -> bool {
        self.verdict.level >= Level::RequestResponse
    }

    /// `constraint` is the right that allowed it, when it allowed this one request only.
    pub(crate) fn impersonated(&self, user: &UserInfo, constraint: &str) {
        self.with(|event| {
            event["impersonatedUser"] = user.to_json();
            if !constraint.is_empty() {
                event["authenticationMetadata"] =
                    serde_json::json!({"impersonationConstraint": constraint});
            }
        });
    }

    /// What the client sent, decoded.
    pub(crate) fn request_object(&self, mut object: Value) {
        if self.verdict.omit_managed_fields {
            drop_managed_fields(&mut object);
        }
        self.with(|event| {
            if let Some(reference) = event["objectRef"].as_object_mut() {
                for (key, value) in [
                    ("namespace", meta::namespace(&object)),
                    ("name", meta::name(&object)),
                    ("uid", meta::uid(&object)),
                    ("resourceVersion", meta::resource_version(&object)),
                ] {
                    if !value.is_empty() && !reference.contains_key(key) {
                        reference.insert(key.to_owned(), json!(value));
                    }
                }
            }
            event["requestObject"] = object;
        });
    }

    pub(crate) fn response_object(&self, mut object: Value) {
        if self.verdict.omit_managed_fields {
            drop_managed_fields(&mut object);
        }
        self.with(|event| event["responseObject"] = object);
    }

    pub(crate) fn status(&self, code: u16, refusal: Option<&Status>) {
        let status = match refusal {
            Some(status) => {
                let mut value = status.to_value();
                meta::as_map(&mut value).remove("kind");
                meta::as_map(&mut value).remove("apiVersion");
                value
            }
            None => json!({"metadata": {}, "code": code}),
        };
        self.with(|event| event["responseStatus"] = status);
    }

    /// The refusal as it was sent.
    pub(crate) fn refused(&self, status: &Value) {
        let mut status = status.clone();
        let map = meta::as_map(&mut status);
        map.remove("kind");
        map.remove("apiVersion");
        self.with(|event| event["responseStatus"] = status);
    }

    pub(crate) fn started(&self) {
        self.write(Stage::ResponseStarted);
    }

    pub(crate) fn complete(&self) {
        self.write(Stage::ResponseComplete);
    }

    pub(crate) fn panicked(&self) {
        self.write(Stage::Panic);
    }

    fn with(&self, change: impl FnOnce(&mut Value)) {
        change(&mut self.event.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn write(&self, stage: Stage) {
        if self.verdict.omit_stages.contains(&stage) {
            return;
        }
        let mut event = self
            .event
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        event["stage"] = json!(stage.as_str());
        event["stageTimestamp"] = json!(time::now_micro());
        let annotations = self.annotations.all();
        if !annotations.is_empty() {
            event["annotations"] = json!(annotations);
        }
        self.audit.write(&event);
    }
}

fn object_ref(info: &RequestInfo) -> Value {
    let all = [
        ("resource", &info.resource),
        ("namespace", &info.namespace),
        ("name", &info.name),
        ("apiGroup", &info.group),
        ("apiVersion", &info.version),
        ("subresource", &info.subresource),
    ];
    let known = all.iter().filter(|(_, value)| !value.is_empty());
    let map: Map<String, Value> = known
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    Value::Object(map)
}

/// Whoever the request says it was forwarded for, then the peer.
fn sources(parts: &Parts, peer: Option<IpAddr>) -> Vec<String> {
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let forwarded = header("x-forwarded-for").split(',').map(str::trim);
    let real = std::iter::once(header("x-real-ip").trim());
    let mut out: Vec<String> = forwarded
        .chain(real)
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .take(32)
        .chain(peer)
        .map(|address| address.to_string())
        .collect();
    out.dedup();
    out
}

fn drop_managed_fields(object: &mut Value) {
    let drop_from = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    drop_from(object);
    let items = object.get_mut("items").and_then(Value::as_array_mut);
    items.into_iter().flatten().for_each(drop_from);
}
