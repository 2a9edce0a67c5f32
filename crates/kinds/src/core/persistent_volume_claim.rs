//! PersistentVolumeClaim.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use super::pod::default::requirements;
use super::resources;
use crate::cell::{self, UNSET};
use crate::check::{At, IMMUTABLE, quantity, same};
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};

const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub(crate) static PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    group: "",
    resource: "persistentvolumeclaims",
    default,
    prepare_create,
    validate: |obj| {
        let mut e = ErrorList::new();
        validate_spec(&At::new(obj, "spec"), &mut e);
        e
    },
    prepare_update: rules::isolate_status,
    validate_update,
    warnings: |new, _| warnings(new),
    columns: &[
        Column::text("Status"),
        Column::text("Volume"),
        Column::text("Capacity"),
        Column::text("Access Modes"),
        Column::text("StorageClass"),
        Column::text("VolumeAttributesClass"),
        Column::AGE,
        Column::wide("VolumeMode"),
    ],
    cells,
    selectable: |obj| vec![("name", obj.text("metadata.name").to_owned())],
    selectable_names: &["name"],
    ..Kind::GENERIC
};

pub(crate) fn default(obj: &mut Value) {
    obj.fill_text("status.phase", "Pending");
    if let Some(spec) = obj.at_mut("spec") {
        default_spec(spec);
    }
}

pub(crate) fn default_spec(spec: &mut Value) {
    spec.fill("volumeMode", "Filesystem");
    if let Some(resources) = spec.at_mut("resources") {
        requirements(resources);
    }
}

fn prepare_create(obj: &mut Value) {
    obj.put("status", serde_json::json!({"phase": "Pending"}));
    if let Some(spec) = obj.at_mut("spec") {
        data_sources(spec);
    }
}

/// Both names of the source hold the same when one alone is given. The older one takes claims and
/// snapshots; sources of other namespaces are behind a gate that is off.
fn data_sources(spec: &mut Value) {
    if !spec.text("dataSourceRef.namespace").is_empty() {
        spec.remove("dataSourceRef");
    }
    if spec.has("dataSource") && !spec.has("dataSourceRef") {
        let source = spec.at("dataSource");
        let known = matches!(
            (source.text("apiGroup"), source.text("kind")),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        );
        if known {
            spec.put("dataSourceRef", source.clone());
        } else {
            spec.remove("dataSource");
        }
    } else if spec.has("dataSourceRef") && !spec.has("dataSource") {
        let mut source = spec.at("dataSourceRef").clone();
        source.remove("namespace");
        spec.put("dataSource", source);
    }
    for field in ["dataSource", "dataSourceRef"] {
        if let Some(source) = spec.at_mut(field).and_then(Value::as_object_mut) {
            source.entry("apiGroup").or_insert(Value::Null);
        }
    }
}

fn warnings(obj: &Value) -> Vec<String> {
    let mut out = Vec::new();
    let annotations = At::new(obj, "metadata").at("annotations");
    if annotations.has_key(BETA_CLASS) {
        out.push(format!(
            "{}: deprecated since v1.8; use \"storageClassName\" attribute instead",
            annotations.path.key(BETA_CLASS)
        ));
    }
    let resources = At::new(obj, "spec").at("resources");
    for list in ["requests", "limits"] {
        super::pod::fraction_warning(&resources.at(list), "storage", &mut out);
    }
    out
}

/// Not negative; the amount is shown as a number.
pub(super) fn basic_resource(at: &At, e: &mut ErrorList) {
    if let Some(q) = at.quantity().filter(|q| q.milli_value() < 0) {
        let detail = "must be a valid resource quantity";
        e.push(FieldError::invalid(&at.path, q.value(), detail));
    }
}

/// `accessModes` of volumes and claims.
pub(super) fn access_modes(spec: &At, missing: &str, e: &mut ErrorList) {
    const MODES: &[&str] = &[
        "ReadOnlyMany",
        "ReadWriteMany",
        "ReadWriteOnce",
        "ReadWriteOncePod",
    ];
    let modes = spec.at("accessModes");
    if modes.is_empty() {
        e.push(modes.required(missing));
    }
    for mode in modes.each().filter(|m| !MODES.contains(&m.text())) {
        e.push(FieldError::not_supported(&modes.path, mode.text(), MODES));
    }
    let single = modes.each().any(|m| m.text() == "ReadWriteOncePod");
    let other = modes
        .each()
        .any(|m| m.text() != "ReadWriteOncePod" && MODES.contains(&m.text()));
    if single && other {
        e.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
}

/// Every rule of a claim's spec, wherever it stands.
pub(crate) fn validate_spec(spec: &At, e: &mut ErrorList) {
    access_modes(spec, "at least 1 access mode is required", e);
    spec.at("selector").label_selector(e);
    let storage = spec.value.at("resources.requests.storage");
    let at = At {
        value: storage,
        path: spec.path.child("resources").key("storage"),
    };
    match at.quantity() {
        None => e.push(at.required("")),
        Some(q) if q.milli_value() <= 0 => e.push(at.invalid("must be greater than zero")),
        Some(_) => resources::amount(&at, "storage", e),
    }
    spec.at("storageClassName")
        .optional_conforms(e, validation::is_dns1123_subdomain);
    spec.at("volumeMode").one_of(e, &["Block", "Filesystem"]);
    for field in ["dataSource", "dataSourceRef"] {
        let source = spec.at(field);
        if source.exists() {
            data_source(&source, e);
        }
    }
    let (source, reference) = (spec.at("dataSource"), spec.at("dataSourceRef"));
    let shown = source.path.to_string();
    if !reference.value.text("namespace").is_empty() {
        if source.exists() {
            e.push(FieldError::invalid(
                &spec.path,
                shown,
                "may not be specified when dataSourceRef.namespace is specified",
            ));
        }
    } else if source.exists()
        && reference.exists()
        && ["apiGroup", "kind", "name"]
            .iter()
            .any(|f| source.value.at(f) != reference.value.at(f))
    {
        e.push(FieldError::invalid(
            &spec.path,
            source.value.clone(),
            "must match dataSourceRef",
        ));
    }
    spec.at("volumeAttributesClassName")
        .optional_conforms(e, validation::is_dns1123_subdomain);
}

fn data_source(source: &At, e: &mut ErrorList) {
    source.at("name").require(e);
    source.at("kind").require(e);
    let group = source.at("apiGroup");
    if group.is_empty() && source.value.text("kind") != "PersistentVolumeClaim" {
        e.push(FieldError::invalid(
            &source.path,
            source.value.text("kind"),
            "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        ));
    }
    group.optional_conforms(e, validation::is_dns1123_subdomain);
}

fn status_update(status: &At) -> ErrorList {
    const RESIZES: &[&str] = &[
        "ControllerResizeInProgress",
        "ControllerResizeInfeasible",
        "NodeResizeInProgress",
        "NodeResizeInfeasible",
        "NodeResizePending",
    ];
    let mut e = ErrorList::new();
    for (_, q) in status.at("capacity").entries() {
        basic_resource(&q, &mut e);
    }
    let resizes = status.at("allocatedResourceStatuses");
    for (name, resize) in resizes.entries() {
        resource_key(&resizes, name, &mut e);
        if !RESIZES.contains(&resize.text()) {
            e.push(FieldError::not_supported(&resizes.path, name, RESIZES));
        }
    }
    let allocated = status.at("allocatedResources");
    for (name, q) in allocated.entries() {
        let before = e.len();
        resource_key(&allocated, name, &mut e);
        if e.len() == before {
            basic_resource(&q, &mut e);
        }
        if e.len() == before {
            resources::amount(&q, "storage", &mut e);
        }
    }
    e
}

/// What a claim may be resized in: storage, or a resource of some vendor's.
fn resource_key(list: &At, name: &str, e: &mut ErrorList) {
    let msgs = validation::is_qualified_name(name);
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    if msgs.is_empty() && native && name != "storage" {
        e.push(FieldError::not_supported(&list.path, name, &["storage"]));
    }
    let invalid = |m| FieldError::invalid(&list.path, name, m);
    e.extend(msgs.into_iter().map(invalid));
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    let mut e = ErrorList::new();
    if ctx.subresource == "status" {
        return status_update(&At::new(new, "status"));
    }
    let spec = At::new(new, "spec");
    validate_spec(&spec, &mut e);
    let before = old.at("spec");
    let mut munged = spec.value.clone();
    let bound = old.text("status.phase") == "Bound";
    if before.text("volumeName").is_empty() {
        munged.put("volumeName", before.at("volumeName").clone());
    }
    let old_class = old.at("metadata.annotations").get(BETA_CLASS);
    if new.at("metadata.annotations").get(BETA_CLASS) != old_class
        && !(old_class.is_some() && spec.value.get("storageClassName") == old_class)
    {
        let path = Path::new("metadata.annotations").key(BETA_CLASS);
        e.push(FieldError::invalid(
            &path,
            new.at("metadata.annotations")
                .get(BETA_CLASS)
                .cloned()
                .unwrap_or_default(),
            IMMUTABLE,
        ));
    }
    if !before.has("storageClassName")
        && old_class.is_none_or(|c| spec.value.get("storageClassName") == Some(c))
    {
        munged.remove("storageClassName");
    }
    if bound {
        munged.put(
            "resources.requests.storage",
            before.at("resources.requests.storage").clone(),
        );
        munged.put(
            "volumeAttributesClassName",
            before.at("volumeAttributesClassName").clone(),
        );
    }
    if !same(&munged, before) {
        let detail = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n";
        e.push(spec.forbidden(detail));
    }
    let storage = "resources.requests.storage";
    let size = |v: &Value| quantity(v);
    if let (Some(now), Some(was)) = (size(spec.value.at(storage)), size(before.at(storage)))
        && now < was
        && size(old.at("status.capacity.storage")).is_none_or(|have| now <= have)
    {
        e.push(FieldError::forbidden(
            &Path::new("spec.resources.requests.storage"),
            "field can not be less than status.capacity",
        ));
    }
    if !same(spec.value.at("volumeMode"), before.at("volumeMode")) {
        e.push(FieldError::invalid(
            &Path::new("volumeMode"),
            spec.value.at("volumeMode").clone(),
            IMMUTABLE,
        ));
    }
    e
}

/// The class a volume or claim asks for, by the field or the older annotation.
pub(super) fn class(obj: &Value) -> String {
    match obj
        .at("metadata.annotations")
        .get(BETA_CLASS)
        .and_then(Value::as_str)
    {
        Some(class) => class.to_owned(),
        None => obj.text("spec.storageClassName").to_owned(),
    }
}

pub(super) fn access_modes_text(modes: &[Value]) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let found = short
        .iter()
        .filter(|(mode, _)| modes.iter().any(|m| m == mode))
        .map(|(_, s)| *s);
    found.collect::<Vec<_>>().join(",")
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let phase = if obj.has("metadata.deletionTimestamp") {
        "Terminating"
    } else {
        obj.text("status.phase")
    };
    let or_unset = |path: &str| obj.at(path).as_str().unwrap_or(UNSET).to_owned();
    let (mut capacity, mut modes) = (String::new(), String::new());
    if !obj.text("spec.volumeName").is_empty() {
        capacity =
            quantity(obj.at("status.capacity.storage")).map_or("0".to_owned(), |q| q.to_string());
        modes = access_modes_text(obj.list("status.accessModes"));
    }
    vec![
        phase.into(),
        obj.text("spec.volumeName").into(),
        capacity.into(),
        modes.into(),
        class(obj).into(),
        or_unset("spec.volumeAttributesClassName").into(),
        cell::age(obj, now),
        or_unset("spec.volumeMode").into(),
    ]
}
