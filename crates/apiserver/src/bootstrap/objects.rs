//! Default objects that are few enough to be written here.

use keelson_kinds::flowcontrol::mandatory;
use serde_json::{Value, json};

use super::Wanted;

const FLOW: &str = "flowcontrol.apiserver.k8s.io";

pub(super) fn namespaces() -> Vec<Wanted> {
    ["default", "kube-system", "kube-public", "kube-node-lease"]
        .iter()
        .map(|name| Wanted {
            group: "",
            resource: "namespaces",
            object: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        })
        .collect()
}

pub(super) fn priority_classes() -> Vec<Wanted> {
    [
        (
            "system-cluster-critical",
            2_000_000_000,
            "For pods the cluster cannot work without, wherever they run.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "For pods a node cannot work without.",
        ),
    ]
    .iter()
    .map(|(name, value, description)| Wanted {
        group: "scheduling.k8s.io",
        resource: "priorityclasses",
        object: json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description,
        }),
    })
    .collect()
}

/// Upstream's mandatory and suggested flow control.
pub(super) fn flow_control() -> Vec<Wanted> {
    let mut out = Vec::new();
    for name in ["exempt", "catch-all"] {
        out.extend(mandatory::priority_level(name).map(|spec| level(name, spec)));
    }
    for (name, shares, lendable) in [
        ("system", 30, 33),
        ("node-high", 40, 25),
        ("leader-election", 10, 0),
        ("workload-high", 40, 50),
        ("workload-low", 100, 90),
        ("global-default", 20, 50),
    ] {
        let queues = match name {
            "leader-election" => json!({"queues": 16, "handSize": 4, "queueLengthLimit": 50}),
            "system" | "node-high" => json!({"queues": 64, "handSize": 6, "queueLengthLimit": 50}),
            _ => json!({"queues": 128, "handSize": 6, "queueLengthLimit": 50}),
        };
        out.push(level(
            name,
            json!({"type": "Limited", "limited": {
                "nominalConcurrencyShares": shares, "lendablePercent": lendable,
                "limitResponse": {"type": "Queue", "queuing": queues}}}),
        ));
    }
    out.extend(schemas());
    out
}

fn level(name: &str, spec: Value) -> Wanted {
    Wanted {
        group: FLOW,
        resource: "prioritylevelconfigurations",
        object: json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": {"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}}, "spec": spec,
        }),
    }
}

fn schemas() -> Vec<Wanted> {
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let user = |name: &str| json!({"kind": "User", "user": {"name": name}});
    let account = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}});
    let everything = || json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}]);
    let any_path = || json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]);
    let all = |subjects: Vec<Value>| json!([{"subjects": subjects, "resourceRules": everything(), "nonResourceRules": any_path()}]);
    let on = |subjects: Vec<Value>,
              verbs: Value,
              group: &str,
              resources: Value,
              namespaces: Value,
              cluster: bool| {
        json!({"subjects": subjects, "resourceRules": [{
            "verbs": verbs, "apiGroups": [group], "resources": resources,
            "clusterScope": cluster, "namespaces": namespaces}]})
    };
    let managers = || {
        vec![
            user("system:kube-controller-manager"),
            user("system:kube-scheduler"),
        ]
    };
    let lease = json!(["leases"]);
    let fixed = ["exempt", "catch-all"].into_iter();
    let fixed = fixed.filter_map(|name| Some(wanted_schema(name, mandatory::flow_schema(name)?)));
    let mut out = vec![
        schema(
            "probes",
            "exempt",
            2,
            None,
            json!([{"subjects": [group("system:unauthenticated"), group("system:authenticated")],
                    "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]}]),
        ),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            Some("ByUser"),
            json!([on(
                managers(),
                json!(["get", "create", "update"]),
                "coordination.k8s.io",
                lease.clone(),
                json!(["*"]),
                false
            )]),
        ),
        schema(
            "endpoint-controller",
            "workload-high",
            150,
            Some("ByUser"),
            json!([on(
                vec![
                    user("system:kube-controller-manager"),
                    account("kube-system", "endpoint-controller"),
                    account("kube-system", "endpointslicemirroring-controller")
                ],
                json!(["get", "create", "update"]),
                "",
                json!(["endpoints"]),
                json!(["*"]),
                false
            )]),
        ),
        schema(
            "workload-leader-election",
            "leader-election",
            200,
            Some("ByUser"),
            json!([on(
                vec![account("kube-system", "*")],
                json!(["get", "create", "update"]),
                "coordination.k8s.io",
                lease,
                json!(["*"]),
                false
            )]),
        ),
        schema(
            "system-node-high",
            "node-high",
            400,
            Some("ByUser"),
            json!([
                on(
                    vec![group("system:nodes")],
                    json!(["*"]),
                    "",
                    json!(["nodes", "nodes/status"]),
                    json!(["*"]),
                    true
                ),
                on(
                    vec![group("system:nodes")],
                    json!(["*"]),
                    "coordination.k8s.io",
                    json!(["leases"]),
                    json!(["*"]),
                    false
                ),
            ]),
        ),
        schema(
            "system-nodes",
            "system",
            500,
            Some("ByUser"),
            all(vec![group("system:nodes")]),
        ),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            Some("ByNamespace"),
            all(vec![user("system:kube-controller-manager")]),
        ),
        schema(
            "kube-scheduler",
            "workload-high",
            800,
            Some("ByNamespace"),
            all(vec![user("system:kube-scheduler")]),
        ),
        schema(
            "kube-system-service-accounts",
            "workload-high",
            900,
            Some("ByNamespace"),
            all(vec![account("kube-system", "*")]),
        ),
        schema(
            "service-accounts",
            "workload-low",
            9000,
            Some("ByUser"),
            all(vec![group("system:serviceaccounts")]),
        ),
        schema(
            "global-default",
            "global-default",
            9900,
            Some("ByUser"),
            all(vec![
                group("system:unauthenticated"),
                group("system:authenticated"),
            ]),
        ),
    ];
    out.extend(fixed);
    out
}

fn schema(
    name: &str,
    level: &str,
    precedence: i64,
    distinguisher: Option<&str>,
    rules: Value,
) -> Wanted {
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence, "rules": rules,
    });
    if let Some(distinguisher) = distinguisher {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    wanted_schema(name, spec)
}

fn wanted_schema(name: &str, spec: Value) -> Wanted {
    Wanted {
        group: FLOW,
        resource: "flowschemas",
        object: json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
            "metadata": {"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}}, "spec": spec,
        }),
    }
}
