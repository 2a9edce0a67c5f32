//! Lives of pods.

use std::time::Duration;

use serde_json::json;

use crate::{Fixture, condition};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_registers_with_status_and_lease() {
    let fixture = Fixture::start();
    let node = fixture
        .until("/api/v1/nodes/n1", |node| {
            condition(node, "Ready") == "True"
        })
        .await;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], "v1.36.2");
    assert_eq!(node["status"]["capacity"]["pods"], "110");
    assert_eq!(condition(&node, "MemoryPressure"), "False");
    // What others wrote while the node was out of reach is put right.
    fixture.api.edit("/api/v1/nodes/n1", |node| {
        for condition in node["status"]["conditions"].as_array_mut().unwrap() {
            condition["status"] = "Unknown".into();
        }
    });
    fixture
        .until("/api/v1/nodes/n1", |node| {
            condition(node, "Ready") == "True"
        })
        .await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    fixture
        .until(lease, |lease| lease["spec"]["holderIdentity"] == "n1")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_becomes_ready_restarts_and_is_deleted() {
    let fixture = Fixture::start();
    let path = fixture.create("web", json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "c", "image": "img:1"}]}));
    let pod = fixture
        .until(&path, |pod| condition(pod, "Ready") == "True")
        .await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "127.0.0.1");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(
        (status["restartCount"].as_i64(), status["imageID"].as_str()),
        (Some(0), Some("img@sha256:2"))
    );

    fixture
        .runtime
        .end(&fixture.runtime.running("c").unwrap(), 3);
    let pod = fixture
        .until(&path, |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1
                && condition(pod, "Ready") == "True"
        })
        .await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"],
        3
    );

    // The second failure waits out its back-off.
    fixture
        .runtime
        .end(&fixture.runtime.running("c").unwrap(), 4);
    let pod = fixture
        .until(&path, |pod| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                == "CrashLoopBackOff"
        })
        .await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"],
        4
    );
    fixture
        .until_true("the event", || {
            fixture.api.events().contains(&"BackOff".to_owned())
        })
        .await;

    fixture.api.edit(&path, |pod| {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 5.into();
    });
    fixture
        .until_true("the deletion", || fixture.api.get(&path).is_none())
        .await;
    let deletions = fixture.api.requests("DELETE", &path);
    assert_eq!(
        (
            &deletions[0]["gracePeriodSeconds"],
            &deletions[0]["preconditions"]["uid"]
        ),
        (&json!(0), &json!("uid-web"))
    );
    fixture
        .until_true("the runtime to be empty", || {
            fixture.runtime.counts() == (0, 0)
        })
        .await;
    fixture
        .until_true("the directory to go", || {
            !fixture.dir.join("pods/uid-web").exists()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletion_gives_the_process_its_grace_period() {
    let fixture = Fixture::start();
    let path = fixture.create(
        "slow",
        json!({"containers": [{"name": "c", "image": "img:1"}]}),
    );
    fixture
        .until(&path, |pod| condition(pod, "Ready") == "True")
        .await;
    let id = fixture.runtime.running("c").unwrap();
    fixture.api.edit(&path, |pod| {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 9.into();
    });
    fixture
        .until_true("the deletion", || fixture.api.get(&path).is_none())
        .await;
    let grace = fixture.runtime.stopped_with(&id).unwrap();
    assert!(
        grace > Duration::from_secs(7) && grace <= Duration::from_secs(9),
        "{grace:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_finds_its_containers_and_counts_no_restart() {
    let mut fixture = Fixture::start();
    let path = fixture.create(
        "stay",
        json!({"containers": [{"name": "c", "image": "img:1"}]}),
    );
    fixture
        .until(&path, |pod| condition(pod, "Ready") == "True")
        .await;
    let id = fixture.runtime.running("c").unwrap();
    fixture.restart().await;
    fixture.api.edit(&path, |pod| {
        pod["metadata"]["labels"]["seen"] = "yes".into()
    });
    // Something only the new agent can do.
    fixture.runtime.end(&id, 1);
    let pod = fixture
        .until(&path, |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1
                && condition(pod, "Ready") == "True"
        })
        .await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["containerID"],
        format!("keelson://{id}")
    );
    assert_eq!(fixture.runtime.counts(), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_containers_then_completion() {
    let fixture = Fixture::start();
    let path = fixture.create(
        "job",
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "img:1"}], "containers": [{"name": "c", "image": "img:1"}]}),
    );
    let pod = fixture
        .until(&path, |pod| {
            pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object()
        })
        .await;
    assert_eq!(pod["status"]["phase"], "Pending");
    assert!(fixture.runtime.running("c").is_none());
    fixture
        .runtime
        .end(&fixture.runtime.running("i").unwrap(), 0);
    fixture
        .until(&path, |pod| condition(pod, "Ready") == "True")
        .await;
    fixture
        .runtime
        .end(&fixture.runtime.running("c").unwrap(), 0);
    let pod = fixture
        .until(&path, |pod| pod["status"]["phase"] == "Succeeded")
        .await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    // What ran stays for its logs.
    assert_eq!(fixture.runtime.counts(), (1, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_and_environment_follow_their_objects() {
    let fixture = Fixture::start();
    let map = "/api/v1/namespaces/ns/configmaps/m";
    let path = fixture.create("conf", json!({"serviceAccountName": "sa",
        "volumes": [
            {"name": "v", "configMap": {"name": "m"}},
            {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
        "containers": [{"name": "c", "image": "img:1", "env": [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "t", "mountPath": "/t"}]}]}));
    fixture
        .until_true("the failed mount", || {
            fixture.api.events().contains(&"FailedMount".to_owned())
        })
        .await;
    fixture.api.put(map, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "ns"}, "data": {"k": "1"}}));
    fixture
        .until(&path, |pod| condition(pod, "Ready") == "True")
        .await;
    let config = fixture.runtime.config("c").unwrap();
    assert!(
        config.env.contains(&("K".into(), "1".into())),
        "{:?}",
        config.env
    );
    let host = |at: &str| {
        config
            .mounts
            .iter()
            .find(|m| m.container_path.to_str() == Some(at))
            .unwrap()
            .host_path
            .clone()
    };
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(read(host("/v").join("k")), "1");
    assert_eq!(read(host("/t").join("token")), "the-token");
    assert!(read(host("/etc/hosts")).contains("127.0.0.1\tconf\n"));
    fixture.api.edit(map, |map| map["data"]["k"] = "2".into());
    fixture
        .until_true("the update", || read(host("/v").join("k")) == "2")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_cannot_be_had_are_told() {
    let fixture = Fixture::start();
    let reason = |pod: &serde_json::Value| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone()
    };
    let pull = fixture.create(
        "pull",
        json!({"containers": [{"name": "c", "image": "none:1"}]}),
    );
    let never = fixture.create(
        "never",
        json!({"containers": [{"name": "c", "image": "none:1", "imagePullPolicy": "Never"}]}),
    );
    let bad = fixture.create(
        "bad",
        json!({"containers": [{"name": "c", "image": "Not//Valid"}]}),
    );
    fixture
        .until(&pull, |pod| reason(pod) == "ErrImagePull")
        .await;
    fixture
        .until(&never, |pod| reason(pod) == "ErrImageNeverPull")
        .await;
    fixture
        .until(&bad, |pod| reason(pod) == "InvalidImageName")
        .await;
    let pod = fixture
        .until(&pull, |pod| reason(pod) == "ImagePullBackOff")
        .await;
    let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.starts_with("Back-off pulling image \"none:1\": ErrImagePull: "),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_liveness_probe_restarts_the_container() {
    let fixture = Fixture::start();
    let path = fixture.create("sick", json!({"containers": [{"name": "c", "image": "img:1",
        "livenessProbe": {"exec": {"command": ["exit", "1"]}, "periodSeconds": 1, "failureThreshold": 1}}]}));
    fixture
        .until(&path, |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
    fixture
        .until_true("the events", || {
            let events = fixture.api.events();
            events.contains(&"Unhealthy".to_owned()) && events.contains(&"Killing".to_owned())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_image_replaces_the_container_in_one_step() {
    let fixture = Fixture::start();
    let path = fixture.create(
        "swap",
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "img:1"}]}),
    );
    fixture
        .until(&path, |pod| condition(pod, "Ready") == "True")
        .await;
    let written = fixture
        .api
        .requests("PATCH", &format!("{path}/status"))
        .len();
    let old = fixture.runtime.running("c").unwrap();
    fixture.api.edit(&path, |pod| {
        // Another name of the only image there is.
        pod["spec"]["containers"][0]["image"] = "sha256:1".into();
    });
    let pod = fixture
        .until(&path, |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
    assert_eq!(condition(&pod, "Ready"), "True");
    assert_ne!(fixture.runtime.running("c").unwrap(), old);
    // No status in between said that the pod was not ready.
    let patches = fixture.api.requests("PATCH", &format!("{path}/status"));
    for patch in &patches[written..] {
        let conditions = patch["status"]["conditions"].as_array();
        assert!(
            conditions
                .into_iter()
                .flatten()
                .all(|condition| condition["status"] == "True"),
            "{patch}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_can_be_read_once_more() {
    let fixture = Fixture::start();
    let path = fixture.create(
        "brief",
        json!({"containers": [{"name": "c", "image": "img:1"}]}),
    );
    fixture
        .until(&path, |pod| condition(pod, "Ready") == "True")
        .await;
    let asked = std::time::Instant::now();
    fixture.api.edit(&path, |pod| {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = 60.into();
    });
    fixture
        .until(&path, |pod| condition(pod, "Ready") == "False")
        .await;
    fixture
        .until_true("the deletion", || fixture.api.get(&path).is_none())
        .await;
    let stayed = asked.elapsed();
    assert!(
        stayed >= Duration::from_millis(180) && stayed < Duration::from_secs(10),
        "{stayed:?}"
    );
}
