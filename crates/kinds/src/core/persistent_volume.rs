//! PersistentVolume.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use super::persistent_volume_claim::{access_modes, access_modes_text};
use super::pod::default::resource_list;
use super::pod::{scheduling, volumes};
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
    prepare_create: |obj| obj.put("status", serde_json::json!({"phase": "Pending"})),
    validate,
    prepare_update: rules::isolate_status,
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
            "csi" => {
                volumes::csi_driver_name(&source.at("driver"), e);
                source.at("volumeHandle").require(e);
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
            // Secrets of persistent volumes are named with a namespace, which these rules do not see.
            _ => {
                if let Some(rule) = volumes::source_rule(name) {
                    rule(&source, e);
                }
            }
        }
    }
    if count == 0 {
        e.push(spec.required("must specify a volume type"));
    }
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
            crate::check::IMMUTABLE,
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
