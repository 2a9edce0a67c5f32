//! Services, by every way to reach them.

use serde_json::{Value, json};

use crate::lab::Namespace;

pub(super) fn services(ns: &Namespace<'_>) {
    ns.kubectl(&[
        "create",
        "deployment",
        "hello",
        "--image=localhost/keelson/hello",
        "--replicas=2",
    ]);
    ns.kubectl(&[
        "expose",
        "deployment",
        "hello",
        "--type=NodePort",
        "--port=80",
        "--target-port=8080",
    ]);
    ns.apply(&ns.pod("client", &["sleep", "3600"], json!({})));
    ns.kubectl(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    ns.wait_ready("client");
    let namespace = &ns.name;
    let service = ns.get("service/hello");
    let cluster_ip = service["spec"]["clusterIP"].as_str().unwrap();
    for host in [
        "hello",
        &format!("hello.{namespace}"),
        &format!("hello.{namespace}.svc.cluster.local"),
        cluster_ip,
    ] {
        let url = format!("http://{host}/");
        ns.until(&format!("an answer of {url}"), || {
            ns.raw(&["exec", "client", "--", "/hello", "get", &url], "")
                .ok()
        });
    }
    let node_port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let url = format!("http://127.0.0.1:{node_port}/");
    ns.until("the node port", || {
        ns.lab.hello(&["get", &url]).status.success().then_some(())
    });
    udp(ns);
    ns.kubectl(&["scale", "deployment/hello", "--replicas=0"]);
    ns.until("no endpoints", || {
        let slices = ns.get("endpointslices");
        let of_hello =
            |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "hello";
        let slices = slices["items"].as_array().unwrap();
        slices
            .iter()
            .filter(of_hello)
            .all(|slice| slice["endpoints"].as_array().is_none_or(Vec::is_empty))
            .then_some(())
    });
    let refused = ns.kubectl_fails(&[
        "exec",
        "client",
        "--",
        "/hello",
        "get",
        &format!("http://{cluster_ip}/"),
    ]);
    assert!(refused.contains("refused"), "{refused}");
}

fn udp(ns: &Namespace<'_>) {
    ns.apply(&ns.pod("udp", &["udp-serve", "9000"], json!({})));
    ns.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "udp"},
        "spec": {"selector": {"app": "udp"}, "ports": [{"port": 53, "targetPort": 9000, "protocol": "UDP"}]},
    }));
    ns.wait_ready("udp");
    let answer = ns.until("an answer over UDP", || {
        ns.raw(
            &["exec", "client", "--", "/hello", "udp", "udp", "53", "ping"],
            "",
        )
        .ok()
    });
    assert!(answer.contains("ping"), "{answer}");
}
