//! Rules of new pods and of templates.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use super::container::{self, Surroundings};
use super::{app_armor, scheduling, security, volumes, windows};
use crate::check::addresses::{legacy_ip, sloppy_ip};
use crate::check::{At, range};
use crate::core::resources;
use crate::tree::Tree;

pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(super) fn create(pod: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    metadata(pod, &mut e);
    whole_spec(pod, &mut e);
    let spec = At::new(pod, "spec");
    if !spec.at("ephemeralContainers").is_empty() {
        e.push(
            spec.at("ephemeralContainers")
                .forbidden("cannot be set on create"),
        );
    }
    if !spec.at("nodeName").is_empty() && !spec.at("schedulingGates").is_empty() {
        e.push(
            spec.at("nodeName")
                .forbidden("cannot be set until all schedulingGates have been cleared"),
        );
    }
    app_armor::fields_match(pod.at("metadata.annotations"), &spec, &mut e);
    e
}

/// What every write of a pod's main resource must satisfy, [`whole_spec`] too.
pub(super) fn metadata(pod: &Value, e: &mut ErrorList) {
    tolerations_annotation(pod, e);
    let spec = At::new(pod, "spec");
    annotations(&At::new(pod, "metadata").at("annotations"), &spec, e);
}

pub(super) fn whole_spec(pod: &Value, e: &mut ErrorList) {
    let spec = At::new(pod, "spec");
    pod_spec(&spec, pod.text("metadata.name"), true, e);
    if spec.at("serviceAccountName").is_empty() {
        for volume in spec.at("volumes").each() {
            for source in volume.at("projected").at("sources").each() {
                let token = source.at("serviceAccountToken");
                if token.exists() {
                    e.push(
                        token.forbidden("must not be specified when serviceAccountName is not set"),
                    );
                }
            }
        }
    }
    for list in ["containers", "initContainers"] {
        spec.at(list)
            .each()
            .for_each(|c| container::image_is_trimmed(&c, e));
    }
}

/// Tolerations as an annotation held them before there was a field.
fn tolerations_annotation(pod: &Value, e: &mut ErrorList) {
    const KEY: &str = "scheduler.alpha.kubernetes.io/tolerations";
    let annotations = At::new(pod, "metadata").at("annotations");
    let text = annotations.value.map("").get(KEY).and_then(Value::as_str);
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return;
    };
    match serde_json::from_str::<Value>(text) {
        Ok(list) => {
            let path = annotations.path.child(KEY);
            scheduling::tolerations(&At { value: &list, path }, e);
        }
        Err(error) => e.push(FieldError::invalid(
            &annotations.path,
            KEY,
            error.to_string(),
        )),
    }
}

fn annotations(all: &At, spec: &At, e: &mut ErrorList) {
    if let Some((_, mirror)) = all.entries().find(|(k, _)| *k == MIRROR)
        && spec.value.text("nodeName").is_empty()
    {
        e.push(mirror.invalid("must set spec.nodeName if mirror pod annotation is set"));
    }
    if let Some((_, cost)) = all.entries().find(|(k, _)| *k == DELETION_COST) {
        let text = cost.text();
        let plain = !text.starts_with('+')
            && (text == "0" || !text.trim_start_matches('-').starts_with('0'));
        if !plain || text.parse::<i32>().is_err() {
            e.push(cost.invalid("must be a 32bit integer"));
        }
    }
    seccomp_annotations(all, e);
    app_armor::annotations(all, spec, e);
}

/// Profiles in annotations, which mean nothing any more, keep their form.
fn seccomp_annotations(all: &At, e: &mut ErrorList) {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    for (key, at) in all.entries() {
        if key != POD && !key.starts_with(CONTAINER) {
            continue;
        }
        let profile = At {
            value: at.value,
            path: all.path.child(key),
        };
        match at.text() {
            "runtime/default" | "docker/default" | "unconfined" => {}
            text => match text.strip_prefix("localhost/") {
                Some(path) => {
                    let value = Value::from(path);
                    let path = profile.path.clone();
                    volumes::local_descending_path(
                        &At {
                            value: &value,
                            path,
                        },
                        e,
                    );
                }
                None => e.push(profile.invalid("must be a valid seccomp profile")),
            },
        }
    }
}

/// `template` of a workload: labels, annotations and spec.
pub(crate) fn pod_template(template: &At, e: &mut ErrorList) {
    template_metadata(template, e);
    let spec = template.at("spec");
    pod_spec(&spec, "", false, e);
    app_armor::fields_match(template.value.at("metadata.annotations"), &spec, e);
    if !spec.at("ephemeralContainers").is_empty() {
        let at = spec.at("ephemeralContainers");
        e.push(at.forbidden("ephemeral containers not allowed in pod template"));
    }
}

/// Labels and annotations of a template, with the paths that upstream gives them.
pub(crate) fn template_metadata(template: &At, e: &mut ErrorList) {
    let part = |name: &str| At {
        value: template.value.at("metadata").at(name),
        path: template.path.child(name),
    };
    part("labels").labels(e);
    let all = part("annotations");
    annotation_names(&all, e);
    annotations(&all, &template.at("spec"), e);
}

pub(super) fn annotation_names(annotations: &At, e: &mut ErrorList) {
    for (key, _) in annotations.entries() {
        let lower = key.to_lowercase();
        e.extend(
            validation::is_qualified_name(&lower)
                .into_iter()
                .map(|m| FieldError::invalid(&annotations.path, key, m)),
        );
    }
}

/// Every rule of a pod spec. A pod's own spec is held to more than a template's.
pub(crate) fn pod_spec(spec: &At, pod_name: &str, is_pod: bool, e: &mut ErrorList) {
    if !spec.has("terminationGracePeriodSeconds") {
        e.push(spec.at("terminationGracePeriodSeconds").required(""));
    }
    let sound = volumes::validate(&spec.at("volumes"), pod_name, e);
    let claims = resource_claims(&spec.at("resourceClaims"), e);
    let around = Surroundings {
        spec: spec.value,
        volumes: sound,
        claims,
    };
    container::containers(&spec.at("containers"), &around, e);
    container::init_containers(&spec.at("initContainers"), &around, e);
    container::ephemeral_containers(&spec.at("ephemeralContainers"), &around, e);
    pod_resources(spec, &around.claims, e);
    if spec.value.flag("hostNetwork") {
        host_ports_match(spec, is_pod, e);
    }
    spec.at("restartPolicy")
        .required_one_of(e, &["Always", "OnFailure", "Never"]);
    spec.at("dnsPolicy").required_one_of(
        e,
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    spec.at("nodeSelector").labels(e);
    security::of_pod(spec, e);
    for secret in spec.at("imagePullSecrets").each() {
        if secret
            .value
            .as_object()
            .is_some_and(|o| o.keys().any(|k| k != "name"))
        {
            e.push(secret.invalid("only name may be set"));
        }
    }
    scheduling::affinity(&spec.at("affinity"), e);
    dns_config(spec, e);
    for gate in spec.at("readinessGates").each() {
        gate.at("conditionType").label_name(e);
    }
    scheduling_gates(&spec.at("schedulingGates"), e);
    scheduling::topology_spread(&spec.at("topologySpreadConstraints"), e);
    windows::host_process(spec, e);
    security::host_users(spec, e);
    security::host_name_override(spec, e);
    names_and_numbers(spec, e);
    scheduling::tolerations(&spec.at("tolerations"), e);
    host_aliases(&spec.at("hostAliases"), e);
    for (key, at) in spec.at("overhead").entries() {
        resources::name(&at, key, e);
        resources::amount(&at, key, e);
    }
    security::of_operating_system(spec, e);
    file_key_volumes(spec, e);
}

fn names_and_numbers(spec: &At, e: &mut ErrorList) {
    for (field, rule) in [
        (
            "serviceAccountName",
            validation::is_dns1123_subdomain as fn(&str) -> Vec<String>,
        ),
        ("nodeName", validation::is_dns1123_subdomain),
        ("hostname", validation::is_dns1123_label),
        ("subdomain", validation::is_dns1123_label),
        ("priorityClassName", validation::is_dns1123_subdomain),
    ] {
        spec.at(field).optional_conforms(e, rule);
    }
    if spec.has("runtimeClassName") {
        spec.at("runtimeClassName")
            .conforms(e, validation::is_dns1123_subdomain);
    }
    let deadline = spec.at("activeDeadlineSeconds");
    if deadline
        .int()
        .is_some_and(|d| !(1..=i64::from(i32::MAX)).contains(&d))
    {
        e.push(deadline.invalid(range(1, i64::from(i32::MAX))));
    }
    spec.at("preemptionPolicy")
        .one_of(e, &["PreemptLowerPriority", "Never"]);
}

fn resource_claims<'a>(list: &At<'a>, e: &mut ErrorList) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for claim in list.each() {
        let name = claim.at("name");
        if name.is_empty() {
            e.push(name.required(""));
        } else if names.insert(name.text()) {
            name.conforms(e, validation::is_dns1123_label);
        } else {
            e.push(name.duplicate());
        }
        let (direct, template) = (
            claim.at("resourceClaimName"),
            claim.at("resourceClaimTemplateName"),
        );
        match (direct.exists(), template.exists()) {
            (true, true) => {
                e.push(claim.invalid("at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"));
            }
            (false, false) => {
                e.push(claim.invalid(
                    "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
                ));
            }
            _ => {}
        }
        for reference in [direct, template] {
            if reference.exists() {
                reference.conforms(e, validation::is_dns1123_subdomain);
            }
        }
    }
    names
}

fn pod_resources(spec: &At, claims: &BTreeSet<&str>, e: &mut ErrorList) {
    let own = spec.at("resources");
    if !own.exists() {
        return;
    }
    if spec.value.text("os.name") == "windows" {
        return e.push(own.forbidden("may not be set for a windows pod"));
    }
    if own.has("claims") {
        e.push(
            own.at("claims")
                .forbidden("claims may not be set for Resources at pod-level"),
        );
    }
    resources::requirements(&own, resources::Scope::Pod, claims, e);
    at_least_the_containers(spec, &own, "requests", |_| true, e);
    at_least_the_containers(spec, &own, "limits", resources::is_huge_page, e);
    for (i, c) in spec.value.list("containers").iter().enumerate() {
        for (name, limit) in c.map("resources.limits") {
            let most = own
                .value
                .map("limits")
                .get(name)
                .and_then(crate::check::quantity);
            let (Some(limit), Some(most)) = (crate::check::quantity(limit), most) else {
                continue;
            };
            if limit > most {
                let path = own
                    .path
                    .child("containers")
                    .index(i)
                    .key(name)
                    .child("limits");
                let detail = format!("must be less than or equal to pod limits of {most}");
                e.push(FieldError::invalid(&path, limit.to_string(), detail));
            }
        }
    }
}

/// What a pod states for itself covers what its containers state together.
fn at_least_the_containers(
    spec: &At,
    own: &At,
    which: &str,
    counts: fn(&str) -> bool,
    e: &mut ErrorList,
) {
    for (name, sum) in super::resources::of_containers(spec.value, which) {
        let stated = At {
            value: own.value.at(which).get(&name).unwrap_or(&Value::Null),
            path: own.path.child(which).key(&name),
        };
        if counts(&name) && stated.quantity().is_some_and(|q| sum > q) {
            e.push(stated.invalid(format!(
                "must be greater than or equal to aggregate container {which} of {sum}"
            )));
        }
    }
}

fn host_ports_match(spec: &At, is_pod: bool, e: &mut ErrorList) {
    for c in spec.at("containers").each() {
        for port in c.at("ports").each() {
            let host = port.at("hostPort");
            if (is_pod || host.num() != 0) && host.num() != port.value.num("containerPort") {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                e.push(FieldError::invalid(&host.path, host.num(), detail));
            }
        }
    }
}

fn dns_config(spec: &At, e: &mut ErrorList) {
    let config = spec.at("dnsConfig");
    let (servers, searches) = (config.at("nameservers"), config.at("searches"));
    if spec.value.text("dnsPolicy") == "None" {
        if !config.exists() {
            return e.push(config.required("must provide `dnsConfig` when `dnsPolicy` is None"));
        }
        if servers.is_empty() {
            return e
                .push(servers.required(
                    "must provide at least one DNS nameserver when `dnsPolicy` is None",
                ));
        }
    }
    if servers.len() > 3 {
        e.push(servers.invalid("must not have more than 3 nameservers"));
    }
    servers.each().for_each(|s| legacy_ip(&s, e));
    if searches.len() > 32 {
        e.push(searches.invalid("must not have more than 32 search paths"));
    }
    let total: usize = searches.each().map(|s| s.len() + 1).sum();
    if total > 2049 {
        e.push(searches.invalid(
            "must not have more than 2048 characters (including spaces) in the search list",
        ));
    }
    for search in searches.each().filter(|s| s.text() != ".") {
        let text = search.text().strip_suffix('.').unwrap_or(search.text());
        let msgs = validation::is_dns1123_subdomain_with_underscore(text);
        e.extend(
            msgs.into_iter()
                .map(|m| FieldError::invalid(&search.path, text, m)),
        );
    }
    for option in config.at("options").each() {
        if option.at("name").is_empty() {
            e.push(option.required("must not be empty"));
        }
    }
}

fn scheduling_gates(list: &At, e: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for gate in list.each() {
        let name = gate.value.text("name");
        e.extend(
            validation::is_qualified_name(name)
                .into_iter()
                .map(|m| FieldError::invalid(&gate.path, name, m)),
        );
        if !seen.insert(name) {
            e.push(FieldError::duplicate(&gate.path, name));
        }
    }
}

fn host_aliases(list: &At, e: &mut ErrorList) {
    for alias in list.each() {
        legacy_ip(&alias.at("ip"), e);
        alias
            .at("hostnames")
            .each()
            .for_each(|h| h.conforms(e, validation::is_dns1123_subdomain));
    }
}

/// Variables read from files need an emptyDir to read from.
fn file_key_volumes(spec: &At, e: &mut ErrorList) {
    for c in super::each_container(spec) {
        for var in c.at("env").each() {
            let from = var.at("valueFrom").at("fileKeyRef");
            if !from.exists() {
                continue;
            }
            let name = from.at("volumeName");
            match spec
                .value
                .list("volumes")
                .iter()
                .find(|v| v.text("name") == name.text())
            {
                None => e.push(name.not_found()),
                Some(v) if !v.has("emptyDir") => {
                    e.push(name.invalid("referenced volume must be of type emptyDir"))
                }
                Some(_) => {}
            }
        }
    }
}

/// At most one address of each family.
pub(super) fn dual_stack(list: &At, key: &str, e: &mut ErrorList) {
    let mut families = Vec::new();
    let mut unreadable = None;
    for ip in list.each() {
        let own = At {
            value: ip.value.at(key),
            path: ip.path.clone(),
        };
        legacy_ip(&own, e);
        if sloppy_ip(own.text()).is_none() {
            unreadable.get_or_insert((families.len(), own.text()));
        }
        families.push(own.text().contains(':'));
    }
    if let Some((index, text)) = unreadable.filter(|_| families.len() > 1) {
        let detail =
            format!("failed to check for dual stack with error:invalid IP[{index}]: {text}");
        e.push(FieldError::internal(&list.path, detail));
        return e.push(list.invalid("may specify no more than one IP for each IP family"));
    }
    let distinct = families.len() < 2 || families.len() == 2 && families[0] != families[1];
    if !distinct {
        e.push(list.invalid("may specify no more than one IP for each IP family"));
    }
}

/// Static pods may not use what needs the API.
pub(super) fn static_pod(detail: &str) -> ErrorList {
    let mut error = FieldError::forbidden(&Path::root(), detail);
    // A path without a name, as upstream prints it.
    "[]".clone_into(&mut error.field);
    vec![error]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(mut pod: Value) -> Vec<String> {
        super::super::default::pod(&mut pod);
        create(&pod).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_error_is_reported_at_once() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {
            "containers": [
                {"name": "A", "ports": [{"containerPort": 70000}], "volumeMounts": [{"name": "v", "mountPath": "/x"}]},
                {"name": "b", "image": "i:1", "livenessProbe": {"tcpSocket": {"port": "http"}, "successThreshold": 2}},
            ],
            "restartPolicy": "Sometimes",
        }});
        let all = errors(pod).join("\n");
        for part in [
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of",
            "spec.containers[0].image: Required value",
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            "spec.containers[1].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", ",
        ] {
            assert!(all.contains(part), "{part} not in\n{all}");
        }
    }

    #[test]
    fn a_usual_pod_is_fine() {
        let pod = json!({"metadata": {"name": "a", "labels": {"a": "b"}}, "spec": {
            "serviceAccountName": "default",
            "containers": [{
                "name": "c", "image": "i",
                "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}}],
                "volumeMounts": [{"name": "t", "mountPath": "/t"}, {"name": "e", "mountPath": "/e"}],
                "readinessProbe": {"httpGet": {"port": 80}},
                "lifecycle": {"preStop": {"exec": {"command": ["true"]}}},
            }],
            "volumes": [
                {"name": "e"},
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
                    {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}},
            ],
            "tolerations": [{"operator": "Exists"}],
        }});
        assert_eq!(errors(pod), Vec::<String>::new());
    }

    #[test]
    fn requests_stay_within_limits() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [
            {"name": "c", "image": "i", "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}]}});
        assert_eq!(
            errors(pod),
            [
                "spec.containers[0].resources.requests: Invalid value: \"2Gi\": must be less than or equal to memory limit of 1Gi"
            ]
        );
    }
}
