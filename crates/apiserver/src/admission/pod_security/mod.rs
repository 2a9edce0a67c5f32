//! PodSecurity: the namespace's labels name a level (privileged, baseline, restricted) that pods
//! must keep, or that their authors are warned about.

mod baseline;
mod checks;
mod policy;
mod restricted;

use std::collections::BTreeMap;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::{AdmissionPlugin, Attributes, Cluster, Operation};
use checks::violations;
use policy::{Level, LevelVersion, Policy};

pub(super) struct PodSecurity;

/// Of a namespace whose level is raised, at most this many pods are looked at for warnings.
const CHECKED_PODS: usize = 3000;
const ANNOTATION: &str = "pod-security.kubernetes.io/";

#[async_trait]
impl AdmissionPlugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        if attrs.is("", "namespaces") {
            return namespace(attrs, cluster);
        }
        let Some(object) = attrs.object.as_ref() else {
            return Ok(());
        };
        let is_pod = attrs.is_any("", "pods");
        let looked_at = matches!(
            attrs.subresource.as_str(),
            "" | "ephemeralcontainers" | "resize"
        );
        if is_pod && !looked_at {
            return Ok(());
        }
        let Some(pod) = pod_of(attrs, object, is_pod) else {
            return Ok(());
        };
        let Some(found) = cluster.objects.get("", "namespaces", "", &attrs.namespace) else {
            return Err(Status::internal(format!(
                "failed to lookup namespace {:?}",
                attrs.namespace
            )));
        };
        let (policy, errors) = Policy::of(&found);
        let privileged = if is_pod {
            policy.is_privileged()
        } else {
            policy.warn.level == Level::Privileged && policy.audit.level == Level::Privileged
        };
        if errors.is_empty() && privileged {
            if is_pod {
                annotate(attrs, "enforce-policy", "privileged:latest".to_owned());
            }
            return Ok(());
        }
        if is_pod && attrs.operation == Operation::Update && !is_significant(attrs, object) {
            return Ok(());
        }
        if !errors.is_empty() {
            let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
            annotate(
                attrs,
                "error",
                format!("Failed to parse policy: {}", shown.join(", ")),
            );
        }
        judge(attrs, &policy, pod, is_pod)
    }
}

fn annotate(attrs: &Attributes, key: &str, value: String) {
    attrs.annotations.add(&format!("{ANNOTATION}{key}"), value);
}

fn judge(attrs: &Attributes, policy: &Policy, pod: &Value, enforce: bool) -> Result<(), Status> {
    let broken = |at: LevelVersion| {
        let found = violations(at, pod);
        (!found.is_empty()).then(|| format!("PodSecurity \"{at}\": {}", shown(&found)))
    };
    let mut refused = None;
    if enforce {
        annotate(attrs, "enforce-policy", policy.enforce.to_string());
        refused = broken(policy.enforce);
    }
    if let Some(found) = broken(policy.audit) {
        annotate(attrs, "audit-violations", format!("would violate {found}"));
    }
    if let Some(found) = refused {
        return Err(attrs.forbidden(format!("violates {found}")));
    }
    if let Some(found) = broken(policy.warn) {
        attrs.warnings.add(format!("would violate {found}"));
    }
    Ok(())
}

/// The labels of a namespace must be understood, and who raises its level is told what pods
/// would not be let in again.
fn namespace(attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
    let Some(new) = attrs.object.as_ref() else {
        return Ok(());
    };
    let (policy, errors) = Policy::of(new);
    let Some(old) = attrs.old_object.as_deref() else {
        return match errors.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid("", "Namespace", meta::name(new), &errors)),
        };
    };
    let (before, old_errors) = Policy::of(old);
    if !errors.is_empty() && errors != old_errors {
        return Err(Status::invalid("", "Namespace", meta::name(new), &errors));
    }
    let (now, before) = (policy.enforce, before.enforce);
    let eased = now.version == before.version && now.level <= before.level;
    if now == before || now.level == Level::Privileged || eased {
        return Ok(());
    }
    for warning in pods_that_violate(cluster, meta::name(new), now) {
        attrs.warnings.add(warning);
    }
    Ok(())
}

fn pods_that_violate(cluster: &Cluster, namespace: &str, enforce: LevelVersion) -> Vec<String> {
    let mut pods = cluster.objects.list("", "pods", namespace);
    let total = pods.len();
    pods.truncate(CHECKED_PODS);
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in &pods {
        let broken = violations(enforce, pod);
        if broken.is_empty() {
            continue;
        }
        let reasons: Vec<&str> = broken.iter().map(|v| v.reason.as_str()).collect();
        let name = meta::name(pod);
        let entry = found
            .entry(reasons.join(", "))
            .or_insert_with(|| (name.to_owned(), 0));
        if name < entry.0.as_str() {
            name.clone_into(&mut entry.0);
        }
        entry.1 += 1;
    }
    let mut out = Vec::new();
    if pods.len() < total {
        out.push(format!(
            "new PodSecurity enforce level only checked against the first {} of {total} existing pods",
            pods.len()
        ));
    }
    if !found.is_empty() {
        out.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
        ));
    }
    let mut each: Vec<String> = found
        .into_iter()
        .map(|(reason, (name, count))| match count {
            1 => format!("{name}: {reason}"),
            2 => format!("{name} (and 1 other pod): {reason}"),
            _ => format!("{name} (and {} other pods): {reason}", count - 1),
        })
        .collect();
    each.sort();
    out.extend(each);
    out
}

/// The pod itself, or the pod a workload would make (metadata and spec).
fn pod_of<'a>(attrs: &Attributes, object: &'a Value, is_pod: bool) -> Option<&'a Value> {
    if is_pod {
        return Some(object);
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
    template["spec"].is_object().then_some(template)
}

/// A pod's update that brings no other image and no new container needs no new verdict.
fn is_significant(attrs: &Attributes, pod: &Value) -> bool {
    let Some(old) = attrs.old_object.as_deref() else {
        return true;
    };
    let images = |pod: &Value, key: &str| -> Vec<Value> {
        let list = pod["spec"][key].as_array().into_iter().flatten();
        list.map(|c| c["image"].clone()).collect()
    };
    let ephemeral = |pod: &Value| -> BTreeMap<String, Value> {
        let list = pod["spec"]["ephemeralContainers"].as_array();
        list.into_iter()
            .flatten()
            .filter_map(|c| Some((c["name"].as_str()?.to_owned(), c["image"].clone())))
            .collect()
    };
    let before = ephemeral(old);
    ["containers", "initContainers"]
        .iter()
        .any(|key| images(pod, key) != images(old, key))
        || ephemeral(pod)
            .iter()
            .any(|(name, image)| before.get(name) != Some(image))
}

/// A rule that is broken, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Violation {
    reason: String,
    detail: String,
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

    const BASELINE: LevelVersion = LevelVersion {
        level: Level::Baseline,
        version: None,
    };
    const RESTRICTED: LevelVersion = LevelVersion {
        level: Level::Restricted,
        version: None,
    };

    #[test]
    fn a_plain_pod_is_baseline_and_not_restricted() {
        let pod = json!({"spec": {"containers": [{"name": "c"}]}});
        assert!(violations(BASELINE, &pod).is_empty());
        assert_eq!(
            shown(&violations(RESTRICTED, &pod)),
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
        assert_eq!(violations(RESTRICTED, &pod), []);
    }

    #[test]
    fn what_reaches_the_host_is_not_baseline() {
        let pod = json!({"spec": {
            "hostNetwork": true, "hostPID": true,
            "containers": [{"name": "a", "securityContext": {"privileged": true}, "ports": [{"hostPort": 80}]}],
            "volumes": [{"name": "h", "hostPath": {"path": "/"}}],
        }});
        assert_eq!(
            shown(&violations(BASELINE, &pod)),
            "host namespaces (hostNetwork=true, hostPID=true), hostPath volumes (volume \"h\"), \
             hostPort (container \"a\" uses hostPort 80), \
             privileged (container \"a\" must not set securityContext.privileged=true)"
        );
    }
}
