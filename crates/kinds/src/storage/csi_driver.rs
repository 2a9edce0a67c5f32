//! CSIDriver.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::{Value, json};

use crate::cell::{self, UNSET};
use crate::check::{At, IMMUTABLE, same};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

/// The feature behind the field (VolumeLimitScaling) is off in this version.
const PREVENT_SCHEDULING: &str = "spec.preventPodSchedulingIfMissing";

pub(crate) static CSI_DRIVER: Kind = Kind {
    group: "storage.k8s.io",
    resource: "csidrivers",
    default,
    prepare_create: |obj| obj.remove(PREVENT_SCHEDULING),
    prepare_update: |new, old, ctx| {
        if !old.has(PREVENT_SCHEDULING) {
            new.remove(PREVENT_SCHEDULING);
        }
        rules::with_generation(new, old, ctx);
    },
    validate,
    validate_update: |new, old, _| {
        let mut e = validate(new);
        for (field, shown) in [
            ("attachRequired", "attachedRequired"),
            ("volumeLifecycleModes", "volumeLifecycleModes"),
        ] {
            let at = At::new(new, "spec").at(field);
            if !same(at.value, old.at("spec").at(field)) {
                let path = At::new(new, "spec").path.child(shown);
                e.push(FieldError::invalid(&path, at.value.clone(), IMMUTABLE));
            }
        }
        e
    },
    warnings,
    columns: &[
        Column::of("AttachRequired", "boolean"),
        Column::of("PodInfoOnMount", "boolean"),
        Column::of("StorageCapacity", "boolean"),
        Column::text("TokenRequests"),
        Column::of("RequiresRepublish", "boolean"),
        Column::text("Modes"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let tokens = match obj.at("spec.tokenRequests") {
            Value::Null => UNSET.to_owned(),
            _ => {
                let all: Vec<_> = obj
                    .list("spec.tokenRequests")
                    .iter()
                    .map(|t| t.text("audience"))
                    .collect();
                all.join(",")
            }
        };
        vec![
            obj.at("spec.attachRequired")
                .as_bool()
                .unwrap_or(true)
                .into(),
            obj.flag("spec.podInfoOnMount").into(),
            obj.flag("spec.storageCapacity").into(),
            tokens.into(),
            obj.flag("spec.requiresRepublish").into(),
            cell::strings(obj.list("spec.volumeLifecycleModes")).into(),
            cell::age(obj, now),
        ]
    },
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let tokens = new.at("spec.tokenRequests");
    if new.list("spec.tokenRequests").is_empty()
        || new.has("spec.serviceAccountTokenInSecrets")
        || old.is_some_and(|old| same(tokens, old.at("spec.tokenRequests")))
    {
        return Vec::new();
    }
    vec!["spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".to_owned()]
}

fn default(obj: &mut Value) {
    for (field, value) in [
        ("attachRequired", json!(true)),
        ("podInfoOnMount", json!(false)),
        ("storageCapacity", json!(false)),
        ("fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
        ("volumeLifecycleModes", json!(["Persistent"])),
        ("requiresRepublish", json!(false)),
        ("seLinuxMount", json!(false)),
    ] {
        obj.fill(&format!("spec.{field}"), value);
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    for (field, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if !spec.has(field) {
            e.push(FieldError::required(&spec.path.child(shown), ""));
        }
    }
    spec.at("fsGroupPolicy")
        .one_of(&mut e, &["File", "None", "ReadWriteOnceWithFSType"]);
    let mut audiences = BTreeSet::new();
    for token in spec.at("tokenRequests").each() {
        let (audience, seconds) = (token.at("audience"), token.at("expirationSeconds"));
        if !audiences.insert(audience.text()) {
            e.push(FieldError::duplicate(&audience.path, audience.text()));
            continue;
        }
        if seconds.int().is_some_and(|s| s < 600) {
            e.push(seconds.invalid("may not specify a duration less than 10 minutes"));
        }
        if seconds.num() > 1 << 32 {
            e.push(seconds.invalid("may not specify a duration larger than 2^32 seconds"));
        }
    }
    spec.at("volumeLifecycleModes")
        .each()
        .filter(|mode| !matches!(mode.text(), "Persistent" | "Ephemeral"))
        .for_each(|mode| {
            let modes = &spec.at("volumeLifecycleModes").path;
            let known = &["Persistent", "Ephemeral"];
            e.push(FieldError::not_supported(modes, mode.text(), known));
        });
    if !spec.has("seLinuxMount") {
        e.push(spec.at("seLinuxMount").required(""));
    }
    let period = spec.at("nodeAllocatableUpdatePeriodSeconds");
    if period.int().is_some_and(|p| p < 10) {
        e.push(period.invalid("must be greater than or equal to 10 seconds"));
    }
    let in_secrets = spec.at("serviceAccountTokenInSecrets");
    if in_secrets.exists() && spec.at("tokenRequests").is_empty() {
        let detail = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        e.push(in_secrets.invalid(detail));
    }
    e
}
