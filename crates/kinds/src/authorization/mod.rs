//! Reviews of `authentication.k8s.io` and `authorization.k8s.io`: asked and answered, not stored.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::check::At;
use crate::kind::Kind;
use crate::tree::Tree;

const GROUP: &str = "authorization.k8s.io";

pub(crate) static TOKEN_REVIEW: Kind = Kind {
    group: "authentication.k8s.io",
    resource: "tokenreviews",
    validate: |obj| {
        let mut e = ErrorList::new();
        At::new(obj, "spec").at("token").require(&mut e);
        e
    },
    ..Kind::GENERIC
};

pub(crate) static SUBJECT_ACCESS_REVIEW: Kind = Kind {
    group: GROUP,
    resource: "subjectaccessreviews",
    validate: |obj| subject_access(obj, false),
    ..Kind::GENERIC
};

pub(crate) static LOCAL_SUBJECT_ACCESS_REVIEW: Kind = Kind {
    group: GROUP,
    resource: "localsubjectaccessreviews",
    validate: |obj| {
        let mut e = subject_access(obj, false);
        let spec = At::new(obj, "spec");
        let (resource, other) = (
            spec.at("resourceAttributes"),
            spec.at("nonResourceAttributes"),
        );
        let namespace = resource.at("namespace");
        if resource.exists() && namespace.text() != obj.text("metadata.namespace") {
            let detail = "must match metadata.namespace";
            e.push(FieldError::invalid(
                &namespace.path,
                namespace.text(),
                detail,
            ));
        }
        if other.exists() {
            e.push(other.invalid("disallowed on this kind of request"));
        }
        e
    },
    ..Kind::GENERIC
};

pub(crate) static SELF_SUBJECT_ACCESS_REVIEW: Kind = Kind {
    group: GROUP,
    resource: "selfsubjectaccessreviews",
    validate: |obj| subject_access(obj, true),
    ..Kind::GENERIC
};

pub(crate) static SELF_SUBJECT_RULES_REVIEW: Kind = Kind {
    group: GROUP,
    resource: "selfsubjectrulesreviews",
    ..Kind::GENERIC
};

fn subject_access(obj: &Value, of_self: bool) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let (resource, other) = (
        spec.at("resourceAttributes"),
        spec.at("nonResourceAttributes"),
    );
    if resource.exists() && other.exists() {
        e.push(other.invalid("cannot be specified in combination with resourceAttributes"));
    }
    if !resource.exists() && !other.exists() {
        let detail = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        e.push(FieldError::invalid(&resource.path, Value::Null, detail));
    }
    if !of_self && spec.at("user").is_empty() && spec.at("groups").is_empty() {
        let user = spec.at("user");
        e.push(FieldError::invalid(
            &user.path,
            user.text(),
            "at least one of user or group must be specified",
        ));
    }
    requirements(&resource.at("fieldSelector"), false, &mut e);
    requirements(&resource.at("labelSelector"), true, &mut e);
    e
}

/// A selector that narrows the question, as text or as requirements. Operators that are not known
/// here may be known to an authorizer.
fn requirements(selector: &At, of_labels: bool, e: &mut ErrorList) {
    if !selector.exists() {
        return;
    }
    let (raw, requirements) = (selector.at("rawSelector"), selector.at("requirements"));
    if !raw.is_empty() && !requirements.is_empty() {
        e.push(raw.invalid("may not specified at the same time as requirements"));
    }
    if raw.is_empty() && requirements.is_empty() {
        e.push(requirements.required(&format!(
            "when {} is specified, requirements or rawSelector is required",
            selector.path
        )));
    }
    for requirement in requirements.each() {
        let (key, values) = (requirement.at("key"), requirement.at("values"));
        match requirement.at("operator").text() {
            "In" | "NotIn" if values.is_empty() => {
                e.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"))
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                e.push(values.forbidden(
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ))
            }
            _ => {}
        }
        if !of_labels {
            if key.is_empty() {
                e.push(key.required("must be specified"));
            }
            continue;
        }
        key.label_name(e);
        for value in values.each() {
            value.conforms(e, validation::is_valid_label_value);
        }
    }
}
