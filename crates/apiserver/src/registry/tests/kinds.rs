//! Subresources and what single kinds have of their own.

use super::*;

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
async fn a_client_may_give_a_pod_more_time_than_the_pod_asks_for() {
    let c = cluster().await;
    let pods = "/api/v1/namespaces/default/pods";
    let mut hasty = pod("hasty");
    hasty["spec"]["terminationGracePeriodSeconds"] = json!(0);
    hasty["spec"]["nodeName"] = json!("n1");
    c.call("POST", pods, hasty).await;
    let path = format!("{pods}/hasty");
    let marked = c
        .call(
            "DELETE",
            &format!("{path}?gracePeriodSeconds=60"),
            Value::Null,
        )
        .await;
    assert_eq!(marked.code, 200, "{}", marked.body);
    let read = c.get(&path).await;
    assert_eq!(read.body["metadata"]["deletionGracePeriodSeconds"], 60);
    assert_eq!(read.body["metadata"]["generation"], 2);
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
            .contains("the provided network does not match the current range")
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
