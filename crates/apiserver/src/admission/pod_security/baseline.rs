//! The baseline level: nothing that is known to lead out of a container.

use std::collections::BTreeSet;

use keelson_machinery::meta;
use serde_json::Value;

use super::{Violation, containers, containers_named, names, plural, quoted, setters, violation};

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Safe sysctls in the order they became so; [`SYSCTLS_SINCE`] says how many each version knows.
const SYSCTLS: [&str; 12] = [
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
const SYSCTLS_SINCE: [usize; 4] = [5, 6, 10, 12];

fn listed(values: &BTreeSet<String>) -> String {
    quoted(&values.iter().collect::<Vec<_>>())
}

pub(super) fn app_armor(pod: &Value) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let mut bad = |profile: &Value| {
        let kind = profile["type"].as_str().unwrap_or_default();
        let bad = profile.is_object() && !matches!(kind, "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(kind.to_owned());
        }
        bad
    };
    let of_pod = bad(&pod["spec"]["securityContext"]["appArmorProfile"]);
    let of_containers = names(pod, |c| bad(&c["securityContext"]["appArmorProfile"]));
    let mut annotations: Vec<String> = pod["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
        .filter_map(|(key, value)| Some((key, value.as_str()?)))
        .filter(|(_, value)| {
            !value.is_empty() && *value != "runtime/default" && !value.starts_with("localhost/")
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    annotations.sort();
    let mut who: Vec<String> = setters(of_pod, &of_containers).into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
    }
    if who.is_empty() {
        return None;
    }
    let all: Vec<String> = values.into_iter().chain(annotations).collect();
    violation(
        plural(
            "forbidden AppArmor profile",
            "forbidden AppArmor profiles",
            all.len(),
        ),
        format!(
            "{} must not set AppArmor profile type to {}",
            who.join(" and "),
            quoted(&all)
        ),
    )
}

pub(super) fn capabilities(pod: &Value) -> Option<Violation> {
    let mut added = BTreeSet::new();
    let bad = names(pod, |c| {
        let list = c["securityContext"]["capabilities"]["add"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let foreign: Vec<&str> = list.filter(|cap| !CAPABILITIES.contains(cap)).collect();
        added.extend(foreign.iter().map(|cap| (*cap).to_owned()));
        !foreign.is_empty()
    });
    if bad.is_empty() {
        return None;
    }
    violation(
        "non-default capabilities",
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers_named(&bad),
            listed(&added)
        ),
    )
}

pub(super) fn host_namespaces(pod: &Value) -> Option<Violation> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|key| pod["spec"][**key] == true)
        .map(|key| format!("{key}=true"))
        .collect();
    if used.is_empty() {
        None
    } else {
        violation("host namespaces", used.join(", "))
    }
}

pub(super) fn host_path_volumes(pod: &Value) -> Option<Violation> {
    let bad: Vec<&str> = pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|v| v["hostPath"].is_object())
        .filter_map(|v| v["name"].as_str())
        .collect();
    if bad.is_empty() {
        return None;
    }
    violation(
        "hostPath volumes",
        format!(
            "{} {}",
            plural("volume", "volumes", bad.len()),
            quoted(&bad)
        ),
    )
}

pub(super) fn host_ports(pod: &Value) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let bad = names(pod, |c| {
        let used: Vec<String> = c["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|p| p["hostPort"].as_i64())
            .filter(|p| *p != 0)
            .map(|p| p.to_string())
            .collect();
        let any = !used.is_empty();
        ports.extend(used);
        any
    });
    if bad.is_empty() {
        return None;
    }
    let numbers: Vec<&str> = ports.iter().map(String::as_str).collect();
    violation(
        "hostPort",
        format!(
            "{} {} {} {}",
            containers_named(&bad),
            plural("uses", "use", bad.len()),
            plural("hostPort", "hostPorts", ports.len()),
            numbers.join(", ")
        ),
    )
}

pub(super) fn host_probes(pod: &Value) -> Option<Violation> {
    let mut hosts = BTreeSet::new();
    let mut bad = BTreeSet::new();
    for container in containers(pod) {
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &container["lifecycle"]["postStart"],
            &container["lifecycle"]["preStop"],
        ];
        for handler in handlers {
            for action in ["httpGet", "tcpSocket"] {
                let host = handler[action]["host"].as_str().unwrap_or_default();
                if !host.is_empty() {
                    hosts.insert(host.to_owned());
                    bad.insert(container["name"].as_str().unwrap_or_default());
                }
            }
        }
    }
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<&str> = bad.into_iter().collect();
    violation(
        "probe or lifecycle host",
        format!(
            "{} {} {} {}",
            containers_named(&bad),
            plural("uses", "use", bad.len()),
            plural(
                "probe or lifecycle host",
                "probe or lifecycle hosts",
                hosts.len()
            ),
            listed(&hosts)
        ),
    )
}

pub(super) fn privileged(pod: &Value) -> Option<Violation> {
    let bad = names(pod, |c| c["securityContext"]["privileged"] == true);
    if bad.is_empty() {
        return None;
    }
    violation(
        "privileged",
        format!(
            "{} must not set securityContext.privileged=true",
            containers_named(&bad)
        ),
    )
}

/// Since v1.35 pods with users of their own may choose.
pub(super) fn proc_mount_or_own_users(pod: &Value) -> Option<Violation> {
    if super::has_own_users(pod) {
        return None;
    }
    proc_mount(pod)
}

pub(super) fn proc_mount(pod: &Value) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let bad = names(pod, |c| {
        let kind = c["securityContext"]["procMount"]
            .as_str()
            .unwrap_or("Default");
        if kind != "Default" {
            kinds.insert(kind.to_owned());
        }
        kind != "Default"
    });
    if bad.is_empty() {
        return None;
    }
    violation(
        "procMount",
        format!(
            "{} must not set securityContext.procMount to {}",
            containers_named(&bad),
            listed(&kinds)
        ),
    )
}

pub(super) fn se_linux_v1_0(pod: &Value) -> Option<Violation> {
    se_linux(
        pod,
        &["", "container_t", "container_init_t", "container_kvm_t"],
    )
}

pub(super) fn se_linux_v1_31(pod: &Value) -> Option<Violation> {
    let allowed = [
        "",
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t",
    ];
    se_linux(pod, &allowed)
}

fn se_linux(pod: &Value, allowed: &[&str]) -> Option<Violation> {
    let mut types = BTreeSet::new();
    let (mut user, mut role) = (false, false);
    let mut bad = |options: &Value| {
        let text = |key: &str| options[key].as_str().unwrap_or_default();
        let kind = text("type");
        let wrong_type = !allowed.contains(&kind);
        if wrong_type {
            types.insert(kind.to_owned());
        }
        user |= !text("user").is_empty();
        role |= !text("role").is_empty();
        wrong_type || !text("user").is_empty() || !text("role").is_empty()
    };
    let of_pod = bad(&pod["spec"]["securityContext"]["seLinuxOptions"]);
    let of_containers = names(pod, |c| bad(&c["securityContext"]["seLinuxOptions"]));
    let who = setters(of_pod, &of_containers)?;
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!(
            "{} {}",
            plural("type", "types", types.len()),
            listed(&types)
        ));
    }
    if user {
        what.push("user may not be set".to_owned());
    }
    if role {
        what.push("role may not be set".to_owned());
    }
    violation(
        "seLinuxOptions",
        format!(
            "{who} set forbidden securityContext.seLinuxOptions: {}",
            what.join("; ")
        ),
    )
}

/// Before v1.19 profiles were annotations.
pub(super) fn seccomp_v1_0(pod: &Value) -> Option<Violation> {
    let annotations = meta::annotations(pod);
    let prefix = "container.seccomp.security.alpha.kubernetes.io/";
    let keys = std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned()).chain(
        containers(pod).map(|c| format!("{prefix}{}", c["name"].as_str().unwrap_or_default())),
    );
    let bad: BTreeSet<String> = keys
        .filter_map(|key| Some((annotations.get(&key)?, key)))
        .filter(|(value, _)| {
            !matches!(value.as_str(), "runtime/default" | "docker/default")
                && !value.starts_with("localhost/")
        })
        .map(|(value, key)| format!("{key}={value:?}"))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let all: Vec<&str> = bad.iter().map(String::as_str).collect();
    violation(
        "seccompProfile",
        format!(
            "forbidden {} {}",
            plural("annotation", "annotations", all.len()),
            all.join(", ")
        ),
    )
}

pub(super) fn seccomp_v1_19(pod: &Value) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let mut bad = |profile: &Value| {
        let kind = profile["type"].as_str().unwrap_or_default();
        let bad = profile.is_object() && !matches!(kind, "RuntimeDefault" | "Localhost");
        if bad {
            kinds.insert(kind.to_owned());
        }
        bad
    };
    let of_pod = bad(&pod["spec"]["securityContext"]["seccompProfile"]);
    let of_containers = names(pod, |c| bad(&c["securityContext"]["seccompProfile"]));
    let who = setters(of_pod, &of_containers)?;
    violation(
        "seccompProfile",
        format!(
            "{who} must not set securityContext.seccompProfile.type to {}",
            listed(&kinds)
        ),
    )
}

pub(super) fn sysctls_v1_0(pod: &Value) -> Option<Violation> {
    sysctls(pod, 0)
}

pub(super) fn sysctls_v1_27(pod: &Value) -> Option<Violation> {
    sysctls(pod, 1)
}

pub(super) fn sysctls_v1_29(pod: &Value) -> Option<Violation> {
    sysctls(pod, 2)
}

pub(super) fn sysctls_v1_32(pod: &Value) -> Option<Violation> {
    sysctls(pod, 3)
}

fn sysctls(pod: &Value, step: usize) -> Option<Violation> {
    let allowed = &SYSCTLS[..SYSCTLS_SINCE[step]];
    let bad: Vec<&str> = pod["spec"]["securityContext"]["sysctls"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|s| s["name"].as_str())
        .filter(|name| !allowed.contains(name))
        .collect();
    if bad.is_empty() {
        None
    } else {
        violation("forbidden sysctls", bad.join(", "))
    }
}

pub(super) fn windows_host_process(pod: &Value) -> Option<Violation> {
    let of_pod = pod["spec"]["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let of_containers = names(pod, |c| {
        c["securityContext"]["windowsOptions"]["hostProcess"] == true
    });
    let who = setters(of_pod, &of_containers)?;
    violation(
        "hostProcess",
        format!("{who} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}
