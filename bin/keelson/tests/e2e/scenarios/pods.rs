//! What a pod can ask of its node.

use serde_json::json;

use super::workloads::restarts;
use crate::lab::Namespace;

pub(super) fn configuration(ns: &Namespace<'_>) {
    ns.kubectl(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=blue",
    ]);
    ns.kubectl(&[
        "create",
        "secret",
        "generic",
        "keys",
        "--from-literal=key=s3cret",
    ]);
    ns.apply(&ns.pod("reader", &["sleep", "3600"], json!({
        "containers": [{
            "env": [
                {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "BOTH", "value": "$(COLOR)-$(KEY)"},
            ],
            "volumeMounts": [
                {"name": "settings", "mountPath": "/etc/settings"},
                {"name": "keys", "mountPath": "/etc/keys", "readOnly": true},
                {"name": "info", "mountPath": "/etc/info"},
                {"name": "scratch", "mountPath": "/scratch"},
                {"name": "host", "mountPath": "/from-host"},
            ],
        }],
        "volumes": [
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 256}},
            {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "host", "hostPath": {"path": ns.lab.dir, "type": "Directory"}},
        ],
    })));
    ns.wait_ready("reader");
    let cat = |path: &str| ns.kubectl(&["exec", "reader", "--", "/hello", "cat", path]);
    let env = ns.kubectl(&["exec", "reader", "--", "/hello", "env"]);
    for expected in [
        "COLOR=blue",
        "KEY=s3cret",
        "BOTH=blue-s3cret",
        "POD_IP=10.",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
    ] {
        assert!(env.contains(expected), "{expected} is not in {env}");
    }
    assert_eq!(cat("/etc/settings/color"), "blue");
    assert_eq!(cat("/etc/keys/key"), "s3cret");
    assert!(cat("/etc/info/labels").contains("app=\"reader\""));
    assert_eq!(
        cat("/var/run/secrets/kubernetes.io/serviceaccount/namespace"),
        ns.name
    );
    assert_eq!(
        cat("/var/run/secrets/kubernetes.io/serviceaccount/token")
            .matches('.')
            .count(),
        2
    );
    let patch = r#"{"data":{"color":"green"}}"#;
    ns.kubectl(&["patch", "configmap", "settings", "-p", patch]);
    ns.until("the volume to follow the ConfigMap", || {
        (cat("/etc/settings/color") == "green").then_some(())
    });
}

pub(super) fn probes(ns: &Namespace<'_>) {
    ns.apply(&ns.pod("live", &["serve"], json!({"containers": [{
        "livenessProbe": {"exec": {"command": ["/hello", "cat", "/missing"]}, "periodSeconds": 1, "failureThreshold": 1},
    }]})));
    ns.apply(&ns.pod("ready", &["serve"], json!({"containers": [{
        "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 30},
        "readinessProbe": {"exec": {"command": ["/hello", "cat", "/tmp/ready"]}, "periodSeconds": 1},
    }]})));
    ns.until("a restart by the liveness probe", || {
        restarts(ns, "live").filter(|count| *count > 0)
    });
    let ready = || ns.get("pod/ready")["status"]["containerStatuses"][0]["ready"] == true;
    ns.until("the container to start", || {
        (ns.get("pod/ready")["status"]["containerStatuses"][0]["started"] == true).then_some(())
    });
    assert!(!ready());
    let marker = ns.lab.dir.join("ready");
    std::fs::write(&marker, "yes").unwrap();
    ns.kubectl(&["cp", marker.to_str().unwrap(), "ready:/tmp/ready"]);
    ns.until("readiness", || ready().then_some(()));
    let events = ns.kubectl(&["get", "events"]);
    assert!(events.contains("Unhealthy"), "{events}");
}

pub(super) fn init_containers(ns: &Namespace<'_>) {
    let image = "localhost/keelson/hello";
    ns.apply(&ns.pod("app", &["serve"], json!({
        "initContainers": [
            {"name": "first", "image": image, "args": ["echo", "first"]},
            {"name": "sidecar", "image": image, "args": ["tcp-serve", "9001"], "restartPolicy": "Always"},
            {"name": "second", "image": image, "args": ["echo", "second"]},
        ],
    })));
    ns.wait_ready("app");
    assert_eq!(
        ns.kubectl(&["logs", "app", "-c", "second"]).trim(),
        "second"
    );
    let status = ns.get("pod/app")["status"].clone();
    let init = status["initContainerStatuses"].as_array().unwrap();
    assert_eq!(init[0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(init[1]["started"], true);
    assert!(init[1]["state"]["running"].is_object(), "{init:?}");
    ns.apply(&ns.pod(
        "broken",
        &["serve"],
        json!({
            "restartPolicy": "Never",
            "initContainers": [{"name": "fails", "image": image, "args": ["exit", "3"]}],
        }),
    ));
    ns.until("the pod to fail", || {
        (ns.get("pod/broken")["status"]["phase"] == "Failed").then_some(())
    });
}

pub(super) fn limits(ns: &Namespace<'_>) {
    ns.apply(&ns.pod(
        "greedy",
        &["eat-memory", "256"],
        json!({
            "restartPolicy": "Never",
            "containers": [{"resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}}],
        }),
    ));
    let terminated = ns.until("the end of the greedy process", || {
        let status =
            ns.get("pod/greedy")["status"]["containerStatuses"][0]["state"]["terminated"].clone();
        status.is_object().then_some(status)
    });
    assert_eq!(
        (&terminated["reason"], &terminated["exitCode"]),
        (&json!("OOMKilled"), &json!(137)),
        "{terminated}"
    );
}

pub(super) fn security_context(ns: &Namespace<'_>) {
    ns.apply(&ns.pod("guarded", &["sleep", "3600"], json!({
        "securityContext": {"runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 3456, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        }}],
    })));
    ns.wait_ready("guarded");
    let status = ns.kubectl(&[
        "exec",
        "guarded",
        "--",
        "/hello",
        "cat",
        "/proc/self/status",
    ]);
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.split_once(':')
            .unwrap_or_default()
            .1
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(field("Uid"), "1234 1234 1234 1234");
    assert_eq!(field("Gid"), "2345 2345 2345 2345");
    assert!(field("Groups").contains("3456"), "{status}");
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("CapEff"), "0000000000000000");
    let mounts = ns.kubectl(&[
        "exec",
        "guarded",
        "--",
        "/hello",
        "cat",
        "/proc/self/mounts",
    ]);
    let root = mounts
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some("/"))
        .unwrap();
    assert!(root.contains(" ro,") || root.contains(" ro "), "{root}");
    ns.apply(&ns.pod(
        "refused",
        &["sleep", "1"],
        json!({"containers": [{"securityContext": {"runAsNonRoot": true, "runAsUser": 0}}]}),
    ));
    ns.until("a refusal to run as root", || {
        let waiting =
            ns.get("pod/refused")["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        (waiting["reason"] == "CreateContainerConfigError").then_some(())
    });
}

/// Pods that the node was given by hand: each says why it does not run here, and of which of its
/// generations that is true.
pub(super) fn refused(ns: &Namespace<'_>) {
    let sysctl = json!({"sysctls": [{"name": "kernel.msgmax", "value": "65536"}]});
    let requests = json!({"requests": {"cpu": "1000"}});
    for (name, extra, reason, message) in [
        (
            "unsafe-sysctl",
            json!({"nodeName": "node-1", "securityContext": sysctl}),
            "SysctlForbidden",
            "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted",
        ),
        (
            "too-big",
            json!({"nodeName": "node-1", "containers": [{"resources": requests}]}),
            "OutOfcpu",
            "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: ",
        ),
    ] {
        ns.apply(&ns.pod(name, &["sleep", "3600"], extra));
        let status = ns.until(reason, || {
            let status = ns.get(&format!("pod/{name}"))["status"].clone();
            (status["phase"] == "Failed").then_some(status)
        });
        assert_eq!(status["reason"], reason);
        let said = status["message"].as_str().unwrap_or_default();
        assert!(said.starts_with(message), "{said}");
        assert_eq!(status["observedGeneration"], 1);
    }
}

/// A pod that takes more of the node's disk than it said goes, and stays as what ended.
pub(super) fn local_storage(ns: &Namespace<'_>) {
    // 2 MB out of an environment of 32 KB, for the built-in shell has no loops.
    let fill = |dir: &str| {
        let eight = |file: &str| [file; 8].join(" ");
        format!(
            "env > {dir}/a; cat {} > {dir}/b; cat {} > {dir}/c; sleep 3600",
            eight(&format!("{dir}/a")),
            eight(&format!("{dir}/b"))
        )
    };
    let environment = json!([{"name": "FILL", "value": "x".repeat(32 << 10)}]);
    let volume = json!({"name": "v", "emptyDir": {"sizeLimit": "1Mi"}});
    let mount = json!({"name": "v", "mountPath": "/v"});
    let limits = json!({"limits": {"ephemeral-storage": "1Mi"}});
    for (name, dir, extra, message) in [
        (
            "full-volume",
            "/v",
            json!({"volumes": [volume], "containers": [{"env": environment, "volumeMounts": [mount]}]}),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ",
        ),
        (
            "full-layer",
            "/tmp",
            json!({"containers": [{"env": environment, "resources": limits}]}),
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ",
        ),
    ] {
        ns.apply(&ns.pod(name, &["sh", "-c", &fill(dir)], extra));
        let status = ns.until("the eviction", || {
            let status = ns.get(&format!("pod/{name}"))["status"].clone();
            (status["phase"] == "Failed").then_some(status)
        });
        assert_eq!(
            (&status["reason"], &status["message"]),
            (&json!("Evicted"), &json!(message))
        );
        let state = &status["containerStatuses"][0]["state"];
        ns.until("the container's end", || {
            let status = ns.get(&format!("pod/{name}"))["status"].clone();
            status["containerStatuses"][0]["state"]["terminated"]
                .is_object()
                .then_some(())
        });
        assert!(state["waiting"].is_null(), "{state}");
    }
}

/// A container that logs more than its files may hold: no file is larger, no more are kept, and
/// reading the end ends.
pub(super) fn logs(ns: &Namespace<'_>) {
    const MAX_BYTES: u64 = 10 << 20;
    let eight = |file: &str| [file; 8].join(" ");
    // 32 MB out of an environment of 16 KB.
    let script = format!(
        "env > /tmp/a; cat {} > /tmp/b; cat {} > /tmp/c; cat {}; cat {}; cat {}; cat {}; echo the end; sleep 3600",
        eight("/tmp/a"),
        eight("/tmp/b"),
        eight("/tmp/c"),
        eight("/tmp/c"),
        eight("/tmp/c"),
        eight("/tmp/c")
    );
    let environment = json!([{"name": "FILL", "value": "x".repeat(16 << 10)}]);
    ns.apply(&ns.pod(
        "writer",
        &["sh", "-c", &script],
        json!({"containers": [{"env": environment}]}),
    ));
    ns.wait_ready("writer");
    let end = ns.until("the end of the log", || {
        let text = ns.kubectl(&["logs", "writer", "--tail", "1"]);
        (text.trim() == "the end").then_some(text)
    });
    assert_eq!(end, "the end\n");
    let directory = ns.lab.data_dir().join("log/pods");
    let ours = std::fs::read_dir(&directory)
        .unwrap()
        .flatten()
        .map(|e| e.path());
    let ours = ours.into_iter().find(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(&format!("{}_writer_", ns.name))
    });
    let files: Vec<(String, u64)> = std::fs::read_dir(ours.unwrap().join("main"))
        .unwrap()
        .flatten()
        .map(|e| {
            (
                e.file_name().to_string_lossy().into_owned(),
                e.metadata().unwrap().len(),
            )
        })
        .collect();
    assert!((2..=5).contains(&files.len()), "{files:?}");
    assert!(
        files.iter().all(|(_, size)| *size <= MAX_BYTES),
        "{files:?}"
    );
    let limited = ns.kubectl(&["logs", "writer", "--limit-bytes", "1000"]);
    assert_eq!(limited.len(), 1000);
}
