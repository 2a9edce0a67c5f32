//! The engine's semantics, over the memory store and through `handle`, as a client sees them.

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::json;

use super::*;
use crate::authz::Authorizer;
use crate::objects::Objects;
use crate::request::{RequestInfo, UserInfo, Warnings};

struct Cluster {
    registry: Arc<Registry>,
    _authorizer: Arc<Authorizer>,
}

struct Answer {
    code: u16,
    body: Value,
    warnings: Vec<String>,
}

async fn cluster() -> Cluster {
    cluster_over(keelson_store::embedded::memory()).await
}

async fn cluster_over(store: SharedStore) -> Cluster {
    let admission = AdmissionChain::new();
    let cidr = "10.96.0.0/24".parse().unwrap();
    let registry = Registry::start(store, Resources::builtin(), Arc::clone(&admission), cidr)
        .await
        .unwrap();
    let objects: Arc<dyn Objects> = Arc::clone(&registry) as Arc<dyn Objects>;
    let authorizer = Arc::new(Authorizer::new(Arc::clone(&objects)));
    admission.bind(Arc::downgrade(&objects), Arc::downgrade(&authorizer));
    let cluster = Cluster {
        registry,
        _authorizer: authorizer,
    };
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

fn context(method: &str, uri: &str, content_type: &str, accept: &str) -> RequestContext {
    let method: http::Method = method.parse().unwrap();
    let uri: http::Uri = uri.parse().unwrap();
    let mut headers = http::HeaderMap::new();
    headers.insert("content-type", content_type.parse().unwrap());
    headers.insert("accept", accept.parse().unwrap());
    headers.insert("user-agent", "tests/1.0".parse().unwrap());
    RequestContext {
        info: Arc::new(RequestInfo::parse(&method, &uri)),
        method,
        user: Arc::new(UserInfo::admin("tests")),
        headers: Arc::new(headers),
        warnings: Warnings::default(),
        audit_id: "test".into(),
    }
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

#[tokio::test]
async fn an_object_lives_and_dies() {
    let c = cluster().await;
    let created = c.create_map("a", json!({"x": "1"})).await;
    let meta = &created["metadata"];
    assert!(meta["uid"].as_str().unwrap().len() == 36 && meta["creationTimestamp"].is_string());
    assert_eq!(meta["namespace"], "default");
    let got = c.get(&format!("{MAPS}/a")).await;
    assert_eq!(got.body, created);

    let mut changed = created.clone();
    changed["data"]["a"] = "2".into();
    let updated = c.call("PUT", &format!("{MAPS}/a"), changed.clone()).await;
    assert_eq!(
        (updated.code, &updated.body["data"]["a"]),
        (200, &json!("2"))
    );
    assert_ne!(
        updated.body["metadata"]["resourceVersion"],
        meta["resourceVersion"]
    );
    assert_eq!(updated.body["metadata"]["uid"], meta["uid"]);

    let again = c
        .call("PUT", &format!("{MAPS}/a"), updated.body.clone())
        .await;
    assert_eq!(
        again.body, updated.body,
        "a write that changes nothing is none"
    );

    let stale = c.call("PUT", &format!("{MAPS}/a"), changed).await;
    assert_eq!(stale.code, 409);
    assert_eq!(
        stale.body["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );

    let deleted = c.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!(
        (deleted.code, deleted.body["status"].as_str()),
        (200, Some("Success"))
    );
    assert_eq!(deleted.body["details"]["uid"], meta["uid"]);
    let gone = c.get(&format!("{MAPS}/a")).await;
    assert_eq!(
        (gone.code, gone.body["message"].as_str()),
        (404, Some("configmaps \"a\" not found"))
    );
}

#[tokio::test]
async fn creation_is_refused_with_the_right_status() {
    let c = cluster().await;
    c.create_map("a", json!({})).await;
    let twice = c.call("POST", MAPS, config_map("a", json!({}))).await;
    assert_eq!(
        (twice.code, twice.body["reason"].as_str()),
        (409, Some("AlreadyExists"))
    );
    let mut elsewhere = config_map("b", json!({}));
    elsewhere["metadata"]["namespace"] = "other".into();
    let mismatch = c.call("POST", MAPS, elsewhere).await;
    assert_eq!(
        (mismatch.code, mismatch.body["message"].as_str()),
        (
            400,
            Some(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        )
    );
    let bad_name = c.call("POST", MAPS, config_map("A_b", json!({}))).await;
    assert_eq!(bad_name.code, 422, "{}", bad_name.body);
    assert!(
        bad_name.body["message"]
            .as_str()
            .unwrap()
            .starts_with("ConfigMap \"A_b\" is invalid: metadata.name: Invalid value")
    );
    let wrong_kind = c.call("POST", MAPS, pod("x")).await;
    assert_eq!(wrong_kind.code, 400);
    let mut versioned = config_map("c", json!({}));
    versioned["metadata"]["resourceVersion"] = "5".into();
    assert_eq!(c.call("POST", MAPS, versioned).await.code, 400);
    assert_eq!(c.get("/api/v1/nothings").await.code, 404);
    assert_eq!(
        c.call("POST", "/api/v1/configmaps", config_map("d", json!({})))
            .await
            .code,
        405
    );
    let media = c
        .raw(
            &context("POST", MAPS, "text/plain", "application/json"),
            "x",
        )
        .await;
    assert_eq!(media.code, 415);
    let accept = c
        .raw(&context("GET", MAPS, "application/json", "image/png"), "")
        .await;
    assert_eq!(accept.code, 406);
    let large = c
        .raw(
            &context("POST", MAPS, "application/json", "application/json"),
            vec![b' '; 4 << 20],
        )
        .await;
    assert_eq!(large.code, 413);
}

#[tokio::test]
async fn names_are_generated() {
    let c = cluster().await;
    let mut object = config_map("x", json!({}));
    object["metadata"] = json!({"generateName": "many-"});
    for _ in 0..20 {
        let answer = c.call("POST", MAPS, object.clone()).await;
        let name = answer.body["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with("many-") && name.len() == 10, "{name}");
    }
    assert_eq!(
        c.get(MAPS).await.body["items"].as_array().unwrap().len(),
        20
    );
}

#[tokio::test]
async fn unknown_fields_are_reported_as_asked() {
    let c = cluster().await;
    let mut object = config_map("a", json!({}));
    object["spec"] = json!({"x": 1});
    let warned = c.call("POST", MAPS, object.clone()).await;
    assert_eq!(
        (warned.code, warned.warnings),
        (201, vec!["unknown field \"spec\"".to_owned()])
    );
    assert!(warned.body.get("spec").is_none());
    object["metadata"]["name"] = "b".into();
    let strict = c
        .call(
            "POST",
            &format!("{MAPS}?fieldValidation=Strict"),
            object.clone(),
        )
        .await;
    assert_eq!(strict.code, 400);
    assert!(
        strict.body["message"]
            .as_str()
            .unwrap()
            .contains("strict decoding error: unknown field \"spec\"")
    );
    let ignored = c
        .call("POST", &format!("{MAPS}?fieldValidation=Ignore"), object)
        .await;
    assert_eq!((ignored.code, ignored.warnings.len()), (201, 0));
}

#[tokio::test]
async fn a_dry_run_leaves_nothing() {
    let c = cluster().await;
    let dry = c
        .call(
            "POST",
            &format!("{MAPS}?dryRun=All"),
            config_map("a", json!({})),
        )
        .await;
    assert_eq!(
        (dry.code, dry.body["metadata"].get("resourceVersion")),
        (201, None)
    );
    assert_eq!(c.get(&format!("{MAPS}/a")).await.code, 404);
    let created = c.create_map("a", json!({})).await;
    let patched = c
        .call(
            "PATCH",
            &format!("{MAPS}/a?dryRun=All"),
            json!({"data": {"a": "9"}}),
        )
        .await;
    assert_eq!(
        (patched.code, &patched.body["data"]["a"]),
        (200, &json!("9"))
    );
    assert_eq!(
        c.call("DELETE", &format!("{MAPS}/a?dryRun=All"), Value::Null)
            .await
            .code,
        200
    );
    assert_eq!(c.get(&format!("{MAPS}/a")).await.body, created);
}

#[tokio::test]
async fn lists_select_and_page_consistently() {
    let c = cluster().await;
    for i in 0..7 {
        c.create_map(&format!("m{i}"), json!({"even": (i % 2 == 0).to_string()}))
            .await;
    }
    let even = c
        .get(&format!("{MAPS}?labelSelector=even%3Dtrue"))
        .await
        .body;
    assert_eq!(even["items"].as_array().unwrap().len(), 4);
    assert_eq!(
        (even["kind"].as_str(), even["apiVersion"].as_str()),
        (Some("ConfigMapList"), Some("v1"))
    );
    let one = c
        .get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm3"))
        .await
        .body;
    assert_eq!(one["items"][0]["metadata"]["name"], "m3");
    let bad = c.get(&format!("{MAPS}?fieldSelector=spec.x%3Dm3")).await;
    assert_eq!(bad.code, 400);

    let first = c.get(&format!("{MAPS}?limit=3")).await.body;
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    c.call("DELETE", &format!("{MAPS}/m5"), Value::Null).await;
    c.create_map("m9", json!({})).await;
    let mut names: Vec<String> = Vec::new();
    let mut page = first.clone();
    loop {
        assert_eq!(
            page["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        let Some(token) = page["metadata"]["continue"]
            .as_str()
            .filter(|t| !t.is_empty())
        else {
            break;
        };
        page = c
            .get(&format!("{MAPS}?limit=3&continue={token}"))
            .await
            .body;
    }
    assert_eq!(
        names,
        ["m0", "m1", "m2", "m3", "m4", "m5", "m6"],
        "every page is of the first one's revision"
    );

    let token = first["metadata"]["continue"].as_str().unwrap();
    c.registry
        .store()
        .compact(c.registry.store().current_revision().await.unwrap())
        .await
        .unwrap();
    let expired = c.get(&format!("{MAPS}?limit=3&continue={token}")).await;
    assert_eq!(
        (expired.code, expired.body["reason"].as_str()),
        (410, Some("Expired"))
    );
    let token = expired.body["metadata"]["continue"].as_str().unwrap();
    let rest = c.get(&format!("{MAPS}?continue={token}")).await.body;
    let rest: Vec<_> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["metadata"]["name"].clone())
        .collect();
    assert_eq!(rest, ["m3", "m4", "m6", "m9"]);
}

#[tokio::test]
async fn watches_follow_selectors() {
    let c = cluster().await;
    c.create_map("a", json!({"on": "1"})).await;
    c.create_map("b", json!({})).await;
    let mut watch = c
        .watch(&format!("{MAPS}?watch=true&labelSelector=on%3D1"))
        .await;
    watch.expect("ADDED", "a").await;
    c.call(
        "PATCH",
        &format!("{MAPS}/b"),
        json!({"metadata": {"labels": {"on": "1"}}}),
    )
    .await;
    watch.expect("ADDED", "b").await;
    c.call("PATCH", &format!("{MAPS}/b"), json!({"data": {"a": "2"}}))
        .await;
    watch.expect("MODIFIED", "b").await;
    let left = c
        .call(
            "PATCH",
            &format!("{MAPS}/b"),
            json!({"metadata": {"labels": {"on": null}}}),
        )
        .await
        .body;
    let gone = watch.expect("DELETED", "b").await;
    assert_eq!(
        gone["metadata"]["resourceVersion"],
        left["metadata"]["resourceVersion"]
    );
    assert_eq!(
        gone["metadata"]["labels"]["on"], "1",
        "a DELETED event has the last state that matched"
    );
    c.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    watch.expect("DELETED", "a").await;

    let mut resumed = c
        .watch(&format!(
            "{MAPS}?watch=true&resourceVersion={}",
            left["metadata"]["resourceVersion"].as_str().unwrap()
        ))
        .await;
    resumed.expect("DELETED", "a").await;
}

#[tokio::test]
async fn a_watch_list_ends_its_beginning_with_a_bookmark() {
    let c = cluster().await;
    c.create_map("a", json!({})).await;
    let uri = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let mut watch = c.watch(&uri).await;
    watch.expect("ADDED", "a").await;
    let (kind, bookmark) = watch.next().await.unwrap();
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(
        bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let timeout = c
        .watch(&format!(
            "{MAPS}?watch=true&timeoutSeconds=1&resourceVersion=0"
        ))
        .await;
    let mut timeout = timeout;
    timeout.expect("ADDED", "a").await;
    assert!(
        timeout.next().await.is_none(),
        "the watch ends after its timeout"
    );
}

#[tokio::test]
async fn old_watches_are_gone() {
    let c = cluster().await;
    let first = c.create_map("a", json!({})).await;
    for i in 0..3000 {
        c.call(
            "PATCH",
            &format!("{MAPS}/a"),
            json!({"data": {"a": i.to_string()}}),
        )
        .await;
    }
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let answer = c
        .get(&format!("{MAPS}?watch=true&resourceVersion={revision}"))
        .await;
    assert_eq!(
        (answer.code, answer.body["reason"].as_str()),
        (410, Some("Expired"))
    );
    assert!(
        answer.body["message"]
            .as_str()
            .unwrap()
            .starts_with("too old resource version: ")
    );
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let c = Arc::new(cluster().await);
    c.create_map("a", json!({})).await;
    let tasks: Vec<_> = (0..24)
        .map(|i| {
            let c = Arc::clone(&c);
            tokio::spawn(async move {
                let answer = c
                    .call(
                        "PATCH",
                        &format!("{MAPS}/a"),
                        json!({"data": {format!("k{i}"): "v"}}),
                    )
                    .await;
                assert_eq!(answer.code, 200, "{}", answer.body);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let data = c.get(&format!("{MAPS}/a")).await.body["data"]
        .as_object()
        .unwrap()
        .len();
    assert_eq!(data, 25);
}

#[tokio::test]
async fn finalizers_hold_objects_back() {
    let c = cluster().await;
    let mut object = config_map("a", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.call("POST", MAPS, object).await;
    let pending = c.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!(pending.code, 200);
    assert!(
        pending.body["metadata"]["deletionTimestamp"].is_string(),
        "{}",
        pending.body
    );
    let again = c.call("POST", MAPS, config_map("a", json!({}))).await;
    assert_eq!(
        again.body["message"],
        "object is being deleted: configmaps \"a\" already exists"
    );
    let freed = c
        .call(
            "PATCH",
            &format!("{MAPS}/a"),
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    assert_eq!(freed.code, 200, "{}", freed.body);
    assert_eq!(c.get(&format!("{MAPS}/a")).await.code, 404);

    c.create_map("b", json!({})).await;
    let options =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"});
    let foreground = c.call("DELETE", &format!("{MAPS}/b"), options).await;
    assert_eq!(
        foreground.body["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    let wrong_uid = json!({"preconditions": {"uid": "nobody"}});
    let refused = c.call("DELETE", &format!("{MAPS}/b"), wrong_uid).await;
    assert_eq!(refused.code, 409, "{}", refused.body);
}

#[tokio::test]
async fn pods_are_deleted_gracefully_once_they_run() {
    let c = cluster().await;
    let pods = "/api/v1/namespaces/default/pods";
    let created = c.call("POST", pods, pod("a")).await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(created.body["status"]["phase"], "Pending");
    let unscheduled = c.call("DELETE", &format!("{pods}/a"), Value::Null).await;
    assert_eq!(
        (unscheduled.code, unscheduled.body["kind"].as_str()),
        (200, Some("Pod"))
    );
    assert_eq!(
        c.get(&format!("{pods}/a")).await.code,
        404,
        "an unscheduled pod goes at once"
    );

    c.call("POST", pods, pod("b")).await;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "b"}, "target": {"kind": "Node", "name": "n1"}});
    let bound = c
        .call("POST", &format!("{pods}/b/binding"), binding.clone())
        .await;
    assert_eq!(
        (bound.code, bound.body["status"].as_str()),
        (201, Some("Success")),
        "{}",
        bound.body
    );
    let again = c.call("POST", &format!("{pods}/b/binding"), binding).await;
    assert_eq!(
        again.body["message"],
        "Operation cannot be fulfilled on pods/binding \"b\": pod b is already assigned to node \"n1\""
    );
    let on_node = c
        .get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1")
        .await
        .body;
    assert_eq!(on_node["items"].as_array().unwrap().len(), 1);
    let graceful = c
        .call("DELETE", &format!("{pods}/b"), Value::Null)
        .await
        .body;
    assert_eq!(graceful["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = c
        .call(
            "DELETE",
            &format!("{pods}/b?gracePeriodSeconds=5"),
            Value::Null,
        )
        .await
        .body;
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let longer = c
        .call(
            "DELETE",
            &format!("{pods}/b?gracePeriodSeconds=50"),
            Value::Null,
        )
        .await
        .body;
    assert_eq!(
        longer["metadata"]["deletionGracePeriodSeconds"], 5,
        "a period is only shortened"
    );
    assert_eq!(
        c.call(
            "DELETE",
            &format!("{pods}/b?gracePeriodSeconds=0"),
            Value::Null
        )
        .await
        .code,
        200
    );
    assert_eq!(c.get(&format!("{pods}/b")).await.code, 404);
}

#[tokio::test]
async fn status_is_written_by_its_own_path() {
    let c = cluster().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let created = c.call("POST", deployments, deployment).await;
    assert_eq!(
        (created.code, &created.body["metadata"]["generation"]),
        (201, &json!(1)),
        "{}",
        created.body
    );
    let status = c
        .call(
            "PATCH",
            &format!("{deployments}/d/status"),
            json!({"status": {"replicas": 2}, "spec": {"replicas": 9}}),
        )
        .await;
    assert_eq!(
        (
            &status.body["status"]["replicas"],
            &status.body["spec"]["replicas"]
        ),
        (&json!(2), &json!(2)),
        "{}",
        status.body
    );
    let spec = c
        .call(
            "PATCH",
            &format!("{deployments}/d"),
            json!({"status": {"replicas": 7}, "spec": {"replicas": 3}}),
        )
        .await;
    assert_eq!(
        (
            &spec.body["status"]["replicas"],
            &spec.body["metadata"]["generation"]
        ),
        (&json!(2), &json!(2))
    );

    let scale = c.get(&format!("{deployments}/d/scale")).await.body;
    assert_eq!(
        (
            &scale["spec"]["replicas"],
            scale["status"]["selector"].as_str()
        ),
        (&json!(3), Some("a=b"))
    );
    let scaled = c
        .call(
            "PATCH",
            &format!("{deployments}/d/scale"),
            json!({"spec": {"replicas": 5}}),
        )
        .await;
    assert_eq!(
        (scaled.code, &scaled.body["spec"]["replicas"]),
        (200, &json!(5)),
        "{}",
        scaled.body
    );
    let after = c.get(&format!("{deployments}/d")).await.body;
    assert_eq!(
        (&after["spec"]["replicas"], &after["metadata"]["generation"]),
        (&json!(5), &json!(3))
    );
    let negative = c
        .call(
            "PATCH",
            &format!("{deployments}/d/scale"),
            json!({"spec": {"replicas": -1}}),
        )
        .await;
    assert_eq!(negative.code, 422);
}

#[tokio::test]
async fn services_get_addresses_and_ports() {
    let c = cluster().await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let first = c
        .call(
            "POST",
            services,
            service(
                "a",
                json!({"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}),
            ),
        )
        .await;
    assert_eq!(
        (first.code, &first.body["spec"]["clusterIPs"]),
        (201, &json!(["10.96.0.1"])),
        "{}",
        first.body
    );
    let taken = c
        .call(
            "POST",
            services,
            service(
                "b",
                json!({"clusterIP": "10.96.0.1", "ports": [{"port": 443}]}),
            ),
        )
        .await;
    assert_eq!(taken.code, 422);
    assert!(
        taken.body["message"]
            .as_str()
            .unwrap()
            .contains("provided IP is already allocated"),
        "{}",
        taken.body
    );
    let outside = c
        .call(
            "POST",
            services,
            service(
                "b",
                json!({"clusterIP": "10.97.0.1", "ports": [{"port": 443}]}),
            ),
        )
        .await;
    assert!(
        outside.body["message"]
            .as_str()
            .unwrap()
            .contains("is not in the valid range. The range of valid IPs is 10.96.0.0/24")
    );
    let any = c
        .call(
            "POST",
            services,
            service("c", json!({"type": "NodePort", "ports": [{"port": 80}]})),
        )
        .await
        .body;
    let port = any["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!(
        (30000..=32767).contains(&port)
            && any["spec"]["clusterIP"]
                .as_str()
                .unwrap()
                .starts_with("10.96.0.")
    );
    let mut kept = any.clone();
    kept["spec"]["ports"][0]
        .as_object_mut()
        .unwrap()
        .remove("nodePort");
    let kept = c.call("PUT", &format!("{services}/c"), kept).await.body;
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], port);
    let mut names = std::collections::HashSet::new();
    for i in 0..60 {
        let body = c
            .call(
                "POST",
                services,
                service(&format!("s{i}"), json!({"ports": [{"port": 80}]})),
            )
            .await
            .body;
        assert!(names.insert(body["spec"]["clusterIP"].as_str().unwrap().to_owned()));
    }
    let headless = c
        .call(
            "POST",
            services,
            service("h", json!({"clusterIP": "None", "selector": {"a": "b"}})),
        )
        .await
        .body;
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn tables_and_metadata_are_rendered() {
    let c = cluster().await;
    c.create_map("a", json!({})).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let answer = c
        .raw(&context("GET", MAPS, "application/json", table), "")
        .await
        .body;
    assert_eq!(
        (
            answer["kind"].as_str(),
            answer["columnDefinitions"][0]["name"].as_str()
        ),
        (Some("Table"), Some("Name"))
    );
    assert_eq!(answer["rows"][0]["cells"][0], "a");
    assert_eq!(answer["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let metadata =
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json";
    let answer = c
        .raw(&context("GET", MAPS, "application/json", metadata), "")
        .await
        .body;
    assert_eq!(answer["kind"], "PartialObjectMetadataList");
    assert!(
        answer["items"][0].get("data").is_none() && answer["items"][0]["metadata"]["name"] == "a"
    );
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yaml\ndata:\n  k: \"0644\"\n";
    let created = c
        .raw(
            &context("POST", MAPS, "application/yaml", "application/json"),
            yaml,
        )
        .await;
    assert_eq!(
        (created.code, &created.body["data"]["k"]),
        (201, &json!("0644")),
        "{}",
        created.body
    );
}

#[tokio::test]
async fn both_groups_of_events_share_their_objects() {
    let c = cluster().await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R", "type": "Normal", "message": "hello",
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}, "source": {"component": "c"}, "count": 1,
        "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:00:00Z"});
    let created = c
        .call("POST", "/api/v1/namespaces/default/events", event)
        .await;
    assert_eq!(created.code, 201, "{}", created.body);
    let other = c
        .get("/apis/events.k8s.io/v1/namespaces/default/events/e")
        .await
        .body;
    assert_eq!(
        (other["apiVersion"].as_str(), other["note"].as_str()),
        (Some("events.k8s.io/v1"), Some("hello"))
    );
    assert_eq!(other["regarding"]["name"], "p");
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let c = cluster().await;
    for i in 0..6 {
        c.create_map(&format!("m{i}"), json!({"x": (i % 2).to_string()}))
            .await;
    }
    let answer = c
        .call(
            "DELETE",
            &format!("{MAPS}?labelSelector=x%3D0"),
            Value::Null,
        )
        .await;
    assert_eq!(
        (answer.code, answer.body["items"].as_array().map(Vec::len)),
        (200, Some(3))
    );
    assert_eq!(c.get(MAPS).await.body["items"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn namespaces_wait_for_their_finalizer() {
    let c = cluster().await;
    let deleted = c
        .call("DELETE", "/api/v1/namespaces/other", Value::Null)
        .await;
    assert_eq!(
        deleted.body["status"]["phase"], "Terminating",
        "{}",
        deleted.body
    );
    let mut namespace = c.get("/api/v1/namespaces/other").await.body;
    namespace["spec"]["finalizers"] = json!([]);
    let finalized = c
        .call("PUT", "/api/v1/namespaces/other/finalize", namespace)
        .await;
    assert_eq!(finalized.code, 200, "{}", finalized.body);
    assert_eq!(c.get("/api/v1/namespaces/other").await.code, 404);
}

#[tokio::test]
async fn applied_fields_have_owners() {
    let c = cluster().await;
    let apply = async |manager: &str, query: &str, data: Value| {
        let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
        let uri = format!("{MAPS}/a?fieldManager={manager}{query}");
        let ctx = context(
            "PATCH",
            &uri,
            "application/apply-patch+yaml",
            "application/json",
        );
        c.raw(&ctx, serde_json::to_vec(&config).unwrap()).await
    };
    let created = apply("one", "", json!({"a": "1", "b": "1"})).await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(
        created.body["metadata"]["managedFields"][0]["operation"],
        "Apply"
    );
    let again = apply("one", "", json!({"a": "1", "b": "1"})).await;
    assert_eq!(
        (again.code, &again.body),
        (200, &created.body),
        "applying the same again changes nothing"
    );
    let conflict = apply("two", "", json!({"a": "2"})).await;
    assert_eq!(conflict.code, 409);
    assert_eq!(
        conflict.body["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .data.a"
    );
    let forced = apply("two", "&force=true", json!({"a": "2"})).await;
    assert_eq!(
        (forced.code, &forced.body["data"]),
        (200, &json!({"a": "2", "b": "1"}))
    );
    let removed = apply("one", "", json!({})).await;
    assert_eq!(
        removed.body["data"],
        json!({"a": "2"}),
        "what its only owner no longer applies goes"
    );
    let ctx = context(
        "PATCH",
        &format!("{MAPS}/a"),
        "application/apply-patch+yaml",
        "application/json",
    );
    assert_eq!(c.raw(&ctx, "{}").await.code, 422, "a manager is required");
}

#[tokio::test]
async fn every_kind_of_patch_applies() {
    let c = cluster().await;
    let pods = "/api/v1/namespaces/default/pods";
    c.call("POST", pods, pod("p")).await;
    let patch = async |kind: &str, body: Value| {
        let ctx = context("PATCH", &format!("{pods}/p"), kind, "application/json");
        c.raw(&ctx, serde_json::to_vec(&body).unwrap()).await
    };
    let json_patch = patch(
        "application/json-patch+json",
        json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "1"}}]),
    )
    .await;
    assert_eq!(
        (json_patch.code, &json_patch.body["metadata"]["labels"]),
        (200, &json!({"a": "1"})),
        "{}",
        json_patch.body
    );
    let strategic = json!({"spec": {"containers": [{"name": "c", "image": "j"}]}});
    let strategic = patch("application/strategic-merge-patch+json", strategic).await;
    assert_eq!(
        (
            strategic.code,
            &strategic.body["spec"]["containers"][0]["image"]
        ),
        (200, &json!("j")),
        "{}",
        strategic.body
    );
    assert_eq!(
        strategic.body["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(patch("text/plain", json!({})).await.code, 415);
    assert_eq!(
        patch(
            "application/json-patch+json",
            json!([{"op": "test", "path": "/metadata/name", "value": "x"}])
        )
        .await
        .code,
        422
    );
    let absent = context(
        "PATCH",
        &format!("{pods}/q"),
        "application/merge-patch+json",
        "application/json",
    );
    assert_eq!(c.raw(&absent, "{}").await.code, 404);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let store = keelson_store::embedded::memory();
    let created = {
        let c = cluster_over(Arc::clone(&store)).await;
        c.create_map("a", json!({})).await
    };
    let admission = AdmissionChain::new();
    let registry = Registry::start(
        store,
        Resources::builtin(),
        admission,
        "10.96.0.0/24".parse().unwrap(),
    )
    .await
    .unwrap();
    let again = Objects::get(&*registry, "", "configmaps", "default", "a").unwrap();
    assert_eq!(*again, created);
}
