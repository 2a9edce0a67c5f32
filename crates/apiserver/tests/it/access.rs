//! RBAC, reviews, tokens and impersonation.

use keelson_client::{Client, ClientConfig};
use serde_json::json;

use crate::{Cluster, code, get, post};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

#[tokio::test]
async fn a_binding_gives_what_its_role_says_and_no_more() {
    let cluster = Cluster::start().await;
    let (admin, alice) = (cluster.admin(), cluster.user("alice"));
    let refused = get(&alice, "/api/v1/namespaces/default/configmaps").await;
    assert_eq!(code(&refused), 403);
    let keelson_client::Error::Api(status) = refused.unwrap_err() else {
        panic!("a status")
    };
    assert_eq!(
        status.message,
        r#"configmaps is forbidden: User "alice" cannot list resource "configmaps" in API group "" in the namespace "default""#
    );
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"}],
    });
    post(
        &admin,
        &format!("{RBAC}/namespaces/default/rolebindings"),
        binding,
    )
    .await
    .unwrap();
    get(&alice, "/api/v1/namespaces/default/configmaps")
        .await
        .unwrap();
    assert_eq!(
        code(&get(&alice, "/api/v1/namespaces/kube-system/configmaps").await),
        403
    );
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"namespace": "default", "verb": "list", "resource": "pods"}}});
    let answer = post(
        &alice,
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        review,
    )
    .await
    .unwrap();
    assert_eq!(answer["status"]["allowed"], true);
    cluster.stop().await;
}

#[tokio::test]
async fn a_requested_token_authenticates_until_its_account_is_gone() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    post(
        &admin,
        "/api/v1/namespaces/default/serviceaccounts",
        account,
    )
    .await
    .unwrap();
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let path = "/api/v1/namespaces/default/serviceaccounts/robot";
    let answer = post(&admin, &format!("{path}/token"), request)
        .await
        .unwrap();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let robot = Client::https(&ClientConfig {
        token,
        ..cluster.https()
    })
    .unwrap();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let who = post(
        &robot,
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        review.clone(),
    )
    .await
    .unwrap();
    assert_eq!(
        who["status"]["userInfo"]["username"],
        "system:serviceaccount:default:robot"
    );
    admin
        .request(http::Method::DELETE, path, None)
        .await
        .unwrap();
    let after = post(
        &robot,
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        review,
    )
    .await;
    assert_eq!(code(&after), 401);
    cluster.stop().await;
}

#[tokio::test]
async fn nobody_grants_what_he_does_not_hold() {
    let cluster = Cluster::start().await;
    let (admin, bob) = (cluster.admin(), cluster.user("bob"));
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "bob"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}],
    });
    post(&admin, &format!("{RBAC}/clusterrolebindings"), binding)
        .await
        .unwrap();
    let role = |resources: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"generateName": "r-"},
            "rules": [{"apiGroups": [""], "resources": [resources], "verbs": ["get"]}],
        })
    };
    let roles = format!("{RBAC}/namespaces/default/roles");
    post(&bob, &roles, role("pods")).await.unwrap();
    assert_eq!(code(&post(&bob, &roles, role("nodes")).await), 403);
    cluster.stop().await;
}

#[tokio::test]
async fn a_snapshot_is_for_administrators_by_certificate_alone() {
    use http_body_util::BodyExt;
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "almighty"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "almighty"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    post(&admin, bindings, binding).await.unwrap();
    let ask = async |client: &Client| {
        let request = http::Request::get("/keelson/snapshot").body(bytes::Bytes::new());
        let answer = client.call(request.unwrap()).await.unwrap();
        let code = answer.status().as_u16();
        (code, answer.into_body().collect().await.unwrap().to_bytes())
    };
    assert_eq!(ask(&cluster.user("nobody")).await.0, 403);
    assert_eq!(ask(&cluster.user("almighty")).await.0, 403);
    let (code, bytes) = ask(&admin).await;
    assert_eq!(code, 200);
    let file = cluster.file("snapshot");
    std::fs::write(&file, bytes).unwrap();
    let summary = keelson_store::snapshot::verify(&file).unwrap();
    assert!(summary.keys > 50, "{summary:?}");
    cluster.stop().await;
}
