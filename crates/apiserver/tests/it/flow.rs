//! Priority and fairness under load: what waits, and what is turned away.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::service::{SLOW, Service};
use crate::{Cluster, post};

const GROUP: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
const AT_ONCE: usize = 12;
/// Seats of a level with one share of the server's 600, beside the default levels' 245.
const SEATS: usize = 3;
const QUEUED: usize = 2;

fn level(name: &str, response: Value) -> Value {
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
        "metadata": {"name": name}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 1, "lendablePercent": 0, "borrowingLimitPercent": 0,
            "limitResponse": response}}})
}

fn schema(name: &str) -> Value {
    json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
        "metadata": {"name": name}, "spec": {
            "priorityLevelConfiguration": {"name": name}, "matchingPrecedence": 50,
            "rules": [{"subjects": [{"kind": "User", "user": {"name": name}}],
                "resourceRules": [{"verbs": ["create"], "apiGroups": [""], "resources": ["configmaps"], "namespaces": ["*"]}]}]}})
}

/// A server where creating a ConfigMap takes half a second.
async fn slow_cluster(service: &Service) -> Cluster {
    use base64::Engine;
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let queue = json!({"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": QUEUED}});
    for (name, response) in [("waits", queue), ("strict", json!({"type": "Reject"}))] {
        let levels = format!("{GROUP}/prioritylevelconfigurations");
        post(&admin, &levels, level(name, response)).await.unwrap();
        post(&admin, &format!("{GROUP}/flowschemas"), schema(name))
            .await
            .unwrap();
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}]});
        let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
        post(&admin, bindings, binding).await.unwrap();
    }
    let authority = base64::engine::general_purpose::STANDARD.encode(&service.certificate);
    let webhook = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "slow"}, "webhooks": [{"name": "slow.example.com", "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("{}{SLOW}", service.url), "caBundle": authority},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]}]});
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    post(&admin, path, webhook).await.unwrap();
    cluster
}

/// The status and the `Retry-After` of every one of many requests at once.
async fn burst(cluster: &Cluster, user: &str) -> Vec<(u16, Option<String>)> {
    let client = cluster.user(user);
    let ask = async |number: usize| {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{user}-{number}")}});
        let request = http::Request::post("/api/v1/namespaces/default/configmaps")
            .header("content-type", "application/json")
            .body(bytes::Bytes::from(map.to_string()))
            .unwrap();
        let answer = client.call(request).await.unwrap();
        let after = answer.headers().get("retry-after");
        let after = after.and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
        (answer.status().as_u16(), after)
    };
    join_all((0..AT_ONCE).map(ask)).await
}

#[tokio::test]
async fn a_level_queues_what_it_may_and_turns_the_rest_away() {
    let service = Service::start(|_, review| {
        let response = json!({"uid": review["request"]["uid"], "allowed": true});
        Some((200, json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})))
    })
    .await;
    let cluster = slow_cluster(&service).await;
    for (user, served) in [("strict", SEATS), ("waits", SEATS + QUEUED)] {
        let begun = Instant::now();
        let answers = burst(&cluster, user).await;
        let count = |code: u16| answers.iter().filter(|(given, _)| *given == code).count();
        assert_eq!(
            (count(201), count(429)),
            (served, AT_ONCE - served),
            "{user}: {answers:?}"
        );
        for (code, after) in &answers {
            assert_eq!(after.as_deref(), (*code == 429).then_some("1"), "{user}");
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{user}");
    }
    // Other levels did not notice.
    crate::get(&cluster.admin(), "/api/v1/namespaces/default/configmaps")
        .await
        .unwrap();
    cluster.stop().await;
}
