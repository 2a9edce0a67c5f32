//! Workloads: rollouts, jobs, healing, scheduling.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::deployment;
use crate::lab::Namespace;

pub(super) fn rolling_update(ns: &Namespace<'_>) {
    ns.apply(&deployment("web", 3));
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    ns.kubectl(&[
        "expose",
        "deployment",
        "web",
        "--port=80",
        "--target-port=8080",
    ]);
    let ip = ns.get("service/web")["spec"]["clusterIP"]
        .as_str()
        .unwrap()
        .to_owned();
    let url = format!("http://{ip}/");
    ns.until("the service", || {
        ns.lab.hello(&["get", &url]).status.success().then_some(())
    });
    let stop = AtomicBool::new(false);
    let (calls, failures) = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut calls, mut failures) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                let answer = ns.lab.hello(&["get", &url]);
                calls += 1;
                if !answer.status.success() {
                    failures.push(String::from_utf8_lossy(&answer.stderr).into_owned());
                }
            }
            (calls, failures)
        });
        ns.kubectl(&["set", "env", "deployment/web", "VERSION=2"]);
        let status = ns.raw(
            &["rollout", "status", "deployment/web", "--timeout=90s"],
            "",
        );
        stop.store(true, Ordering::Relaxed);
        status.unwrap();
        client.join().unwrap()
    });
    assert!(calls > 10, "only {calls} calls");
    assert!(
        failures.is_empty(),
        "{} of {calls} calls failed: {:?}",
        failures.len(),
        failures.first()
    );
    assert_eq!(ns.get("deployment/web")["status"]["updatedReplicas"], 3);
    let history = ns.kubectl(&["rollout", "history", "deployment/web"]);
    assert!(history.contains('2'), "{history}");
    ns.kubectl(&["rollout", "undo", "deployment/web"]);
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let container = &ns.get("deployment/web")["spec"]["template"]["spec"]["containers"][0];
    assert!(container.get("env").is_none(), "{container}");
    ns.kubectl(&["rollout", "restart", "deployment/web"]);
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    ns.kubectl(&["scale", "deployment/web", "--replicas=1"]);
    ns.until("one replica", || {
        (ns.get("deployment/web")["status"]["replicas"] == 1).then_some(())
    });
}

pub(super) fn self_healing(ns: &Namespace<'_>) {
    ns.apply(&deployment("web", 2));
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    let pods = ns.get("pods");
    let pod = pods["items"][0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let other = pods["items"][1]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    // The first process of a PID namespace ignores signals from inside that it does not handle.
    let _ = ns.raw(
        &[
            "exec",
            &pod,
            "--",
            "/hello",
            "get",
            "http://127.0.0.1:8080/exit?code=1",
        ],
        "",
    );
    ns.until("the restart of a killed process", || {
        restarts(ns, &pod).filter(|count| *count == 1)
    });
    ns.wait_ready(&pod);
    ns.kubectl(&["delete", "pod", &other, "--wait=false"]);
    ns.until("a replacement", || {
        let pods = ns.get("pods");
        let fresh = |item: &&Value| {
            item["metadata"]["name"] != pod.as_str() && item["metadata"]["name"] != other.as_str()
        };
        pods["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|item| fresh(&item))
            .then_some(())
    });
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]);
}

pub(super) fn restarts(ns: &Namespace<'_>, pod: &str) -> Option<u64> {
    ns.get(&format!("pod/{pod}"))["status"]["containerStatuses"][0]["restartCount"].as_u64()
}

pub(super) fn jobs(ns: &Namespace<'_>) {
    ns.kubectl(&[
        "create",
        "job",
        "once",
        "--image=localhost/keelson/hello",
        "--",
        "/hello",
        "echo",
        "done",
    ]);
    ns.kubectl(&[
        "wait",
        "--for=condition=Complete",
        "job/once",
        "--timeout=90s",
    ]);
    assert_eq!(ns.kubectl(&["logs", "job/once"]).trim(), "done");
    ns.apply(&json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "fails"},
        "spec": {"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never", "containers": [
            {"name": "main", "image": "localhost/keelson/hello", "args": ["exit", "5"]}]}}},
    }));
    ns.kubectl(&[
        "wait",
        "--for=condition=Failed",
        "job/fails",
        "--timeout=90s",
    ]);
}

pub(super) fn pending(ns: &Namespace<'_>) {
    ns.apply(&ns.pod(
        "big",
        &["serve"],
        json!({"containers": [{"resources": {"requests": {"cpu": "1000"}}}]}),
    ));
    ns.until("the reason", || {
        let conditions = ns.get("pod/big")["status"]["conditions"].clone();
        let scheduled = conditions
            .as_array()?
            .iter()
            .find(|condition| condition["type"] == "PodScheduled")?
            .clone();
        scheduled["message"]
            .as_str()?
            .contains("Insufficient cpu")
            .then_some(())
    });
    let events = ns.kubectl(&["get", "events"]);
    assert!(events.contains("FailedScheduling"), "{events}");
    ns.apply(&ns.pod(
        "picky",
        &["serve"],
        json!({"nodeSelector": {"e2e/disk": "ssd"}}),
    ));
    std::thread::sleep(Duration::from_millis(300));
    ns.kubectl(&["label", "node", "node-1", "e2e/disk=ssd"]);
    ns.wait_ready("picky");
    ns.kubectl(&["label", "node", "node-1", "e2e/disk-"]);
    ns.apply(&ns.pod(
        "absent",
        &["serve"],
        json!({"containers": [{"image": "localhost/no/such", "imagePullPolicy": "Never"}]}),
    ));
    ns.until("ErrImageNeverPull", || {
        let waiting =
            ns.get("pod/absent")["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        (waiting["reason"] == "ErrImageNeverPull").then_some(())
    });
}
