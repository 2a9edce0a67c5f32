//! The engine's semantics, over the memory store and through `handle`, as a client sees them.

mod addresses;
mod kinds;
mod reading;
mod writing;

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::json;

use super::*;
use crate::authz::Authorizer;
use crate::objects::Objects;
use crate::request::UserInfo;

struct Cluster {
    registry: Arc<Registry>,
    _authorizer: Arc<Authorizer>,
}

struct Answer {
    code: u16,
    body: Value,
    warnings: Vec<String>,
}

#[test]
fn all_of_this_on_etcd() {
    keelson_testkit_etcd::rerun_on_etcd("all_of_this_on_etcd", "registry::tests");
}

async fn cluster() -> Cluster {
    cluster_over(keelson_testkit_etcd::store().await).await
}

async fn cluster_over(store: SharedStore) -> Cluster {
    let cluster = server_over(store).await;
    let objects: &dyn Objects = &*cluster.registry;
    for name in ["default", "other"] {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        objects.create("", "namespaces", "", object).await.unwrap();
    }
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    objects
        .create("", "serviceaccounts", "default", account)
        .await
        .unwrap();
    cluster
}

/// A server over a store that others may use as well.
async fn server_over(store: SharedStore) -> Cluster {
    let admission = AdmissionChain::new();
    let cidrs = ["10.96.0.0/24".parse().unwrap()];
    let registry = Registry::start(
        store,
        Resources::builtin(
            &crate::RuntimeConfig::everything(),
            &crate::FeatureGates::everything(),
        ),
        Arc::clone(&admission),
        ServiceConfig::new(&cidrs),
    )
    .await
    .unwrap();
    let objects: Arc<dyn Objects> = Arc::clone(&registry) as Arc<dyn Objects>;
    let authorizer = Arc::new(Authorizer::new(Arc::clone(&objects)));
    admission.bind(Arc::downgrade(&objects), Arc::downgrade(&authorizer));
    Cluster {
        registry,
        _authorizer: authorizer,
    }
}

fn context(method: &str, uri: &str, content_type: &str, accept: &str) -> RequestContext {
    let method: http::Method = method.parse().unwrap();
    let uri: http::Uri = uri.parse().unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("content-type", content_type.parse().unwrap());
    headers.insert("accept", accept.parse().unwrap());
    headers.insert("user-agent", "tests/1.0".parse().unwrap());
    RequestContext::new(method, &uri, headers, UserInfo::admin("tests"))
}

impl Cluster {
    async fn raw(&self, ctx: &RequestContext, body: impl Into<Bytes>) -> Answer {
        let response = self.registry.handle(ctx, body.into()).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or(Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer {
            code,
            body,
            warnings: ctx.warnings.take(),
        }
    }

    async fn call(&self, method: &str, uri: &str, body: Value) -> Answer {
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            serde_json::to_vec(&body).unwrap()
        };
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        self.raw(
            &context(method, uri, content_type, "application/json"),
            bytes,
        )
        .await
    }

    async fn get(&self, uri: &str) -> Answer {
        self.call("GET", uri, Value::Null).await
    }

    async fn create_map(&self, name: &str, labels: Value) -> Value {
        let answer = self.call("POST", MAPS, config_map(name, labels)).await;
        assert_eq!(answer.code, 201, "{}", answer.body);
        answer.body
    }

    /// Starts a watch and hands out its events one by one.
    async fn watch(&self, uri: &str) -> Frames {
        let response = self
            .registry
            .handle(
                &context("GET", uri, "application/json", "application/json"),
                Bytes::new(),
            )
            .await;
        assert_eq!(response.status(), 200);
        Frames {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }
}

struct Frames {
    body: crate::request::Body,
    buffer: Vec<u8>,
}

impl Frames {
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line).unwrap();
                return Some((
                    event["type"].as_str().unwrap().to_owned(),
                    event["object"].take(),
                ));
            }
            let frame = tokio::time::timeout(Duration::from_secs(5), self.body.frame())
                .await
                .expect("an event in time")?;
            self.buffer
                .extend_from_slice(frame.unwrap().data_ref().unwrap());
        }
    }

    async fn expect(&mut self, kind: &str, name: &str) -> Value {
        let (got, object) = self.next().await.expect("the watch goes on");
        assert_eq!(
            (
                got.as_str(),
                object["metadata"]["name"].as_str().unwrap_or_default()
            ),
            (kind, name),
            "{object}"
        );
        object
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}})
}
