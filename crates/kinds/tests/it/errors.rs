//! What kinds refuse, in the words that clients know.

use keelson_kinds::{UpdateContext, kind};
use serde_json::{Map, Value, json};

use crate::created;

/// Writes a value at a JSON pointer, making the objects on the way.
fn write(obj: &mut Value, pointer: &str, value: Value) {
    let mut here = obj;
    for step in pointer.split('/').skip(1) {
        here = match here {
            Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
            other => {
                if !other.is_object() {
                    *other = Value::Object(Map::new());
                }
                other
                    .as_object_mut()
                    .unwrap()
                    .entry(step)
                    .or_insert(Value::Null)
            }
        };
    }
    *here = value;
}

fn texts(errors: &[keelson_machinery::field::FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn creates() {
    let cases = [
        (
            "",
            "services",
            "/spec/ports",
            json!([]),
            "spec.ports: Required value",
        ),
        (
            "",
            "services",
            "/spec/ports",
            json!([{"port": 80}, {"port": 81}]),
            "spec.ports[0].name: Required value",
        ),
        (
            "",
            "services",
            "/spec/type",
            json!("Other"),
            "spec.type: Unsupported value: \"Other\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            "",
            "configmaps",
            "/data",
            json!({"a b": "c"}),
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters",
        ),
        (
            "",
            "persistentvolumeclaims",
            "/spec/accessModes",
            json!([]),
            "spec.accessModes: Required value: at least 1 access mode is required",
        ),
        (
            "",
            "resourcequotas",
            "/spec/hard",
            json!({"pods": "1.5"}),
            "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
        ),
        (
            "",
            "nodes",
            "/spec/taints",
            json!([{"key": "a", "effect": "Never"}]),
            "metadata.taints[0].effect: Unsupported value: \"Never\"",
        ),
        (
            "apps",
            "deployments",
            "/spec/strategy",
            json!({"type": "Recreate", "rollingUpdate": {}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            "apps",
            "statefulsets",
            "/spec/selector",
            json!({}),
            "empty selector is invalid for statefulset",
        ),
        (
            "batch",
            "jobs",
            "/spec/template/spec/restartPolicy",
            json!("Always"),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            "batch",
            "cronjobs",
            "/spec/schedule",
            json!("now"),
            "spec.schedule: Invalid value: \"now\": expected exactly 5 fields, found 1: [now]",
        ),
        (
            "batch",
            "cronjobs",
            "/spec/timeZone",
            json!("Middle/Earth"),
            "spec.timeZone: Invalid value: \"Middle/Earth\": unknown time zone Middle/Earth",
        ),
        (
            "networking.k8s.io",
            "networkpolicies",
            "/spec/ingress",
            json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]),
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
        ),
        (
            "networking.k8s.io",
            "ingresses",
            "/spec/rules",
            json!([{"host": "1.2.3.4"}]),
            "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
        ),
        (
            "policy",
            "poddisruptionbudgets",
            "/spec",
            json!({"minAvailable": 1, "maxUnavailable": 1}),
            "minAvailable and maxUnavailable cannot be both set",
        ),
        (
            "rbac.authorization.k8s.io",
            "roles",
            "/rules",
            json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]),
            "rules[0].nonResourceURLs: Invalid value: [\"/healthz\"]: namespaced rules cannot apply to non-resource URLs",
        ),
        (
            "autoscaling",
            "horizontalpodautoscalers",
            "/spec/minReplicas",
            json!(5),
            "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`",
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            "/value",
            json!(1_000_000_001),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ),
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
            "/webhooks/0/sideEffects",
            Value::Null,
            "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            "/endpoints/0/addresses",
            json!(["127.0.0.1"]),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            "coordination.k8s.io",
            "leases",
            "/spec/leaseDurationSeconds",
            json!(0),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (
            "storage.k8s.io",
            "storageclasses",
            "/volumeBindingMode",
            json!("Later"),
            "volumeBindingMode: Unsupported value: \"Later\": supported values: \"Immediate\", \"WaitForFirstConsumer\"",
        ),
    ];
    for (group, resource, pointer, value, expected) in cases {
        let kind = kind(group, resource);
        let mut obj = created(kind);
        write(&mut obj, pointer, value);
        (kind.default)(&mut obj);
        let texts = texts(&(kind.validate)(&obj));
        assert!(
            texts.iter().any(|t| t.contains(expected)),
            "{group}/{resource} {pointer}: {texts:#?}"
        );
    }
}

#[test]
fn updates() {
    let cases = [
        (
            "",
            "secrets",
            "/type",
            json!("other"),
            "type: Invalid value: \"other\": field is immutable",
        ),
        (
            "",
            "persistentvolumeclaims",
            "/spec/storageClassName",
            json!(""),
            "",
        ),
        (
            "",
            "persistentvolumeclaims",
            "/spec/accessModes",
            json!(["ReadWriteMany"]),
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ),
        (
            "",
            "persistentvolumes",
            "/spec/hostPath/path",
            json!("/b"),
            "spec.persistentvolumesource is immutable after creation",
        ),
        (
            "apps",
            "statefulsets",
            "/spec/serviceName",
            json!("other"),
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template'",
        ),
        ("apps", "statefulsets", "/spec/replicas", json!(7), ""),
        (
            "batch",
            "jobs",
            "/spec/completions",
            json!(2),
            "spec.completions: Invalid value: 2: field is immutable",
        ),
        ("batch", "jobs", "/spec/parallelism", json!(2), ""),
        (
            "rbac.authorization.k8s.io",
            "rolebindings",
            "/roleRef/name",
            json!("other"),
            "cannot change roleRef",
        ),
        (
            "storage.k8s.io",
            "storageclasses",
            "/provisioner",
            json!("b.example"),
            "provisioner: Invalid value: \"b.example\": field is immutable",
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            "/value",
            json!(2),
            "value: Forbidden: may not be changed in an update.",
        ),
        (
            "node.k8s.io",
            "runtimeclasses",
            "/handler",
            json!("other"),
            "handler: Invalid value: \"other\": field is immutable",
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            "/addressType",
            json!("IPv6"),
            "addressType: Invalid value: \"IPv6\": field is immutable",
        ),
    ];
    let ctx = UpdateContext {
        subresource: "",
        now: "2026-01-01T00:00:00Z",
    };
    for (group, resource, pointer, value, expected) in cases {
        let kind = kind(group, resource);
        let old = created(kind);
        let mut new = old.clone();
        write(&mut new, pointer, value);
        kind.prepare_changed(&mut new, &old, &ctx);
        let texts = texts(&(kind.validate_update)(&new, &old, &ctx));
        if expected.is_empty() {
            assert!(texts.is_empty(), "{group}/{resource} {pointer}: {texts:#?}");
        } else {
            assert!(
                texts.iter().any(|t| t.contains(expected)),
                "{group}/{resource} {pointer}: {texts:#?}"
            );
        }
    }
}

#[test]
fn a_bound_claim_grows_and_does_not_shrink() {
    let kind = kind("", "persistentvolumeclaims");
    let mut old = created(kind);
    old["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
    let ctx = UpdateContext {
        subresource: "",
        now: "",
    };
    let with = |size: &str| {
        let mut new = old.clone();
        new["spec"]["resources"]["requests"]["storage"] = json!(size);
        texts(&(kind.validate_update)(&new, &old, &ctx))
    };
    assert_eq!(with("2Gi"), Vec::<String>::new());
    assert_eq!(
        with("500Mi"),
        ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
    );
}
