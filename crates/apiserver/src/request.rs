//! What a request asks for: parsed path, caller, body and response types.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::feature_gates::FeatureGates;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A response body: whole, or a stream of frames (watch, log, proxy).
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

pub type Response = http::Response<Body>;

/// The attributes of a request that routing, authorization and the registry look at, derived
/// from method, path and query exactly once. The rules are those of upstream's `RequestInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get list watch create update patch delete deletecollection proxy`, or the lower-case
    /// method for paths that are no resources.
    pub verb: String,
    pub path: String,
    pub is_resource: bool,
    /// `api` or `apis`; empty for paths that are no resources.
    pub api_prefix: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    /// Object name from the path, or from a `metadata.name` field selector of a list, watch or
    /// deletecollection.
    pub name: String,
    /// Empty for cluster-scoped resources and for all namespaces.
    pub namespace: String,
    /// Path segments from the resource on: `[resource, name, subresource, rest…]`.
    pub parts: Vec<String>,
    pub query: Query,
}

/// Decoded query pairs in the order of the request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    pub fn parse(raw: &str) -> Self {
        let pairs = raw
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (percent_decode(key, true), percent_decode(value, true))
            })
            .collect();
        Self(pairs)
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(k, _)| k == name)
            .map(|(_, v)| v.as_str())
    }

    /// A boolean parameter: present and neither `false` nor `0` is true, as upstream converts.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|v| !v.eq_ignore_ascii_case("false") && v != "0")
    }
}

impl RequestInfo {
    pub fn parse(method: &Method, uri: &Uri) -> Self {
        let path = uri.path().to_owned();
        let query = Query::parse(uri.query().unwrap_or_default());
        let mut info = Self {
            verb: method.as_str().to_ascii_lowercase(),
            path,
            query,
            ..Self::default()
        };
        let segments: Vec<String> = info
            .path
            .trim_matches('/')
            .split('/')
            .map(|segment| percent_decode(segment, false))
            .collect();
        info.fill(method, &segments);
        info
    }

    fn fill(&mut self, method: &Method, segments: &[String]) {
        if segments.len() < 3 {
            return;
        }
        let mut rest = &segments[1..];
        match segments[0].as_str() {
            "api" => {}
            "apis" => {
                if rest.len() < 3 {
                    return;
                }
                self.group = rest[0].clone();
                rest = &rest[1..];
            }
            _ => return,
        }
        self.api_prefix = segments[0].clone();
        self.is_resource = true;
        self.version = rest[0].clone();
        rest = &rest[1..];

        let legacy = matches!(rest[0].as_str(), "proxy" | "watch");
        if legacy {
            self.verb = rest[0].clone();
            rest = &rest[1..];
            if rest.is_empty() {
                self.is_resource = false;
                return;
            }
        } else {
            self.verb = match method.as_str() {
                "POST" => "create",
                "GET" | "HEAD" => "get",
                "PUT" => "update",
                "PATCH" => "patch",
                "DELETE" => "delete",
                _ => "",
            }
            .to_owned();
        }

        if rest[0] == "namespaces" && rest.len() > 1 {
            self.namespace = rest[1].clone();
            if rest.len() > 2 && !matches!(rest[2].as_str(), "status" | "finalize") {
                rest = &rest[2..];
            }
        }
        self.parts = rest.to_vec();
        self.resource = rest[0].clone();
        if rest.len() >= 2 {
            self.name = rest[1].clone();
        }
        if rest.len() >= 3 && self.verb != "proxy" {
            self.subresource = rest[2].clone();
        }
        self.settle_collection_verb();
    }

    fn settle_collection_verb(&mut self) {
        if !self.name.is_empty() {
            return;
        }
        match self.verb.as_str() {
            "get" if self.query.flag("watch") => self.verb = "watch".to_owned(),
            "get" => self.verb = "list".to_owned(),
            "delete" => self.verb = "deletecollection".to_owned(),
            _ => {}
        }
        if matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
            && let Some(name) = self
                .query
                .get("fieldSelector")
                .and_then(name_in_field_selector)
        {
            self.name = name;
        }
    }

    /// Whether the response may stay open without bound: watches, logs, upgrades, proxies.
    pub fn is_long_running(&self) -> bool {
        self.is_resource
            && (matches!(self.verb.as_str(), "watch" | "proxy")
                || matches!(
                    self.subresource.as_str(),
                    "attach" | "exec" | "proxy" | "log" | "portforward"
                ))
    }

    /// `group/version`, or the version alone for the core group.
    pub fn group_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// `metadata.name=x` anywhere in a conjunction names one object.
fn name_in_field_selector(selector: &str) -> Option<String> {
    selector.split(',').find_map(|term| {
        let value = term.strip_prefix("metadata.name=")?;
        let value = value.strip_prefix('=').unwrap_or(value);
        let valid =
            !value.is_empty() && value != "." && value != ".." && !value.contains(['/', '%']);
        valid.then(|| value.to_owned())
    })
}

/// Decodes `%xx`, and `+` as a space in queries; bytes that are no UTF-8 become replacement
/// characters.
pub(crate) fn percent_decode(text: &str, plus_is_space: bool) -> String {
    if !text.contains(['%', '+']) {
        return text.to_owned();
    }
    String::from_utf8(percent_decode_bytes(text, plus_is_space))
        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// The bytes behind [`percent_decode`]'s text. Bad escapes stay as they are.
pub(crate) fn percent_decode_bytes(text: &str, plus_is_space: bool) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escaped = (bytes[i] == b'%')
            .then(|| bytes.get(i + 1..i + 3))
            .flatten()
            .and_then(|pair| std::str::from_utf8(pair).ok())
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match (escaped, bytes[i]) {
            (Some(byte), _) => {
                out.push(byte);
                i += 3;
                continue;
            }
            (None, b'+') if plus_is_space => out.push(b' '),
            (None, byte) => out.push(byte),
        }
        i += 1;
    }
    out
}

/// Who a request comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub username: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub fn new(username: impl Into<String>, groups: &[&str]) -> Self {
        Self {
            username: username.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..Self::default()
        }
    }

    /// A member of `system:masters`, for whom every request is allowed.
    pub fn admin(username: impl Into<String>) -> Self {
        Self::new(username, &["system:masters", "system:authenticated"])
    }

    pub fn anonymous() -> Self {
        Self::new("system:anonymous", &["system:unauthenticated"])
    }

    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::new(
            format!("system:serviceaccount:{namespace}:{name}"),
            &[
                "system:serviceaccounts",
                &format!("system:serviceaccounts:{namespace}"),
                "system:authenticated",
            ],
        )
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// `(namespace, name)` when this is a service account.
    pub fn as_service_account(&self) -> Option<(&str, &str)> {
        self.username
            .strip_prefix("system:serviceaccount:")?
            .split_once(':')
    }

    /// The form of `authentication.k8s.io` `UserInfo`.
    pub fn to_json(&self) -> Value {
        let mut out = json!({"username": self.username, "groups": self.groups});
        if !self.uid.is_empty() {
            out["uid"] = json!(self.uid);
        }
        if !self.extra.is_empty() {
            out["extra"] = json!(self.extra);
        }
        out
    }
}

/// More remarks than this are not kept.
const MAX_WARNINGS: usize = 256;
/// Together they are no longer than this, or each is cut to the next length.
const MAX_WARNINGS_CHARS: usize = 4 * 1024;
const MAX_WARNING_CHARS: usize = 256;

/// Remarks for the client, collected while a request is served; sent as `Warning` headers.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    pub fn add(&self, text: impl Into<String>) {
        // A header has one line; upstream keeps the last.
        let text: String = text.into();
        let text = text.trim_end().rsplit('\n').next().unwrap_or_default();
        let text = text.trim().to_owned();
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if !text.is_empty() && all.len() < MAX_WARNINGS && !all.contains(&text) {
            all.push(text);
        }
    }

    /// All of them, each cut short when they are long together.
    pub fn take(&self) -> Vec<String> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()));
        let length = |text: &String| text.chars().count();
        if all.iter().map(length).sum::<usize>() <= MAX_WARNINGS_CHARS {
            return all;
        }
        let mut written = 0;
        let cut = all.into_iter().map(|text| {
            let end = text.char_indices().nth(MAX_WARNING_CHARS);
            end.map_or(text.clone(), |(end, _)| text[..end].to_owned())
        });
        cut.take_while(|text| {
            let fits = written < MAX_WARNINGS_CHARS;
            written += length(text);
            fits
        })
        .collect()
    }
}

/// Remarks for the audit log, collected while a request is served; kept only when one is written.
#[derive(Debug, Clone, Default)]
pub struct Annotations(Option<Arc<Mutex<BTreeMap<String, String>>>>);

impl Annotations {
    /// One that keeps what is added.
    pub fn kept() -> Self {
        Self(Some(Arc::default()))
    }

    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// The first value of a key stays.
    pub fn add(&self, key: &str, value: impl Into<String>) {
        if let Some(all) = &self.0 {
            let mut all = all.lock().unwrap_or_else(|e| e.into_inner());
            if all.len() < 256 && !all.contains_key(key) {
                all.insert(key.to_owned(), value.into());
            }
        }
    }

    pub fn all(&self) -> BTreeMap<String, String> {
        let all = self.0.as_ref().map(|all| all.lock());
        all.map_or_else(BTreeMap::new, |all| {
            all.unwrap_or_else(|e| e.into_inner()).clone()
        })
    }
}

/// One request past authentication. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RequestContext {
    pub method: Method,
    pub info: Arc<RequestInfo>,
    pub user: Arc<UserInfo>,
    pub headers: Arc<HeaderMap>,
    pub warnings: Warnings,
    pub annotations: Annotations,
    pub audit_id: Arc<str>,
    pub features: FeatureGates,
    /// The request's place in the audit log, once its user is known and if the policy wants it.
    pub(crate) record: Option<Arc<crate::audit::Record>>,
}

impl RequestContext {
    /// A request of `user` that nobody records.
    pub fn new(method: Method, uri: &Uri, headers: HeaderMap, user: UserInfo) -> Self {
        Self {
            info: Arc::new(RequestInfo::parse(&method, uri)),
            method,
            user: Arc::new(user),
            headers: Arc::new(headers),
            warnings: Warnings::default(),
            annotations: Annotations::default(),
            audit_id: "".into(),
            features: FeatureGates::default(),
            record: None,
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    pub fn query(&self) -> &Query {
        &self.info.query
    }

    /// `?dryRun=All`.
    pub fn dry_run(&self) -> bool {
        self.info.query.all("dryRun").any(|v| v == "All")
    }
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub fn empty() -> Body {
    full(Bytes::new())
}

/// A whole body, or its beginning when it is larger than `limit` or breaks off; the flag says
/// whether it is whole.
pub(crate) async fn read_up_to(mut body: Body, limit: usize) -> (Bytes, bool) {
    let mut out = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return (out.freeze(), false);
        };
        if let Ok(data) = frame.into_data() {
            let room = limit - out.len();
            out.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() > room {
                return (out.freeze(), false);
            }
        }
    }
    (out.freeze(), true)
}

pub fn respond(code: u16, content_type: &str, bytes: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(full(bytes));
    *response.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = http::HeaderValue::from_str(content_type) {
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, value);
    }
    response
}

/// A document that is no object of the API, which upstream ends without a newline.
pub fn respond_json(code: u16, value: &Value) -> Response {
    respond(
        code,
        "application/json",
        serde_json::to_vec(value).unwrap_or_default(),
    )
}

/// The same for people to read.
pub fn respond_indented(code: u16, value: &Value) -> Response {
    respond(
        code,
        "application/json",
        serde_json::to_vec_pretty(value).unwrap_or_default(),
    )
}

pub fn respond_text(code: u16, text: impl Into<String>) -> Response {
    respond(code, "text/plain; charset=utf-8", text.into())
}

pub fn respond_status(status: &Status) -> Response {
    let code = if status.code == 0 { 500 } else { status.code };
    let mut bytes = match code {
        // What negotiation refuses is written before an encoder is chosen.
        406 => serde_json::to_vec_pretty(status),
        _ => serde_json::to_vec(status),
    }
    .unwrap_or_default();
    if code != 406 {
        bytes.push(b'\n');
    }
    let mut response = respond(code, "application/json", bytes);
    let retry = status
        .details
        .as_ref()
        .map(|d| d.retry_after_seconds)
        .filter(|s| *s > 0);
    if let Some(seconds) = retry {
        response
            .headers_mut()
            .insert(http::header::RETRY_AFTER, http::HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method.parse().expect("method"), &uri.parse().expect("uri"))
    }

    #[test]
    fn paths_become_attributes() {
        // (method, uri, verb, group, version, namespace, resource, subresource, name)
        let cases = [
            (
                "GET",
                "/api/v1/namespaces",
                "list",
                "",
                "v1",
                "",
                "namespaces",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/namespaces/other",
                "get",
                "",
                "v1",
                "other",
                "namespaces",
                "",
                "other",
            ),
            (
                "GET",
                "/api/v1/namespaces/other/pods",
                "list",
                "",
                "v1",
                "other",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/namespaces/other/pods/foo",
                "get",
                "",
                "v1",
                "other",
                "pods",
                "",
                "foo",
            ),
            (
                "HEAD",
                "/api/v1/namespaces/other/pods/foo",
                "get",
                "",
                "v1",
                "other",
                "pods",
                "",
                "foo",
            ),
            (
                "GET",
                "/api/v1/pods?watch=true",
                "watch",
                "",
                "v1",
                "",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/pods?watch=false",
                "list",
                "",
                "v1",
                "",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/watch/pods",
                "watch",
                "",
                "v1",
                "",
                "pods",
                "",
                "",
            ),
            (
                "GET",
                "/api/v1/watch/namespaces/other/pods",
                "watch",
                "",
                "v1",
                "other",
                "pods",
                "",
                "",
            ),
            (
                "PUT",
                "/api/v1/namespaces/other/finalize",
                "update",
                "",
                "v1",
                "other",
                "namespaces",
                "finalize",
                "other",
            ),
            (
                "PUT",
                "/api/v1/namespaces/other/status",
                "update",
                "",
                "v1",
                "other",
                "namespaces",
                "status",
                "other",
            ),
            (
                "POST",
                "/api/v1/namespaces/o/pods/p/exec?command=ls",
                "create",
                "",
                "v1",
                "o",
                "pods",
                "exec",
                "p",
            ),
            (
                "GET",
                "/api/v1/namespaces/o/services/s/proxy/a/b",
                "get",
                "",
                "v1",
                "o",
                "services",
                "proxy",
                "s",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/o/deployments",
                "deletecollection",
                "apps",
                "v1",
                "o",
                "deployments",
                "",
                "",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/o/deployments/d",
                "patch",
                "apps",
                "v1",
                "o",
                "deployments",
                "",
                "d",
            ),
            (
                "GET",
                "/api/v1/pods?fieldSelector=metadata.name%3Dx",
                "list",
                "",
                "v1",
                "",
                "pods",
                "",
                "x",
            ),
        ];
        for (method, uri, verb, group, version, namespace, resource, subresource, name) in cases {
            let got = info(method, uri);
            assert!(got.is_resource, "{uri}");
            assert_eq!(
                (
                    got.verb.as_str(),
                    got.group.as_str(),
                    got.version.as_str(),
                    got.namespace.as_str()
                ),
                (verb, group, version, namespace),
                "{uri}"
            );
            assert_eq!(
                (
                    got.resource.as_str(),
                    got.subresource.as_str(),
                    got.name.as_str()
                ),
                (resource, subresource, name),
                "{uri}"
            );
        }
    }

    #[test]
    fn other_paths_are_no_resources() {
        for uri in [
            "/",
            "/api",
            "/api/v1",
            "/apis",
            "/apis/apps",
            "/apis/apps/v1",
            "/version",
            "/healthz/ping/x",
            "/openapi/v3/apis/apps/v1",
        ] {
            let got = info("GET", uri);
            assert!(!got.is_resource, "{uri}");
            assert_eq!(got.verb, "get");
        }
    }

    #[test]
    fn escapes_are_decoded_once() {
        assert_eq!(percent_decode("a%2Fb+c%zz%", true), "a/b c%zz%");
        assert_eq!(percent_decode("a+b", false), "a+b");
        assert_eq!(
            Query::parse("a=1&b&a=2").all("a").collect::<Vec<_>>(),
            ["1", "2"]
        );
    }
}
