//! The restricted level: what hardened pods do besides the baseline.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    Violation, containers_named, has_own_users, names, plural, quoted, setters, violation,
};

const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn is_windows(pod: &Value) -> bool {
    pod["spec"]["os"]["name"] == "windows"
}

/// Since v1.25 Windows pods are not asked for what they cannot have.
fn unless_windows(pod: &Value, check: fn(&Value) -> Option<Violation>) -> Option<Violation> {
    if is_windows(pod) { None } else { check(pod) }
}

/// Since v1.35 root inside a user namespace is nobody outside.
fn unless_own_users(pod: &Value, check: fn(&Value) -> Option<Violation>) -> Option<Violation> {
    if has_own_users(pod) { None } else { check(pod) }
}

pub(super) fn privilege_escalation_v1_25(pod: &Value) -> Option<Violation> {
    unless_windows(pod, privilege_escalation)
}

pub(super) fn capabilities_v1_25(pod: &Value) -> Option<Violation> {
    unless_windows(pod, capabilities)
}

pub(super) fn run_as_non_root_v1_35(pod: &Value) -> Option<Violation> {
    unless_own_users(pod, run_as_non_root)
}

pub(super) fn run_as_user_v1_35(pod: &Value) -> Option<Violation> {
    unless_own_users(pod, run_as_user)
}

pub(super) fn seccomp_v1_25(pod: &Value) -> Option<Violation> {
    unless_windows(pod, seccomp)
}

pub(super) fn privilege_escalation(pod: &Value) -> Option<Violation> {
    let bad = names(pod, |c| {
        c["securityContext"]["allowPrivilegeEscalation"] != false
    });
    if bad.is_empty() {
        return None;
    }
    violation(
        "allowPrivilegeEscalation != false",
        format!(
            "{} must set securityContext.allowPrivilegeEscalation=false",
            containers_named(&bad)
        ),
    )
}

pub(super) fn capabilities(pod: &Value) -> Option<Violation> {
    let list = |c: &Value, key: &str| -> Vec<String> {
        let list = c["securityContext"]["capabilities"][key]
            .as_array()
            .into_iter()
            .flatten();
        list.filter_map(|v| v.as_str().map(ToOwned::to_owned))
            .collect()
    };
    let keeping = names(pod, |c| !list(c, "drop").iter().any(|cap| cap == "ALL"));
    let mut added = BTreeSet::new();
    let adding = names(pod, |c| {
        let foreign: Vec<String> = list(c, "add")
            .into_iter()
            .filter(|cap| cap != "NET_BIND_SERVICE")
            .collect();
        let any = !foreign.is_empty();
        added.extend(foreign);
        any
    });
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            containers_named(&keeping)
        ));
    }
    if !adding.is_empty() {
        let added: Vec<String> = added.into_iter().collect();
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers_named(&adding),
            quoted(&added)
        ));
    }
    if details.is_empty() {
        None
    } else {
        violation("unrestricted capabilities", details.join("; "))
    }
}

pub(super) fn volumes(pod: &Value) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let mut bad = Vec::new();
    for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, _)| k)
            .filter(|k| *k != "name")
            .collect();
        if sources.iter().any(|s| VOLUMES.contains(&s.as_str())) {
            continue;
        }
        bad.push(volume["name"].as_str().unwrap_or_default());
        kinds.insert(sources.first().map_or("unknown", |s| s.as_str()).to_owned());
    }
    if bad.is_empty() {
        return None;
    }
    let listed: Vec<&String> = kinds.iter().collect();
    violation(
        "restricted volume types",
        format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", bad.len()),
            quoted(&bad),
            plural("uses", "use", bad.len()),
            plural(
                "restricted volume type",
                "restricted volume types",
                listed.len()
            ),
            quoted(&listed)
        ),
    )
}

pub(super) fn run_as_non_root(pod: &Value) -> Option<Violation> {
    let of_pod = &pod["spec"]["securityContext"]["runAsNonRoot"];
    let explicit = names(pod, |c| c["securityContext"]["runAsNonRoot"] == false);
    if let Some(who) = setters(*of_pod == false, &explicit) {
        return violation(
            "runAsNonRoot != true",
            format!("{who} must not set securityContext.runAsNonRoot=false"),
        );
    }
    if *of_pod == true {
        return None;
    }
    let implicit = names(pod, |c| c["securityContext"]["runAsNonRoot"].is_null());
    if implicit.is_empty() {
        return None;
    }
    violation(
        "runAsNonRoot != true",
        format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            containers_named(&implicit)
        ),
    )
}

pub(super) fn run_as_user(pod: &Value) -> Option<Violation> {
    let bad = names(pod, |c| c["securityContext"]["runAsUser"] == 0);
    let who = setters(pod["spec"]["securityContext"]["runAsUser"] == 0, &bad)?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

pub(super) fn seccomp(pod: &Value) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let mut bad = |profile: &Value| {
        let kind = profile["type"].as_str().unwrap_or_default();
        let bad = profile.is_object() && !matches!(kind, "RuntimeDefault" | "Localhost");
        if bad {
            kinds.insert(kind.to_owned());
        }
        bad
    };
    let of_pod = &pod["spec"]["securityContext"]["seccompProfile"];
    let pod_is_bad = bad(of_pod);
    let explicit = names(pod, |c| bad(&c["securityContext"]["seccompProfile"]));
    if let Some(who) = setters(pod_is_bad, &explicit) {
        let kinds: Vec<&String> = kinds.iter().collect();
        return violation(
            "seccompProfile",
            format!(
                "{who} must not set securityContext.seccompProfile.type to {}",
                quoted(&kinds)
            ),
        );
    }
    if of_pod.is_object() {
        return None;
    }
    let implicit = names(pod, |c| !c["securityContext"]["seccompProfile"].is_object());
    if implicit.is_empty() {
        return None;
    }
    violation(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers_named(&implicit)
        ),
    )
}
