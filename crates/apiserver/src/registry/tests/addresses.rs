//! Cluster IPs are claimed by IPAddress objects.

use serde_json::{Value, json};

use super::{Cluster, cluster};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

fn service(name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec["ports"].is_null() {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// The status of a read of the claim, waiting while it is being given back.
async fn claim_becomes(c: &Cluster, address: &str, code: u16) -> bool {
    for _ in 0..200 {
        if c.get(&format!("{ADDRESSES}/{address}")).await.code == code {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    false
}

#[tokio::test]
async fn a_service_owns_the_claim_of_its_address() {
    let c = cluster().await;
    let created = c
        .call(
            "POST",
            SERVICES,
            service("a", json!({"clusterIP": "10.96.0.7"})),
        )
        .await;
    assert_eq!(created.code, 201, "{}", created.body);
    let claim = c.get(&format!("{ADDRESSES}/10.96.0.7")).await.body;
    assert_eq!(
        claim["spec"]["parentRef"],
        json!({"resource": "services", "namespace": "default", "name": "a"})
    );
    assert_eq!(
        claim["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"],
        "ipallocator.k8s.io"
    );
    assert_eq!(
        claim["metadata"]["labels"]["ipaddress.kubernetes.io/ip-family"],
        "IPv4"
    );
    let body = service("a", json!({"type": "ExternalName", "externalName": "x.y"}));
    let external = c.call("PUT", &format!("{SERVICES}/a"), body).await;
    assert_eq!(external.code, 200, "{}", external.body);
    assert_eq!(c.get(&format!("{ADDRESSES}/10.96.0.7")).await.code, 404);
    let back = c
        .call(
            "PUT",
            &format!("{SERVICES}/a"),
            service("a", json!({"clusterIP": "10.96.0.7"})),
        )
        .await;
    assert_eq!(back.code, 200, "{}", back.body);
    assert_eq!(c.get(&format!("{ADDRESSES}/10.96.0.7")).await.code, 200);
    c.call("DELETE", &format!("{SERVICES}/a"), Value::Null)
        .await;
    assert_eq!(c.get(&format!("{ADDRESSES}/10.96.0.7")).await.code, 404);
}

#[tokio::test]
async fn claims_of_others_hold_and_refused_writes_claim_nothing() {
    let c = cluster().await;
    let foreign = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": "10.96.0.9"},
        "spec": {"parentRef": {"group": "example.com", "resource": "gateways", "name": "g"}}});
    assert_eq!(c.call("POST", ADDRESSES, foreign).await.code, 201);
    let refused = c
        .call(
            "POST",
            SERVICES,
            service("b", json!({"clusterIP": "10.96.0.9"})),
        )
        .await;
    let message = refused.body["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("failed to allocate IP 10.96.0.9: provided IP is already allocated"),
        "{message}"
    );
    let dry = c
        .call(
            "POST",
            &format!("{SERVICES}?dryRun=All"),
            service("d", json!({"clusterIP": "10.96.0.10"})),
        )
        .await;
    assert_eq!(dry.code, 201, "{}", dry.body);
    assert_eq!(c.get(&format!("{ADDRESSES}/10.96.0.10")).await.code, 404);
    let bad = json!({"clusterIP": "10.96.0.11", "ports": [{"port": 0}]});
    assert_eq!(c.call("POST", SERVICES, service("e", bad)).await.code, 422);
    assert!(claim_becomes(&c, "10.96.0.11", 404).await);
}

#[tokio::test]
async fn further_ranges_serve_and_node_ports_are_one_pool() {
    let c = cluster().await;
    let wanted = service("f", json!({"clusterIP": "10.250.0.5"}));
    assert_eq!(c.call("POST", SERVICES, wanted.clone()).await.code, 422);
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "more"}, "spec": {"cidrs": ["10.250.0.0/24"]}});
    let path = "/apis/networking.k8s.io/v1/servicecidrs";
    assert_eq!(c.call("POST", path, range).await.code, 201);
    assert_eq!(c.call("POST", SERVICES, wanted).await.code, 201);
    let port = |protocol: &str| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080, "protocol": protocol}]});
    let first = c.call("POST", SERVICES, service("t", port("TCP"))).await;
    assert_eq!(first.code, 201, "{}", first.body);
    let second = c.call("POST", SERVICES, service("u", port("UDP"))).await;
    assert_eq!(second.code, 422, "{}", second.body);
    let both = json!({"type": "NodePort", "ports": [
        {"name": "t", "port": 53, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP"}]});
    let ports = c.call("POST", SERVICES, service("dns", both)).await.body["spec"]["ports"].clone();
    assert_eq!(ports[0]["nodePort"], ports[1]["nodePort"], "{ports}");
}

#[tokio::test]
async fn a_lost_claim_is_made_again_and_told() {
    let c = cluster().await;
    c.call(
        "POST",
        SERVICES,
        service("g", json!({"clusterIP": "10.96.0.12"})),
    )
    .await;
    let claim = format!("{ADDRESSES}/10.96.0.12");
    assert_eq!(c.call("DELETE", &claim, Value::Null).await.code, 200);
    c.registry.repair_addresses().await.unwrap();
    assert_eq!(c.get(&claim).await.code, 200);
    let events = c.get("/api/v1/namespaces/default/events").await.body;
    assert_eq!(
        events["items"][0]["reason"], "ClusterIPNotAllocated",
        "{events}"
    );
}
