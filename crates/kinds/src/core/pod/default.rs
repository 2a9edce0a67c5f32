//! Defaults of pods and pod templates.

use keelson_machinery::quantity::Quantity;
use serde_json::{Value, json};

use crate::check;
use crate::tree::{Tree, TreeMut};

/// The three lists a pod spec keeps containers in.
pub(crate) const CONTAINER_LISTS: [&str; 3] =
    ["initContainers", "containers", "ephemeralContainers"];

/// A pod: what its template would get, and what only a pod gets.
pub(crate) fn pod(obj: &mut Value) {
    status_addresses(obj);
    let Some(spec) = obj.get_mut("spec") else {
        return;
    };
    pod_spec(spec);
    if spec.num("terminationGracePeriodSeconds") < 0 {
        spec.put("terminationGracePeriodSeconds", 1);
    }
    for list in ["containers", "initContainers"] {
        for container in spec.list_mut(list) {
            let limits = container.map("resources.limits").clone();
            if limits.is_empty() {
                continue;
            }
            if let Some(requests) = container.object_if("resources.requests") {
                for (name, limit) in limits {
                    requests.entry(name).or_insert(limit);
                }
            }
        }
    }
    pod_level_requests(spec);
    spec.fill("enableServiceLinks", true);
    if spec.flag("hostNetwork") {
        host_network_ports(spec, &["containers", "initContainers"]);
    }
}

/// `podIP` and the first of `podIPs` are one; where they differ the older field counts.
fn status_addresses(obj: &mut Value) {
    let one = obj.text("status.podIP").to_owned();
    let first = obj.list("status.podIPs").first();
    let first = first.map(|ip| ip.text("ip").to_owned());
    match first {
        Some(first) if one.is_empty() => obj.put("status.podIP", first),
        first if !one.is_empty() && first.as_deref() != Some(one.as_str()) => {
            obj.put("status.podIPs", json!([{"ip": one}]));
        }
        _ => {}
    }
}

/// A pod template's spec, or a pod's.
pub(crate) fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    spec.fill_text("dnsPolicy", "ClusterFirst");
    spec.fill_text("restartPolicy", "Always");
    spec.fill("securityContext", json!({}));
    spec.fill("terminationGracePeriodSeconds", 30);
    spec.fill_text("schedulerName", "default-scheduler");
    service_account(spec);
    for volume in spec.list_mut("volumes") {
        self::volume(volume);
    }
    for list in CONTAINER_LISTS {
        for container in spec.list_mut(list) {
            self::container(container);
        }
    }
    if let Some(overhead) = spec.at_mut("overhead") {
        resource_list(overhead);
    }
    if let Some(resources) = spec.at_mut("resources") {
        requirements(resources);
    }
}

/// The old name of the field and the new one always agree.
fn service_account(spec: &mut Value) {
    let name = match spec.text("serviceAccountName") {
        "" => spec.text("serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !name.is_empty() {
        spec.put("serviceAccount", name.clone());
        spec.put("serviceAccountName", name);
    }
}

fn host_network_ports(spec: &mut Value, lists: &[&str]) {
    for list in lists {
        for container in spec.list_mut(list) {
            for port in container.list_mut("ports") {
                if port.num("hostPort") == 0 {
                    port.put("hostPort", port.at("containerPort").clone());
                }
            }
        }
    }
}

/// `latest`, written or meant, is pulled always.
pub(crate) fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    let tag = name
        .rsplit('/')
        .next()
        .and_then(|last| last.split_once(':'))
        .map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn container(c: &mut Value) {
    let policy = pull_policy(c.text("image"));
    c.fill_text("imagePullPolicy", policy);
    c.fill_text("terminationMessagePath", "/dev/termination-log");
    c.fill_text("terminationMessagePolicy", "File");
    c.fill("resources", json!({}));
    for port in c.list_mut("ports") {
        port.fill_text("protocol", "TCP");
    }
    for env in c.list_mut("env") {
        if let Some(field_ref) = env.at_mut("valueFrom.fieldRef") {
            field_ref.fill_text("apiVersion", "v1");
        }
        if let Some(resource_ref) = env.at_mut("valueFrom.resourceFieldRef") {
            divisor(resource_ref);
        }
        if let Some(file) = env.at_mut("valueFrom.fileKeyRef") {
            file.fill("optional", false);
        }
    }
    if let Some(resources) = c.at_mut("resources") {
        requirements(resources);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = c.at_mut(probe).filter(|p| p.is_object()) {
            self::probe(probe);
        }
    }
    for hook in ["lifecycle.postStart.httpGet", "lifecycle.preStop.httpGet"] {
        if let Some(get) = c.at_mut(hook).filter(|g| g.is_object()) {
            http_get(get);
        }
    }
}

fn divisor(resource_ref: &mut Value) {
    resource_ref.fill_text("divisor", "0");
    canonical(resource_ref, "divisor");
}

fn probe(probe: &mut Value) {
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if probe.num(field) == 0 {
            probe.put(field, value);
        }
    }
    if let Some(get) = probe.at_mut("httpGet").filter(|g| g.is_object()) {
        http_get(get);
    }
    if probe.at("grpc").is_object() {
        probe.fill("grpc.service", "");
    }
}

fn http_get(get: &mut Value) {
    get.fill_text("path", "/");
    get.fill_text("scheme", "HTTP");
}

fn volume(v: &mut Value) {
    let Some(map) = v.as_object() else { return };
    if !map
        .iter()
        .any(|(k, source)| k != "name" && !source.is_null())
    {
        v.put("emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if v.at(source).is_object() {
            v.fill(&format!("{source}.defaultMode"), 0o644);
        }
    }
    if v.at("hostPath").is_object() {
        v.fill("hostPath.type", "");
    }
    if v.at("image").is_object() {
        let policy = pull_policy(v.text("image.reference"));
        v.fill_text("image.pullPolicy", policy);
    }
    if v.at("emptyDir").is_object() {
        canonical(v, "emptyDir.sizeLimit");
    }
    if let Some(claim) = v.at_mut("ephemeral.volumeClaimTemplate.spec") {
        super::super::persistent_volume_claim::default_spec(claim);
    }
    volume_of_a_vendor(v);
    for item in v.list_mut("downwardAPI.items") {
        downward_item(item);
    }
    for source in v.list_mut("projected.sources") {
        for item in source.list_mut("downwardAPI.items") {
            downward_item(item);
        }
        if source.at("serviceAccountToken").is_object() {
            source.fill("serviceAccountToken.expirationSeconds", 3600);
        }
        if source.at("podCertificate").is_object() {
            source.fill("podCertificate.maxExpirationSeconds", 86400);
        }
    }
}

fn volume_of_a_vendor(v: &mut Value) {
    const DEFAULTS: &[(&str, &[(&str, &str)])] = &[
        ("iscsi", &[("iscsiInterface", "default")]),
        (
            "rbd",
            &[
                ("pool", "rbd"),
                ("user", "admin"),
                ("keyring", "/etc/ceph/keyring"),
            ],
        ),
        (
            "azureDisk",
            &[
                ("cachingMode", "ReadWrite"),
                ("fsType", "ext4"),
                ("kind", "Shared"),
            ],
        ),
        (
            "scaleIO",
            &[("storageMode", "ThinProvisioned"), ("fsType", "xfs")],
        ),
    ];
    for (source, fields) in DEFAULTS {
        if v.at(source).is_object() {
            for (field, value) in *fields {
                v.fill_text(&format!("{source}.{field}"), value);
            }
        }
    }
    if v.at("azureDisk").is_object() {
        v.fill("azureDisk.readOnly", false);
    }
}

fn downward_item(item: &mut Value) {
    if let Some(field_ref) = item.at_mut("fieldRef").filter(|r| r.is_object()) {
        field_ref.fill_text("apiVersion", "v1");
    }
    if let Some(resource_ref) = item.at_mut("resourceFieldRef").filter(|r| r.is_object()) {
        divisor(resource_ref);
    }
}

/// Requests and limits in canonical form.
pub(crate) fn requirements(resources: &mut Value) {
    for list in ["limits", "requests"] {
        if let Some(list) = resources.at_mut(list) {
            resource_list(list);
        }
    }
}

/// Quantities in canonical form, none finer than a thousandth.
pub(crate) fn resource_list(list: &mut Value) {
    let Some(map) = list.as_object_mut() else {
        return;
    };
    for value in map.values_mut() {
        if let Some(q) = check::quantity(value) {
            *value = rounded(&q).into();
        }
    }
}

fn rounded(q: &Quantity) -> String {
    let text = q.to_string();
    if text.ends_with('n') || text.ends_with('u') {
        format!("{}m", q.milli_value())
    } else {
        text
    }
}

/// The quantity under `path` in canonical form.
pub(crate) fn canonical(obj: &mut Value, path: &str) {
    if let Some(q) = check::quantity(obj.at(path)) {
        obj.put(path, q.to_string());
    }
}

/// Pod-level limits imply pod-level requests: the sum of the containers', or the limit.
fn pod_level_requests(spec: &mut Value) {
    if spec.map("resources.limits").is_empty() {
        return;
    }
    let sums = super::resources::of_containers(spec, "requests");
    let limits = spec.map("resources.limits").clone();
    let Some(requests) = spec.object("resources.requests") else {
        return;
    };
    let pod_level = |name: &str| matches!(name, "cpu" | "memory") || name.starts_with("hugepages-");
    for (name, sum) in sums {
        if pod_level(&name) && !name.starts_with("hugepages-") {
            requests
                .entry(name)
                .or_insert_with(|| sum.to_string().into());
        }
    }
    for (name, limit) in limits {
        if pod_level(&name) {
            requests.entry(name).or_insert(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_without_a_tag_means_latest() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0", "IfNotPresent"),
            ("nginx:latest@sha256:0", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn limits_become_requests_of_a_pod() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "b:1", "resources": {"limits": {"cpu": "0.5"}}}]}});
        self::pod(&mut pod);
        let c = &pod["spec"]["containers"][0];
        assert_eq!(c["resources"]["requests"]["cpu"], "500m");
        assert_eq!(c["imagePullPolicy"], "IfNotPresent");
        assert_eq!(pod["spec"]["enableServiceLinks"], true);
    }
}
