//! PodSecurity: the namespace's labels name a level (privileged, baseline, restricted) that pods
//! must keep, or that their authors are warned about.

mod baseline;
mod restricted;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::{AdmissionPlugin, Attributes, Cluster, Operation};

pub(super) struct PodSecurity;

#[async_trait]
impl AdmissionPlugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        let Some(object) = attrs.object.as_ref() else {
            return Ok(());
        };
        let ephemeral = attrs.is_any("", "pods") && attrs.subresource == "ephemeralcontainers";
        let is_pod = attrs.is("", "pods") || ephemeral;
        let Some(pod) = pod_of(attrs, object, is_pod) else {
            return Ok(());
        };
        if attrs.operation == Operation::Update
            && !ephemeral
            && !is_significant(attrs, object, is_pod)
        {
            return Ok(());
        }
        let namespace = cluster.objects.get("", "namespaces", "", &attrs.namespace);
        let Some(namespace) = namespace else {
            return Ok(());
        };
        let (enforce, enforce_version) = level(&namespace, "enforce");
        let (warn, warn_version) = level(&namespace, "warn");
        if is_pod && enforce != Level::Privileged {
            let found = violations(enforce, &pod);
            if !found.is_empty() {
                return Err(attrs.forbidden(format!(
                    "violates PodSecurity \"{}:{enforce_version}\": {}",
                    enforce.name(),
                    shown(&found)
                )));
            }
        }
        if warn != Level::Privileged {
            let found = violations(warn, &pod);
            if !found.is_empty() {
                attrs.warnings.add(format!(
                    "would violate PodSecurity \"{}:{warn_version}\": {}",
                    warn.name(),
                    shown(&found)
                ));
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// A level that cannot be read is the strictest, as upstream has it.
fn level(namespace: &Value, mode: &str) -> (Level, String) {
    let version = meta::label(
        namespace,
        &format!("pod-security.kubernetes.io/{mode}-version"),
    )
    .unwrap_or("latest");
    let level = match meta::label(namespace, &format!("pod-security.kubernetes.io/{mode}")) {
        None | Some("privileged") => Level::Privileged,
        Some("baseline") => Level::Baseline,
        Some(_) => Level::Restricted,
    };
    (level, version.to_owned())
}

/// The pod itself, or the pod a workload would make (metadata and spec).
fn pod_of(attrs: &Attributes, object: &Value, is_pod: bool) -> Option<Value> {
    if is_pod {
        return Some(object.clone());
    }
    if !attrs.subresource.is_empty() {
        return None;
    }
    let template = match (attrs.group.as_str(), attrs.resource.as_str()) {
        ("apps", "deployments" | "daemonsets" | "replicasets" | "statefulsets")
        | ("", "replicationcontrollers")
        | ("batch", "jobs") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        ("", "podtemplates") => &object["template"],
        _ => return None,
    };
    template["spec"].is_object().then(|| template.clone())
}

/// An update that changes nothing the levels look at needs no new verdict.
fn is_significant(attrs: &Attributes, object: &Value, is_pod: bool) -> bool {
    let Some(old) = attrs.old_object.as_deref() else {
        return true;
    };
    if !is_pod {
        return object["spec"] != old["spec"];
    }
    let images =
        |pod: &Value| -> Vec<Value> { containers(pod).map(|c| c["image"].clone()).collect() };
    images(object) != images(old)
        || object["spec"]["ephemeralContainers"] != old["spec"]["ephemeralContainers"]
}

/// A rule that is broken, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Violation {
    reason: String,
    detail: String,
}

type Check = fn(&Value) -> Option<Violation>;

fn violations(level: Level, pod: &Value) -> Vec<Violation> {
    // Restricted replaces the baseline rules it is stricter than.
    let always = baseline::ALWAYS.iter();
    match level {
        Level::Privileged => Vec::new(),
        Level::Baseline => baseline::ALL
            .iter()
            .filter_map(|check| check(pod))
            .collect(),
        Level::Restricted => always
            .chain(restricted::ALL)
            .filter_map(|check| check(pod))
            .collect(),
    }
}

fn shown(violations: &[Violation]) -> String {
    let one = |v: &Violation| {
        if v.detail.is_empty() {
            v.reason.clone()
        } else {
            format!("{} ({})", v.reason, v.detail)
        }
    };
    violations.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation {
        reason: reason.to_owned(),
        detail,
    })
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|key| pod["spec"][key].as_array().into_iter().flatten())
}

/// Names of the containers for which `bad` holds.
fn names(pod: &Value, mut bad: impl FnMut(&Value) -> bool) -> Vec<&str> {
    containers(pod)
        .filter(|c| bad(c))
        .filter_map(|c| c["name"].as_str())
        .collect()
}

fn quoted<S: AsRef<str>>(items: &[S]) -> String {
    items
        .iter()
        .map(|i| format!("\"{}\"", i.as_ref()))
        .collect::<Vec<_>>()
        .join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
fn containers_named(names: &[&str]) -> String {
    format!(
        "{} {}",
        plural("container", "containers", names.len()),
        quoted(names)
    )
}

/// Who set a bad value: the pod, containers, or both.
fn setters(pod_is_bad: bool, bad: &[&str]) -> Option<String> {
    let mut out = Vec::new();
    if pod_is_bad {
        out.push("pod".to_owned());
    }
    if !bad.is_empty() {
        out.push(containers_named(bad));
    }
    (!out.is_empty()).then(|| out.join(" and "))
}

/// Pods in a user namespace of their own may do more inside.
fn has_own_users(pod: &Value) -> bool {
    pod["spec"]["hostUsers"] == false
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plain_pod_is_baseline_and_not_restricted() {
        let pod = json!({"spec": {"containers": [{"name": "c"}]}});
        assert!(violations(Level::Baseline, &pod).is_empty());
        assert_eq!(
            shown(&violations(Level::Restricted, &pod)),
            "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
    }

    #[test]
    fn a_careful_pod_is_restricted() {
        let pod = json!({"spec": {
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }});
        assert_eq!(violations(Level::Restricted, &pod), []);
    }

    #[test]
    fn what_reaches_the_host_is_not_baseline() {
        let pod = json!({"spec": {
            "hostNetwork": true, "hostPID": true,
            "containers": [{"name": "a", "securityContext": {"privileged": true}, "ports": [{"hostPort": 80}]}],
            "volumes": [{"name": "h", "hostPath": {"path": "/"}}],
        }});
        assert_eq!(
            shown(&violations(Level::Baseline, &pod)),
            "host namespaces (hostNetwork=true, hostPID=true), hostPath volumes (volume \"h\"), \
             hostPort (container \"a\" uses hostPort 80), \
             privileged (container \"a\" must not set securityContext.privileged=true)"
        );
    }
}
