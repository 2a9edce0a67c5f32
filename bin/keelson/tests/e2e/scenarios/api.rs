//! The API as kubectl uses it: patches, reads, refusals.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use super::deployment;
use crate::lab::Namespace;

pub(super) fn patches(ns: &Namespace<'_>) {
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

pub(super) fn bad_input(ns: &Namespace<'_>) {
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

pub(super) fn nodes(ns: &Namespace<'_>) {
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

pub(super) fn reads(ns: &Namespace<'_>) {
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
