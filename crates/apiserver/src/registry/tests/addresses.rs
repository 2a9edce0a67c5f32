//! Cluster IPs are claimed by IPAddress objects.

use std::collections::HashSet;

use futures::future::join_all;
use keelson_store::Expect;
use serde_json::{Value, json};

use super::{Cluster, cluster, cluster_over, server_over};
use crate::objects::Objects;
use crate::registry::Suspects;
use crate::registry::service_claim::port_key;

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
    c.registry
        .repair_services(&mut Suspects::default())
        .await
        .unwrap();
    assert_eq!(c.get(&claim).await.code, 200);
    let events = c.get("/api/v1/namespaces/default/events").await.body;
    assert_eq!(
        events["items"][0]["reason"], "ClusterIPNotAllocated",
        "{events}"
    );
}

fn node_port(name: &str, port: u16) -> Value {
    service(
        name,
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}),
    )
}

#[tokio::test]
async fn two_servers_on_one_store_never_give_out_the_same() {
    let store = keelson_testkit_etcd::store().await;
    let a = cluster_over(std::sync::Arc::clone(&store)).await;
    let b = server_over(store).await;
    let servers = [&a, &b];
    let creations = (0..40).map(|i| {
        let body = service(&format!("s{i}"), json!({"type": "NodePort"}));
        servers[i % 2].call("POST", SERVICES, body)
    });
    let (mut ports, mut addresses) = (HashSet::new(), HashSet::new());
    for created in join_all(creations).await {
        assert_eq!(created.code, 201, "{}", created.body);
        let spec = &created.body["spec"];
        assert!(
            ports.insert(spec["ports"][0]["nodePort"].to_string()),
            "{spec}"
        );
        assert!(addresses.insert(spec["clusterIP"].to_string()), "{spec}");
    }
    // Of those who ask for one number, one gets it, and when it is gone another.
    let asking =
        (0..6).map(|i| servers[i % 2].call("POST", SERVICES, node_port(&format!("n{i}"), 30050)));
    let answers = join_all(asking).await;
    let refused = answers.iter().filter(|answer| {
        let text = answer.body["message"].as_str().unwrap_or_default();
        answer.code == 422
            && text.contains(
                "spec.ports[0].nodePort: Invalid value: 30050: provided port is already allocated",
            )
    });
    assert_eq!(refused.count(), 5);
    let winner = answers.iter().find(|answer| answer.code == 201).unwrap();
    let name = winner.body["metadata"]["name"].as_str().unwrap();
    let path = format!("{SERVICES}/{name}");
    assert_eq!(b.call("DELETE", &path, Value::Null).await.code, 200);
    assert_eq!(
        a.call("POST", SERVICES, node_port("next", 30050))
            .await
            .code,
        201
    );
    // A Service that moves to another port leaves its own to others.
    let moved = a
        .call("PUT", &format!("{SERVICES}/next"), node_port("next", 30098))
        .await;
    assert_eq!(moved.code, 200, "{}", moved.body);
    assert_eq!(
        b.call("POST", SERVICES, node_port("after", 30050))
            .await
            .code,
        201
    );
}

#[tokio::test]
async fn lost_and_leaked_claims_of_ports_are_mended() {
    let c = cluster().await;
    for (name, port) in [("p", 30070), ("q", 30071)] {
        assert_eq!(
            c.call("POST", SERVICES, node_port(name, port)).await.code,
            201
        );
    }
    let store = c.registry.store();
    let (lost, leaked) = (port_key(30070), port_key(30072));
    store.delete(&lost, Expect::Any).await.unwrap();
    let value = keelson_store::Value {
        bytes: "default/gone".into(),
        stamp_at: None,
    };
    store.put(&leaked, value, Expect::Absent).await.unwrap();
    let mut suspects = Suspects::default();
    c.registry.repair_services(&mut suspects).await.unwrap();
    assert!(store.get(&lost, 0).await.unwrap().is_some());
    // It may belong to a Service that is just being written.
    assert!(store.get(&leaked, 0).await.unwrap().is_some());
    assert_eq!(
        c.call("POST", SERVICES, node_port("r", 30072)).await.code,
        422
    );
    c.registry.repair_services(&mut suspects).await.unwrap();
    assert_eq!(
        c.call("POST", SERVICES, node_port("r", 30072)).await.code,
        201
    );
    c.registry.repair_services(&mut suspects).await.unwrap();
    let events = c.get("/api/v1/namespaces/default/events").await.body;
    let events = events["items"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["reason"], "PortNotAllocated");
    assert_eq!(
        events[0]["message"],
        "Port 30070 is not allocated; repairing"
    );
}

#[tokio::test]
async fn ranges_that_are_not_ready_or_going_give_nothing() {
    let c = cluster().await;
    let path = "/apis/networking.k8s.io/v1/servicecidrs";
    let range = |name: &str, cidr: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": name, "finalizers": ["example.com/f"]}, "spec": {"cidrs": [cidr]}})
    };
    let mut more = c
        .call("POST", path, range("more", "10.250.0.0/24"))
        .await
        .body;
    let wanted =
        |name: &str, ip: &str| c.call("POST", SERVICES, service(name, json!({"clusterIP": ip})));
    assert_eq!(wanted("a", "10.250.0.5").await.code, 201);
    more["status"] = json!({"conditions": [{"type": "Ready", "status": "False", "reason": "R",
        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let told = c.call("PUT", &format!("{path}/more/status"), more).await;
    assert_eq!(told.code, 200, "{}", told.body);
    let refused = wanted("b", "10.250.0.6").await;
    let text = refused.body["message"].as_str().unwrap();
    let reason =
        "failed to allocate IP 10.250.0.6: the provided network does not match the current range";
    assert!(text.contains(reason), "{text}");
    let none = c.call("POST", SERVICES, service("b", json!({}))).await;
    assert_eq!(
        none.body["message"],
        "Internal error occurred: failed to allocate a serviceIP for Service \"b\": range is full"
    );
    // One ready range of those that have the address is enough, until it is to go.
    assert_eq!(
        c.call("POST", path, range("same", "10.250.0.0/25"))
            .await
            .code,
        201
    );
    assert_eq!(wanted("b", "10.250.0.6").await.code, 201);
    c.call("DELETE", &format!("{path}/same"), Value::Null).await;
    assert_eq!(wanted("d", "10.250.0.7").await.code, 422);
    assert_eq!(c.registry.count("networking.k8s.io", "servicecidrs", ""), 2);
}
