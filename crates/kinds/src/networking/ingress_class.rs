//! IngressClass.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::ingress::typed_reference;
use crate::cell::{self, NONE};
use crate::check::{At, domain_prefixed_path};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static INGRESS_CLASS: Kind = Kind {
    group: "networking.k8s.io",
    resource: "ingressclasses",
    default: |obj| {
        if obj.at("spec.parameters").is_object() {
            obj.fill("spec.parameters.scope", "Cluster");
        }
    },
    prepare_create: |obj| obj.put("metadata.generation", 1),
    validate,
    prepare_update: rules::with_generation,
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        workload::immutable(new, old, "spec.controller", &mut e);
        e.append(&mut validate(new));
        e
    },
    name_suffix: |obj| {
        let marked = obj
            .at("metadata.annotations")
            .get("ingressclass.kubernetes.io/is-default-class");
        if marked.is_some_and(|m| m == "true") {
            " (default)"
        } else {
            ""
        }
    },
    columns: &[
        Column::text("Controller"),
        Column::text("Parameters"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let p = obj.at("spec.parameters");
        let parameters = match (p.is_object(), p.text("apiGroup")) {
            (false, _) => NONE.to_owned(),
            (true, "") => format!("{}/{}", p.text("kind"), p.text("name")),
            (true, group) => format!("{}.{group}/{}", p.text("kind"), p.text("name")),
        };
        vec![
            obj.text("spec.controller").into(),
            parameters.into(),
            cell::age(obj, now),
        ]
    },
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let controller = spec.at("controller");
    if controller.len() > 250 {
        e.push(FieldError::too_long(&controller.path, 250));
    }
    domain_prefixed_path(&controller, &mut e);
    let parameters = spec.at("parameters");
    if !parameters.exists() {
        return e;
    }
    typed_reference(&parameters, &mut e);
    let (scope, namespace) = (parameters.at("scope"), parameters.at("namespace"));
    match scope.text() {
        "" if !scope.exists() => e.push(scope.required("")),
        "Namespace" if !namespace.exists() => {
            e.push(namespace.required("`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => namespace.conforms(&mut e, validation::is_dns1123_label),
        "Cluster" => {
            if namespace.exists() {
                e.push(namespace.forbidden("`parameters.scope` is set to 'Cluster'"));
            }
        }
        _ => e.push(scope.not_supported(&["Cluster", "Namespace"])),
    }
    e
}
