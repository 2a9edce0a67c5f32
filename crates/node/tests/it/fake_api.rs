//! An API server as small as the node agent's needs: objects by path, watches, status patches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use keelson_client::{Body, BoxError, Error, Transport, full};
use serde_json::{Value, json};
use tokio::sync::watch;

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<String, Value>,
    /// Revision, path, kind of change, object.
    log: Vec<(u64, String, &'static str, Value)>,
    requests: Vec<(String, String, Value)>,
}

pub(crate) struct FakeApi {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// `pods` and `ns` and `name` of a path below `/api/v1` or `/apis/<group>/<version>`.
fn parts(path: &str) -> (String, String, String, String) {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let skip = if segments[0] == "api" { 2 } else { 3 };
    let mut rest = segments[skip..].iter().map(|s| (*s).to_owned());
    let first = rest.next().unwrap_or_default();
    let (namespace, resource) = if first == "namespaces" {
        (
            rest.next().unwrap_or_default(),
            rest.next().unwrap_or_default(),
        )
    } else {
        (String::new(), first)
    };
    (
        resource,
        namespace,
        rest.next().unwrap_or_default(),
        rest.next().unwrap_or_default(),
    )
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.as_object_mut().unwrap().remove(key);
            }
            Value::Object(_) => merge(&mut target[key], value),
            Value::Array(items) if key == "conditions" => {
                let mut merged = target[key].as_array().cloned().unwrap_or_default();
                for item in items {
                    match merged
                        .iter_mut()
                        .find(|known| known["type"] == item["type"])
                    {
                        Some(known) => merge(known, item),
                        None => merged.push(item.clone()),
                    }
                }
                target[key] = merged.into();
            }
            Value::Array(items) => {
                target[key] = items
                    .iter()
                    .filter(|item| item.get("$patch").is_none())
                    .cloned()
                    .collect();
            }
            other => target[key] = other.clone(),
        }
    }
}

impl FakeApi {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: watch::channel(0).0,
        })
    }

    pub(crate) fn put(&self, path: &str, object: Value) -> Value {
        self.change(path, |_| Some(object.clone())).unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    pub(crate) fn edit(&self, path: &str, edit: impl Fn(&mut Value)) {
        self.change(path, |old| {
            let mut object = old.cloned()?;
            edit(&mut object);
            Some(object)
        });
    }

    pub(crate) fn requests(&self, verb: &str, path: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state
            .requests
            .iter()
            .filter(|(v, p, _)| v == verb && p == path)
            .map(|(_, _, body)| body.clone())
            .collect()
    }

    /// The reasons of events so far.
    pub(crate) fn events(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let events = state
            .objects
            .iter()
            .filter(|(path, _)| path.contains("/events/"));
        events
            .map(|(_, event)| event["reason"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    fn change(&self, path: &str, edit: impl Fn(Option<&Value>) -> Option<Value>) -> Option<Value> {
        let mut state = self.state.lock().unwrap();
        let old = state.objects.get(path).cloned();
        let new = edit(old.as_ref());
        state.version += 1;
        let version = state.version;
        let (kind, mut object) = match (&old, new) {
            (_, Some(new)) => (if old.is_some() { "MODIFIED" } else { "ADDED" }, new),
            (Some(old), None) => ("DELETED", old.clone()),
            (None, None) => return None,
        };
        object["metadata"]["resourceVersion"] = version.to_string().into();
        if kind == "DELETED" {
            state.objects.remove(path);
        } else {
            state.objects.insert(path.to_owned(), object.clone());
        }
        state
            .log
            .push((version, path.to_owned(), kind, object.clone()));
        drop(state);
        self.changed.send_replace(version);
        Some(object)
    }

    fn handle(self: &Arc<Self>, request: Request<Bytes>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body: Value = serde_json::from_slice(request.body()).unwrap_or(Value::Null);
        let method = request.method().clone();
        self.state
            .lock()
            .unwrap()
            .requests
            .push((method.to_string(), path.clone(), body.clone()));
        let (resource, namespace, name, subresource) = parts(&path);
        let object_path = match subresource.is_empty() {
            true => path.clone(),
            false => path.rsplit_once('/').unwrap().0.to_owned(),
        };
        let found = |object: Option<Value>| match object {
            Some(object) => answer(200, &object),
            None => answer(
                404,
                &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "not found"}),
            ),
        };
        if method == Method::POST && subresource == "token" {
            return answer(
                201,
                &json!({"status": {"token": "the-token", "expirationTimestamp": "2999-01-01T00:00:00Z"}}),
            );
        }
        if method == Method::GET && name.is_empty() {
            return if query.contains("watch=true") {
                self.watch(&resource, &namespace, &query)
            } else {
                self.list(&resource, &namespace, &query)
            };
        }
        match method {
            Method::GET => found(self.get(&object_path)),
            Method::POST => {
                let name = body["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                found(self.change(&format!("{path}/{name}"), |_| Some(body.clone())))
            }
            Method::PUT => found(self.change(&object_path, |_| Some(body.clone()))),
            Method::PATCH => found(self.change(&object_path, |old| {
                let mut object = old.cloned()?;
                merge(&mut object, &body);
                Some(object)
            })),
            Method::DELETE => found(self.change(&object_path, |_| None)),
            _ => answer(405, &json!({})),
        }
    }

    fn list(&self, resource: &str, namespace: &str, query: &str) -> Response<Body> {
        let state = self.state.lock().unwrap();
        let items: Vec<Value> = state
            .objects
            .iter()
            .filter(|(path, object)| selected(path, object, resource, namespace, query))
            .map(|(_, object)| object.clone())
            .collect();
        answer(
            200,
            &json!({"metadata": {"resourceVersion": state.version.to_string()}, "items": items}),
        )
    }

    fn watch(self: &Arc<Self>, resource: &str, namespace: &str, query: &str) -> Response<Body> {
        let from: u64 = query
            .split('&')
            .find_map(|p| p.strip_prefix("resourceVersion=")?.parse().ok())
            .unwrap_or(0);
        let start = (
            self.clone(),
            self.changed.subscribe(),
            from,
            resource.to_owned(),
            namespace.to_owned(),
            query.to_owned(),
        );
        let stream = futures::stream::unfold(
            start,
            |(api, mut changed, from, resource, namespace, query)| async move {
                loop {
                    let next = {
                        let state = api.state.lock().unwrap();
                        state
                            .log
                            .iter()
                            .find(|(version, path, _, object)| {
                                *version > from
                                    && selected(path, object, &resource, &namespace, &query)
                            })
                            .map(|(version, _, kind, object)| {
                                (
                                    *version,
                                    format!("{}\n", json!({"type": kind, "object": object})),
                                )
                            })
                    };
                    if let Some((version, line)) = next {
                        let frame = Ok::<_, BoxError>(Frame::data(Bytes::from(line)));
                        return Some((frame, (api, changed, version, resource, namespace, query)));
                    }
                    changed.changed().await.ok()?;
                }
            },
        );
        Response::new(StreamBody::new(Box::pin(stream)).boxed_unsync())
    }
}

fn selected(path: &str, object: &Value, resource: &str, namespace: &str, query: &str) -> bool {
    let (own_resource, own_namespace, name, _) = parts(path);
    let query = query.replace("%3D", "=");
    let node = query
        .split('&')
        .find_map(|p| p.strip_prefix("fieldSelector=spec.nodeName="));
    let wanted = query
        .split('&')
        .find_map(|p| p.strip_prefix("fieldSelector=metadata.name="));
    own_resource == resource
        && (namespace.is_empty() || namespace == own_namespace)
        && node.is_none_or(|node| object["spec"]["nodeName"] == node)
        && wanted.is_none_or(|wanted| wanted == name)
}

fn answer(code: u16, value: &Value) -> Response<Body> {
    Response::builder()
        .status(code)
        .body(full(value.to_string()))
        .unwrap()
}

pub(crate) struct FakeTransport(pub(crate) Arc<FakeApi>);

impl Transport for FakeTransport {
    fn call(&self, request: Request<Bytes>) -> BoxFuture<'static, Result<Response<Body>, Error>> {
        let api = self.0.clone();
        Box::pin(async move { Ok(api.handle(request)) })
    }
}
