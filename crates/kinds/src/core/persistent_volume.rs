//! PersistentVolume.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use super::persistent_volume_claim::{access_modes, access_modes_text, basic_resource};
use super::pod::default::resource_list;
use super::pod::{node_selector_warnings, scheduling, volumes};
use crate::cell::{self, UNSET};
use crate::check::{At, quantity, same};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

/// Fields of the spec that name where the data is.
const SOURCES: &[&str] = &[
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "hostPath",
    "glusterfs",
    "nfs",
    "rbd",
    "quobyte",
    "iscsi",
    "flexVolume",
    "cinder",
    "cephfs",
    "fc",
    "flocker",
    "azureFile",
    "vsphereVolume",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

pub(crate) static PERSISTENT_VOLUME: Kind = Kind {
    group: "",
    resource: "persistentvolumes",
    default: |obj| {
        obj.fill_text("status.phase", "Pending");
        obj.fill_text("spec.persistentVolumeReclaimPolicy", "Retain");
        obj.fill("spec.volumeMode", "Filesystem");
        if let Some(capacity) = obj.at_mut("spec.capacity") {
            resource_list(capacity);
        }
        if obj.at("spec.hostPath").is_object() {
            obj.fill("spec.hostPath.type", "");
        }
    },
    prepare_create: |obj| {
        let now = obj.at("metadata.creationTimestamp").clone();
        obj.put("status", serde_json::json!({"phase": "Pending"}));
        obj.put("status.lastPhaseTransitionTime", now);
    },
    validate,
    prepare_update: |new, old, ctx| {
        rules::isolate_status(new, old, ctx);
        let moved = new.text("status.phase") != old.text("status.phase");
        let time = "status.lastPhaseTransitionTime";
        if moved && (!new.has(time) || new.at(time) == old.at(time)) {
            new.put(time, ctx.now);
        }
    },
    warnings: |new, _| warnings(new),
    validate_update: |new, old, ctx| match ctx.subresource {
        "status" => ErrorList::new(),
        _ => validate_update(new, old),
    },
    columns: &[
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("Reclaim Policy"),
        Column::text("Status"),
        Column::text("Claim"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::text("Reason"),
        Column::AGE,
        Column::wide("VolumeMode"),
    ],
    cells,
    selectable: |obj| vec![("name", obj.text("metadata.name").to_owned())],
    selectable_names: &["name"],
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    access_modes(&spec, "", &mut e);
    let capacity = spec.at("capacity");
    capacity.require(&mut e);
    if capacity.value.get("storage").is_none() || capacity.len() > 1 {
        e.push(capacity.not_supported(&["storage"]));
    }
    for (_, q) in capacity.entries() {
        basic_resource(&q, &mut e);
        if q.quantity().is_some_and(|q| q.milli_value() <= 0) {
            e.push(q.invalid("must be greater than zero"));
        }
    }
    spec.at("persistentVolumeReclaimPolicy")
        .one_of(&mut e, &["Delete", "Recycle", "Retain"]);
    if let Some(affinity) = Some(spec.at("nodeAffinity")).filter(At::exists) {
        if affinity.has("required") {
            scheduling::node_selector(&affinity.at("required"), &mut e);
        } else {
            e.push(
                affinity
                    .at("required")
                    .required("must specify required node constraints"),
            );
        }
    }
    sources(&spec, &mut e);
    let root = spec
        .value
        .text("hostPath.path")
        .split('/')
        .all(|p| matches!(p, "" | "."));
    if spec.has("hostPath") && root && spec.value.text("persistentVolumeReclaimPolicy") == "Recycle"
    {
        let at = spec.at("persistentVolumeReclaimPolicy");
        e.push(at.forbidden("may not be 'recycle' for a hostPath mount of '/'"));
    }
    spec.at("storageClassName")
        .optional_conforms(&mut e, validation::is_dns1123_subdomain);
    spec.at("volumeMode")
        .one_of(&mut e, &["Block", "Filesystem"]);
    let class = spec.at("volumeAttributesClassName");
    if class.exists() {
        if class.is_empty() {
            e.push(class.required("an empty string is disallowed"));
        } else {
            class.conforms(&mut e, validation::is_dns1123_subdomain);
        }
        if !spec.has("csi") {
            e.push(
                spec.at("csi")
                    .required("has to be specified when using volumeAttributesClassName"),
            );
        }
    }
    e
}

fn sources(spec: &At, e: &mut ErrorList) {
    let mut count = 0;
    for name in SOURCES {
        let source = spec.at(name);
        if !source.exists() {
            continue;
        }
        count += 1;
        if count > 1 {
            e.push(source.forbidden("may not specify more than 1 volume type"));
            continue;
        }
        match *name {
            "csi" => csi(&source, e),
            "iscsi" => volumes::iscsi_of_volume(&source, e),
            "azureFile" => {
                source.at("secretName").require(e);
                source.at("shareName").require(e);
                if source.has("secretNamespace") {
                    source.at("secretNamespace").require(e);
                }
            }
            "glusterfs" => glusterfs(&source, e),
            "gcePersistentDisk" => {
                let shown = At {
                    value: source.value,
                    path: spec.path.child("persistentDisk"),
                };
                if let Some(rule) = volumes::source_rule(name) {
                    rule(&shown, e);
                }
            }
            "local" => {
                let path = source.at("path");
                if path.is_empty() {
                    e.push(path.required(""));
                } else {
                    volumes::no_backsteps(&path, e);
                }
                if !spec.has("nodeAffinity") {
                    e.push(
                        spec.at("nodeAffinity")
                            .required("Local volume requires node affinity"),
                    );
                }
            }
            _ => {
                if let Some(rule) = volumes::source_rule(name) {
                    rule(&source, e);
                }
                // Secrets of persistent volumes are named with a namespace.
                if matches!(*name, "cinder" | "storageos") && source.has("secretRef") {
                    source.at("secretRef").at("namespace").require(e);
                }
            }
        }
    }
    if count == 0 {
        e.push(spec.required("must specify a volume type"));
    }
}

fn csi(source: &At, e: &mut ErrorList) {
    volumes::csi_driver_name(&source.at("driver"), e);
    source.at("volumeHandle").require(e);
    for field in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        let secret = source.at(field);
        if secret.exists() {
            let name = secret.at("name");
            name.required_conforms(e, validation::is_dns1123_subdomain);
            let namespace = secret.at("namespace");
            namespace.required_conforms(e, validation::is_dns1123_label);
        }
    }
}

fn glusterfs(source: &At, e: &mut ErrorList) {
    source.at("endpoints").require(e);
    source.at("path").require(e);
    let namespace = source.at("endpointsNamespace");
    if namespace.exists() && namespace.is_empty() {
        let detail = "if the endpointnamespace is set, it must be a valid namespace name";
        e.push(namespace.invalid(detail));
    } else {
        namespace.optional_conforms(e, validation::is_dns1123_label);
    }
}

fn warnings(obj: &Value) -> Vec<String> {
    const VOLUMES: &[(&str, &str, &str)] = &[
        (
            "cephfs",
            "cephfs",
            "deprecated in v1.28, non-functional in v1.31+",
        ),
        (
            "photonPersistentDisk",
            "photonPersistentDisk",
            "deprecated in v1.11, non-functional in v1.16+",
        ),
        (
            "scaleIO",
            "scaleIO",
            "deprecated in v1.16, non-functional in v1.22+",
        ),
        (
            "storageos",
            "storageOS",
            "deprecated in v1.22, non-functional in v1.25+",
        ),
        (
            "glusterfs",
            "glusterfs",
            "deprecated in v1.25, non-functional in v1.26+",
        ),
        (
            "rbd",
            "rbd",
            "deprecated in v1.28, non-functional in v1.31+",
        ),
    ];
    let mut out = Vec::new();
    let annotations = At::new(obj, "metadata").at("annotations");
    for (key, remark) in [
        (
            "volume.beta.kubernetes.io/storage-class",
            "deprecated since v1.8; use \"storageClassName\" attribute instead",
        ),
        (
            "volume.beta.kubernetes.io/mount-options",
            "deprecated since v1.31; use \"mountOptions\" attribute instead",
        ),
    ] {
        if annotations.has_key(key) {
            out.push(format!("{}: {remark}", annotations.path.key(key)));
        }
    }
    let spec = At::new(obj, "spec");
    if spec.value.text("persistentVolumeReclaimPolicy") == "Recycle" {
        out.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
    }
    let required = spec.at("nodeAffinity").at("required");
    for term in required.at("nodeSelectorTerms").each() {
        node_selector_warnings(&term, false, &mut out);
    }
    for (source, shown, remark) in VOLUMES {
        if spec.has(source) {
            out.push(format!("{}: {remark}", spec.path.child(shown)));
        }
    }
    out
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut e = validate(new);
    let mut munged = new.clone();
    let secret = "spec.csi.controllerExpandSecretRef";
    if old.has("spec.csi") && !old.has(secret) {
        munged.remove(secret);
    }
    if SOURCES
        .iter()
        .any(|s| !same(munged.at("spec").at(s), old.at("spec").at(s)))
    {
        let detail = "spec.persistentvolumesource is immutable after creation";
        e.push(FieldError::forbidden(
            &Path::new("spec.persistentvolumesource"),
            detail,
        ));
    }
    let before = e.len();
    workload::immutable(new, old, "spec.volumeMode", &mut e);
    if let Some(error) = e.get_mut(before) {
        "volumeMode".clone_into(&mut error.field);
    }
    if old.has("spec.nodeAffinity")
        && !same(new.at("spec.nodeAffinity"), old.at("spec.nodeAffinity"))
    {
        let at = At::new(new, "spec").at("nodeAffinity");
        e.push(FieldError::invalid(
            &Path::new("nodeAffinity"),
            at.value.clone(),
            "field is immutable, except for updating from beta label to GA",
        ));
    }
    if old.has("spec.volumeAttributesClassName") && !new.has("spec.volumeAttributesClassName") {
        let at = At::new(new, "spec").at("volumeAttributesClassName");
        e.push(at.forbidden("update from non-nil value to nil is forbidden"));
    }
    e
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let claim = obj.at("spec.claimRef");
    let claim = if claim.is_object() {
        format!("{}/{}", claim.text("namespace"), claim.text("name"))
    } else {
        String::new()
    };
    let phase = if obj.has("metadata.deletionTimestamp") {
        "Terminating"
    } else {
        obj.text("status.phase")
    };
    let or_unset = |path: &str| obj.at(path).as_str().unwrap_or(UNSET).to_owned();
    vec![
        quantity(obj.at("spec.capacity.storage"))
            .map_or("0".to_owned(), |q| q.to_string())
            .into(),
        access_modes_text(obj.list("spec.accessModes")).into(),
        obj.text("spec.persistentVolumeReclaimPolicy").into(),
        phase.into(),
        claim.into(),
        super::persistent_volume_claim::class(obj).into(),
        or_unset("spec.volumeAttributesClassName").into(),
        obj.text("status.reason").into(),
        cell::age(obj, now),
        or_unset("spec.volumeMode").into(),
    ]
}
