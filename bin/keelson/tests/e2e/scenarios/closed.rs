//! What other users of the machine, and the network, find of a cluster: nothing. The rows of the
//! CIS Kubernetes Benchmark that concern files, flags and kubelet settings, each with its check.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::json;

use crate::lab::{Lab, Namespace};

/// A user that has nothing to do with the cluster.
const OTHER_USER: &str = "65534";

/// Directories below the closed top whose content containers see with modes of their own.
const SHOWN_TO_CONTAINERS: [&str; 3] = ["images/layers", "pods", "runtime"];

pub(super) fn files(ns: &Namespace<'_>) {
    ns.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "stringData": {"word": "not for others"},
    }));
    let volume = json!({"name": "v", "secret": {"secretName": "s"}});
    let mount = json!({"name": "v", "mountPath": "/v"});
    let extra = json!({"volumes": [volume], "containers": [{"volumeMounts": [mount],
        "securityContext": {"runAsUser": 1234, "runAsNonRoot": true}}]});
    ns.apply(&ns.pod("reader", &["sleep", "3600"], extra));
    ns.wait_ready("reader");
    // The pod's own user reads what it was given, though the node keeps the way there closed.
    let read = ns.kubectl(&["exec", "reader", "--", "/hello", "cat", "/v/word"]);
    assert_eq!(read, "not for others");
    let run = Path::new("/run/keelson").join(ns.lab.id());
    for top in [ns.lab.data_dir(), run] {
        let found = std::process::Command::new("setpriv")
            .args([
                "--reuid",
                OTHER_USER,
                "--regid",
                OTHER_USER,
                "--clear-groups",
                "find",
            ])
            .arg(&top)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&found.stdout).into_owned();
        let inside: Vec<&str> = text.lines().filter(|l| Path::new(l) != top).collect();
        assert!(inside.is_empty(), "another user finds {inside:?}");
        let mut open = Vec::new();
        walk(&top, &top, &mut open);
        assert!(open.is_empty(), "open to others: {open:?}");
    }
}

/// Files and sockets with a mode for others, outside of what containers see.
fn walk(top: &Path, dir: &Path, open: &mut Vec<PathBuf>) {
    let shown = |path: &Path| {
        let below = path.strip_prefix(top).unwrap_or(path);
        SHOWN_TO_CONTAINERS
            .iter()
            .any(|shown| below == Path::new(shown))
    };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(found) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = found.file_type();
        if kind.is_dir() && !shown(&path) && found.dev() == std::fs::metadata(top).unwrap().dev() {
            walk(top, &path, open);
        } else if (kind.is_file() || kind.is_socket()) && found.mode() & 0o007 != 0 {
            open.push(path);
        }
    }
}

type Check = fn(&Lab) -> Result<(), String>;

/// Number, subject, and what is found.
const CIS: &[(&str, &str, Check)] = &[
    ("1.1.11", "the store's directory is 0700", |lab| {
        mode(&lab.data_dir().join("store"), 0o700).and_then(|()| mode(&lab.data_dir(), 0o700))
    }),
    ("1.1.12", "the store belongs to its server's user", |lab| {
        owned(&lab.data_dir().join("store/store.redb"))
    }),
    ("1.1.13", "the administrator's kubeconfig is 0600", |lab| {
        mode(&lab.data_dir().join("admin.kubeconfig"), 0o600)
    }),
    (
        "1.1.14",
        "the administrator's kubeconfig belongs to root",
        |lab| owned(&lab.data_dir().join("admin.kubeconfig")),
    ),
    ("1.1.19", "the authorities belong to root", |lab| {
        owned(&lab.data_dir().join("pki"))
    }),
    ("1.1.20", "certificates are 0600", |lab| pki(lab, "crt")),
    ("1.1.21", "keys are 0600", |lab| pki(lab, "key")),
    (
        "1.2.1",
        "anonymous requests are allowed nothing but health and versions",
        |lab| {
            answers(lab, "https://127.0.0.1:6443/api/v1/secrets", "403")?;
            answers(lab, "https://127.0.0.1:6443/livez", "200")
        },
    ),
    ("1.2.2", "tokens that nobody issued are refused", |lab| {
        let curl = ["-H", "Authorization: Bearer nobody-gave-this"];
        code(lab, &curl, "https://127.0.0.1:6443/api", "401")
    }),
    ("1.2.6", "authorization is not AlwaysAllow", |lab| {
        can_i(
            lab,
            "system:serviceaccount:default:default",
            "*",
            "secrets",
            "no",
        )
    }),
    ("1.2.7", "nodes see what is theirs only", |lab| {
        can_i(lab, "system:node:another", "list", "secrets", "no")
    }),
    ("1.2.14", "pods get a service account", |lab| {
        refuses(
            lab,
            "default",
            "ServiceAccount",
            json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "cis"}, "spec": {"serviceAccountName": "nobody-made-it",
            "containers": [{"name": "c", "image": "i"}]}}),
            "serviceaccount \"nobody-made-it\" not found",
        )
    }),
    ("1.2.15", "what has no namespace is not taken in", |lab| {
        refuses(
            lab,
            "nobody-made-it",
            "NamespaceLifecycle",
            json!({"apiVersion": "v1",
            "kind": "ConfigMap", "metadata": {"name": "cis"}}),
            "not found",
        )
    }),
    ("1.2.16", "nodes write what is theirs only", |lab| {
        refuses(
            lab,
            "",
            "NodeRestriction",
            json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "cis"}}),
            "is not allowed to modify node",
        )
    }),
    ("1.2.17", "there is no profiling", |lab| {
        answers(lab, "https://127.0.0.1:6443/debug/pprof/", "403")
    }),
    ("1.2.29", "TLS older than 1.2 is refused", |lab| {
        refused(lab, &["--tls-max", "1.1"], "https://127.0.0.1:6443/livez")
    }),
    ("1.3.2", "controllers serve no profiles", |lab| {
        refused(lab, &[], "http://127.0.0.1:10252/debug/pprof/")
    }),
    ("4.2.1", "the kubelet takes no anonymous requests", |lab| {
        answers(lab, "https://127.0.0.1:10250/pods", "401")
    }),
    (
        "4.2.2",
        "the kubelet asks whether a request is allowed",
        |lab| {
            let curl = ["-H", "Authorization: Bearer nobody-gave-this"];
            code(lab, &curl, "https://127.0.0.1:10250/exec/a/b/c", "401")
        },
    ),
    ("4.2.4", "the kubelet has no read-only port", |lab| {
        refused(lab, &[], "http://127.0.0.1:10255/pods")
    }),
    (
        "4.2.12",
        "TLS older than 1.2 is refused by the kubelet",
        |lab| {
            refused(
                lab,
                &["--tls-max", "1.1"],
                "https://127.0.0.1:10250/healthz",
            )
        },
    ),
];

pub(super) fn cis(ns: &Namespace<'_>) {
    let failed: Vec<String> = CIS
        .iter()
        .filter_map(|(number, subject, check)| {
            let reason = check(ns.lab).err()?;
            Some(format!("{number} {subject}: {reason}"))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn mode(path: &Path, wanted: u32) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    match found.mode() & 0o777 {
        mode if mode == wanted => Ok(()),
        mode => Err(format!("{} is {mode:o}", path.display())),
    }
}

fn owned(path: &Path) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    match (found.uid(), found.gid()) {
        (0, 0) => Ok(()),
        other => Err(format!("{} belongs to {other:?}", path.display())),
    }
}

fn pki(lab: &Lab, extension: &str) -> Result<(), String> {
    let files = std::fs::read_dir(lab.data_dir().join("pki")).map_err(|e| e.to_string())?;
    let files = files.flatten().map(|entry| entry.path());
    let chosen: Vec<PathBuf> = files
        .filter(|f| f.extension().is_some_and(|e| e == extension))
        .collect();
    if chosen.len() < 3 {
        return Err(format!("only {chosen:?}"));
    }
    chosen.iter().try_for_each(|file| mode(file, 0o600))
}

fn curl(lab: &Lab, extra: &[&str], url: &str) -> Output {
    lab.inside("curl")
        .args([
            "-sk",
            "--max-time",
            "20",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
        ])
        .args(extra)
        .arg(url)
        .output()
        .unwrap()
}

fn code(lab: &Lab, extra: &[&str], url: &str, wanted: &str) -> Result<(), String> {
    let output = curl(lab, extra, url);
    let code = String::from_utf8_lossy(&output.stdout).into_owned();
    (code == wanted).then_some(()).ok_or(code)
}

fn answers(lab: &Lab, url: &str, wanted: &str) -> Result<(), String> {
    code(lab, &[], url, wanted)
}

fn refused(lab: &Lab, extra: &[&str], url: &str) -> Result<(), String> {
    let output = curl(lab, extra, url);
    (!output.status.success())
        .then_some(())
        .ok_or_else(|| format!("answered {}", String::from_utf8_lossy(&output.stdout)))
}

fn can_i(lab: &Lab, user: &str, verb: &str, what: &str, wanted: &str) -> Result<(), String> {
    let output = lab
        .inside("kubectl")
        .args([
            "auth",
            "can-i",
            verb,
            what,
            "--all-namespaces",
            "--as",
            user,
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let word = said.split_whitespace().next().unwrap_or_default();
    (word == wanted).then_some(()).ok_or(said)
}

/// An admission plugin is on: it refuses the object.
fn refuses(
    lab: &Lab,
    namespace: &str,
    plugin: &str,
    object: serde_json::Value,
    reason: &str,
) -> Result<(), String> {
    let mut command = lab.inside("kubectl");
    command.args(["create", "--dry-run=server", "-f", "-"]);
    if !namespace.is_empty() {
        command.args(["--namespace", namespace]);
    }
    if plugin == "NodeRestriction" {
        command.args(["--as", "system:node:node-1", "--as-group", "system:nodes"]);
    }
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(object.to_string().as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success() && said.contains(reason))
        .then_some(())
        .ok_or_else(|| format!("{plugin}: {said}"))
}
