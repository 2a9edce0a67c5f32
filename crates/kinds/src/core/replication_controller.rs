//! ReplicationController.

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::{Value, json};

use super::pod;
use crate::apps::replica_set::{REPLICAS, prepare_update, replica_cells, status};
use crate::cell;
use crate::check::At;
use crate::kind::Kind;
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static REPLICATION_CONTROLLER: Kind = Kind {
    group: "",
    resource: "replicationcontrollers",
    default,
    prepare_create: |obj| {
        rules::first_generation(obj);
        obj.put("status.replicas", 0);
    },
    validate,
    prepare_update,
    validate_update: |new, _, ctx| {
        if ctx.subresource == "status" {
            status(new)
        } else {
            validate(new)
        }
    },
    warnings: |new, old| {
        let mut out = Vec::new();
        let msgs = validation::is_dns1123_label(new.text("metadata.name"));
        if old.is_none() && !msgs.is_empty() {
            out.push(format!(
                "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
                msgs.join(" ")
            ));
        }
        out.extend(workload::template_warnings(new, old));
        out
    },
    orphans_dependents: true,
    columns: REPLICAS,
    cells: |obj, now| replica_cells(obj, now, cell::labels(obj.at("spec.selector"))),
    selectable: |obj| vec![("status.replicas", obj.num("status.replicas").to_string())],
    selectable_names: &["status.replicas"],
    template_spec: "spec.template.spec",
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    let labels = obj.at("spec.template.metadata.labels").clone();
    if labels.is_object() {
        if obj.map("spec.selector").is_empty() {
            obj.put("spec.selector", labels.clone());
        }
        if obj.map("metadata.labels").is_empty() {
            obj.put("metadata.labels", labels);
        }
    }
    obj.fill("spec.replicas", 1);
    pod::default_template(obj, "spec.template");
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    spec.at("minReadySeconds").non_negative(&mut e);
    spec.at("selector").require(&mut e);
    spec.at("replicas").non_negative(&mut e);
    let template = spec.at("template");
    if !template.exists() {
        e.push(template.required(""));
        return e;
    }
    let selector = json!({"matchLabels": spec.value.at("selector")});
    if !workload::selects(&selector, template.value.map("metadata.labels")) {
        let labels = template.at("metadata").at("labels");
        e.push(labels.invalid("`selector` does not match template `labels`"));
    }
    workload::lasting_template(&spec, "ReplicationController", &mut e);
    e
}
