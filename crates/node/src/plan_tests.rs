#![allow(clippy::unwrap_used)]

use super::*;
use serde_json::{Value, json};

const T0: Duration = Duration::from_secs(1_000_000);

pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + T0 + Duration::from_secs(seconds)
}

pub(crate) fn sandbox(id: &str, ready: bool, attempt: u32) -> PodSandboxStatus {
    PodSandboxStatus {
        id: id.into(),
        name: "p".into(),
        namespace: "ns".into(),
        uid: "u".into(),
        attempt,
        state: if ready {
            SandboxState::Ready
        } else {
            SandboxState::NotReady
        },
        created_at: at(u64::from(attempt)),
        ips: vec!["10.0.0.1".parse().unwrap()],
        host_namespaces: Default::default(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

pub(crate) fn container(
    sandbox: &str,
    name: &str,
    attempt: u32,
    state: ContainerState,
    code: Option<i32>,
) -> ContainerStatus {
    ContainerStatus {
        id: format!("{name}-{attempt}"),
        sandbox: sandbox.into(),
        name: name.into(),
        attempt,
        state,
        created_at: at(u64::from(attempt)),
        started_at: Some(at(u64::from(attempt))),
        finished_at: code.map(|_| at(10 + u64::from(attempt))),
        exit_code: code,
        signal: None,
        oom_killed: false,
        reason: code
            .map_or("", |code| if code == 0 { "Completed" } else { "Error" })
            .into(),
        message: String::new(),
        image_id: "sha256:1".into(),
        image: "img".into(),
        log_path: "/l".into(),
        pid: None,
        user: None,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
    }
}

pub(crate) fn pod_with(spec: Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec}),
    )
    .unwrap()
}

#[derive(Default)]
struct Case {
    sandboxes: Vec<PodSandboxStatus>,
    containers: Vec<ContainerStatus>,
    replaced: BTreeSet<String>,
    busy: BTreeSet<Busy>,
    kill_deadlines: BTreeMap<String, SystemTime>,
    probes: BTreeMap<String, ProbeState>,
    backoff: BTreeMap<String, Backoff>,
    errors: BTreeMap<String, StartError>,
    stop_at: Option<u64>,
    no_volumes: bool,
    now: u64,
}

fn run_case(spec: Value, case: Case) -> Plan {
    let pod = pod_with(spec);
    let runtime = RuntimePod {
        sandboxes: case.sandboxes,
        containers: case.containers,
        replaced: case.replaced,
    };
    plan(&Observed {
        pod: &pod,
        runtime: &runtime,
        goal: case
            .stop_at
            .map_or(Goal::Run, |s| Goal::Stop { deadline: at(s) }),
        busy: &case.busy,
        kill_deadlines: &case.kill_deadlines,
        probes: &case.probes,
        backoff: &case.backoff,
        start_errors: &case.errors,
        volumes_ready: !case.no_volumes,
        retry_at: None,
        now: at(case.now),
    })
}

fn starts(plan: &Plan) -> Vec<(&str, u32)> {
    plan.actions
        .iter()
        .filter_map(|action| match action {
            Action::StartContainer { name, attempt, .. } => Some((name.as_str(), *attempt)),
            _ => None,
        })
        .collect()
}

fn kills(plan: &Plan) -> Vec<&str> {
    plan.actions
        .iter()
        .filter_map(|action| match action {
            Action::KillContainer { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

fn two() -> Value {
    json!({"containers": [{"name": "a"}, {"name": "b"}]})
}

#[test]
fn volumes_then_sandbox_then_all_containers_at_once() {
    let plan = run_case(
        two(),
        Case {
            no_volumes: true,
            ..Case::default()
        },
    );
    assert_eq!(plan.actions, [Action::PrepareVolumes]);
    let plan = run_case(two(), Case::default());
    assert_eq!(plan.actions, [Action::CreateSandbox { attempt: 0 }]);
    let plan = run_case(
        two(),
        Case {
            busy: [Busy::Sandbox].into(),
            ..Case::default()
        },
    );
    assert_eq!(plan.actions, []);
    let plan = run_case(
        two(),
        Case {
            sandboxes: vec![sandbox("s", true, 0)],
            ..Case::default()
        },
    );
    assert_eq!(starts(&plan), [("a", 0), ("b", 0)]);
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}, {"name": "j"}],
        "containers": [{"name": "a"}]});
    let with = |containers: Vec<ContainerStatus>, probes: BTreeMap<String, ProbeState>| {
        run_case(
            spec.clone(),
            Case {
                sandboxes: vec![sandbox("x", true, 0)],
                containers,
                probes,
                now: 100,
                ..Case::default()
            },
        )
    };
    let exited = |name: &str, code| container("x", name, 0, ContainerState::Exited, Some(code));
    let running = |name: &str| container("x", name, 0, ContainerState::Running, None);
    assert_eq!(starts(&with(vec![], BTreeMap::new())), [("i", 0)]);
    assert_eq!(starts(&with(vec![running("i")], BTreeMap::new())), []);
    assert_eq!(
        starts(&with(vec![exited("i", 0)], BTreeMap::new())),
        [("s", 0)]
    );
    assert_eq!(
        starts(&with(vec![exited("i", 0), running("s")], BTreeMap::new())),
        [("j", 0)]
    );
    let unstarted = BTreeMap::from([(
        "s".to_owned(),
        ProbeState {
            id: "s-0".into(),
            ..ProbeState::default()
        },
    )]);
    assert_eq!(
        starts(&with(vec![exited("i", 0), running("s")], unstarted)),
        []
    );
    assert_eq!(
        starts(&with(
            vec![exited("i", 0), running("s"), exited("j", 0)],
            BTreeMap::new()
        )),
        [("a", 0)]
    );
    assert_eq!(
        starts(&with(vec![exited("i", 1)], BTreeMap::new())),
        [("i", 1)]
    );
    // The sidecar that died comes back beside the running main container.
    assert_eq!(
        starts(&with(
            vec![exited("i", 0), exited("s", 0), exited("j", 0), running("a")],
            BTreeMap::new()
        )),
        [("s", 1)]
    );
}

#[test]
fn restart_policies() {
    for (policy, code, restarted) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 1, false),
    ] {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
        let containers = vec![container("s", "a", 3, ContainerState::Exited, Some(code))];
        let plan = run_case(
            spec.clone(),
            Case {
                sandboxes: vec![sandbox("s", true, 0)],
                containers: containers.clone(),
                now: 100,
                ..Case::default()
            },
        );
        assert_eq!(!starts(&plan).is_empty(), restarted, "{policy} {code}");
        let runtime = RuntimePod {
            containers,
            ..RuntimePod::default()
        };
        assert_eq!(
            is_finished(&pod_with(spec), &runtime),
            !restarted,
            "{policy} {code}"
        );
    }
}

#[test]
fn a_replaced_container_starts_anew_whatever_the_policy_says() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}]});
    let backoff = Backoff {
        delay: BACKOFF_FIRST,
        updated_at: at(9),
    };
    let case = |now| Case {
        sandboxes: vec![sandbox("s", true, 0)],
        containers: vec![container("s", "a", 0, ContainerState::Exited, Some(0))],
        replaced: ["a-0".to_owned()].into(),
        now,
        ..Case::default()
    };
    let plan = run_case(spec.clone(), case(10));
    assert_eq!(
        plan.actions,
        [Action::StartContainer {
            name: "a".into(),
            kind: ContainerKind::Regular,
            attempt: 1,
            restart: false
        }]
    );
    assert_eq!(plan.settles_at, Some(at(11)));
    // The start takes its time: what happened is told after a second, and the pod is not over.
    let starting = Case {
        busy: [Busy::Start("a".into())].into(),
        ..case(10)
    };
    assert_eq!(run_case(spec.clone(), starting).settles_at, Some(at(11)));
    assert_eq!(run_case(spec.clone(), case(11)).settles_at, None);
    let runtime = RuntimePod {
        containers: case(10).containers,
        replaced: case(10).replaced,
        ..RuntimePod::default()
    };
    assert!(!is_finished(&pod_with(spec.clone()), &runtime));
    // An end that nobody asked for is told at once.
    let ended = Case {
        replaced: BTreeSet::new(),
        backoff: [("a".to_owned(), backoff)].into(),
        ..case(10)
    };
    let plan = run_case(spec, ended);
    assert_eq!((plan.actions, plan.settles_at), (vec![], None));
}

#[test]
fn a_restart_rule_overrides_the_policy() {
    let pod = pod_with(
        json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]}),
    );
    let container = &pod::regular_containers(&pod)[0];
    assert!(should_restart(&pod, container, ContainerKind::Regular, 42));
    assert!(!should_restart(&pod, container, ContainerKind::Regular, 1));
}

#[test]
fn back_off_is_waited_out_and_doubles_and_is_forgotten() {
    let case = |now| Case {
        sandboxes: vec![sandbox("s", true, 0)],
        containers: vec![container("s", "a", 1, ContainerState::Exited, Some(1))],
        backoff: BTreeMap::from([(
            "a".to_owned(),
            Backoff {
                delay: Duration::from_secs(20),
                updated_at: at(0),
            },
        )]),
        now,
        ..Case::default()
    };
    let spec = json!({"containers": [{"name": "a"}]});
    let plan = run_case(spec.clone(), case(12));
    assert_eq!(starts(&plan), []);
    assert_eq!(plan.backing_off["a"], Duration::from_secs(20));
    assert_eq!(plan.wake_at, Some(at(31)));
    assert_eq!(starts(&run_case(spec, case(31))), [("a", 2)]);

    let first = Backoff::next(None, at(0));
    assert_eq!(first.delay, BACKOFF_FIRST);
    let second = Backoff::next(Some(first), at(20));
    assert_eq!(second.delay, BACKOFF_FIRST * 2);
    let last = (0..10).fold(second, |backoff, _| Backoff::next(Some(backoff), at(30)));
    assert_eq!(last.delay, BACKOFF_MAX);
    assert_eq!(Backoff::next(Some(last), at(30 + 601)).delay, BACKOFF_FIRST);
}

#[test]
fn a_failing_liveness_probe_kills_only_the_container_it_probed() {
    let probes = |id: &str| {
        BTreeMap::from([(
            "a".to_owned(),
            ProbeState {
                id: id.into(),
                started: true,
                ready: false,
                failed: Some((FailedProbe::Liveness, Some(3))),
            },
        )])
    };
    let case = |probes| Case {
        sandboxes: vec![sandbox("s", true, 0)],
        containers: vec![container("s", "a", 1, ContainerState::Running, None)],
        probes,
        ..Case::default()
    };
    let spec = json!({"containers": [{"name": "a"}]});
    let plan = run_case(spec.clone(), case(probes("a-1")));
    assert!(
        matches!(&plan.actions[..], [Action::KillContainer { deadline, .. }] if *deadline == at(3))
    );
    assert_eq!(run_case(spec, case(probes("a-0"))).actions, []);
}

#[test]
fn a_lost_sandbox_is_stopped_and_replaced() {
    let spec = json!({"containers": [{"name": "a"}]});
    let plan = run_case(
        spec.clone(),
        Case {
            sandboxes: vec![sandbox("s", false, 0)],
            containers: vec![container("s", "a", 0, ContainerState::Running, None)],
            ..Case::default()
        },
    );
    assert_eq!(plan.actions, [Action::StopSandbox { id: "s".into() }]);
    let dead = vec![container("s", "a", 0, ContainerState::Exited, Some(137))];
    let plan = run_case(
        spec.clone(),
        Case {
            sandboxes: vec![sandbox("s", false, 0)],
            containers: dead.clone(),
            ..Case::default()
        },
    );
    assert_eq!(plan.actions, [Action::CreateSandbox { attempt: 1 }]);
    let plan = run_case(
        spec,
        Case {
            sandboxes: vec![sandbox("t", true, 1), sandbox("s", false, 0)],
            containers: dead,
            now: 100,
            ..Case::default()
        },
    );
    assert_eq!(starts(&plan), [("a", 1)]);
}

#[test]
fn stopping_kills_main_containers_first_then_sidecars_in_reverse() {
    let spec = json!({"initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}, {"name": "b"}]});
    let running = |name: &str| container("x", name, 0, ContainerState::Running, None);
    let with = |containers: Vec<ContainerStatus>| {
        run_case(
            spec.clone(),
            Case {
                sandboxes: vec![sandbox("x", true, 0)],
                containers,
                stop_at: Some(30),
                ..Case::default()
            },
        )
    };
    assert_eq!(
        kills(&with(vec![
            running("s1"),
            running("s2"),
            running("a"),
            running("b")
        ])),
        ["a", "b"]
    );
    assert_eq!(kills(&with(vec![running("s1"), running("s2")])), ["s2"]);
    assert_eq!(kills(&with(vec![running("s1")])), ["s1"]);
    assert_eq!(
        with(vec![]).actions,
        [Action::StopSandbox { id: "x".into() }]
    );
    let done = run_case(
        spec,
        Case {
            sandboxes: vec![sandbox("x", false, 0)],
            stop_at: Some(30),
            ..Case::default()
        },
    );
    assert!(done.stopped);
    assert_eq!(done.actions, [Action::Cleanup]);
}

#[test]
fn a_shorter_deadline_kills_again() {
    let case = |stop_at| Case {
        sandboxes: vec![sandbox("x", true, 0)],
        containers: vec![container("x", "a", 0, ContainerState::Running, None)],
        busy: [Busy::Kill("a-0".into())].into(),
        kill_deadlines: BTreeMap::from([("a-0".to_owned(), at(30))]),
        stop_at: Some(stop_at),
        ..Case::default()
    };
    let spec = json!({"containers": [{"name": "a"}]});
    assert!(run_case(spec.clone(), case(30)).actions.is_empty());
    assert_eq!(kills(&run_case(spec, case(1))), ["a"]);
}

#[test]
fn failed_starts_wait_and_half_made_containers_are_removed() {
    let spec = json!({"containers": [{"name": "a"}]});
    let error = StartError {
        reason: "ErrImagePull".into(),
        message: "m".into(),
        retry_at: at(50),
    };
    let plan = run_case(
        spec.clone(),
        Case {
            sandboxes: vec![sandbox("x", true, 0)],
            errors: BTreeMap::from([("a".to_owned(), error)]),
            now: 10,
            ..Case::default()
        },
    );
    assert_eq!((plan.actions.len(), plan.wake_at), (0, Some(at(50))));
    let plan = run_case(
        spec,
        Case {
            sandboxes: vec![sandbox("x", true, 0)],
            containers: vec![container("x", "a", 0, ContainerState::Created, None)],
            ..Case::default()
        },
    );
    assert_eq!(plan.actions, [Action::RemoveContainer { id: "a-0".into() }]);
}

#[test]
fn only_two_dead_containers_of_a_name_are_kept() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}]});
    let dead = |attempt| container("x", "a", attempt, ContainerState::Exited, Some(1));
    let plan = run_case(
        spec,
        Case {
            sandboxes: vec![sandbox("x", true, 0)],
            containers: vec![dead(0), dead(1), dead(2)],
            ..Case::default()
        },
    );
    assert_eq!(plan.actions, [Action::RemoveContainer { id: "a-0".into() }]);
}

#[test]
fn a_changed_image_restarts_the_container() {
    let spec = json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "new"}]});
    let case = |image: &str| {
        let mut running = container("x", "a", 0, ContainerState::Running, None);
        running
            .annotations
            .insert(pod::container::ANNOTATION_IMAGE.into(), image.into());
        Case {
            sandboxes: vec![sandbox("x", true, 0)],
            containers: vec![running],
            ..Case::default()
        }
    };
    assert!(run_case(spec.clone(), case("new")).actions.is_empty());
    assert_eq!(kills(&run_case(spec, case("old"))), ["a"]);
}
