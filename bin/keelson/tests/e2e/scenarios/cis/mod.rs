//! The rows of the CIS Kubernetes Benchmark that concern files, flags and kubelet settings, each
//! with what is found. `docs/cis.md` is this table.

mod checks;

use serde_json::{Value, json};

use crate::lab::Namespace;

use checks::{
    authentic, authorities, bearer, can_i, ciphers, closed, code, data, default_of, equal,
    extended_token, foreign_certificate, gone_account, mode, owned, refuses, roles, run_dir,
    seccomp, unheard, unset,
};

type Check = fn(&Namespace<'_>) -> Result<(), String>;

enum Finding {
    Met(Check),
    /// Why, and what a person may do; the check holds while that is so.
    Differs(&'static str, Check),
    NotApplicable(&'static str),
}

use Finding::{Differs, Met, NotApplicable};

const API: &str = "127.0.0.1:6443";
const KUBELET: &str = "127.0.0.1:10250";

/// Number (of version 1.12), subject, finding.
const ROWS: &[(&str, &str, Finding)] = &[
    (
        "1.1.1–1.1.8",
        "manifests of static pods",
        NotApplicable("one process, without manifests"),
    ),
    (
        "1.1.9, 1.1.10",
        "files of the pod network",
        Met(|ns| closed(&run_dir(ns))),
    ),
    (
        "1.1.11",
        "mode of the store's directory",
        Met(|ns| closed(&ns.lab.data_dir()).and_then(|()| closed(&data(ns, "store")))),
    ),
    (
        "1.1.12",
        "owner of the store",
        Met(|ns| owned(&data(ns, "store/store.redb"))),
    ),
    (
        "1.1.13",
        "mode of the administrator's kubeconfig",
        Met(|ns| mode(&data(ns, "admin.kubeconfig"), 0o600)),
    ),
    (
        "1.1.14",
        "owner of the administrator's kubeconfig",
        Met(|ns| owned(&data(ns, "admin.kubeconfig"))),
    ),
    (
        "1.1.15–1.1.18",
        "kubeconfigs of scheduler and controllers",
        NotApplicable("they run in the server and have none"),
    ),
    (
        "1.1.19",
        "owner of the authorities",
        Met(|ns| owned(&data(ns, "pki"))),
    ),
    (
        "1.1.20",
        "mode of certificates",
        Met(|ns| authorities(ns, "crt")),
    ),
    ("1.1.21", "mode of keys", Met(|ns| authorities(ns, "key"))),
    (
        "1.2.1",
        "anonymous requests to the API server",
        Differs(
            "taken, and allowed health and versions alone, as by default upstream; `--anonymous-auth=false` refuses them",
            |ns| {
                code(ns, &[], API, "/api/v1/secrets", "403")
                    .and_then(|()| code(ns, &[], API, "/livez", "200"))
            },
        ),
    ),
    (
        "1.2.2",
        "file of tokens",
        Met(|ns| {
            unset(ns, "--token-auth-file")
                .and_then(|()| code(ns, &bearer("nobody-gave-this"), API, "/api", "401"))
        }),
    ),
    (
        "1.2.3",
        "DenyServiceExternalIPs",
        Differs(
            "off, as by default upstream; `--enable-admission-plugins DenyServiceExternalIPs`",
            |ns| unset(ns, "--enable-admission-plugins"),
        ),
    ),
    (
        "1.2.4",
        "client certificate towards kubelets",
        Met(|ns| {
            code(ns, &[], KUBELET, "/pods", "401")?;
            ns.raw(&["get", "--raw", "/api/v1/nodes/node-1/proxy/pods"], "")
                .map(drop)
        }),
    ),
    (
        "1.2.5",
        "authority of kubelets' certificates",
        Differs(
            "not checked, as by default upstream; kubelets' certificates are signed by the cluster's authority",
            |ns| authentic(ns, KUBELET),
        ),
    ),
    (
        "1.2.6",
        "authorization is not AlwaysAllow",
        Met(|ns| can_i(ns, "nobody", "*", "secrets", false)),
    ),
    (
        "1.2.7",
        "authorization mode Node",
        Met(|ns| can_i(ns, "system:node:another", "list", "secrets", false)),
    ),
    ("1.2.8", "authorization mode RBAC", Met(roles)),
    (
        "1.2.9",
        "EventRateLimit",
        Differs(
            "not there, an alpha plugin upstream; priority and fairness bounds what each client may send",
            |ns| ns.raw(&["get", "flowschemas", "catch-all"], "").map(drop),
        ),
    ),
    (
        "1.2.10",
        "AlwaysAdmit",
        Met(|ns| unset(ns, "--enable-admission-plugins")),
    ),
    (
        "1.2.11",
        "AlwaysPullImages",
        Differs(
            "off, as by default upstream; `--enable-admission-plugins AlwaysPullImages`",
            |ns| unset(ns, "--enable-admission-plugins"),
        ),
    ),
    (
        "1.2.12",
        "ServiceAccount",
        Met(|ns| {
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cis"},
            "spec": {"serviceAccountName": "nobody-made-it", "containers": [{"name": "c", "image": "i"}]}});
            refuses(ns, &[], &pod, "serviceaccount \"nobody-made-it\" not found")
        }),
    ),
    (
        "1.2.13",
        "NamespaceLifecycle",
        Met(|ns| {
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cis", "namespace": "nobody-made-it"}});
            refuses(ns, &["--namespace", "nobody-made-it"], &map, "not found")
        }),
    ),
    (
        "1.2.14",
        "NodeRestriction",
        Met(|ns| {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "cis"}});
            refuses(
                ns,
                &["--as", "system:node:node-1", "--as-group", "system:nodes"],
                &node,
                "is not allowed to modify node",
            )
        }),
    ),
    (
        "1.2.15",
        "profiling of the API server",
        Met(|ns| match ns.raw(&["get", "--raw", "/debug/pprof/"], "") {
            Err(said) if said.contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}")),
        }),
    ),
    (
        "1.2.16–1.2.18, 3.2.1",
        "audit log, its age and number",
        Differs(
            "no policy has a default; `--audit-policy-file`, `--audit-log-path`, `--audit-log-maxage 30`, `--audit-log-maxbackup 10`",
            |ns| unset(ns, "--audit-policy-file").and_then(|()| unset(ns, "--audit-log-path")),
        ),
    ),
    (
        "1.2.19",
        "size of audit logs",
        Met(|ns| default_of(ns, "--audit-log-maxsize", "100")),
    ),
    (
        "1.2.20",
        "time limit of requests",
        NotApplicable("60 s, which no flag changes"),
    ),
    (
        "1.2.21",
        "tokens of service accounts that are gone",
        Met(gone_account),
    ),
    (
        "1.2.22, 1.3.4",
        "key of service accounts",
        Met(|ns| {
            mode(&data(ns, "pki/sa.key"), 0o600).and_then(|()| mode(&data(ns, "pki/sa.pub"), 0o600))
        }),
    ),
    (
        "1.2.23, 1.2.26, 2.1–2.7",
        "TLS of etcd",
        NotApplicable(
            "the store is embedded; with etcd, `--etcd-cafile`, `--etcd-certfile`, `--etcd-keyfile`",
        ),
    ),
    (
        "1.2.24",
        "serving certificate",
        Met(|ns| authentic(ns, API)),
    ),
    (
        "1.2.25",
        "authority of clients' certificates",
        Met(|ns| foreign_certificate(ns, API)),
    ),
    (
        "1.2.27, 1.2.28",
        "encryption at rest",
        Differs(
            "off, as by default upstream; `--encryption-provider-config`",
            |ns| unset(ns, "--encryption-provider-config"),
        ),
    ),
    (
        "1.2.29",
        "ciphers of the API server",
        Met(|ns| ciphers(ns, API)),
    ),
    (
        "1.2.30",
        "extended tokens of pods",
        Differs(
            "pods' tokens are renewed within the hour and taken for a year, as by default upstream; uses after the hour are in the audit log",
            extended_token,
        ),
    ),
    (
        "1.3.1",
        "threshold of terminated pods",
        NotApplicable("12500, which no flag changes"),
    ),
    (
        "1.3.2, 1.3.7",
        "ports of controllers",
        Met(|ns| {
            [10252, 10257]
                .iter()
                .try_for_each(|port| unheard(ns, *port))
        }),
    ),
    (
        "1.3.3",
        "controllers use service accounts",
        Met(|ns| {
            can_i(
                ns,
                "system:kube-controller-manager",
                "create",
                "replicasets",
                false,
            )?;
            can_i(
                ns,
                "system:serviceaccount:kube-system:deployment-controller",
                "create",
                "replicasets",
                true,
            )
        }),
    ),
    (
        "1.3.5",
        "root authority of pods",
        Met(|ns| {
            let map = ns.get("configmap/kube-root-ca.crt");
            let authority =
                std::fs::read_to_string(data(ns, "pki/ca.crt")).map_err(|e| e.to_string())?;
            equal(
                map["data"]["ca.crt"].as_str().unwrap_or_default(),
                &authority,
            )
        }),
    ),
    (
        "1.3.6, 4.2.11",
        "renewal of kubelets' serving certificates",
        Differs(
            "made anew at every start for a year, not renewed while the server runs",
            |ns| authentic(ns, KUBELET),
        ),
    ),
    (
        "1.4.1, 1.4.2",
        "ports of the scheduler",
        Met(|ns| {
            [10251, 10259]
                .iter()
                .try_for_each(|port| unheard(ns, *port))
        }),
    ),
    (
        "4.1.1–4.1.6, 4.1.9, 4.1.10",
        "files of kubelet and proxy",
        NotApplicable("they run in the server and have none"),
    ),
    (
        "4.1.7",
        "mode of the authority's file",
        Met(|ns| mode(&data(ns, "pki/ca.crt"), 0o600)),
    ),
    (
        "4.1.8",
        "owner of the authority's file",
        Met(|ns| owned(&data(ns, "pki/ca.crt"))),
    ),
    (
        "4.2.1",
        "anonymous requests to the kubelet",
        Met(|ns| code(ns, &[], KUBELET, "/pods", "401")),
    ),
    (
        "4.2.2",
        "the kubelet asks what is allowed",
        Met(|ns| {
            let token = ns.raw(&["create", "token", "default"], "")?;
            code(ns, &bearer(token.trim()), KUBELET, "/pods", "403")
        }),
    ),
    (
        "4.2.3",
        "authority of the kubelet's clients",
        Met(|ns| foreign_certificate(ns, KUBELET)),
    ),
    ("4.2.4", "read-only port", Met(|ns| unheard(ns, 10255))),
    (
        "4.2.5",
        "idle streams",
        NotApplicable("end after four hours, which no flag changes"),
    ),
    (
        "4.2.6",
        "chains of iptables",
        NotApplicable("rules are a table of nf_tables"),
    ),
    (
        "4.2.7",
        "the node's name",
        NotApplicable("the authority signs for the name that `--node-name` gives"),
    ),
    (
        "4.2.8",
        "rate of events",
        NotApplicable("no flag; events are counted and gathered, none is dropped by rate"),
    ),
    (
        "4.2.9",
        "certificate of the kubelet",
        Met(|ns| authentic(ns, KUBELET)),
    ),
    (
        "4.2.10",
        "renewal of the kubelet's client certificate",
        NotApplicable("in the same process it needs none"),
    ),
    (
        "4.2.12",
        "ciphers of the kubelet",
        Met(|ns| ciphers(ns, KUBELET)),
    ),
    (
        "4.2.13",
        "processes of a pod",
        Differs(
            "unlimited, as by default upstream; there is no flag yet",
            |ns| {
                let config = ns.raw(&["get", "--raw", "/api/v1/nodes/node-1/proxy/configz"], "")?;
                let config: Value = serde_json::from_str(&config).map_err(|e| e.to_string())?;
                equal(&config["kubeletconfig"]["podPidsLimit"].to_string(), "-1")
            },
        ),
    ),
    (
        "4.2.14",
        "seccomp of pods that ask for none",
        Differs(
            "unconfined, as by default upstream; pods ask for `RuntimeDefault`, the level `restricted` of Pod Security requires it",
            |ns| seccomp(ns, "0"),
        ),
    ),
    (
        "4.3.1",
        "port of the proxy's metrics",
        Met(|ns| unheard(ns, 10249)),
    ),
];

pub(super) fn benchmark(ns: &Namespace<'_>) {
    ns.apply(&ns.pod("plain", &["sleep", "3600"], json!({})));
    ns.wait_ready("plain");
    let failed: Vec<String> = ROWS
        .iter()
        .filter_map(|(number, subject, finding)| {
            let (Met(check) | Differs(_, check)) = finding else {
                return None;
            };
            let reason = check(ns).err()?;
            Some(format!("{number} {subject}: {reason}"))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_page_of_the_benchmark_is_its_table() {
    const PAGE: &str = include_str!("../../../../../../docs/cis.md");
    let rows = ROWS.iter().map(|(number, subject, finding)| {
        let finding = match finding {
            Met(_) => "met".to_owned(),
            Differs(why, _) => format!("**differs**: {why}"),
            NotApplicable(why) => format!("not applicable: {why}"),
        };
        format!("| {number} | {subject} | {finding} |\n")
    });
    let rows: String = rows.collect();
    let page = PAGE
        .split_once("|---|---|---|\n")
        .map_or("", |(_, rows)| rows);
    assert!(page == rows, "the rows of docs/cis.md are to be:\n{rows}");
}
