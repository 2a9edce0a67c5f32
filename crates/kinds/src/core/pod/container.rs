//! Rules of containers.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::{security, volumes};
use crate::check::At;
use crate::core::resources;
use crate::tree::Tree;

/// What containers need to know of their pod.
pub(super) struct Surroundings<'a> {
    pub(super) spec: &'a Value,
    pub(super) volumes: Vec<&'a Value>,
    pub(super) claims: BTreeSet<&'a str>,
}

impl Surroundings<'_> {
    fn host_users(&self) -> bool {
        self.spec.at("hostUsers").as_bool().unwrap_or(true)
    }

    fn grace(&self) -> Option<i64> {
        self.spec.int("terminationGracePeriodSeconds")
    }
}

/// Fields an ephemeral container may not have.
const NOT_EPHEMERAL: &[&str] = &[
    "ports",
    "resources",
    "resizePolicy",
    "restartPolicy",
    "restartPolicyRules",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
];

pub(super) fn containers(list: &At, pod: &Surroundings, e: &mut ErrorList) {
    if list.is_empty() {
        return e.push(list.required(""));
    }
    let mut names = BTreeSet::new();
    for c in list.each() {
        common(&c, pod, e);
        if !names.insert(c.value.text("name")) {
            e.push(c.at("name").duplicate());
        }
        hooks_and_probes(&c, pod, e);
        restart_policy(&c, e);
    }
    host_ports(list, e);
}

pub(super) fn init_containers(list: &At, pod: &Surroundings, e: &mut ErrorList) {
    let mut names: BTreeSet<_> = pod
        .spec
        .list("containers")
        .iter()
        .map(|c| c.text("name"))
        .collect();
    for c in list.each() {
        common(&c, pod, e);
        restart_policy(&c, e);
        let name = c.at("name");
        if !name.is_empty() && !names.insert(name.text()) {
            e.push(name.duplicate());
        }
        if c.value.text("restartPolicy") == "Always" {
            hooks_and_probes(&c, pod, e);
            continue;
        }
        for field in [
            "lifecycle",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
        ] {
            if c.has(field) {
                e.push(
                    c.at(field).forbidden(
                        "may not be set for init containers without restartPolicy=Always",
                    ),
                );
            }
        }
        for policy in c.at("resizePolicy").each() {
            let restart = policy.at("restartPolicy");
            if restart.text() == "RestartContainer" {
                e.push(restart.invalid(
                    "must not be set to 'RestartContainer' for non-sidecar initContainers",
                ));
            }
        }
    }
    host_ports(list, e);
}

pub(super) fn ephemeral_containers(list: &At, pod: &Surroundings, e: &mut ErrorList) {
    let others: BTreeSet<_> = ["containers", "initContainers"]
        .iter()
        .flat_map(|l| pod.spec.list(l))
        .map(|c| c.text("name"))
        .collect();
    let mut names = others.clone();
    for c in list.each() {
        common(&c, pod, e);
        image_is_trimmed(&c, e);
        if !names.insert(c.value.text("name")) {
            e.push(c.at("name").duplicate());
        }
        let target = c.at("targetContainerName");
        if !target.is_empty() && !others.contains(target.text()) {
            e.push(target.not_found());
        }
        for field in NOT_EPHEMERAL {
            let at = c.at(field);
            if at.exists() && (*field == "lifecycle" || !at.is_empty()) {
                e.push(at.forbidden("cannot be set for an Ephemeral Container"));
            }
        }
        for mount in c.at("volumeMounts").each() {
            for field in ["subPath", "subPathExpr"] {
                if !mount.at(field).is_empty() {
                    e.push(
                        mount
                            .at(field)
                            .forbidden("cannot be set for an Ephemeral Container"),
                    );
                }
            }
        }
    }
}

pub(super) fn image_is_trimmed(c: &At, e: &mut ErrorList) {
    let image = c.at("image");
    if image.text().trim() != image.text() {
        e.push(image.invalid("must not have leading or trailing whitespace"));
    }
}

fn common(c: &At, pod: &Surroundings, e: &mut ErrorList) {
    c.at("name")
        .required_conforms(e, validation::is_dns1123_label);
    c.at("image").require(e);
    c.at("terminationMessagePolicy")
        .required_one_of(e, &["File", "FallbackToLogsOnError"]);
    ports(&c.at("ports"), e);
    env(&c.at("env"), e);
    env_from(&c.at("envFrom"), e);
    mounts(c, pod, e);
    devices(c, pod, e);
    c.at("imagePullPolicy")
        .required_one_of(e, &["Always", "IfNotPresent", "Never"]);
    resources::requirements(
        &c.at("resources"),
        resources::Scope::Container,
        &pod.claims,
        e,
    );
    resize_policy(&c.at("resizePolicy"), pod, e);
    security::of_container(&c.at("securityContext"), pod.host_users(), e);
}

fn hooks_and_probes(c: &At, pod: &Surroundings, e: &mut ErrorList) {
    let hooks = c.at("lifecycle");
    for hook in ["postStart", "preStop"] {
        if hooks.has(hook) {
            handler(
                &hooks.at(hook),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                pod,
                e,
            );
        }
    }
    if hooks.has("stopSignal") {
        stop_signal(&hooks.at("stopSignal"), pod, e);
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = c.at(name);
        if probe.exists() {
            self::probe(&probe, name, pod, e);
        }
    }
}

fn stop_signal(signal: &At, pod: &Surroundings, e: &mut ErrorList) {
    match pod.spec.text("os.name") {
        "" => e.push(signal.forbidden("may not be set for containers with empty `spec.os.name`")),
        "windows" => signal.one_of(e, &["SIGKILL", "SIGTERM"]),
        _ => signal.one_of(e, security::SIGNALS),
    }
}

fn probe(probe: &At, name: &str, pod: &Surroundings, e: &mut ErrorList) {
    handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], pod, e);
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        probe.at(field).non_negative(e);
    }
    let grace = probe.at("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|g| g <= 0) {
        e.push(grace.invalid("must be greater than 0"));
    }
    if name == "readinessProbe" {
        if grace.exists() {
            e.push(grace.invalid("must not be set for readinessProbes"));
        }
    } else if probe.at("successThreshold").num() != 1 {
        e.push(probe.at("successThreshold").invalid("must be 1"));
    }
}

fn handler(h: &At, kinds: &[&str], pod: &Surroundings, e: &mut ErrorList) {
    let mut count = 0;
    for kind in kinds {
        let action = h.at(kind);
        if !action.exists() {
            continue;
        }
        count += 1;
        if count > 1 {
            e.push(action.forbidden("may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" => action.at("command").require(e),
            "httpGet" => http_get(&action, e),
            "sleep" => sleep(&action, pod, e),
            _ => action.at("port").port_or_name(e),
        }
    }
    if count == 0 {
        e.push(h.required("must specify a handler type"));
    }
}

fn http_get(action: &At, e: &mut ErrorList) {
    action.at("path").require(e);
    action.at("port").port_or_name(e);
    action.at("scheme").strictly_one_of(e, &["HTTP", "HTTPS"]);
    let headers = action.at("httpHeaders");
    for header in headers.each() {
        let name = header.value.text("name");
        e.extend(
            validation::is_http_header_name(name)
                .into_iter()
                .map(|m| FieldError::invalid(&headers.path, name, m)),
        );
    }
}

fn sleep(action: &At, pod: &Surroundings, e: &mut ErrorList) {
    let Some(grace) = pod.grace() else { return };
    let seconds = action.value.num("seconds");
    if seconds < 0 || seconds > grace {
        let detail =
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        e.push(FieldError::invalid(&action.path, seconds, detail));
    }
}

fn ports(list: &At, e: &mut ErrorList) {
    let mut names = BTreeSet::new();
    for port in list.each() {
        let name = port.at("name");
        if !name.is_empty() {
            let msgs = validation::is_valid_port_name(name.text());
            if !msgs.is_empty() {
                e.extend(msgs.into_iter().map(|m| name.invalid(m)));
            } else if !names.insert(name.text()) {
                e.push(name.duplicate());
            }
        }
        let number = port.at("containerPort");
        if number.num() == 0 {
            e.push(number.required(""));
        } else {
            number.port(e);
        }
        let host = port.at("hostPort");
        if host.num() != 0 {
            host.port(e);
        }
        port.at("protocol")
            .required_one_of(e, &["SCTP", "TCP", "UDP"]);
    }
}

fn host_ports(list: &At, e: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for c in list.each() {
        for port in c.at("ports").each() {
            let number = port.value.num("hostPort");
            let text = format!(
                "{}/{}/{number}",
                port.value.text("protocol"),
                port.value.text("hostIP")
            );
            if number != 0 && seen.contains(&text) {
                e.push(FieldError::duplicate(
                    &port.path.child("hostPort"),
                    text.as_str(),
                ));
            }
            seen.insert(text);
        }
    }
}

fn env(list: &At, e: &mut ErrorList) {
    for var in list.each() {
        var.at("name")
            .required_conforms(e, validation::is_relaxed_env_var_name);
        let from = var.at("valueFrom");
        if from.exists() {
            value_from(&from, !var.at("value").is_empty(), e);
        }
    }
}

fn value_from(from: &At, has_value: bool, e: &mut ErrorList) {
    let mut sources = 0;
    for kind in [
        "fieldRef",
        "resourceFieldRef",
        "configMapKeyRef",
        "secretKeyRef",
        "fileKeyRef",
    ] {
        let source = from.at(kind);
        if !source.exists() {
            continue;
        }
        sources += 1;
        match kind {
            "fieldRef" => volumes::env_field(&source, e),
            "resourceFieldRef" => volumes::resource_field(&source, false, e),
            "fileKeyRef" => file_key(&source, e),
            _ => {
                source.at("name").conforms(e, volumes::is_object_name);
                source
                    .at("key")
                    .required_conforms(e, validation::is_config_map_key);
            }
        }
    }
    let detail = match sources {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        }
        _ if has_value => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    e.push(FieldError::invalid(&from.path, "", detail));
}

fn file_key(source: &At, e: &mut ErrorList) {
    source
        .at("key")
        .required_conforms(e, validation::is_relaxed_env_var_name);
    source
        .at("volumeName")
        .required_conforms(e, validation::is_dns1123_label);
    source.at("path").require(e);
    volumes::no_backsteps(&source.at("path"), e);
}

fn env_from(list: &At, e: &mut ErrorList) {
    for from in list.each() {
        from.at("prefix")
            .optional_conforms(e, validation::is_relaxed_env_var_name);
        let mut sources = 0;
        for kind in ["configMapRef", "secretRef"] {
            if from.has(kind) {
                sources += 1;
                from.at(kind).at("name").required_conforms(e, |n| {
                    validation::is_dns1123_subdomain(n.trim_end_matches('-'))
                });
            }
        }
        if sources == 0 {
            e.push(FieldError::invalid(
                &list.path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ));
        } else if sources > 1 {
            e.push(FieldError::invalid(
                &list.path,
                "",
                "may not have more than one field specified at a time",
            ));
        }
    }
}

fn mounts(c: &At, pod: &Surroundings, e: &mut ErrorList) {
    let list = c.at("volumeMounts");
    let devices = c.value.list("volumeDevices");
    let mut points = BTreeSet::new();
    for mount in list.each() {
        let (name, path) = (mount.at("name"), mount.at("mountPath"));
        name.require(e);
        if !pod.volumes.iter().any(|v| v.text("name") == name.text()) {
            e.push(name.not_found());
        }
        path.require(e);
        if !points.insert(path.text()) {
            e.push(path.invalid("must be unique"));
        }
        if devices.iter().any(|d| d.text("name") == name.text()) {
            e.push(name.invalid("must not already exist in volumeDevices"));
        }
        if devices.iter().any(|d| d.text("devicePath") == path.text()) {
            e.push(path.invalid("must not already exist as a path in volumeDevices"));
        }
        // Upstream leaves the index out of these paths.
        let plain = |field: &str| At {
            value: mount.value.at(field),
            path: list.path.child(field),
        };
        let (sub, expr) = (plain("subPath"), plain("subPathExpr"));
        if !sub.is_empty() {
            volumes::local_descending_path(&sub, e);
        }
        if !expr.is_empty() {
            if !sub.is_empty() {
                e.push(
                    mount
                        .at("subPathExpr")
                        .invalid("subPathExpr and subPath are mutually exclusive"),
                );
            }
            volumes::local_descending_path(&expr, e);
        }
        propagation(&plain("mountPropagation"), c, e);
        recursive_read_only(&plain("recursiveReadOnly"), mount.value, e);
    }
}

fn propagation(p: &At, c: &At, e: &mut ErrorList) {
    p.one_of(e, &["Bidirectional", "HostToContainer", "None"]);
    if p.text() == "Bidirectional" && !c.value.flag("securityContext.privileged") {
        e.push(p.forbidden(
            "Bidirectional mount propagation is available only to privileged containers",
        ));
    }
}

fn recursive_read_only(r: &At, mount: &Value, e: &mut ErrorList) {
    r.one_of(e, &["Disabled", "Enabled", "IfPossible"]);
    if matches!(r.text(), "Enabled" | "IfPossible") {
        if !mount.flag("readOnly") {
            e.push(r.forbidden("may only be specified when readOnly is true"));
        }
        if !matches!(mount.text("mountPropagation"), "" | "None") {
            e.push(
                r.forbidden("may only be specified when mountPropagation is None or not specified"),
            );
        }
    }
}

fn devices(c: &At, pod: &Surroundings, e: &mut ErrorList) {
    let mounts = c.value.list("volumeMounts");
    let (mut names, mut paths) = (BTreeSet::new(), BTreeSet::new());
    for device in c.at("volumeDevices").each() {
        let (name, path) = (device.at("name"), device.at("devicePath"));
        name.require(e);
        if names.contains(name.text()) {
            e.push(name.invalid("must be unique"));
        }
        match pod.volumes.iter().find(|v| v.text("name") == name.text()) {
            None => e.push(name.not_found()),
            Some(v) if !v.has("persistentVolumeClaim") && !v.has("ephemeral") => e.push(
                name.invalid("can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"),
            ),
            Some(_) => {}
        }
        path.require(e);
        if paths.contains(path.text()) {
            e.push(path.invalid("must be unique"));
        }
        if path.text().split('/').any(|part| part == "..") {
            e.push(path.invalid("can not contain backsteps ('..')"));
        } else {
            paths.insert(path.text());
        }
        if mounts.iter().any(|m| m.text("name") == name.text()) {
            e.push(name.invalid("must not already exist in volumeMounts"));
        }
        if mounts.iter().any(|m| m.text("mountPath") == path.text()) {
            e.push(path.invalid("must not already exist as a path in volumeMounts"));
        }
        if !name.is_empty() {
            names.insert(name.text());
        }
    }
}

fn resize_policy(list: &At, pod: &Surroundings, e: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for policy in list.each() {
        let (resource, restart) = (
            policy.value.text("resourceName"),
            policy.value.text("restartPolicy"),
        );
        if !seen.insert(resource) {
            e.push(FieldError::duplicate(&policy.path, resource));
        }
        for (value, allowed) in [
            (resource, ["cpu", "memory"]),
            (restart, ["NotRequired", "RestartContainer"]),
        ] {
            let value = Value::from(value);
            At {
                value: &value,
                path: list.path.clone(),
            }
            .required_one_of(e, &allowed);
        }
        if pod.spec.text("restartPolicy") == "Never" && restart != "NotRequired" {
            e.push(FieldError::invalid(
                &list.path,
                restart,
                "must be 'NotRequired' when pod `restartPolicy` is 'Never'",
            ));
        }
    }
}

fn restart_policy(c: &At, e: &mut ErrorList) {
    let (policy, rules) = (c.at("restartPolicy"), c.at("restartPolicyRules"));
    if !policy.exists() && !rules.is_empty() {
        e.push(policy.required("must specify restartPolicy when restart rules are used"));
    }
    policy.one_of(e, &["Always", "Never", "OnFailure"]);
    if rules.len() > 20 {
        e.push(FieldError::too_many(&rules.path, rules.len(), 20));
    }
    for rule in rules.each() {
        rule.at("action")
            .strictly_one_of(e, &["Restart", "RestartAllContainers"]);
        let codes = rule.at("exitCodes");
        if !codes.exists() {
            e.push(codes.required("must be specified"));
            continue;
        }
        codes.at("operator").strictly_one_of(e, &["In", "NotIn"]);
        let values = codes.at("values");
        if values.len() > 255 {
            e.push(FieldError::too_many(&values.path, values.len(), 255));
        }
    }
}
