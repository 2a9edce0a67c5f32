//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::{GROUP, rule};
use crate::cell::{self, UNSET};
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

pub(crate) static VALIDATING_ADMISSION_POLICY: Kind = Kind {
    group: GROUP,
    resource: "validatingadmissionpolicies",
    default,
    prepare_create: rules::first_generation,
    validate: validating,
    prepare_update: rules::with_generation,
    validate_update: |new, _, ctx| {
        if ctx.subresource == "status" {
            ErrorList::new()
        } else {
            validating(new)
        }
    },
    columns: &[
        Column::integer("Validations"),
        Column::text("ParamKind"),
        Column::AGE,
    ],
    cells: |obj, now| {
        vec![
            obj.list("spec.validations").len().into(),
            param_kind(obj).into(),
            cell::age(obj, now),
        ]
    },
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

pub(crate) static MUTATING_ADMISSION_POLICY: Kind = Kind {
    group: GROUP,
    resource: "mutatingadmissionpolicies",
    default: |obj| {
        default(obj);
        if obj.has("spec") {
            obj.fill_text("spec.reinvocationPolicy", "Never");
        }
    },
    prepare_create: |obj| obj.put("metadata.generation", 1),
    validate: mutating,
    prepare_update: rules::with_generation,
    validate_update: |new, _, _| mutating(new),
    columns: &[
        Column::integer("Mutations"),
        Column::text("ParamKind"),
        Column::AGE,
    ],
    cells: |obj, now| {
        vec![
            obj.list("spec.mutations").len().into(),
            param_kind(obj).into(),
            cell::age(obj, now),
        ]
    },
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    if obj.has("spec") {
        obj.fill("spec.failurePolicy", "Fail");
    }
    if let Some(constraints) = obj
        .at_mut("spec.matchConstraints")
        .filter(|c| c.is_object())
    {
        rule::default_match(constraints);
    }
}

fn param_kind(obj: &Value) -> String {
    let kind = obj.at("spec.paramKind");
    if kind.is_object() {
        format!("{}/{}", kind.text("apiVersion"), kind.text("kind"))
    } else {
        UNSET.to_owned()
    }
}

/// What both kinds of policy have.
fn common(spec: &At, e: &mut ErrorList) {
    spec.at("failurePolicy").one_of(e, &["Fail", "Ignore"]);
    let param = spec.at("paramKind");
    if param.exists() {
        param.at("apiVersion").require(e);
        param.at("kind").require(e);
    }
    let constraints = spec.at("matchConstraints");
    if !constraints.exists() {
        e.push(constraints.required(""));
    } else if constraints.at("resourceRules").is_empty() {
        e.push(constraints.at("resourceRules").required(""));
    }
    match_resources(&constraints, e);
    rule::match_conditions(&spec.at("matchConditions"), e);
    let mut names = BTreeSet::new();
    for variable in spec.at("variables").each() {
        let name = variable.at("name");
        name.required_conforms(e, validation::is_c_identifier);
        if !name.is_empty() && !names.insert(name.text()) {
            e.push(name.duplicate());
        }
        if variable.at("expression").text().trim().is_empty() {
            e.push(variable.at("expression").required(""));
        }
    }
}

/// Match constraints of a policy or of its binding.
pub(super) fn match_resources(constraints: &At, e: &mut ErrorList) {
    constraints
        .at("matchPolicy")
        .one_of(e, &["Equivalent", "Exact"]);
    constraints.at("namespaceSelector").label_selector(e);
    constraints.at("objectSelector").label_selector(e);
    for list in ["resourceRules", "excludeResourceRules"] {
        constraints
            .at(list)
            .each()
            .for_each(|r| rule::validate(&r, e));
    }
}

fn validating(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    common(&spec, &mut e);
    let (validations, audits) = (spec.at("validations"), spec.at("auditAnnotations"));
    if validations.is_empty() && audits.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        e.push(validations.required(detail));
        e.push(audits.required(detail));
    }
    for check in validations.each() {
        let (expression, message) = (check.at("expression"), check.at("message"));
        if expression.text().trim().is_empty() {
            e.push(expression.required("expression is not specified"));
        }
        if message.exists() {
            if message.text().trim().is_empty() {
                e.push(message.invalid("message must be non-empty if specified"));
            } else if message.text().contains('\n') {
                e.push(message.invalid("message must not contain line breaks"));
            }
        } else if expression.text().trim().contains('\n') {
            e.push(
                message.required("message must be specified if expression contains line breaks"),
            );
        }
        check.at("reason").one_of(
            &mut e,
            &[
                "Forbidden",
                "Invalid",
                "RequestEntityTooLarge",
                "Unauthorized",
            ],
        );
    }
    if audits.len() > 20 {
        let detail = "must not have more than 20 auditAnnotations";
        e.push(audits.invalid(detail));
    }
    let mut keys = BTreeSet::new();
    for audit in audits.each() {
        let key = audit.at("key");
        key.required_conforms(&mut e, validation::is_qualified_name);
        if !key.is_empty() && !keys.insert(key.text()) {
            e.push(key.duplicate());
        }
        let value = audit.at("valueExpression");
        if value.text().trim().is_empty() {
            e.push(value.required("valueExpression is not specified"));
        } else if value.len() > 5 * 1024 {
            e.push(FieldError::too_long(&value.path, 5 * 1024));
        }
    }
    e
}

fn mutating(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    common(&spec, &mut e);
    let mutations = spec.at("mutations");
    if mutations.is_empty() {
        e.push(mutations.required("mutations must contain at least one item"));
    }
    for mutation in mutations.each() {
        let kind = mutation.at("patchType");
        kind.required_one_of(&mut e, &["ApplyConfiguration", "JSONPatch"]);
        let (own, other) = match kind.text() {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            _ => continue,
        };
        if !mutation.has(own) {
            e.push(mutation.at(own).required(&format!(
                "must be specified when patchType is {}",
                kind.text()
            )));
        } else if mutation.at(own).at("expression").text().trim().is_empty() {
            e.push(mutation.at(own).at("expression").required(""));
        }
        if mutation.has(other) {
            e.push(mutation.at(other).invalid(format!(
                "must not be specified when patchType is {}",
                kind.text()
            )));
        }
    }
    let policy = spec.at("reinvocationPolicy");
    policy.required_one_of(&mut e, &["IfNeeded", "Never"]);
    e
}
