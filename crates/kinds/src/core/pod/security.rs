//! Rules of security contexts.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use keelson_machinery::field::{ErrorList, FieldError};
use regex::Regex;
use serde_json::Value;

use super::{volumes, windows};
use crate::check::{At, range};
use crate::tree::Tree;

const MAX_ID: i64 = i32::MAX as i64;
const SYSCTL: &str = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";

static SYSCTL_NAME: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(&sysctl_pattern()).ok());

fn sysctl_pattern() -> String {
    format!("^({SYSCTL}[\\./])*{SYSCTL}$")
}

/// Signals that may stop a container on Linux.
pub(super) const SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

fn id(at: &At, e: &mut ErrorList) {
    if at.int().is_some_and(|id| !(0..=MAX_ID).contains(&id)) {
        e.push(at.invalid(range(0, MAX_ID)));
    }
}

/// `securityContext` of a container.
pub(super) fn of_container(sc: &At, host_users: bool, e: &mut ErrorList) {
    if !sc.exists() {
        return;
    }
    id(&sc.at("runAsUser"), e);
    id(&sc.at("runAsGroup"), e);
    let proc_mount = sc.at("procMount");
    proc_mount.one_of(e, &["Default", "Unmasked"]);
    if host_users && proc_mount.text() == "Unmasked" {
        e.push(proc_mount.invalid("`hostUsers` must be false to use `Unmasked`"));
    }
    seccomp(&sc.at("seccompProfile"), e);
    if sc.value.at("allowPrivilegeEscalation") == &Value::Bool(false) {
        if sc.value.flag("privileged") {
            e.push(sc.invalid(
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ));
        }
        if sc
            .value
            .list("capabilities.add")
            .iter()
            .any(|c| c == "CAP_SYS_ADMIN")
        {
            e.push(sc.invalid("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"));
        }
    }
    windows::options(&sc.at("windowsOptions"), e);
    app_armor(&sc.at("appArmorProfile"), e);
}

/// `securityContext` of a pod, and what else of the spec shares the node's namespaces.
pub(super) fn of_pod(spec: &At, e: &mut ErrorList) {
    let sc = spec.at("securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(&sc.at(field), e);
    }
    sc.at("supplementalGroups").each().for_each(|g| id(&g, e));
    let share = At {
        value: spec.value.at("shareProcessNamespace"),
        path: sc.path.child("shareProcessNamespace"),
    };
    if share.flag() && spec.value.flag("hostPID") {
        e.push(share.invalid("ShareProcessNamespace and HostPID cannot both be enabled"));
    }
    sysctls(&sc.at("sysctls"), spec.value, e);
    sc.at("fsGroupChangePolicy")
        .one_of(e, &["Always", "OnRootMismatch"]);
    seccomp(&sc.at("seccompProfile"), e);
    app_armor(&sc.at("appArmorProfile"), e);
    sc.at("supplementalGroupsPolicy")
        .one_of(e, &["Merge", "Strict"]);
    windows::options(&sc.at("windowsOptions"), e);
    // Mounting with a label is behind a gate that is off.
    sc.at("seLinuxChangePolicy").one_of(e, &["Recursive"]);
}

fn sysctls(list: &At, spec: &Value, e: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for sysctl in list.each() {
        let name = sysctl.at("name");
        let text = name.text();
        if name.is_empty() {
            e.push(name.required(""));
        } else if text.len() > 253 || SYSCTL_NAME.as_ref().is_some_and(|r| !r.is_match(text)) {
            e.push(name.invalid(format!(
                "must have at most 253 characters and match regex {}",
                sysctl_pattern()
            )));
        } else if !seen.insert(text) {
            e.push(name.duplicate());
        }
        let dotted = text.replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|p| dotted.starts_with(p))
            || dotted == "kernel.sem";
        if spec.flag("hostNetwork") && dotted.starts_with("net.") {
            e.push(name.invalid("may not be specified when 'hostNetwork' is true"));
        } else if spec.flag("hostIPC") && ipc {
            e.push(name.invalid("may not be specified when 'hostIPC' is true"));
        }
    }
}

pub(super) fn host_users(spec: &At, e: &mut ErrorList) {
    if spec.value.at("hostUsers") != &Value::Bool(false) {
        return;
    }
    for (field, shown) in [
        ("hostNetwork", "hostNetwork"),
        ("hostPID", "HostPID"),
        ("hostIPC", "HostIPC"),
    ] {
        if spec.value.flag(field) {
            e.push(spec.at(shown).forbidden("when `hostUsers` is false"));
        }
    }
    for c in super::each_container(spec) {
        if !c.at("volumeDevices").is_empty() {
            e.push(c.at("volumeDevices").forbidden("when `hostUsers` is false"));
        }
    }
}

pub(super) fn host_name_override(spec: &At, e: &mut ErrorList) {
    let name = spec.at("hostnameOverride");
    if !name.exists() {
        return;
    }
    if spec.value.flag("setHostnameAsFQDN") {
        e.push(name.forbidden("may not be specified when setHostnameAsFQDN is true"));
    }
    if spec.value.flag("hostNetwork") {
        e.push(name.forbidden("may not be specified when hostNetwork is true"));
    }
    if name.text().len() > 64 {
        e.push(FieldError::too_long(&name.path, 64));
    }
    name.conforms(e, keelson_machinery::validation::is_dns1123_subdomain);
}

fn seccomp(profile: &At, e: &mut ErrorList) {
    if !profile.exists() {
        return;
    }
    let (kind, local) = (profile.at("type"), profile.at("localhostProfile"));
    if kind.is_empty() {
        e.push(kind.required("type is required when seccompProfile is set"));
    } else {
        kind.one_of(e, &["Localhost", "RuntimeDefault", "Unconfined"]);
    }
    if kind.text() != "Localhost" {
        if local.exists() {
            e.push(FieldError::invalid(
                &local.path,
                profile.value.clone(),
                "can only be set when seccomp type is Localhost",
            ));
        }
    } else if local.exists() {
        volumes::local_descending_path(&local, e);
    } else {
        e.push(local.required("must be set when seccomp type is Localhost"));
    }
}

fn app_armor(profile: &At, e: &mut ErrorList) {
    if !profile.exists() {
        return;
    }
    let (kind, local) = (profile.at("type"), profile.at("localhostProfile"));
    match kind.text() {
        "Localhost" => {
            let text = local.text();
            if text.trim() != text {
                e.push(local.invalid("must not be padded with whitespace"));
            } else if text.is_empty() {
                e.push(local.required("must be set when AppArmor type is Localhost"));
            }
            if text.len() > 4095 {
                e.push(FieldError::too_long(&local.path, 4095));
            }
        }
        "RuntimeDefault" | "Unconfined" => {
            if local.exists() {
                e.push(local.invalid("can only be set when AppArmor type is Localhost"));
            }
        }
        "" => e.push(kind.required("type is required when appArmorProfile is set")),
        _ => e.push(kind.not_supported(&["Localhost", "RuntimeDefault", "Unconfined"])),
    }
}

/// Fields that mean nothing on the system named in `spec.os`.
pub(super) fn of_operating_system(spec: &At, e: &mut ErrorList) {
    const POD: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "hostUsers",
        "hostPID",
        "hostIPC",
        "seccompProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "sysctls",
        "shareProcessNamespace",
        "runAsUser",
        "runAsGroup",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "seLinuxChangePolicy",
    ];
    const CONTAINER: &[&str] = &[
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let os = spec.at("os");
    if !os.exists() {
        return;
    }
    let forbid = |at: At, system: &str, e: &mut ErrorList| {
        if at.exists() && at.value != &Value::Bool(false)
            || at.exists() && system == "windows" && !at.is_empty()
        {
            let what = if system == "linux" {
                "windows options cannot be set for a linux pod"
            } else {
                "cannot be set for a windows pod"
            };
            e.push(at.forbidden(what));
        }
    };
    match os.at("name").text() {
        "" => e.push(os.at("name").required("")),
        "linux" => {
            forbid(spec.at("securityContext").at("windowsOptions"), "linux", e);
            for c in super::each_container(spec) {
                forbid(c.at("securityContext").at("windowsOptions"), "linux", e);
            }
        }
        "windows" => {
            for field in POD {
                // Upstream keeps these with the pod's security context.
                if matches!(
                    *field,
                    "hostUsers" | "hostPID" | "hostIPC" | "shareProcessNamespace"
                ) {
                    let at = spec.at(field);
                    if at.exists() && (at.flag() || !matches!(*field, "hostPID" | "hostIPC")) {
                        e.push(at.forbidden("cannot be set for a windows pod"));
                    }
                } else {
                    forbid(spec.at("securityContext").at(field), "windows", e);
                }
            }
            for c in super::each_container(spec) {
                for field in CONTAINER {
                    forbid(c.at("securityContext").at(field), "windows", e);
                }
            }
        }
        _ => {
            let allowed = &["linux", "windows"];
            let name = os.at("name").text();
            e.push(FieldError::not_supported(&os.path, name, allowed));
        }
    }
}
