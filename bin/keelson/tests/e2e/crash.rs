//! What needs the cluster for itself: a drained node, and a server that dies and comes back.

use serde_json::json;

use crate::lab::Lab;
use crate::scenarios::deployment;

pub(crate) static SCENARIOS: &[(&str, fn(&Lab))] = &[
    ("drain empties the node and uncordon fills it", drain),
    ("kill -9 of the server disturbs no pod", kill_the_server),
    (
        "a lost store does not become an empty cluster",
        lose_the_store,
    ),
];

fn lose_the_store(lab: &Lab) {
    let data_dir = lab.data_dir();
    let save = |file: &std::path::Path| {
        let output = lab.keelson(&[
            "snapshot",
            "save",
            file.to_str().unwrap(),
            "--data-dir",
            data_dir.to_str().unwrap(),
        ]);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = save("/dev/full".as_ref());
    assert!(said.contains("no regular file"), "{said}");
    lab.kill_server();
    let store = lab.data_dir().join("store/store.redb");
    let kept = lab.dir.join("kept.redb");
    std::fs::rename(&store, &kept).unwrap();
    let fails = |what: &str, words: &str| {
        let output = lab.up_fails();
        assert!(output.contains(words), "{what}: {output}");
    };
    fails("no file", "snapshot restore");
    let snapshot = lab.dir.join("snapshot");
    let said = save(&snapshot);
    assert!(said.contains("there is no store"), "{said}");
    assert!(
        !snapshot.exists() && !store.exists(),
        "an empty one is made"
    );
    std::fs::write(&store, "").unwrap();
    fails("an empty file", "is damaged (it is empty)");
    std::fs::rename(&kept, &store).unwrap();
    lab.up();
}

fn drain(lab: &Lab) {
    let ns = lab.namespace("drained");
    ns.apply(&deployment("web", 2));
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    ns.kubectl(&[
        "drain",
        "node-1",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--timeout=90s",
    ]);
    let pods = ns.get("pods");
    let waiting = |pod: &serde_json::Value| pod["spec"].get("nodeName").is_none();
    assert!(
        pods["items"].as_array().unwrap().iter().all(waiting),
        "{pods}"
    );
    assert!(ns.kubectl(&["get", "nodes"]).contains("SchedulingDisabled"));
    ns.kubectl(&["uncordon", "node-1"]);
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    ns.delete();
}

fn kill_the_server(lab: &Lab) {
    let ns = lab.namespace("survivors");
    ns.apply(&ns.pod("web", &["serve"], json!({})));
    ns.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }));
    ns.wait_ready("web");
    let ip = ns.get("service/web")["spec"]["clusterIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let url = format!("http://{ip}/");
    ns.until("the service", || {
        lab.hello(&["get", &url]).status.success().then_some(())
    });
    let before = ns.get("pod/web")["status"].clone();
    for index in 0..20 {
        ns.kubectl(&["create", "configmap", &format!("acknowledged-{index}")]);
    }
    lab.kill_server();
    for _ in 0..20 {
        let answer = lab.hello(&["get", &url]);
        assert!(
            answer.status.success(),
            "the pod does not serve while the server is dead"
        );
    }
    lab.up();
    let maps = ns.get("configmaps");
    let kept = maps["items"].as_array().unwrap().iter().filter(|map| {
        map["metadata"]["name"]
            .as_str()
            .unwrap()
            .starts_with("acknowledged-")
    });
    assert_eq!(kept.count(), 20);
    let answer = lab.hello(&["get", &url]);
    assert!(answer.status.success());
    assert_eq!(
        ns.kubectl(&["exec", "web", "--", "/hello", "echo", "back"])
            .trim(),
        "back"
    );
    let after = ns.get("pod/web")["status"].clone();
    for field in ["containerID", "restartCount"] {
        assert_eq!(
            before["containerStatuses"][0][field], after["containerStatuses"][0][field],
            "{field}"
        );
    }
    assert_eq!(after["containerStatuses"][0]["restartCount"], 0);
    ns.delete();
}
