//! HTTPS, authentication, discovery and the documents.

use keelson_client::{Client, ClientConfig};

use crate::{Cluster, code, get};

#[tokio::test]
async fn certificates_tokens_and_strangers_are_told_apart() {
    let cluster = Cluster::start().await;
    let admin = cluster.server.pki().admin().unwrap();
    let config = ClientConfig {
        client_certificate: admin.certificate_pem.into_bytes(),
        client_key: admin.key_pem.into_bytes(),
        ..cluster.https()
    };
    let client = Client::https(&config).unwrap();
    let namespaces = get(&client, "/api/v1/namespaces").await.unwrap();
    let names: Vec<_> = namespaces["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["metadata"]["name"].clone())
        .collect();
    assert_eq!(
        names,
        ["default", "kube-node-lease", "kube-public", "kube-system"]
    );

    let stranger = Client::https(&cluster.https()).unwrap();
    assert_eq!(
        get(&stranger, "/version").await.unwrap()["gitVersion"],
        "v1.36.2"
    );
    assert_eq!(code(&get(&stranger, "/api/v1/namespaces").await), 403);

    let liar = ClientConfig {
        token: "not-a-token".to_owned(),
        ..cluster.https()
    };
    let liar = Client::https(&liar).unwrap();
    assert_eq!(code(&get(&liar, "/version").await), 401);
    cluster.stop().await;
}

#[tokio::test]
async fn discovery_and_openapi_name_what_is_served() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let groups = get(&client, "/apis").await.unwrap();
    assert!(
        groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .any(|g| g["name"] == "apps")
    );
    let core = get(&client, "/api/v1").await.unwrap();
    assert!(
        core["resources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["name"] == "pods/exec")
    );
    let index = get(&client, "/openapi/v3").await.unwrap();
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap()
        .to_owned();
    let apps = get(&client, &url).await.unwrap();
    assert!(
        apps["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
            .is_object()
    );
    let patch = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert!(
        patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .any(|p| p["name"] == "fieldValidation")
    );
    let everything = get(&client, "/openapi/v2").await.unwrap();
    assert!(everything["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    assert_eq!(code(&get(&client, "/apis/none.example.com/v1").await), 404);
    cluster.stop().await;
}

#[tokio::test]
async fn the_kubernetes_service_leads_to_the_server() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let service = get(&client, "/api/v1/namespaces/default/services/kubernetes")
        .await
        .unwrap();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let slice = get(
        &client,
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
    )
    .await
    .unwrap();
    assert_eq!(slice["ports"][0]["port"], cluster.port);
    assert!(cluster.server.is_ready());
    cluster.stop().await;
}
