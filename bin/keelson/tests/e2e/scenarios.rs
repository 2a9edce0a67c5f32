//! What a user does with a cluster. Each scenario has a Kubernetes namespace of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::Namespace;

type Scenario = fn(&Namespace<'_>);

pub(crate) static SCENARIOS: &[(&str, Scenario)] = &[
    ("rolling update without a failed request", rolling_update),
    ("services by name address and node port", services),
    ("exec attach logs cp port-forward", streams),
    ("configuration in environment and volumes", configuration),
    ("probes restart and gate", probes),
    ("init containers and sidecars", init_containers),
    ("limits are enforced", limits),
    ("security context", security_context),
    ("self healing", self_healing),
    ("jobs", jobs),
    ("pending pods say why", pending),
    ("patches and apply", patches),
    ("bad input", bad_input),
    ("nodes cordon drain taint", nodes),
    ("reads and discovery", reads),
];

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 10,
                    "containers": [{
                        "name": "hello", "image": "localhost/keelson/hello",
                        "ports": [{"containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1},
                        // Endpoints go before the process does.
                        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                    }],
                },
            },
        },
    })
}

fn rolling_update(ns: &Namespace<'_>) {
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

fn services(ns: &Namespace<'_>) {
    ns.kubectl(&[
        "create",
        "deployment",
        "hello",
        "--image=localhost/keelson/hello",
        "--replicas=2",
    ]);
    ns.kubectl(&[
        "expose",
        "deployment",
        "hello",
        "--type=NodePort",
        "--port=80",
        "--target-port=8080",
    ]);
    ns.apply(&ns.pod("client", &["sleep", "3600"], json!({})));
    ns.kubectl(&["rollout", "status", "deployment/hello", "--timeout=90s"]);
    ns.wait_ready("client");
    let namespace = &ns.name;
    let service = ns.get("service/hello");
    let cluster_ip = service["spec"]["clusterIP"].as_str().unwrap();
    for host in [
        "hello",
        &format!("hello.{namespace}"),
        &format!("hello.{namespace}.svc.cluster.local"),
        cluster_ip,
    ] {
        let url = format!("http://{host}/");
        ns.until(&format!("an answer of {url}"), || {
            ns.raw(&["exec", "client", "--", "/hello", "get", &url], "")
                .ok()
        });
    }
    let node_port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let url = format!("http://127.0.0.1:{node_port}/");
    ns.until("the node port", || {
        ns.lab.hello(&["get", &url]).status.success().then_some(())
    });
    udp(ns);
    ns.kubectl(&["scale", "deployment/hello", "--replicas=0"]);
    ns.until("no endpoints", || {
        let slices = ns.get("endpointslices");
        let of_hello =
            |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == "hello";
        let slices = slices["items"].as_array().unwrap();
        slices
            .iter()
            .filter(of_hello)
            .all(|slice| slice["endpoints"].as_array().is_none_or(Vec::is_empty))
            .then_some(())
    });
    let refused = ns.kubectl_fails(&[
        "exec",
        "client",
        "--",
        "/hello",
        "get",
        &format!("http://{cluster_ip}/"),
    ]);
    assert!(refused.contains("refused"), "{refused}");
}

fn udp(ns: &Namespace<'_>) {
    ns.apply(&ns.pod("udp", &["udp-serve", "9000"], json!({})));
    ns.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "udp"},
        "spec": {"selector": {"app": "udp"}, "ports": [{"port": 53, "targetPort": 9000, "protocol": "UDP"}]},
    }));
    ns.wait_ready("udp");
    let answer = ns.until("an answer over UDP", || {
        ns.raw(
            &["exec", "client", "--", "/hello", "udp", "udp", "53", "ping"],
            "",
        )
        .ok()
    });
    assert!(answer.contains("ping"), "{answer}");
}

fn streams(ns: &Namespace<'_>) {
    ns.apply(&ns.pod("web", &["serve"], json!({})));
    ns.wait_ready("web");
    assert_eq!(
        ns.kubectl(&["exec", "web", "--", "/hello", "echo", "hi"])
            .trim(),
        "hi"
    );
    let failed = ns
        .command(&["exec", "web", "--", "/hello", "exit", "7"])
        .output()
        .unwrap();
    assert_eq!(failed.status.code(), Some(7));
    let missing = ns.kubectl_fails(&["exec", "web", "--", "/nothing"]);
    assert!(
        missing.contains("no such file") || missing.contains("not found"),
        "{missing}"
    );
    assert_eq!(
        ns.raw(
            &["exec", "-i", "web", "--", "/hello", "cat", "-"],
            "through\n"
        )
        .unwrap(),
        "through\n"
    );
    copy(ns);
    follow(ns);
    forward(ns);
    let run = ns.kubectl(&[
        "run",
        "once",
        "--rm",
        "-i",
        "--restart=Never",
        "--image=localhost/keelson/hello",
        "--",
        "echo",
        "ran",
    ]);
    assert!(run.contains("ran"), "{run}");
}

fn copy(ns: &Namespace<'_>) {
    let (local, back) = (ns.lab.dir.join("copied"), ns.lab.dir.join("copied-back"));
    std::fs::write(&local, "a file\n").unwrap();
    ns.kubectl(&["cp", local.to_str().unwrap(), "web:/tmp/copied"]);
    ns.kubectl(&["cp", "web:/tmp/copied", back.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(back).unwrap(), "a file\n");
}

fn follow(ns: &Namespace<'_>) {
    let mut logs = ns
        .command(&["logs", "-f", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    ns.kubectl(&[
        "exec",
        "web",
        "--",
        "/hello",
        "get",
        "http://127.0.0.1:8080/echo?msg=followed",
    ]);
    let found = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains("msg=followed"));
    let _ = logs.kill();
    let _ = logs.wait();
    assert!(found, "the log did not show the request");
}

fn forward(ns: &Namespace<'_>) {
    let mut forward = ns
        .command(&["port-forward", "pod/web", ":8080", "--address=127.0.0.1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // kubectl dies of a closed standard output, so the reader must live as long as it does.
    let mut output = BufReader::new(forward.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    let port: String = line
        .split("127.0.0.1:")
        .nth(1)
        .unwrap()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let answer = ns.lab.hello(&["get", &format!("http://127.0.0.1:{port}/")]);
    let _ = forward.kill();
    let _ = forward.wait();
    let text = String::from_utf8_lossy(&answer.stdout);
    assert!(
        answer.status.success() && text.contains("web"),
        "{text} {}",
        String::from_utf8_lossy(&answer.stderr)
    );
}

fn configuration(ns: &Namespace<'_>) {
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

fn probes(ns: &Namespace<'_>) {
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

fn restarts(ns: &Namespace<'_>, pod: &str) -> Option<u64> {
    ns.get(&format!("pod/{pod}"))["status"]["containerStatuses"][0]["restartCount"].as_u64()
}

fn init_containers(ns: &Namespace<'_>) {
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

fn limits(ns: &Namespace<'_>) {
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

fn security_context(ns: &Namespace<'_>) {
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

fn self_healing(ns: &Namespace<'_>) {
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

fn jobs(ns: &Namespace<'_>) {
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

fn pending(ns: &Namespace<'_>) {
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

fn patches(ns: &Namespace<'_>) {
    ns.apply(&deployment("web", 0));
    let patch = |kind: &str, body: &str| {
        ns.kubectl(&[
            "patch",
            "deployment",
            "web",
            &format!("--type={kind}"),
            "-p",
            body,
        ])
    };
    patch(
        "json",
        r#"[{"op":"add","path":"/metadata/labels","value":{"json":"yes"}}]"#,
    );
    patch("merge", r#"{"metadata":{"labels":{"merge":"yes"}}}"#);
    patch(
        "strategic",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"second","image":"x"}]}}}}"#,
    );
    let web = ns.get("deployment/web");
    assert_eq!(
        web["metadata"]["labels"],
        json!({"json": "yes", "merge": "yes"})
    );
    assert_eq!(
        web["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let mine = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}, "data": {"a": "1"}}).to_string();
    ns.raw(
        &["apply", "--server-side", "--field-manager=one", "-f", "-"],
        &mine,
    )
    .unwrap();
    let theirs = mine.replace("\"1\"", "\"2\"");
    let conflict = ns
        .raw(
            &["apply", "--server-side", "--field-manager=two", "-f", "-"],
            &theirs,
        )
        .unwrap_err();
    assert!(conflict.contains("conflict with \"one\""), "{conflict}");
    ns.raw(
        &[
            "apply",
            "--server-side",
            "--field-manager=two",
            "--force-conflicts",
            "-f",
            "-",
        ],
        &theirs,
    )
    .unwrap();
    assert_eq!(ns.get("configmap/shared")["data"]["a"], "2");
    ns.raw(&["apply", "-f", "-"], &deployment("plain", 1).to_string())
        .unwrap();
    let again = ns
        .raw(&["apply", "-f", "-"], &deployment("plain", 1).to_string())
        .unwrap();
    assert!(again.contains("unchanged"), "{again}");
}

fn bad_input(ns: &Namespace<'_>) {
    let wrong = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "Wrong_Name"},
        "spec": {"replicas": -1, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "c"}}, "spec": {"containers": [{"name": "x"}]}}},
    });
    let error = ns
        .raw(
            &["create", "--validate=false", "-f", "-"],
            &wrong.to_string(),
        )
        .unwrap_err();
    for part in [
        "Invalid",
        "metadata.name",
        "spec.replicas",
        "spec.template.metadata.labels",
        "image",
    ] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    let unknown =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "dta": {}})
            .to_string();
    let error = ns.raw(&["create", "-f", "-"], &unknown).unwrap_err();
    assert!(error.contains("unknown field"), "{error}");
    assert!(
        ns.kubectl_fails(&["get", "pod", "none"])
            .contains("NotFound")
    );
    assert!(
        ns.kubectl_fails(&["get", "nonsense"])
            .contains("the server doesn't have a resource type")
    );
    ns.kubectl(&["create", "configmap", "twice"]);
    assert!(
        ns.kubectl_fails(&["create", "configmap", "twice"])
            .contains("already exists")
    );
    assert!(
        ns.kubectl_fails(&["auth", "can-i", "get", "pods", "--as=nobody"])
            .is_empty()
    );
    let forbidden = ns.kubectl_fails(&["get", "pods", "--as=nobody"]);
    assert!(
        forbidden.contains("Forbidden") && forbidden.contains("cannot list resource \"pods\""),
        "{forbidden}"
    );
    let port = ns
        .lab
        .keelson(&["up", "--data-dir", "/tmp/keelson-e2e-never", "--no-node"]);
    let message = String::from_utf8_lossy(&port.stderr);
    assert!(
        !port.status.success()
            && message.contains("port 6443 is in use")
            && message.contains("--port"),
        "{message}"
    );
    let twice = ns.lab.keelson(&[
        "up",
        "--data-dir",
        ns.lab.data_dir().to_str().unwrap(),
        "--port",
        "7443",
    ]);
    let message = String::from_utf8_lossy(&twice.stderr);
    assert!(
        !twice.status.success() && message.contains("in use by process"),
        "{message}"
    );
}

fn nodes(ns: &Namespace<'_>) {
    ns.kubectl(&["taint", "node", "node-1", "e2e=yes:PreferNoSchedule"]);
    ns.kubectl(&["taint", "node", "node-1", "e2e-"]);
    let table = ns.kubectl(&["get", "nodes", "-o", "wide"]);
    assert!(
        table.contains("Ready") && table.contains("node-1"),
        "{table}"
    );
    let description = ns.kubectl(&["describe", "node", "node-1"]);
    assert!(description.contains("Allocatable"), "{description}");
}

fn reads(ns: &Namespace<'_>) {
    ns.apply(&ns.pod("one", &["serve"], json!({})));
    ns.wait_ready("one");
    let wide = ns.kubectl(&["get", "pods", "-o", "wide"]);
    assert!(
        wide.contains("NOMINATED NODE") && wide.contains("1/1") && wide.contains("10.244."),
        "{wide}"
    );
    for (arguments, expected) in [
        (&["api-resources"][..], "deployments"),
        (&["api-versions"], "apps/v1"),
        (&["explain", "pod.spec.containers"], "image"),
        (&["auth", "can-i", "create", "pods"], "yes"),
        (&["describe", "pod", "one"], "Started"),
        (&["create", "token", "default"], "."),
        (&["get", "--raw", "/readyz"], "ok"),
        (&["label", "pod", "one", "tier=web"], "labeled"),
        (&["annotate", "pod", "one", "note=this"], "annotated"),
        (&["get", "pods", "-l", "tier=web", "-o", "name"], "pod/one"),
    ] {
        let output = ns.kubectl(arguments);
        assert!(output.contains(expected), "{arguments:?}: {output}");
    }
    let mut watch = ns
        .command(&["get", "pods", "-w", "--no-headers"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    ns.apply(&ns.pod("two", &["serve"], json!({})));
    let started = Instant::now();
    let seen = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.starts_with("two") && line.contains("Running"));
    let _ = watch.kill();
    let _ = watch.wait();
    assert!(seen && started.elapsed() < Duration::from_secs(60));
    std::io::stdout().flush().unwrap();
}
