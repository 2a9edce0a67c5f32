//! What is noted of credentials beside whose they are, and what reviews answer.

use http::Method;
use keelson_client::{Client, ClientConfig};
use serde_json::{Value, json};

use crate::{Cluster, code, get, post};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// A Secret with a token in it, as the controller fills it.
async fn token_in_secret(admin: &Client, secret: &str) -> String {
    let made = json!({"metadata": {"name": secret, "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token"});
    let mut made = post(admin, SECRETS, made).await.unwrap();
    let bound = json!({"apiVersion": "v1", "kind": "Secret", "name": secret, "uid": made["metadata"]["uid"]});
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"expirationSeconds": 1_i64 << 32, "boundObjectRef": bound}});
    let answer = post(admin, &format!("{ACCOUNTS}/robot/token"), request)
        .await
        .unwrap();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    made["stringData"] = json!({"token": token});
    let path = format!("{SECRETS}/{secret}");
    admin
        .request(Method::PUT, &path, Some(&made))
        .await
        .unwrap();
    token
}

#[tokio::test]
async fn the_use_of_tokens_in_secrets_is_noted_and_can_be_ended() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let tracking = "/api/v1/namespaces/kube-system/configmaps/kube-apiserver-legacy-service-account-token-tracking";
    let since = get(&admin, tracking).await.unwrap()["data"]["since"].clone();
    assert_eq!(since.as_str().unwrap().len(), "2026-01-01".len());
    let account = json!({"metadata": {"name": "robot"}, "secrets": [{"name": "generated"}]});
    post(&admin, ACCOUNTS, account).await.unwrap();
    let client = |token: &str| {
        let config = ClientConfig {
            token: token.to_owned(),
            ..cluster.https()
        };
        Client::https(&config).unwrap()
    };
    for secret in ["generated", "manual"] {
        let token = token_in_secret(&admin, secret).await;
        let request = http::Request::get("/version").body(bytes::Bytes::new());
        let answer = client(&token).call(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        let warned = answer.headers().get("warning");
        let warned = warned.map(|value| value.to_str().unwrap());
        match secret {
            "generated" => assert!(
                warned
                    .unwrap()
                    .contains("auto-generated secret-based tokens")
            ),
            _ => assert_eq!(warned, None),
        }
        let path = format!("{SECRETS}/{secret}");
        let mut kept = get(&admin, &path).await.unwrap();
        // Clocks may pass midnight.
        assert!(kept["metadata"]["labels"][LAST_USED].as_str() >= since.as_str());
        kept["metadata"]["labels"][INVALID_SINCE] = since.clone();
        let invalid = admin.request(Method::PUT, &path, Some(&kept)).await;
        invalid.unwrap();
        assert_eq!(code(&get(&client(&token), "/version").await), 401);
        let review = json!({"spec": {"token": token}});
        let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
        let answer = post(&admin, reviews, review).await.unwrap();
        let error = answer["status"]["error"].as_str().unwrap();
        assert!(error.contains("has been marked invalid"), "{error}");
    }
    let request = http::Request::get("/metrics").body(bytes::Bytes::new());
    let answer = admin.call(request.unwrap()).await.unwrap();
    let metrics = http_body_util::BodyExt::collect(answer.into_body()).await;
    let metrics = String::from_utf8(metrics.unwrap().to_bytes().to_vec()).unwrap();
    for line in [
        "serviceaccount_legacy_tokens_total 6\n",
        "serviceaccount_legacy_auto_token_uses_total 1\n",
        "serviceaccount_legacy_manual_token_uses_total 1\n",
        "serviceaccount_invalid_legacy_auto_token_uses_total 4\n",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_token_that_is_no_longer_in_its_secret_is_none() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let account = json!({"metadata": {"name": "robot"}});
    post(&admin, ACCOUNTS, account).await.unwrap();
    let token = token_in_secret(&admin, "manual").await;
    let path = format!("{SECRETS}/manual");
    let mut kept = get(&admin, &path).await.unwrap();
    kept["stringData"] = json!({"token": "another"});
    admin
        .request(Method::PUT, &path, Some(&kept))
        .await
        .unwrap();
    let config = ClientConfig {
        token,
        ..cluster.https()
    };
    let client = Client::https(&config).unwrap();
    assert_eq!(code(&get(&client, "/version").await), 401);
    cluster.stop().await;
}

#[tokio::test]
async fn who_asks_owns_the_question() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let review =
        json!({"spec": {"user": "x", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews?fieldManager=tester";
    let answer = post(&admin, reviews, review).await.unwrap();
    let owner = &answer["metadata"]["managedFields"][0];
    let owned = json!({"f:spec": {"f:user": {}, "f:resourceAttributes": {".": {}, "f:resource": {}, "f:verb": {}}}});
    assert_eq!(
        (&owner["manager"], &owner["fieldsV1"]),
        (&json!("tester"), &owned)
    );
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let review = json!({"spec": {"namespace": "default"}});
    let answer = post(&admin, rules, review).await.unwrap();
    assert_eq!(
        (&answer["spec"], &answer["metadata"]),
        (&json!({}), &json!({}))
    );
    let review = json!({"spec": {"token": "nobody's"}});
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer: Value = post(&admin, reviews, review).await.unwrap();
    assert_eq!(answer["status"]["error"], "invalid bearer token");
    cluster.stop().await;
}
