//! Rules of volumes, in the order of a pod spec's fields.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use regex::Regex;
use serde_json::Value;

use crate::check::{self, At, masked};
use crate::tree::Tree;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const VOLUME_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

static IQN: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"iqn\.\d{4}-\d{2}\.([a-zA-Z0-9.-]+)(:[^,;*&$|\s]+)$").ok());

/// What one source must look like.
type Rule = fn(&At, &mut ErrorList);

/// Every volume type, with its rules and whether they hold for persistent volumes only.
const SOURCES: &[(&str, Rule)] = &[
    ("emptyDir", empty_dir),
    ("hostPath", host_path),
    ("gitRepo", |s, e| {
        s.at("repository").require(e);
        local_descending_path(&s.at("directory"), e);
    }),
    ("gcePersistentDisk", |s, e| {
        s.at("pdName").require(e);
        partition(s, e);
    }),
    ("awsElasticBlockStore", |s, e| {
        s.at("volumeID").require(e);
        partition(s, e);
    }),
    ("secret", |s, e| {
        s.at("secretName").require(e);
        mode(&s.at("defaultMode"), e);
        s.at("items").each().for_each(|item| key_to_path(&item, e));
    }),
    ("nfs", nfs),
    ("iscsi", iscsi),
    ("glusterfs", |s, e| {
        s.at("endpoints").require(e);
        s.at("path").require(e);
    }),
    ("flocker", |s, e| {
        match (
            s.at("datasetName").is_empty(),
            s.at("datasetUUID").is_empty(),
        ) {
            (true, true) => e.push(s.required("one of datasetName and datasetUUID is required")),
            (false, false) => {
                let detail = "datasetName and datasetUUID can not be specified simultaneously";
                e.push(FieldError::invalid(&s.path, "resource", detail));
            }
            _ => {}
        }
        if s.at("datasetName").text().contains('/') {
            e.push(s.at("datasetName").invalid("must not contain '/'"));
        }
    }),
    ("persistentVolumeClaim", |s, e| s.at("claimName").require(e)),
    ("rbd", |s, e| {
        s.at("monitors").require(e);
        s.at("image").require(e);
    }),
    ("cinder", |s, e| {
        s.at("volumeID").require(e);
        secret_name(s, e);
    }),
    ("cephfs", |s, e| s.at("monitors").require(e)),
    ("quobyte", quobyte),
    ("downwardAPI", |s, e| {
        mode(&s.at("defaultMode"), e);
        s.at("items")
            .each()
            .for_each(|item| downward_file(&item, &s.path, e));
    }),
    ("fc", fc),
    ("flexVolume", |s, e| {
        s.at("driver").require(e);
        for (key, at) in s.at("options").entries() {
            let domain = key.split('/').next().unwrap_or(key);
            let within = |own: &str| domain == own || domain.ends_with(&format!(".{own}"));
            if within("kubernetes.io") || within("k8s.io") {
                let detail = "kubernetes.io and k8s.io namespaces are reserved";
                e.push(FieldError::invalid(&at.path, key, detail));
            }
        }
    }),
    ("configMap", |s, e| {
        s.at("name").require(e);
        mode(&s.at("defaultMode"), e);
        s.at("items").each().for_each(|item| key_to_path(&item, e));
    }),
    ("azureFile", |s, e| {
        s.at("secretName").require(e);
        s.at("shareName").require(e);
    }),
    ("vsphereVolume", |s, e| s.at("volumePath").require(e)),
    ("photonPersistentDisk", |s, e| s.at("pdID").require(e)),
    ("portworxVolume", |s, e| s.at("volumeID").require(e)),
    ("azureDisk", azure_disk),
    ("storageos", |s, e| {
        let name = s.at("volumeName");
        name.required_conforms(e, validation::is_dns1123_label);
        let namespace = s.at("volumeNamespace");
        namespace.optional_conforms(e, validation::is_dns1123_label);
        secret_name(s, e);
    }),
    ("projected", projected),
    ("scaleIO", |s, e| {
        for field in ["gateway", "system", "volumeName"] {
            s.at(field).require(e);
        }
    }),
    ("csi", |s, e| csi_inline(s, e)),
    ("ephemeral", |s, e| {
        let template = s.at("volumeClaimTemplate");
        if !template.exists() {
            e.push(template.required(""));
        } else {
            template_metadata(&template.at("metadata"), e);
            crate::core::persistent_volume_claim::validate_spec(&template.at("spec"), e);
        }
    }),
    ("image", |s, e| {
        s.at("reference").require(e);
        s.at("pullPolicy")
            .required_one_of(e, &["Always", "IfNotPresent", "Never"]);
    }),
];

/// Rules of one source by its name; used for persistent volumes too.
pub(crate) fn source_rule(name: &str) -> Option<Rule> {
    SOURCES
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, rule)| *rule)
}

/// Every volume of a spec; those without an error are the ones that containers may mount.
pub(crate) fn validate<'a>(volumes: &At<'a>, pod_name: &str, e: &mut ErrorList) -> Vec<&'a Value> {
    let mut names = BTreeSet::new();
    let mut sound = Vec::new();
    let made: BTreeSet<String> = volumes
        .each()
        .filter(|v| !pod_name.is_empty() && v.has("ephemeral"))
        .map(|v| format!("{pod_name}-{}", v.at("name").text()))
        .collect();
    for volume in volumes.each() {
        let mut own = ErrorList::new();
        source(&volume, pod_name, &mut own);
        let name = volume.at("name");
        name.required_conforms(&mut own, validation::is_dns1123_label);
        if names.contains(name.text()) {
            own.push(name.duplicate());
        }
        if own.is_empty() {
            names.insert(name.text());
            sound.push(volume.value);
        }
        e.append(&mut own);
        let claim = volume.at("persistentVolumeClaim").at("claimName");
        if claim.exists() && made.contains(claim.text()) {
            e.push(
                claim.invalid("must not reference a PVC that gets created for an ephemeral volume"),
            );
        }
    }
    sound
}

fn source(volume: &At, pod_name: &str, e: &mut ErrorList) {
    let mut count = 0;
    for (name, rule) in SOURCES {
        let source = volume.at(name);
        if !source.exists() {
            continue;
        }
        count += 1;
        if count > 1 {
            e.push(source.forbidden("may not specify more than 1 volume type"));
            continue;
        }
        // Upstream reports this one by the name its own type has.
        let shown = match *name {
            "gcePersistentDisk" => At {
                value: source.value,
                path: volume.path.child("persistentDisk"),
            },
            _ => source,
        };
        rule(&shown, e);
        let volume_name = volume.at("name");
        if *name == "ephemeral" && !pod_name.is_empty() && !volume_name.is_empty() {
            let claim = format!("{pod_name}-{}", volume_name.text());
            for msg in validation::is_dns1123_subdomain(&claim) {
                e.push(volume_name.invalid(format!("PVC name {claim:?}: {msg}")));
            }
        }
    }
    if count == 0 {
        e.push(volume.required("must specify a volume type"));
    }
}

fn empty_dir(s: &At, e: &mut ErrorList) {
    let limit = s.at("sizeLimit");
    if limit.quantity().is_some_and(|q| q.milli_value() < 0) {
        e.push(limit.forbidden("SizeLimit field must be a valid resource quantity"));
    }
}

fn host_path(s: &At, e: &mut ErrorList) {
    let path = s.at("path");
    if path.is_empty() {
        return e.push(path.required(""));
    }
    no_backsteps(&path, e);
    s.at("type").one_of(e, HOST_PATH_TYPES);
}

fn nfs(s: &At, e: &mut ErrorList) {
    s.at("server").require(e);
    let path = s.at("path");
    path.require(e);
    if !path.text().starts_with('/') {
        e.push(FieldError::invalid(
            &path.path,
            path.text(),
            "must be an absolute path",
        ));
    }
}

fn partition(s: &At, e: &mut ErrorList) {
    let partition = s.at("partition");
    if !(0..=255).contains(&partition.num()) {
        e.push(partition.invalid(check::range(1, 255)));
    }
}

/// A reference to a secret, where there is one, has a name.
fn secret_name(s: &At, e: &mut ErrorList) {
    if s.has("secretRef") {
        s.at("secretRef").at("name").require(e);
    }
}

/// A template of claims takes labels and annotations, nothing else.
fn template_metadata(metadata: &At, e: &mut ErrorList) {
    super::validate::annotation_names(&metadata.at("annotations"), e);
    metadata.at("labels").labels(e);
    for (key, at) in metadata.entries() {
        let zero = at.is_empty() || at.value == &Value::from(0);
        if !matches!(key, "labels" | "annotations") && !zero {
            e.push(metadata.at(key).forbidden("cannot be set"));
        }
    }
}

/// Whether an iSCSI name keeps the form that its prefix promises; `None` without such a prefix.
fn iscsi_name(name: &str) -> Option<bool> {
    let word = |rest: &str, length: usize| {
        let mut chars = rest.chars();
        chars.next().is_some()
            && chars.as_str().len() == length
            && chars.all(|c| c.is_ascii_alphanumeric())
    };
    if name.starts_with("iqn") {
        Some(IQN.as_ref().is_some_and(|r| r.is_match(name)))
    } else if let Some(rest) = name.strip_prefix("eui") {
        Some(word(rest, 16))
    } else {
        name.strip_prefix("naa").map(|rest| word(rest, 32))
    }
}

fn iscsi(s: &At, e: &mut ErrorList) {
    s.at("targetPortal").require(e);
    let iqn = s.at("iqn");
    if iqn.is_empty() {
        e.push(iqn.required(""));
    } else {
        iscsi_form(&iqn, &iqn, e);
    }
    let lun = s.at("lun");
    if !(0..=255).contains(&lun.num()) {
        e.push(lun.invalid(check::range(0, 255)));
    }
    let chap = s.at("chapAuthDiscovery").flag() || s.at("chapAuthSession").flag();
    if chap && !s.has("secretRef") {
        e.push(s.at("secretRef").required(""));
    }
    let initiator = s.at("initiatorName");
    if initiator.exists() {
        let shown = At {
            value: initiator.value,
            path: s.path.child("initiatorname"),
        };
        iscsi_form(&initiator, &shown, e);
    }
}

/// As of a pod, in the words for persistent volumes.
pub(crate) fn iscsi_of_volume(s: &At, e: &mut ErrorList) {
    let before = e.len();
    iscsi(s, e);
    for error in e.iter_mut().skip(before) {
        if error.detail == "must be valid format starting with iqn, eui, or naa" {
            "must be valid format".clone_into(&mut error.detail);
        }
    }
    if s.has("secretRef") {
        s.at("secretRef").at("name").require(e);
    }
}

fn iscsi_form(name: &At, shown: &At, e: &mut ErrorList) {
    match iscsi_name(name.text()) {
        None => e.push(shown.invalid("must be valid format starting with iqn, eui, or naa")),
        Some(false) => e.push(shown.invalid("must be valid format")),
        Some(true) => {}
    }
}

fn fc(s: &At, e: &mut ErrorList) {
    let (wwns, wwids) = (s.at("targetWWNs"), s.at("wwids"));
    match (wwns.is_empty(), wwids.is_empty()) {
        (true, true) => {
            e.push(wwns.required("must specify either targetWWNs or wwids, but not both"))
        }
        (false, false) => {
            e.push(wwns.invalid("targetWWNs and wwids can not be specified simultaneously"))
        }
        (false, true) => {
            let lun = s.at("lun");
            if lun.int().is_none() {
                e.push(lun.required("lun is required if targetWWNs is specified"));
            } else if !(0..=255).contains(&lun.num()) {
                e.push(lun.invalid(check::range(0, 255)));
            }
        }
        (true, false) => {}
    }
}

fn quobyte(s: &At, e: &mut ErrorList) {
    let registry = s.at("registry");
    if registry.is_empty() {
        e.push(registry.required("must be a host:port pair or multiple pairs separated by commas"));
    } else if s.at("tenant").len() >= 65 {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        e.push(s.at("tenant").required(detail));
    } else {
        let pairs = registry.text().split(',');
        e.extend(pairs.filter(|p| !is_host_and_port(p)).map(|_| {
            registry.invalid("must be a host:port pair or multiple pairs separated by commas")
        }));
    }
    s.at("volume").require(e);
}

/// `host:port`, where a host with colons stands in brackets.
fn is_host_and_port(pair: &str) -> bool {
    match pair.rsplit_once(':') {
        Some((host, _)) => match host.strip_prefix('[') {
            Some(inner) => inner
                .strip_suffix(']')
                .is_some_and(|inner| !inner.contains(['[', ']'])),
            None => !host.contains([':', '[', ']']),
        },
        None => false,
    }
}

fn azure_disk(s: &At, e: &mut ErrorList) {
    s.at("diskName").require(e);
    s.at("diskURI").require(e);
    s.at("cachingMode")
        .one_of(e, &["None", "ReadOnly", "ReadWrite"]);
    s.at("kind").one_of(e, &["Dedicated", "Managed", "Shared"]);
    let uri = s.at("diskURI");
    let (prefix, form) = match s.at("kind").text() {
        "Managed" => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        _ => (
            "https://",
            "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd",
        ),
    };
    if s.has("kind") && !uri.text().starts_with(prefix) {
        e.push(FieldError::not_supported(&uri.path, uri.text(), &[form]));
    }
}

fn csi_inline(s: &At, e: &mut ErrorList) {
    csi_driver_name(&s.at("driver"), e);
    let secret = s.at("nodePublishSecretRef");
    if secret.exists() {
        secret
            .at("name")
            .required_conforms(e, validation::is_dns1123_subdomain);
    }
}

/// A CSI driver's name: a DNS subdomain of 63 characters at most, in any case.
pub(crate) fn csi_driver_name(driver: &At, e: &mut ErrorList) {
    if driver.is_empty() {
        return e.push(driver.required(""));
    }
    if driver.text().len() > 63 {
        e.push(FieldError::too_long(&driver.path, 63));
    }
    let lower = driver.text().to_lowercase();
    e.extend(
        validation::is_dns1123_subdomain(&lower)
            .into_iter()
            .map(|m| FieldError::invalid(&driver.path, driver.text(), m)),
    );
}

pub(crate) fn mode(mode: &At, e: &mut ErrorList) {
    if mode.int().is_some_and(|m| !(0..=0o777).contains(&m)) {
        e.push(mode.invalid(MODE));
    }
}

fn key_to_path(item: &At, e: &mut ErrorList) {
    item.at("key").require(e);
    item.at("path").require(e);
    local_path(&item.at("path"), e);
    mode(&item.at("mode"), e);
}

/// Upstream reports a file's fields under the volume, without the item's index.
fn downward_file(item: &At, base: &Path, e: &mut ErrorList) {
    let file = At {
        value: item.value,
        path: base.clone(),
    };
    file.at("path").require(e);
    local_path(&file.at("path"), e);
    let (field, resource) = (file.at("fieldRef"), file.at("resourceFieldRef"));
    if field.exists() {
        object_field(&field, VOLUME_FIELDS, e);
        if resource.exists() {
            e.push(FieldError::invalid(
                base,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ));
        }
    } else if resource.exists() {
        resource_field(&resource, true, e);
    } else {
        e.push(file.required("one of fieldRef and resourceFieldRef is required"));
    }
    mode(&file.at("mode"), e);
}

/// A field reference from an environment variable.
pub(crate) fn env_field(field: &At, e: &mut ErrorList) {
    object_field(field, ENV_FIELDS, e);
}

fn object_field(field: &At, allowed: &[&str], e: &mut ErrorList) {
    let (version, path) = (field.at("apiVersion"), field.at("fieldPath"));
    if version.is_empty() {
        return e.push(version.required(""));
    }
    if path.is_empty() {
        return e.push(path.required(""));
    }
    if version.text() != "v1" {
        return e.push(path.invalid(format!(
            "error converting fieldPath: unsupported pod version: {}",
            version.text()
        )));
    }
    let text = path.text();
    if let Some((base, key)) = text.strip_suffix("']").and_then(|t| t.split_once("['")) {
        let rule = |e: &mut ErrorList, key: &str| {
            e.extend(
                validation::is_qualified_name(key)
                    .into_iter()
                    .map(|m| FieldError::invalid(&field.path, key, m)),
            );
        };
        return match base {
            "metadata.annotations" => rule(e, &key.to_lowercase()),
            "metadata.labels" => rule(e, key),
            _ => e.push(path.invalid(format!(
                "error converting fieldPath: field label does not support subscript: {text}"
            ))),
        };
    }
    let known = ENV_FIELDS.contains(&text)
        || VOLUME_FIELDS.contains(&text)
        || matches!(
            text,
            "spec.restartPolicy" | "spec.schedulerName" | "status.phase" | "spec.host"
        );
    if !known {
        e.push(path.invalid(format!(
            "error converting fieldPath: field label not supported: {text}"
        )));
    } else if !allowed.contains(&text) {
        e.push(path.not_supported(allowed));
    }
}

/// A reference to a container's request or limit.
pub(crate) fn resource_field(field: &At, in_volume: bool, e: &mut ErrorList) {
    let (container, resource) = (field.at("containerName"), field.at("resource"));
    let huge = ["requests.hugepages-", "limits.hugepages-"]
        .iter()
        .any(|p| resource.text().starts_with(p));
    if in_volume && container.is_empty() {
        e.push(container.required(""));
    } else if resource.is_empty() {
        e.push(resource.required(""));
    } else if !huge && !RESOURCE_FIELDS.contains(&resource.text()) {
        e.push(resource.not_supported(RESOURCE_FIELDS));
    }
    divisor(&field.at("divisor"), resource.text(), e);
}

fn divisor(divisor: &At, resource: &str, e: &mut ErrorList) {
    const BYTES: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";
    let Some(q) = divisor.quantity() else { return };
    let text = q.to_string();
    if text == "0" {
        return;
    }
    let what = resource.split_once('.').map_or("", |(_, r)| r);
    let (fine, detail) = match what {
        "cpu" => (
            matches!(text.as_str(), "1m" | "1"),
            "only divisor's values 1m and 1 are supported with the cpu resource".to_owned(),
        ),
        _ => {
            let name = match what {
                "memory" => "memory",
                "ephemeral-storage" => "local ephemeral storage",
                w if w.starts_with("hugepages-") => "hugepages",
                _ => return,
            };
            let fine = BYTES.split(", ").any(|b| b == text);
            (
                fine,
                format!("only divisor's values {BYTES} are supported with the {name} resource"),
            )
        }
    };
    if !fine {
        e.push(FieldError::invalid(&divisor.path, resource, detail));
    }
}

fn projected(s: &At, e: &mut ErrorList) {
    mode(&s.at("defaultMode"), e);
    let mut paths = BTreeSet::new();
    for source in s.at("sources").each() {
        let kinds = source
            .value
            .as_object()
            .map_or(0, |o| o.values().filter(|v| !v.is_null()).count());
        for kind in ["secret", "configMap"] {
            let from = source.at(kind);
            if !from.exists() {
                continue;
            }
            from.at("name").require(e);
            for item in from.at("items").each() {
                key_to_path(&item, e);
                unique_path(
                    s,
                    item.value.text("path"),
                    from.value.text("name"),
                    &mut paths,
                    e,
                );
            }
        }
        let downward = source.at("downwardAPI");
        for item in downward.at("items").each() {
            downward_file(&item, &downward.path, e);
            let path = item.value.text("path");
            unique_path(s, path, path, &mut paths, e);
        }
        projected_token(s, &source.at("serviceAccountToken"), e);
        projected_bundle(s, &source.at("clusterTrustBundle"), &mut paths, e);
        projected_certificate(s, &source.at("podCertificate"), &mut paths, e);
        if kinds > 1 {
            e.push(source.forbidden("may not specify more than 1 volume type per source"));
        }
    }
}

fn unique_path(s: &At, path: &str, shown: &str, paths: &mut BTreeSet<String>, e: &mut ErrorList) {
    if !path.is_empty() && !paths.insert(path.to_owned()) {
        e.push(FieldError::invalid(
            &s.path,
            shown,
            "conflicting duplicate paths",
        ));
    }
}

fn projected_token(s: &At, token: &At, e: &mut ErrorList) {
    if !token.exists() {
        return;
    }
    let seconds = token.at("expirationSeconds");
    if seconds.num() < 600 {
        e.push(seconds.invalid("may not specify a duration less than 10 minutes"));
    }
    if seconds.num() > 1 << 32 {
        e.push(seconds.invalid("may not specify a duration larger than 2^32 seconds"));
    }
    let path = At {
        value: token.value.at("path"),
        path: s.path.child("path"),
    };
    if path.is_empty() {
        e.push(path.required(""));
    } else {
        local_path(&path, e);
    }
}

fn projected_bundle(s: &At, bundle: &At, paths: &mut BTreeSet<String>, e: &mut ErrorList) {
    if !bundle.exists() {
        return;
    }
    let (name, signer) = (bundle.at("name"), bundle.at("signerName"));
    match (name.exists(), signer.exists()) {
        (true, true) => e.push(bundle.invalid("only one of name and signerName may be used")),
        (true, false) => {
            if name.is_empty() {
                e.push(name.required("must be a valid object name"));
            }
            if bundle.has("labelSelector") {
                e.push(
                    bundle
                        .at("labelSelector")
                        .invalid("labelSelector must be unset if name is specified"),
                );
            }
        }
        (false, true) => {
            if signer.is_empty() {
                e.push(signer.required("must be a valid signer name"));
            }
            crate::certificates::signer_name(&signer, e);
            bundle.at("labelSelector").label_selector(e);
        }
        (false, false) => e.push(bundle.required("either name or signerName must be specified")),
    }
    bundle.at("path").require(e);
    local_path(&bundle.at("path"), e);
    unique_path(
        s,
        bundle.value.text("path"),
        bundle.value.text("path"),
        paths,
        e,
    );
}

fn projected_certificate(s: &At, cert: &At, paths: &mut BTreeSet<String>, e: &mut ErrorList) {
    if !cert.exists() {
        return;
    }
    crate::certificates::signer_name(&cert.at("signerName"), e);
    cert.at("keyType").strictly_one_of(
        e,
        &[
            "RSA3072",
            "RSA4096",
            "ECDSAP256",
            "ECDSAP384",
            "ECDSAP521",
            "ED25519",
        ],
    );
    let max = cert.at("maxExpirationSeconds");
    if max.exists() {
        let most = if cert.value.text("signerName").starts_with("kubernetes.io/") {
            86400
        } else {
            91 * 86400
        };
        if max.num() < 3600 {
            e.push(max.invalid("if provided, maxExpirationSeconds must be >= 3600"));
        }
        if max.num() > most {
            e.push(max.invalid(format!(
                "if provided, maxExpirationSeconds must be <= {most}"
            )));
        }
    }
    let mut any = false;
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let path = cert.at(field);
        if !path.is_empty() {
            any = true;
            local_path(&path, e);
            unique_path(s, path.text(), path.text(), paths, e);
        }
    }
    if !any {
        e.push(cert.required(
            "specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
        ));
    }
}

/// Relative, and never leaving its directory.
pub(crate) fn local_descending_path(path: &At, e: &mut ErrorList) {
    if path.text().starts_with('/') {
        e.push(path.invalid("must be a relative path"));
    }
    no_backsteps(path, e);
}

pub(crate) fn no_backsteps(path: &At, e: &mut ErrorList) {
    if path.text().split('/').any(|part| part == "..") {
        e.push(path.invalid("must not contain '..'"));
    }
}

/// As [`local_descending_path`], and names beginning with two dots are kept for the node.
pub(crate) fn local_path(path: &At, e: &mut ErrorList) {
    local_descending_path(path, e);
    if path.text().starts_with("..") && !path.text().starts_with("../") {
        e.push(path.invalid("must not start with '..'"));
    }
}

/// Names of secrets, config maps and service accounts in references.
pub(crate) fn is_object_name(name: &str) -> Vec<String> {
    validation::is_dns1123_subdomain(masked(name, false))
}
