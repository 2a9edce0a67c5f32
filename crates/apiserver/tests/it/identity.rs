//! Who a request comes from and what it may do, by services elsewhere: an issuer of tokens, and
//! webhooks for tokens, for authorization and for audit.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use keelson_apiserver::authn::WebhookOptions;
use keelson_client::{Client, ClientConfig, Error};
use serde_json::{Value, json};

use crate::service::{Service, temporary};
use crate::{Cluster, code, get, post};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn written(name: &str, content: &Value) -> PathBuf {
    let file = temporary(name);
    std::fs::write(&file, content.to_string()).unwrap();
    file
}

async fn who(cluster: &Cluster, token: &str) -> Result<Value, Error> {
    let client = Client::https(&ClientConfig {
        token: token.to_owned(),
        ..cluster.https()
    })
    .unwrap();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = post(&client, REVIEWS, review).await?;
    Ok(answer["status"]["userInfo"].clone())
}

/// A key of an issuer.
struct Key {
    id: &'static str,
    pair: rcgen::KeyPair,
}

impl Key {
    fn new(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        Self { id, pair }
    }

    fn public(&self) -> Value {
        let point = self.pair.public_key_raw();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id,
            "x": part(1..33), "y": part(33..65)})
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        let key = EncodingKey::from_ec_pem(self.pair.serialize_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&header, claims, &key).unwrap()
    }
}

#[tokio::test]
async fn tokens_of_an_issuer_become_users_and_its_keys_may_change() {
    let (first, second) = (Key::new("1"), Key::new("2"));
    let keys = Arc::new(Mutex::new(json!({"keys": [first.public()]})));
    let own_url = Arc::new(Mutex::new(String::new()));
    let (served, url) = (Arc::clone(&keys), Arc::clone(&own_url));
    let issuer = Service::start(move |path, _| {
        let url = url.lock().unwrap().clone();
        Some(match path {
            "/.well-known/openid-configuration" => (
                200,
                json!({"issuer": url, "jwks_uri": format!("{url}/keys")}),
            ),
            "/keys" => (200, served.lock().unwrap().clone()),
            _ => (404, Value::Null),
        })
    })
    .await;
    own_url.lock().unwrap().clone_from(&issuer.url);
    let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": issuer.url, "audiences": ["cluster"], "certificateAuthority": issuer.certificate},
            "claimMappings": {
                "username": {"expression": "'corp:' + claims.sub"},
                "groups": {"expression": "claims.roles.filter(r, r != 'secret')"},
                "extra": [{"key": "corp.example/team", "valueExpression": "claims.?team.orValue('none')"}]},
            "claimValidationRules": [{"expression": "claims.tenant == 't'", "message": "another tenant"}],
            "userValidationRules": [{"expression": "!user.username.endsWith('root')", "message": "no roots"}]}]});
    let file = written("authentication", &config);
    let cluster = Cluster::start_with(|config| {
        config.authentication.config_file = Some(file.clone());
    })
    .await;
    let now = jiff::Timestamp::now().as_second();
    let good = json!({"iss": issuer.url, "aud": "cluster", "sub": "jane", "roles": ["dev", "secret"],
        "tenant": "t", "exp": now + 600, "iat": now});
    let jane = who(&cluster, &first.sign(&good)).await.unwrap();
    assert_eq!(jane["username"], "corp:jane");
    assert_eq!(jane["groups"], json!(["dev", "system:authenticated"]));
    assert_eq!(jane["extra"]["corp.example/team"], json!(["none"]));
    for (claim, value) in [
        ("aud", json!("elsewhere")),
        ("exp", json!(now - 1)),
        ("nbf", json!(now + 3600)),
        ("tenant", json!("u")),
        ("sub", json!("root")),
        ("roles", json!(1)),
    ] {
        let mut claims = good.clone();
        claims[claim] = value;
        assert_eq!(
            code(&who(&cluster, &first.sign(&claims)).await),
            401,
            "{claim}"
        );
    }
    // The reason is for whoever may review tokens.
    let mut claims = good.clone();
    claims["tenant"] = json!("u");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": first.sign(&claims)}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = post(&cluster.admin(), path, review).await.unwrap();
    assert_eq!(
        answer["status"]["error"],
        "[invalid bearer token, oidc: error evaluating claim validation expression: validation expression 'claims.tenant == 't'' failed: another tenant]"
    );
    // A key that is new is found, one that was withdrawn is not used for ever, a false one never.
    *keys.lock().unwrap() = json!({"keys": [second.public()]});
    assert_eq!(code(&who(&cluster, &Key::new("1").sign(&good)).await), 401);
    let deadline = Instant::now() + Duration::from_secs(10);
    while who(&cluster, &second.sign(&good)).await.is_err() {
        assert!(Instant::now() < deadline, "the new key is not found");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(code(&who(&cluster, &first.sign(&good)).await), 401);
    cluster.stop().await;
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a_webhook_knows_tokens_and_is_asked_again_while_it_fails() {
    let fails = Arc::new(AtomicUsize::new(2));
    let left = Arc::clone(&fails);
    let service = Service::start(move |_, review| {
        let failing = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if failing.is_ok() {
            return Some((500, Value::Null));
        }
        let status = match review["spec"]["token"].as_str() {
            Some("magic") => json!({"authenticated": true, "user": {"username": "merlin", "groups": ["wizards"]}}),
            _ => json!({"authenticated": false, "error": "no such spell"}),
        };
        Some((200, json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status})))
    })
    .await;
    let file = service.kubeconfig("/tokens");
    let cluster = Cluster::start_with(|config| {
        config.authentication.webhook = Some(WebhookOptions {
            config_file: file.clone(),
            version: "v1".to_owned(),
            cache_ttl: Duration::from_secs(60),
        });
    })
    .await;
    let merlin = who(&cluster, "magic").await.unwrap();
    assert_eq!(merlin["username"], "merlin");
    assert_eq!(merlin["groups"], json!(["wizards", "system:authenticated"]));
    assert_eq!(service.seen().len(), 3, "two failures and an answer");
    who(&cluster, "magic").await.unwrap();
    assert_eq!(service.seen().len(), 3, "an answer is kept");
    assert_eq!(code(&who(&cluster, "muggle").await), 401);
    let (path, review) = service.seen().pop().unwrap();
    assert_eq!(path, "/tokens");
    assert_eq!(review["apiVersion"], "authentication.k8s.io/v1");
    cluster.stop().await;
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn an_authorization_webhook_is_asked_under_its_conditions() {
    let service = Service::start(|_, review| {
        let spec = &review["spec"];
        let status = match (spec["user"].as_str(), spec["resourceAttributes"]["verb"].as_str()) {
            (Some("web-slow"), _) => return None,
            (Some("web-lost"), _) => return Some((404, Value::Null)),
            (_, Some("list")) => json!({"allowed": true}),
            (_, Some("delete")) => json!({"allowed": false, "denied": true, "reason": "never"}),
            _ => json!({"allowed": false}),
        };
        Some((200, json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status})))
    })
    .await;
    let kubeconfig = service.kubeconfig("/authorize");
    let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
        "authorizers": [
            {"type": "Webhook", "name": "web", "webhook": {
                "timeout": "1s", "subjectAccessReviewVersion": "v1",
                "matchConditionSubjectAccessReviewVersion": "v1", "failurePolicy": "NoOpinion",
                "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig},
                "matchConditions": [
                    {"expression": "request.user.startsWith('web-')"},
                    {"expression": "has(request.resourceAttributes)"}]}},
            {"type": "RBAC", "name": "rbac"}]});
    let file = written("authorization", &config);
    let cluster = Cluster::start_with(|config| {
        config.authorization.config_file = Some(file.clone());
    })
    .await;
    let alice = cluster.user("web-alice");
    get(&alice, CONFIG_MAPS).await.unwrap();
    get(&alice, CONFIG_MAPS).await.unwrap();
    assert_eq!(service.seen().len(), 1, "an answer is kept");
    let path = format!("{CONFIG_MAPS}/x");
    let refused: Result<Value, Error> = alice.request(http::Method::DELETE, &path, None).await;
    assert_eq!(code(&refused), 403);
    let Err(Error::Api(status)) = refused else {
        panic!("a status")
    };
    assert!(status.message.ends_with(": never"), "{}", status.message);
    assert_eq!(code(&get(&cluster.user("bob"), CONFIG_MAPS).await), 403);
    get(&alice, "/version").await.unwrap();
    assert_eq!(
        service.seen().len(),
        2,
        "neither bob's question nor one about a path is asked"
    );
    // Without an opinion of a service that does not answer, and nobody else's, the server does
    // not know.
    for user in ["web-slow", "web-lost"] {
        let begun = Instant::now();
        assert_eq!(
            code(&get(&cluster.user(user), CONFIG_MAPS).await),
            500,
            "{user}"
        );
        assert!(begun.elapsed() < Duration::from_secs(5), "{user}");
    }
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "web-lost", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let answer = post(&cluster.admin(), path, review).await.unwrap();
    assert_eq!(answer["status"]["allowed"], false);
    assert!(answer["status"]["evaluationError"].is_string());
    cluster.stop().await;
    for file in [file, kubeconfig] {
        std::fs::remove_file(file).unwrap();
    }
}

#[tokio::test]
async fn an_audit_webhook_gets_what_the_policy_says() {
    let service = Service::start(|_, _| Some((200, json!({})))).await;
    let kubeconfig = service.kubeconfig("/audit");
    let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": ["test-admin"], "resources": [{"group": "", "resources": ["configmaps"]}]},
            {"level": "None"}]});
    let policy = written("audit", &policy);
    let cluster = Cluster::start_with(|config| {
        config.audit.policy_file = Some(policy.clone());
        config.audit.webhook_config_file = Some(kubeconfig.clone());
        config.audit.webhook_batch_max_wait = Some(Duration::from_millis(50));
    })
    .await;
    let admin = cluster.admin();
    get(&admin, CONFIG_MAPS).await.unwrap();
    get(&admin, "/api/v1/namespaces/default/secrets")
        .await
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while service.seen().is_empty() {
        assert!(Instant::now() < deadline, "no events came");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (path, list) = service.seen().pop().unwrap();
    assert_eq!(
        (path.as_str(), list["kind"].as_str()),
        ("/audit", Some("EventList"))
    );
    let events = list["items"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["objectRef"]["resource"], "configmaps");
    assert_eq!(events[0]["stage"], "ResponseComplete");
    cluster.stop().await;
    for file in [policy, kubeconfig] {
        std::fs::remove_file(file).unwrap();
    }
}

#[tokio::test]
async fn impersonation_may_be_for_some_verbs_only() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = |name: &str, rules: Value| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name}, "rules": rules})
    };
    let binding = |role: &str, user: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"generateName": "b-"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]})
    };
    let limited = json!([
        {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["jane"], "verbs": ["impersonate:user-info"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["impersonate-on:user-info:list"]}]);
    post(
        &admin,
        &format!("{rbac}/clusterroles"),
        role("limited", limited),
    )
    .await
    .unwrap();
    for (role, user) in [("limited", "proxy"), ("cluster-admin", "jane")] {
        post(
            &admin,
            &format!("{rbac}/clusterrolebindings"),
            binding(role, user),
        )
        .await
        .unwrap();
    }
    let proxy = cluster.user("proxy");
    let as_user = async |user: &str, path: &str| {
        let request = http::Request::get(path)
            .header("impersonate-user", user)
            .body(bytes::Bytes::new())
            .unwrap();
        let answer = proxy.call(request).await.unwrap();
        let code = answer.status().as_u16();
        let body = http_body_util::BodyExt::collect(answer.into_body())
            .await
            .unwrap();
        let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        (
            code,
            body["message"].as_str().unwrap_or_default().to_owned(),
        )
    };
    assert_eq!(as_user("jane", CONFIG_MAPS).await.0, 200);
    assert_eq!(
        as_user("jane", "/api/v1/namespaces/default/secrets").await,
        (403, r#"secrets is forbidden: User "proxy" cannot impersonate-on:user-info:list resource "secrets" in API group "" in the namespace "default""#.to_owned())
    );
    assert_eq!(
        as_user("joe", CONFIG_MAPS).await,
        (403, r#"users.authentication.k8s.io "joe" is forbidden: User "proxy" cannot impersonate:user-info resource "users" in API group "authentication.k8s.io" at the cluster scope"#.to_owned())
    );
    assert_eq!(
        as_user("system:node:n", CONFIG_MAPS).await,
        (403, r#"configmaps is forbidden: User "proxy" cannot impersonate-on:arbitrary-node:list resource "configmaps" in API group "" in the namespace "default""#.to_owned())
    );
    cluster.stop().await;
}
