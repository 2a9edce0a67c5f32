//! Decisions over small clusters, as tables.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::cycle::{Unschedulable, decide};
use crate::model::Model;
use crate::pod_info::PodInfo;
use crate::preemption;

fn node(name: &str, extra: Value) -> Value {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}},
    });
    merge(&mut node, extra);
    node
}

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c"}]},
    });
    merge(&mut pod["spec"], spec);
    pod
}

fn merge(target: &mut Value, extra: Value) {
    match (target, extra) {
        (Value::Object(target), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, extra) => *target = extra,
    }
}

fn cpu(amount: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]})
}

fn info(pod: Value) -> Arc<PodInfo> {
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap())))
}

fn model(nodes: Vec<Value>, pods: Vec<Value>) -> Model {
    let mut model = Model::default();
    for node in nodes {
        model.set_node(&Arc::new(serde_json::from_value(node).unwrap()));
    }
    for pod in pods {
        model.set_pod(&Arc::new(serde_json::from_value(pod).unwrap()));
    }
    model
}

fn on(node: &str, mut pod: Value) -> Value {
    pod["spec"]["nodeName"] = node.into();
    pod
}

fn reasons(pod: Value, model: &Model) -> String {
    decide(&info(pod), model, 0).unwrap_err().message()
}

#[test]
fn each_filter_says_why() {
    let tainted = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    for (node_extra, spec, expected) in [
        (json!({}), cpu("3"), "1 Insufficient cpu"),
        (
            json!({"status": {"allocatable": {"pods": "0"}}}),
            json!({}),
            "1 Too many pods",
        ),
        (tainted, json!({}), "1 node(s) had untolerated taint {k: v}"),
        (
            json!({"spec": {"unschedulable": true}}),
            json!({}),
            "1 node(s) were unschedulable",
        ),
        (
            json!({}),
            json!({"nodeSelector": {"disk": "ssd"}}),
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        (
            json!({}),
            json!({"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}),
            "1 Insufficient example.com/gpu",
        ),
    ] {
        let model = model(vec![node("a", node_extra)], vec![]);
        assert_eq!(
            reasons(pod("p", spec), &model),
            format!("0/1 nodes are available: {expected}.")
        );
    }
}

#[test]
fn tolerations_and_affinity_open_nodes() {
    let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}});
    let model = model(vec![node("a", taint), node("b", json!({}))], vec![]);
    let affinity = |operator: &str, values: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": operator, "values": values}]}]}}}})
    };
    let mut tolerant = affinity("In", json!(["a"]));
    tolerant["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    assert_eq!(
        decide(&info(pod("p", tolerant)), &model, 0),
        Ok("a".to_owned())
    );
    assert_eq!(
        decide(&info(pod("p", affinity("NotIn", json!(["a"])))), &model, 0),
        Ok("b".to_owned())
    );
    assert!(decide(&info(pod("p", affinity("In", json!(["a"])))), &model, 0).is_err());
}

#[test]
fn the_emptier_node_wins_and_ties_alternate() {
    let busy = model(
        vec![node("a", json!({})), node("b", json!({}))],
        vec![on("a", pod("x", cpu("1")))],
    );
    assert_eq!(
        decide(&info(pod("p", cpu("100m"))), &busy, 0),
        Ok("b".to_owned())
    );
    let even = model(vec![node("a", json!({})), node("b", json!({}))], vec![]);
    let picks: Vec<_> = (0..2)
        .map(|tie| decide(&info(pod("p", cpu("100m"))), &even, tie).unwrap())
        .collect();
    assert_eq!(picks, ["a", "b"]);
}

#[test]
fn an_assumed_pod_occupies_its_node() {
    let mut model = model(vec![node("a", json!({}))], vec![]);
    model.assume(info(pod("x", cpu("1500m"))), "a");
    assert_eq!(
        reasons(pod("p", cpu("1")), &model),
        "0/1 nodes are available: 1 Insufficient cpu."
    );
    model.remove_pod("x");
    assert!(decide(&info(pod("p", cpu("1"))), &model, 0).is_ok());
}

#[test]
fn host_ports_conflict_by_address() {
    let port = |ip: &str| json!({"containers": [{"name": "c", "ports": [{"hostPort": 80, "hostIP": ip, "protocol": "TCP", "containerPort": 80}]}]});
    let model = model(
        vec![node("a", json!({}))],
        vec![on("a", pod("x", port("127.0.0.1")))],
    );
    assert!(decide(&info(pod("p", port("127.0.0.2"))), &model, 0).is_ok());
    assert!(decide(&info(pod("p", port("127.0.0.1"))), &model, 0).is_err());
    assert!(decide(&info(pod("p", port("0.0.0.0"))), &model, 0).is_err());
}

#[test]
fn anti_affinity_holds_both_ways() {
    let anti = |app: &str| {
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}}]}}})
    };
    let nodes = || vec![node("a", json!({})), node("b", json!({}))];
    let theirs = model(nodes(), vec![on("a", pod("x", anti("p")))]);
    assert_eq!(
        decide(&info(pod("p", json!({}))), &theirs, 0),
        Ok("b".to_owned())
    );
    let mine = model(nodes(), vec![on("b", pod("x", json!({})))]);
    assert_eq!(
        decide(&info(pod("p", anti("x"))), &mine, 0),
        Ok("a".to_owned())
    );
    let attract = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}]}}});
    assert_eq!(
        decide(&info(pod("p", attract)), &mine, 0),
        Ok("b".to_owned())
    );
}

#[test]
fn spreading_limits_the_skew() {
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "p"}}}]});
    let labelled = |uid: &str| {
        let mut pod = pod("p", json!({}));
        pod["metadata"]["uid"] = uid.into();
        pod
    };
    let nodes = vec![
        node("a", json!({})),
        node("b", json!({"spec": {"unschedulable": true}})),
    ];
    let one = model(nodes.clone(), vec![on("a", labelled("1"))]);
    let failure: Unschedulable = decide(&info(pod("p", spread.clone())), &one, 0).unwrap_err();
    assert!(
        failure
            .message()
            .contains("1 node(s) didn't match pod topology spread constraints"),
        "{failure:?}"
    );
    let none = model(nodes, vec![]);
    assert_eq!(
        decide(&info(pod("p", spread)), &none, 0),
        Ok("a".to_owned())
    );
}

#[test]
fn preemption_takes_the_least_important_and_no_more_than_needed() {
    let with_priority = |name: &str, amount: &str, priority: i32| {
        let mut spec = cpu(amount);
        spec["priority"] = priority.into();
        pod(name, spec)
    };
    let pods = vec![
        on("a", with_priority("low", "1", 1)),
        on("a", with_priority("middle", "1", 5)),
        on("b", with_priority("high", "2", 50)),
    ];
    let model = model(vec![node("a", json!({})), node("b", json!({}))], pods);
    let newcomer = info(with_priority("p", "1", 10));
    let failure = decide(&newcomer, &model, 0).unwrap_err();
    let plan = preemption::plan(&newcomer, &failure.preemptable, &model, &|_| false).unwrap();
    let victims: Vec<&str> = plan.victims.iter().map(|victim| victim.name()).collect();
    assert_eq!((plan.node.as_str(), victims), ("a", vec!["low"]));
    let humble = info(with_priority("p", "1", 0));
    assert!(preemption::plan(&humble, &failure.preemptable, &model, &|_| false).is_none());
}
