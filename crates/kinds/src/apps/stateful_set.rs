//! StatefulSet.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::{Value, json};

use crate::cell;
use crate::check::{At, same};
use crate::core::{persistent_volume_claim, pod};
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload::{self, WITHIN_REPLICAS};

/// What an update may change.
const MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

const MAX_UNAVAILABLE: &str = "spec.updateStrategy.rollingUpdate.maxUnavailable";

pub(crate) static STATEFUL_SET: Kind = Kind {
    group: "apps",
    resource: "statefulsets",
    default,
    prepare_create: |obj| {
        rules::first_generation(obj);
        obj.put("status.replicas", 0);
        obj.put("status.availableReplicas", 0);
        drop_max_unavailable(obj);
    },
    validate,
    prepare_update: |new, old, ctx| {
        if !old.has(MAX_UNAVAILABLE) {
            drop_max_unavailable(new);
        }
        super::replica_set::prepare_update(new, old, ctx);
    },
    validate_update,
    warnings,
    columns: &[
        Column::text("Ready"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
    ],
    cells: |obj, now| {
        let [names, images] = workload::wide_cells(obj, "spec.template");
        let ready = format!(
            "{}/{}",
            obj.num("status.readyReplicas"),
            obj.num("spec.replicas")
        );
        vec![ready.into(), cell::age(obj, now), names, images]
    },
    validate_name: |name, prefix| validation::is_dns1123_label(crate::check::masked(name, prefix)),
    template_spec: "spec.template.spec",
    ..Kind::GENERIC
};

/// The feature behind the field (MaxUnavailableStatefulSet) is off in this version.
fn drop_max_unavailable(obj: &mut Value) {
    obj.remove(MAX_UNAVAILABLE);
}

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = workload::template_warnings(new, old);
    if new.num("spec.revisionHistoryLimit") < 0 {
        out.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".to_owned());
    }
    out
}

fn default(obj: &mut Value) {
    obj.fill_text("spec.podManagementPolicy", "OrderedReady");
    if obj.text("spec.updateStrategy.type").is_empty() {
        obj.put("spec.updateStrategy.type", "RollingUpdate");
        obj.fill("spec.updateStrategy.rollingUpdate", json!({}));
    }
    if obj.text("spec.updateStrategy.type") == "RollingUpdate"
        && obj.has("spec.updateStrategy.rollingUpdate")
    {
        obj.fill("spec.updateStrategy.rollingUpdate.partition", 0);
    }
    obj.fill_text(
        "spec.persistentVolumeClaimRetentionPolicy.whenDeleted",
        "Retain",
    );
    obj.fill_text(
        "spec.persistentVolumeClaimRetentionPolicy.whenScaled",
        "Retain",
    );
    obj.fill("spec.replicas", 1);
    obj.fill("spec.revisionHistoryLimit", 10);
    pod::default_template(obj, "spec.template");
    for claim in obj.list_mut("spec.volumeClaimTemplates") {
        claim.put("apiVersion", "v1");
        claim.put("kind", "PersistentVolumeClaim");
        persistent_volume_claim::default(claim);
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    for claim in spec.at("volumeClaimTemplates").each() {
        persistent_volume_claim::validate_spec(&claim.at("spec"), &mut e);
    }
    spec.at("serviceName")
        .optional_conforms(&mut e, validation::is_dns1123_label);
    validate_spec(&spec, &mut e);
    e
}

fn validate_spec(spec: &At, e: &mut ErrorList) {
    let management = spec.at("podManagementPolicy");
    match management.text() {
        "" => e.push(management.required("")),
        "OrderedReady" | "Parallel" => {}
        _ => e.push(management.invalid("must be 'OrderedReady' or 'Parallel'")),
    }
    update_strategy(&spec.at("updateStrategy"), e);
    let retention = spec.at("persistentVolumeClaimRetentionPolicy");
    if retention.exists() {
        for field in ["whenDeleted", "whenScaled"] {
            retention
                .at(field)
                .strictly_one_of(e, &["Retain", "Delete"]);
        }
    }
    spec.at("replicas").non_negative(e);
    spec.at("minReadySeconds").non_negative(e);
    spec.at("ordinals").at("start").non_negative(e);
    if workload::selector(spec, "empty selector is invalid for statefulset", e) {
        workload::template_is_selected(spec, e);
        let completed = with_claims_as_volumes(spec.value);
        let template = At {
            value: &completed,
            path: spec.path.child("template"),
        };
        pod::pod_template(&template, e);
        pod::template_metadata(&template, e);
    } else {
        e.push(spec.at("selector").invalid(""));
    }
    workload::only_lasting(&spec.at("template"), "StatefulSet", e);
}

/// The template as the pods will have it: claims are volumes, host names come from ordinals.
fn with_claims_as_volumes(spec: &Value) -> Value {
    let mut template = spec.at("template").clone();
    template.remove("spec.hostname");
    template.remove("spec.subdomain");
    let claims = spec.list("volumeClaimTemplates");
    if claims.is_empty() {
        return template;
    }
    let names: BTreeSet<_> = claims.iter().map(|c| c.text("metadata.name")).collect();
    let mut volumes: Vec<Value> = names
        .iter()
        .map(|n| json!({"name": n, "persistentVolumeClaim": {"claimName": n}}))
        .collect();
    let others = template
        .list("spec.volumes")
        .iter()
        .filter(|v| !names.contains(v.text("name")));
    volumes.extend(others.cloned());
    template.put("spec.volumes", volumes);
    template
}

fn update_strategy(strategy: &At, e: &mut ErrorList) {
    let rolling = strategy.at("rollingUpdate");
    match strategy.value.text("type") {
        "" => e.push(strategy.required("")),
        "OnDelete" => {
            if rolling.exists() {
                e.push(rolling.invalid("only allowed for updateStrategy 'RollingUpdate'"));
            }
        }
        "RollingUpdate" => {
            rolling.at("partition").non_negative(e);
            let unavailable = rolling.at("maxUnavailable");
            if unavailable.exists() {
                workload::int_or_percent(&unavailable, e);
                if workload::int_or_percent_value(unavailable.value) == 0 {
                    e.push(unavailable.invalid("cannot be 0"));
                }
                workload::at_most_all(&unavailable, e);
            }
        }
        _ => e.push(strategy.invalid("must be 'RollingUpdate' or 'OnDelete'")),
    }
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    if ctx.subresource == "status" {
        let mut e = workload::status_counts(
            new,
            &[
                "replicas",
                "readyReplicas",
                "currentReplicas",
                "updatedReplicas",
                "availableReplicas",
                "observedGeneration",
                "collisionCount",
            ],
            &[
                ("readyReplicas", "replicas", WITHIN_REPLICAS),
                ("currentReplicas", "replicas", WITHIN_REPLICAS),
                ("updatedReplicas", "replicas", WITHIN_REPLICAS),
                ("availableReplicas", "replicas", WITHIN_REPLICAS),
                (
                    "availableReplicas",
                    "readyReplicas",
                    "cannot be greater than status.readyReplicas",
                ),
            ],
        );
        workload::not_decremented(new, old, "status.collisionCount", &mut e);
        return e;
    }
    let mut e = ErrorList::new();
    let spec = At::new(new, "spec");
    validate_spec(&spec, &mut e);
    let mut munged = spec.value.clone();
    for field in MUTABLE {
        munged.put(field, old.at("spec").at(field).clone());
    }
    if !same(&munged, old.at("spec")) {
        e.push(FieldError::forbidden(&spec.path, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"));
    }
    e
}
