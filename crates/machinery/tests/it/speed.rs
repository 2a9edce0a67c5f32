//! Figures, printed on demand: `cargo test --release -p keelson-machinery -- --ignored --nocapture`.

use keelson_machinery::apply::{FieldSet, Request, track_update};
use keelson_machinery::decode::decode;
use keelson_machinery::field::Path;
use keelson_machinery::validation::{name_is_dns_subdomain, validate_object_meta};
use keelson_machinery::{patch, protobuf};
use serde_json::{Value, json};
use std::time::Instant;

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-7d9c", "namespace": "default", "labels": {"app": "web", "pod-template-hash": "7d9c"},
            "annotations": {"a/b": "c"}, "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "1", "controller": true}]},
        "spec": {"restartPolicy": "Always", "nodeName": "n", "serviceAccountName": "default",
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}],
            "containers": [{"name": "c", "image": "x:1", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}, "requests": {"cpu": "50m", "memory": "32Mi"}},
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets", "readOnly": true}],
                "livenessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 10}}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}})
}

fn measure(what: &str, mut f: impl FnMut()) {
    f();
    let n = 2000;
    let start = Instant::now();
    for _ in 0..n {
        f();
    }
    println!(
        "{what}: {:.1} us",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(n)
    );
}

#[test]
#[ignore = "prints figures; run by hand in release"]
fn figures() {
    let name = "io.k8s.api.core.v1.Pod";
    let s = keelson_api::schema(name).unwrap();
    let bytes = serde_json::to_vec(&pod()).unwrap();
    println!("a pod of {} bytes", bytes.len());
    let object = decode(&bytes, s).unwrap().object;
    measure("plain parse", || {
        drop(serde_json::from_slice::<Value>(&bytes).unwrap())
    });
    measure("strict decode", || drop(decode(&bytes, s).unwrap()));
    measure("validate metadata", || {
        assert!(
            validate_object_meta(
                &object["metadata"],
                true,
                name_is_dns_subdomain,
                &Path::new("metadata")
            )
            .is_empty()
        );
    });
    measure("encode JSON", || drop(serde_json::to_vec(&object).unwrap()));
    measure("encode protobuf", || {
        drop(protobuf::encode(&object, name).unwrap())
    });
    let reset = FieldSet::default();
    let request = Request {
        schema: s,
        manager: "m",
        api_version: "v1",
        kind: "Pod",
        subresource: "",
        now: "2026-01-01T00:00:00Z",
        reset: &reset,
        versions: None,
    };
    let mut created = object.clone();
    track_update(None, &mut created, &request);
    measure("clone", || drop(created.clone()));
    measure("track a create", || {
        let mut new = object.clone();
        track_update(None, &mut new, &request);
    });
    measure("track a status update", || {
        let mut new = created.clone();
        new["status"]["phase"] = json!("Failed");
        track_update(Some(&created), &mut new, &request);
    });
    measure("strategic patch", || {
        drop(patch::strategic::apply(created.clone(), json!({"status": {"phase": "Failed", "conditions": [{"type": "Ready", "status": "False"}]}}), s).unwrap());
    });
}
