use super::*;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

fn job(spec: Value, status: Value) -> Job {
    let mut full = json!({"template": {"spec": {"containers": [], "restartPolicy": "Never"}}, "parallelism": 1, "completions": 1});
    full.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    serde_json::from_value(
        json!({"metadata": {"name": "j", "namespace": "n"}, "spec": full, "status": status}),
    )
    .unwrap()
}

fn pod(name: &str, phase: &str, index: Option<i32>, extra: Value) -> Arc<Pod> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "finalizers": [FINALIZER], "annotations": {}},
        "spec": {"containers": []},
        "status": {"phase": phase},
    });
    if let Some(index) = index {
        value["metadata"]["annotations"][INDEX_KEY] = json!(index.to_string());
    }
    if phase == "Failed" || phase == "Succeeded" {
        value["status"]["containerStatuses"] = json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": if phase == "Failed" {3} else {0}, "finishedAt": "2026-01-01T00:59:55Z"}}}]);
    }
    if let (Some(target), Some(more)) = (value["metadata"].as_object_mut(), extra.as_object()) {
        for (key, item) in more {
            target.insert(key.clone(), item.clone());
        }
    }
    Arc::new(serde_json::from_value(value).unwrap())
}

const INDEX_KEY: &str = super::indexes::INDEX;

fn run(job: &Job, pods: &[Arc<Pod>]) -> Plan {
    plan(job, pods, now()).unwrap()
}

#[test]
fn a_new_job_starts_and_creates() {
    let plan = run(
        &job(json!({"parallelism": 3, "completions": 5}), json!({})),
        &[],
    );
    assert_eq!(plan.create.len(), 3);
    assert!(plan.status.start_time.is_some());
    assert_eq!(plan.status.active, Some(3));
    assert!(plan.end.is_none());
}

#[test]
fn success_is_counted_before_the_finalizer_goes() {
    let plan = run(
        &job(json!({}), json!({})),
        &[pod("a", "Succeeded", None, json!({}))],
    );
    assert_eq!(plan.strip.len(), 1);
    assert_eq!(
        plan.status
            .uncounted_terminated_pods
            .as_ref()
            .unwrap()
            .succeeded,
        Some(vec!["a".to_owned()])
    );
    assert_eq!(plan.status.succeeded, None);
    assert_eq!(plan.end.as_ref().unwrap().reason, "CompletionsReached");
    assert!(plan.may_finish);
    let mut status = plan.status;
    fold(&mut status, &HashSet::new());
    assert_eq!(status.succeeded, Some(1));
    assert!(is_counted(&status));
}

#[test]
fn failures_back_off_and_then_end_the_job() {
    let failed = pod("a", "Failed", None, json!({}));
    let plan = run(
        &job(json!({"backoffLimit": 1}), json!({})),
        std::slice::from_ref(&failed),
    );
    assert!(plan.create.is_empty());
    assert_eq!(plan.requeue, Some(Duration::from_secs(5)));
    let two = [failed, pod("b", "Failed", None, json!({}))];
    let plan = run(&job(json!({"backoffLimit": 1}), json!({})), &two);
    assert_eq!(plan.end.unwrap().reason, "BackoffLimitExceeded");
}

#[test]
fn a_failing_job_deletes_what_still_runs() {
    let pods = [
        pod("a", "Failed", None, json!({})),
        pod("b", "Running", None, json!({})),
    ];
    let plan = run(
        &job(
            json!({"backoffLimit": 0, "parallelism": 2, "completions": 2}),
            json!({}),
        ),
        &pods,
    );
    assert_eq!(plan.delete.len(), 1);
    assert!(!plan.may_finish);
    assert_eq!(plan.status.active, None);
    let failed = plan
        .status
        .uncounted_terminated_pods
        .unwrap()
        .failed
        .unwrap();
    assert_eq!(
        failed,
        ["a", "b"],
        "what is stopped by the failure counts as failed"
    );
}

#[test]
fn deadlines() {
    let status = json!({"startTime": "2026-01-01T00:59:00Z"});
    let plan = run(
        &job(json!({"activeDeadlineSeconds": 60}), status.clone()),
        &[],
    );
    assert_eq!(plan.end.unwrap().reason, "DeadlineExceeded");
    let plan = run(
        &job(json!({"activeDeadlineSeconds": 90}), status.clone()),
        &[],
    );
    assert_eq!(plan.requeue, Some(Duration::from_secs(30)));
    let plan = run(
        &job(
            json!({"activeDeadlineSeconds": 60, "suspend": true}),
            status,
        ),
        &[],
    );
    assert!(plan.end.is_none(), "a suspended job does not age");
}

#[test]
fn indexes_are_handed_out_in_order_and_once() {
    let spec = json!({"completionMode": "Indexed", "completions": 5, "parallelism": 3});
    let pods = [
        pod("a", "Succeeded", Some(0), json!({})),
        pod("b", "Running", Some(2), json!({})),
        pod("c", "Pending", Some(2), json!({})),
    ];
    let plan1 = run(&job(spec.clone(), json!({})), &pods);
    let doubled: Vec<_> = plan1
        .delete
        .iter()
        .map(|p| p.metadata.name.clone().unwrap())
        .collect();
    assert_eq!(doubled, ["c"]);
    let plan2 = run(&job(spec, json!({})), &pods[..2]);
    let created: Vec<_> = plan2.create.iter().filter_map(|n| n.index).collect();
    assert_eq!(created, [1, 3]);
    assert_eq!(plan2.status.completed_indexes.as_deref(), Some("0"));
    assert_eq!(plan2.status.succeeded, Some(1));
}

#[test]
fn limits_per_index() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1});
    let first = pod("a", "Failed", Some(0), json!({}));
    let plan = run(&job(spec.clone(), json!({})), std::slice::from_ref(&first));
    assert!(
        plan.strip.is_empty(),
        "the failure count of the index lives on this pod"
    );
    assert_eq!(
        plan.create,
        [NewPod {
            index: Some(1),
            failures: Some((0, 0))
        }]
    );
    let second = pod(
        "b",
        "Failed",
        Some(0),
        json!({"annotations": {INDEX_KEY: "0", FAILURES: "1"}}),
    );
    let plan = run(
        &job(spec.clone(), json!({})),
        &[first, second, pod("c", "Succeeded", Some(1), json!({}))],
    );
    assert_eq!(plan.status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(plan.end.unwrap().reason, "FailedIndexes");
}

#[test]
fn failure_policies() {
    let spec = |action: &str| json!({"podFailurePolicy": {"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [3]}}]}, "backoffLimit": 0});
    let failed = [pod("a", "Failed", None, json!({}))];
    let plan1 = run(&job(spec("FailJob"), json!({})), &failed);
    let end = plan1.end.unwrap();
    assert_eq!(end.reason, "PodFailurePolicy");
    assert_eq!(
        end.message,
        "Container c for pod n/a failed with exit code 3 matching FailJob rule at index 0"
    );
    let plan2 = run(&job(spec("Ignore"), json!({})), &failed);
    assert!(plan2.end.is_none());
    assert_eq!(plan2.status.uncounted_terminated_pods.unwrap().failed, None);
    let plan3 = run(&job(spec("Count"), json!({})), &failed);
    assert_eq!(plan3.end.unwrap().reason, "BackoffLimitExceeded");
}

#[test]
fn success_policy_ends_early() {
    let spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3,
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]}});
    let pods = [
        pod("a", "Succeeded", Some(0), json!({})),
        pod("b", "Running", Some(1), json!({})),
    ];
    let plan = run(&job(spec, json!({})), &pods);
    let end = plan.end.unwrap();
    assert_eq!(
        (end.success, end.message.as_str()),
        (true, "Matched rules at index 0")
    );
    assert_eq!(plan.delete.len(), 1);
    assert_eq!(plan.status.uncounted_terminated_pods.unwrap().failed, None);
}

#[test]
fn suspending_and_resuming() {
    let plan1 = run(
        &job(json!({"suspend": true}), json!({})),
        &[pod("a", "Running", None, json!({}))],
    );
    assert_eq!(plan1.delete.len(), 1);
    assert_eq!(plan1.suspension, Some(("Suspended", "Job suspended")));
    let suspended = json!({"conditions": [{"type": "Suspended", "status": "True"}]});
    let plan2 = run(&job(json!({}), suspended), &[]);
    assert_eq!(plan2.suspension, Some(("Resumed", "Job resumed")));
    assert_eq!(plan2.create.len(), 1);
}
