//! Kernel settings that a pod may ask for: those that concern its own namespaces alone, and what
//! the administrator allows besides. Specified by the kubelet's allowlist.

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// Set for a pod without touching any other pod, and a few more by the kernel's version, all of
/// which are older than any kernel that this node runs on (6.5).
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Network,
}

impl Namespace {
    /// What a setting belongs to; `None` for one that the whole machine shares.
    fn of(name: &str) -> Option<Self> {
        let ipc = name == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue."]
                .iter()
                .any(|prefix| name.starts_with(prefix));
        match ipc {
            true => Some(Namespace::Ipc),
            false => name.starts_with("net.").then_some(Namespace::Network),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Namespace::Ipc => "ipc",
            Namespace::Network => "net",
        }
    }
}

/// A pattern of `--allowed-unsafe-sysctls` that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the sysctl {0:?} is not known to be of one namespace: name one of kernel.sem, kernel.shm*, kernel.msg*, fs.mqueue.*, net.*"
)]
pub struct UnknownSysctl(String);

/// Settings that the administrator allows: names, or beginnings that end with `*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnsafeSysctls(Vec<String>);

impl UnsafeSysctls {
    pub fn parse(patterns: &[String]) -> Result<Self, UnknownSysctl> {
        let patterns: Vec<String> = patterns.iter().map(|p| normal(p)).collect();
        for pattern in &patterns {
            let beginning = pattern.strip_suffix('*').unwrap_or(pattern);
            if Namespace::of(beginning).is_none() {
                return Err(UnknownSysctl(pattern.clone()));
            }
        }
        Ok(Self(patterns))
    }

    fn has(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => pattern == name,
            })
    }
}

/// Both ways of writing a setting: `net/ipv4/conf/eth0.1/x` has its dots in the last place.
fn normal(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Why one of the pod's settings is not taken, in upstream's words.
pub(crate) fn forbidden(pod: &Pod, allowed: &UnsafeSysctls) -> Option<String> {
    let spec = pod::spec(pod);
    let sysctls = spec.security_context.as_ref()?.sysctls.as_deref()?;
    sysctls.iter().find_map(|sysctl| {
        let name = normal(&sysctl.name);
        if !SAFE.contains(&name.as_str()) && !allowed.has(&name) {
            return Some(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        let namespace = Namespace::of(&name)?;
        let shared = match namespace {
            Namespace::Ipc => spec.host_ipc.unwrap_or(false),
            Namespace::Network => pod::is_host_network(pod),
        };
        shared.then(|| {
            let namespace = namespace.name();
            format!("forbidden sysctl: {name:?} not allowed with host {namespace} enabled")
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn refusal(name: &str, spec: serde_json::Value, allowed: &[&str]) -> Option<String> {
        let mut spec = spec;
        spec["containers"] = json!([]);
        spec["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
        let allowed: Vec<String> = allowed.iter().map(|a| (*a).to_owned()).collect();
        forbidden(&pod, &UnsafeSysctls::parse(&allowed).unwrap())
    }

    #[test]
    fn only_what_is_safe_or_allowed_is_taken() {
        let none = json!({});
        for (name, spec, allowed, expected) in [
            ("net.ipv4.tcp_syncookies", &none, &[][..], None),
            ("net/ipv4/tcp_syncookies", &none, &[], None),
            (
                "kernel.msgmax",
                &none,
                &[],
                Some(r#"forbidden sysctl: "kernel.msgmax" not allowlisted"#),
            ),
            ("kernel.msgmax", &none, &["kernel.msg*"], None),
            ("net.core.somaxconn", &none, &["net.core.somaxconn"], None),
            (
                "net.core.somaxconn2",
                &none,
                &["net.core.somaxconn"],
                Some(r#"forbidden sysctl: "net.core.somaxconn2" not allowlisted"#),
            ),
            (
                "net.ipv4.tcp_syncookies",
                &json!({"hostNetwork": true}),
                &[],
                Some(
                    r#"forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host net enabled"#,
                ),
            ),
            (
                "kernel.shm_rmid_forced",
                &json!({"hostIPC": true}),
                &[],
                Some(
                    r#"forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host ipc enabled"#,
                ),
            ),
            (
                "vm.swappiness",
                &none,
                &["net.*"],
                Some(r#"forbidden sysctl: "vm.swappiness" not allowlisted"#),
            ),
        ] {
            let found = refusal(name, spec.clone(), allowed);
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn a_pattern_for_the_whole_machine_is_refused() {
        for pattern in ["vm.*", "kernel.*", "*", "kernel.pid_max"] {
            assert!(
                UnsafeSysctls::parse(&[pattern.to_owned()]).is_err(),
                "{pattern}"
            );
        }
    }
}
