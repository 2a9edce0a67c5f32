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
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !cluster.server.is_ready() {
        assert!(
            std::time::Instant::now() < deadline,
            "the server does not become ready"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_malformed_time_limit_is_refused_in_upstreams_words() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for (path, said) in [
        (
            "/api/v1/pods?timeout=invalid",
            "time: invalid duration \"invalid\"",
        ),
        ("/version?timeout=5", "time: missing unit in duration \"5\""),
    ] {
        let Err(keelson_client::Error::Api(status)) = get(&client, path).await else {
            panic!("{path} is taken");
        };
        let expected = format!("invalid timeout specified in the request URL - {said}");
        assert_eq!((status.code, status.message), (400, expected));
    }
    // None, or as long as the server pleases.
    for path in [
        "/api/v1/pods?timeout=",
        "/api/v1/pods?timeout=-5s",
        "/api/v1/pods?timeout=1h",
    ] {
        get(&client, path).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test]
async fn components_are_told_as_they_are() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = "/api/v1/componentstatuses";
    let scheduler = cluster.server.component("scheduler");
    let list = get(&client, path).await.unwrap();
    let told: Vec<(String, String)> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            (
                text(&item["metadata"]["name"]),
                text(&item["conditions"][0]["status"]),
            )
        })
        .collect();
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["controller-manager", "scheduler", "etcd-0"]);
    assert_eq!(told[1].1, "True");
    assert_eq!(told[2].1, "True");
    scheduler.store(false, std::sync::atomic::Ordering::Relaxed);
    let one = get(&client, &format!("{path}/scheduler")).await.unwrap();
    assert_eq!(one["conditions"][0]["status"], "False");
    let Err(keelson_client::Error::Api(status)) = get(&client, &format!("{path}/etcd-1")).await
    else {
        panic!("there is no etcd-1");
    };
    assert_eq!(status.message, "componentstatus \"etcd-1\" not found");
    cluster.stop().await;
}

#[tokio::test]
async fn health_lists_the_checks_that_tools_look_for() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while client
        .raw(http::Method::GET, "/readyz", None, None, "")
        .await
        .is_err()
    {
        assert!(
            std::time::Instant::now() < deadline,
            "the server does not become ready"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for (endpoint, count, only_here) in [
        ("healthz", 35, "loopback-serving-certificate"),
        ("livez", 35, "loopback-serving-certificate"),
        ("readyz", 37, "shutdown"),
    ] {
        let answer = client
            .raw(
                http::Method::GET,
                &format!("/{endpoint}?verbose"),
                None,
                None,
                "",
            )
            .await
            .unwrap();
        let body = http_body_util::BodyExt::collect(answer.into_body())
            .await
            .unwrap();
        let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        let checks = text.lines().filter(|line| line.starts_with("[+]"));
        assert_eq!(checks.count(), count, "{text}");
        for name in [
            "etcd",
            "autoregister-completion",
            "poststarthook/crd-informer-synced",
            only_here,
        ] {
            assert!(text.contains(&format!("[+]{name} ok\n")), "{name}: {text}");
        }
        assert!(
            text.ends_with(&format!("{endpoint} check passed\n")),
            "{text}"
        );
    }
    cluster.stop().await;
}
