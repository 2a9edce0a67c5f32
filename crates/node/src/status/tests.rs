#![allow(clippy::unwrap_used)]

use super::*;
use crate::plan::tests::{at, container, pod_with, sandbox};
use keelson_ports::ContainerState;
use serde_json::json;

#[derive(Default)]
struct Case {
    runtime: RuntimePod,
    probes: BTreeMap<String, ProbeState>,
    errors: BTreeMap<String, StartError>,
    backing_off: BTreeMap<String, Duration>,
    verdict: Option<Verdict>,
    stopping: bool,
    stopped: bool,
}

fn run(pod: &Pod, case: &Case) -> PodStatus {
    compute(&StatusInput {
        pod,
        runtime: &case.runtime,
        probes: &case.probes,
        start_errors: &case.errors,
        backing_off: &case.backing_off,
        starting: &|_| false,
        digests: &BTreeMap::from([("sha256:1".to_owned(), "reg/img@sha256:2".to_owned())]),
        host_ips: &["192.168.0.1".to_owned()],
        verdict: case.verdict.as_ref(),
        stopping: case.stopping,
        stopped: case.stopped,
        now: at(500),
    })
}

fn with(containers: Vec<keelson_ports::ContainerStatus>) -> Case {
    Case {
        runtime: RuntimePod {
            sandboxes: vec![sandbox("x", true, 0)],
            containers,
            ..RuntimePod::default()
        },
        ..Case::default()
    }
}

fn condition<'a>(
    status: &'a PodStatus,
    kind: &str,
) -> &'a k8s_openapi::api::core::v1::PodCondition {
    status
        .conditions
        .as_ref()
        .unwrap()
        .iter()
        .find(|c| c.type_ == kind)
        .unwrap()
}

fn running(name: &str) -> keelson_ports::ContainerStatus {
    container("x", name, 0, ContainerState::Running, None)
}

fn exited(name: &str, code: i32) -> keelson_ports::ContainerStatus {
    container("x", name, 0, ContainerState::Exited, Some(code))
}

#[test]
fn phases() {
    let cases = [
        ("Always", vec![], "Pending"),
        ("Always", vec![running("a")], "Pending"),
        ("Always", vec![running("a"), running("b")], "Running"),
        ("Always", vec![running("a"), exited("b", 1)], "Running"),
        ("Always", vec![exited("a", 0), exited("b", 0)], "Running"),
        ("Never", vec![running("a"), exited("b", 1)], "Running"),
        ("Never", vec![exited("a", 0), exited("b", 0)], "Succeeded"),
        ("Never", vec![exited("a", 0), exited("b", 1)], "Failed"),
        (
            "OnFailure",
            vec![exited("a", 0), exited("b", 0)],
            "Succeeded",
        ),
        ("OnFailure", vec![exited("a", 0), exited("b", 1)], "Running"),
    ];
    for (policy, containers, expected) in cases {
        let pod = pod_with(
            json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}),
        );
        let names: Vec<String> = containers
            .iter()
            .map(|c| format!("{}:{:?}", c.name, c.state))
            .collect();
        assert_eq!(
            run(&pod, &with(containers)).phase.as_deref(),
            Some(expected),
            "{policy} {names:?}"
        );
    }
}

#[test]
fn init_containers_hold_the_pod_in_pending() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let pod = pod_with(spec);
    let status = run(&pod, &with(vec![running("i")]));
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(
        condition(&status, "Initialized").message.as_deref(),
        Some("containers with incomplete status: [i]")
    );
    let waiting = status.container_statuses.unwrap()[0]
        .state
        .clone()
        .unwrap()
        .waiting
        .unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
    let status = run(&pod, &with(vec![exited("i", 1)]));
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    let status = run(&pod, &with(vec![exited("i", 0)]));
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(condition(&status, "Initialized").status, "True");
}

#[test]
fn readiness_follows_probes() {
    let pod = pod_with(
        json!({"containers": [{"name": "a", "readinessProbe": {"tcpSocket": {"port": 1}}}, {"name": "b"}]}),
    );
    let mut case = with(vec![running("a"), running("b")]);
    let status = run(&pod, &case);
    assert_eq!(condition(&status, "Ready").status, "False");
    assert_eq!(
        condition(&status, "ContainersReady").message.as_deref(),
        Some("containers with unready status: [a]")
    );
    assert_eq!(
        condition(&status, "ContainersReady").reason.as_deref(),
        Some("ContainersNotReady")
    );
    case.probes.insert(
        "a".into(),
        ProbeState {
            id: "a-0".into(),
            started: true,
            ready: true,
            failed: None,
        },
    );
    let status = run(&pod, &case);
    assert_eq!(condition(&status, "Ready").status, "True");
    let first = &status.container_statuses.unwrap()[0];
    assert_eq!(first.container_id.as_deref(), Some("keelson://a-0"));
    assert_eq!(first.image_id, "reg/img@sha256:2");
}

#[test]
fn readiness_gates() {
    let mut pod = pod_with(
        json!({"readinessGates": [{"conditionType": "x.io/g"}], "containers": [{"name": "a"}]}),
    );
    let status = run(&pod, &with(vec![running("a")]));
    assert_eq!(
        condition(&status, "Ready").reason.as_deref(),
        Some("ReadinessGatesNotReady")
    );
    assert_eq!(condition(&status, "ContainersReady").status, "True");
    pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "x.io/g", "status": "True"}]}))
            .unwrap();
    let status = run(&pod, &with(vec![running("a")]));
    assert_eq!(condition(&status, "Ready").status, "True");
    assert!(
        status
            .conditions
            .unwrap()
            .iter()
            .any(|c| c.type_ == "x.io/g")
    );
}

#[test]
fn crash_loops_are_told() {
    let pod = pod_with(json!({"containers": [{"name": "a"}]}));
    let mut case = with(vec![container(
        "x",
        "a",
        4,
        ContainerState::Exited,
        Some(3),
    )]);
    case.backing_off.insert("a".into(), Duration::from_secs(80));
    let status = run(&pod, &case);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let a = &status.container_statuses.unwrap()[0];
    let waiting = a.state.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 1m20s restarting failed container=a pod=p_ns(u)")
    );
    assert_eq!(
        a.last_state.clone().unwrap().terminated.unwrap().exit_code,
        3
    );
    assert_eq!(a.restart_count, 4);
}

#[test]
fn a_failed_pull_is_told() {
    let pod = pod_with(json!({"containers": [{"name": "a"}]}));
    let mut case = with(vec![]);
    case.errors.insert(
        "a".into(),
        StartError {
            reason: "ErrImagePull".into(),
            message: "no".into(),
            retry_at: at(1),
        },
    );
    let a = run(&pod, &case).container_statuses.unwrap()[0].clone();
    assert_eq!(
        a.state.unwrap().waiting.unwrap().reason.as_deref(),
        Some("ErrImagePull")
    );
}

#[test]
fn a_stopped_pod_is_succeeded_or_failed() {
    let pod = pod_with(json!({"containers": [{"name": "a"}]}));
    let mut case = with(vec![exited("a", 0)]);
    case.stopping = true;
    case.stopped = true;
    assert_eq!(run(&pod, &case).phase.as_deref(), Some("Succeeded"));
    let mut case = with(vec![exited("a", 137)]);
    case.stopping = true;
    case.stopped = true;
    assert_eq!(run(&pod, &case).phase.as_deref(), Some("Failed"));
}

#[test]
fn an_out_of_memory_kill_is_named() {
    let pod = pod_with(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    let mut killed = exited("a", 137);
    killed.oom_killed = true;
    let status = run(&pod, &with(vec![killed]));
    let state = status.container_statuses.unwrap()[0]
        .state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (state.reason.as_deref(), state.exit_code),
        (Some("OOMKilled"), 137)
    );
}

#[test]
fn eviction_is_failed_with_its_reason() {
    let pod = pod_with(json!({"containers": [{"name": "a"}]}));
    let mut case = with(vec![running("a")]);
    case.verdict = Some(Verdict {
        reason: "Evicted".into(),
        message: "low".into(),
        disruption: true,
    });
    let status = run(&pod, &case);
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("Evicted"))
    );
    assert_eq!(
        condition(&status, "DisruptionTarget").reason.as_deref(),
        Some("TerminationByKubelet")
    );
}

#[test]
fn transition_times_change_only_with_the_status() {
    let mut pod = pod_with(json!({"containers": [{"name": "a"}]}));
    let first = run(&pod, &with(vec![running("a")]));
    pod.status = Some(first.clone());
    assert_eq!(patch(&pod, &first), None);
    let second = run(&pod, &with(vec![running("a")]));
    assert_eq!(patch(&pod, &second), None);
    let third = run(&pod, &with(vec![exited("a", 1)]));
    let patch = patch(&pod, &third).unwrap();
    assert_eq!(patch["metadata"]["uid"], "u");
    assert!(patch["status"]["phase"].is_null());
    let kinds: Vec<&str> = patch["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["Ready", "ContainersReady"]);
}

#[test]
fn restarts_known_to_the_api_are_not_forgotten() {
    let mut pod = pod_with(json!({"containers": [{"name": "a"}]}));
    pod.status = serde_json::from_value(
        json!({"containerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": true,
        "restartCount": 2, "containerID": "keelson://old", "state": {"running": {}}}]}),
    )
    .unwrap();
    assert_eq!(recorded_restarts(&pod, "a"), 3);
    assert_eq!(recorded_restarts(&pod, "b"), 0);
}
