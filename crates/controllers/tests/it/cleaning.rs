//! What is deleted goes with everything that hangs on it, and nothing else.

use serde_json::{Value, json};

use crate::{LOST_PERCENT, World, deployment};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/shop/deployments";
const REPLICA_SETS: &str = "/apis/apps/v1/namespaces/shop/replicasets";
const PODS: &str = "/api/v1/namespaces/shop/pods";

async fn running_deployment(world: &World, name: &str) {
    world.cluster.create(DEPLOYMENTS, deployment(name, 2)).await;
    world
        .cluster
        .until(&format!("{DEPLOYMENTS}/{name}"), |deployment| {
            deployment["status"]["availableReplicas"] == 2
        })
        .await;
}

fn is_empty(list: &Value) -> bool {
    list["items"].as_array().is_some_and(Vec::is_empty)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_empties() {
    // One round asks for every group and sweeps every resource, and only a round without any loss
    // may let the namespace go.
    let world = World::start(3, 1).await;
    world.namespace("shop").await;
    running_deployment(&world, "web").await;
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    world
        .cluster
        .create("/api/v1/namespaces/shop/configmaps", config)
        .await;
    world.namespace("kept").await;
    world.delete("/api/v1/namespaces/shop", "Background").await;
    world.cluster.until_gone("/api/v1/namespaces/shop").await;
    for path in [
        DEPLOYMENTS,
        REPLICA_SETS,
        PODS,
        "/api/v1/namespaces/shop/configmaps",
        "/api/v1/namespaces/shop/serviceaccounts",
    ] {
        assert!(world.items(path).await.is_empty(), "{path} is not empty");
    }
    let kept = "/api/v1/namespaces/kept/serviceaccounts/default";
    assert!(world.cluster.get(kept).await.is_ok());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while world.runtime.counts() != (0, 0) {
        assert!(
            std::time::Instant::now() < deadline,
            "the node still holds {:?} sandboxes and containers",
            world.runtime.counts()
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_follow_the_propagation_policy() {
    let world = World::start(4, LOST_PERCENT).await;
    world.namespace("shop").await;

    running_deployment(&world, "orphaned").await;
    world
        .delete(&format!("{DEPLOYMENTS}/orphaned"), "Orphan")
        .await;
    world
        .cluster
        .until_gone(&format!("{DEPLOYMENTS}/orphaned"))
        .await;
    let sets = world.items(REPLICA_SETS).await;
    assert_eq!(sets.len(), 1, "an orphan stays");
    assert!(sets[0]["metadata"]["ownerReferences"].is_null());
    assert_eq!(world.items(PODS).await.len(), 2);
    let set = sets[0]["metadata"]["name"].as_str().unwrap();

    world
        .delete(&format!("{REPLICA_SETS}/{set}"), "Foreground")
        .await;
    world
        .cluster
        .until_gone(&format!("{REPLICA_SETS}/{set}"))
        .await;
    assert!(
        world.items(PODS).await.is_empty(),
        "in the foreground the owner goes last"
    );

    running_deployment(&world, "gone").await;
    world
        .delete(&format!("{DEPLOYMENTS}/gone"), "Background")
        .await;
    world.cluster.until(REPLICA_SETS, is_empty).await;
    world.cluster.until(PODS, is_empty).await;
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_counts_itself_and_gives_back_what_is_deleted() {
    let world = World::start(6, 0).await;
    let used = |count: &'static str| {
        move |quota: &Value| quota["status"]["used"]["resourcequotas"] == count
    };
    let quota = |name: &str| {
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name},
            "spec": {"hard": {"resourcequotas": "5", "configmaps": "5"}}})
    };
    // Several, because a count that is late by one event is right most of the time.
    for index in 0..8 {
        let namespace = format!("team-{index}");
        world.namespace(&namespace).await;
        let quotas = format!("/api/v1/namespaces/{namespace}/resourcequotas");
        world.cluster.create(&quotas, quota("one")).await;
        world
            .cluster
            .until(&format!("{quotas}/one"), used("1"))
            .await;
    }
    let quotas = "/api/v1/namespaces/team-0/resourcequotas";
    world.cluster.create(quotas, quota("two")).await;
    for name in ["one", "two"] {
        let path = format!("{quotas}/{name}");
        world.cluster.until(&path, used("2")).await;
    }
    world.delete(&format!("{quotas}/one"), "Background").await;
    world
        .cluster
        .until(&format!("{quotas}/two"), used("1"))
        .await;
    world.cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_in_another_namespace_is_told_of() {
    let world = World::start(5, 0).await;
    for namespace in ["shop", "elsewhere"] {
        world.namespace(namespace).await;
    }
    let map = |name: &str, owners: Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "ownerReferences": owners}})
    };
    let maps = |namespace: &str| format!("/api/v1/namespaces/{namespace}/configmaps");
    let owner = world
        .cluster
        .create(&maps("elsewhere"), map("owner", json!([])))
        .await;
    let uid = owner["metadata"]["uid"].as_str().unwrap();
    let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]);
    world
        .cluster
        .create(&maps("shop"), map("dependent", reference))
        .await;
    world
        .cluster
        .until_gone(&format!("{}/dependent", maps("shop")))
        .await;
    let events = world
        .cluster
        .until("/api/v1/namespaces/shop/events", |list| {
            let items = list["items"].as_array().into_iter().flatten();
            items
                .clone()
                .any(|event| event["reason"] == "OwnerRefInvalidNamespace")
        })
        .await;
    let items = events["items"].as_array().unwrap();
    let event = items
        .iter()
        .find(|e| e["reason"] == "OwnerRefInvalidNamespace")
        .unwrap();
    let said = format!(
        "ownerRef [v1/ConfigMap, namespace: shop, name: owner, uid: {uid}] does not exist in namespace \"shop\""
    );
    assert_eq!(
        (&event["type"], &event["message"]),
        (&json!("Warning"), &json!(said))
    );
    world.cluster.stop().await;
}
