//! Workloads reach what their specification asks for.

use keelson_client::Patch;
use serde_json::{Value, json};

use crate::{LOST_PERCENT, World, condition, deployment, template};

fn is_available(deployment: &Value, replicas: u32) -> bool {
    let status = &deployment["status"];
    status["observedGeneration"] == deployment["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"]
            .iter()
            .all(|count| status[count] == replicas)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_to_completion() {
    let world = World::start(1, LOST_PERCENT).await;
    world.namespace("rolls").await;
    let path = "/apis/apps/v1/namespaces/rolls/deployments";
    world.cluster.create(path, deployment("web", 3)).await;
    let path = format!("{path}/web");
    world
        .cluster
        .until(&path, |deployment| is_available(deployment, 3))
        .await;

    let change = Patch::Merge(json!({"spec": {"replicas": 4, "template": template("web", "2")}}));
    world
        .cluster
        .admin()
        .patch_path(&path, &change)
        .await
        .unwrap();
    let done = world
        .cluster
        .until(&path, |deployment| is_available(deployment, 4))
        .await;
    assert_eq!(condition(&done, "Progressing"), "True");
    assert_eq!(condition(&done, "Available"), "True");

    let sets = world
        .items("/apis/apps/v1/namespaces/rolls/replicasets")
        .await;
    let mut replicas: Vec<_> = sets
        .iter()
        .map(|set| set["spec"]["replicas"].as_u64().unwrap())
        .collect();
    replicas.sort_unstable();
    assert_eq!(replicas, [0, 4], "the old set is kept, empty");
    let live = world
        .cluster
        .until("/api/v1/namespaces/rolls/pods", |list| {
            list["items"].as_array().is_some_and(|pods| pods.len() == 4)
        })
        .await;
    for pod in live["items"].as_array().unwrap() {
        let env = &pod["spec"]["containers"][0]["env"][0];
        assert_eq!(env["value"], "2", "a pod of the old template is left");
        assert_eq!(pod["spec"]["nodeName"], "node-1");
    }
    world.cluster.stop().await;
}

fn job(name: &str, code: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {
            "completions": 3, "parallelism": 2, "backoffLimit": 0,
            "template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "main", "image": "img:1", "command": ["exit", code]}],
            }},
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_complete_and_fail() {
    let world = World::start(2, LOST_PERCENT).await;
    world.namespace("work").await;
    let path = "/apis/batch/v1/namespaces/work/jobs";
    world.cluster.create(path, job("good", "0")).await;
    world.cluster.create(path, job("bad", "1")).await;
    let good = world
        .cluster
        .until(&format!("{path}/good"), |job| {
            condition(job, "Complete") == "True"
        })
        .await;
    assert_eq!(
        good["status"]["succeeded"], 3,
        "counted once each: {}",
        good["status"]
    );
    assert!(good["status"]["completionTime"].is_string());
    let bad = world
        .cluster
        .until(&format!("{path}/bad"), |job| {
            condition(job, "Failed") == "True"
        })
        .await;
    let reasons: Vec<_> = bad["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|condition| condition["type"] == "Failed")
        .map(|condition| condition["reason"].as_str().unwrap())
        .collect();
    assert_eq!(reasons, ["BackoffLimitExceeded"]);
    let pods = world.items("/api/v1/namespaces/work/pods").await;
    for pod in pods {
        assert!(
            pod["metadata"]["finalizers"].is_null(),
            "counted pods are let go: {}",
            pod["metadata"]
        );
    }
    world.cluster.stop().await;
}
