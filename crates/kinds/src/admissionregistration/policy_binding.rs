//! ValidatingAdmissionPolicyBinding and MutatingAdmissionPolicyBinding.

use std::collections::BTreeSet;

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::Value;

use super::policy::{match_resources, mutable_operations};
use super::{GROUP, rule};
use crate::cell::{self, UNSET};
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

const BINDING: Kind = Kind {
    group: GROUP,
    default: |obj| {
        if let Some(resources) = obj.at_mut("spec.matchResources").filter(|r| r.is_object()) {
            rule::default_match(resources);
        }
        // The first version has no opinion of its own on parameters that are missing.
        if obj.text("apiVersion").ends_with("/v1alpha1") && obj.has("spec.paramRef") {
            obj.fill_text("spec.paramRef.parameterNotFoundAction", "Deny");
        }
    },
    prepare_create: |obj| obj.put("metadata.generation", 1),
    prepare_update: rules::with_generation,
    columns: &[
        Column::text("PolicyName"),
        Column::text("ParamRef"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let param = obj.at("spec.paramRef");
        let text = match (param.text("name"), param.text("namespace")) {
            ("", _) if param.has("selector") => selector(param.at("selector")),
            ("", _) => UNSET.to_owned(),
            (name, "") => format!("*/{name}"),
            (name, namespace) => format!("{namespace}/{name}"),
        };
        vec![
            obj.text("spec.policyName").into(),
            text.into(),
            cell::age(obj, now),
        ]
    },
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

/// Upstream shows the selector as its own language prints it.
fn selector(selector: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let labels = selector.map("matchLabels").iter();
    let labels: String = labels.map(|(k, v)| format!("{k}: {},", text(v))).collect();
    let requirement = |r: &Value| {
        let values: Vec<_> = r.list("values").iter().map(text).collect();
        format!(
            "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
            r.text("key"),
            r.text("operator"),
            values.join(" ")
        )
    };
    let requirements = selector.list("matchExpressions").iter();
    let requirements: String = requirements.map(requirement).collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{requirements}}},}}"
    )
}

pub(crate) static VALIDATING_ADMISSION_POLICY_BINDING: Kind = Kind {
    resource: "validatingadmissionpolicybindings",
    validate: |obj| validate(obj, true),
    validate_update: |new, _, _| validate(new, true),
    ..BINDING
};

pub(crate) static MUTATING_ADMISSION_POLICY_BINDING: Kind = Kind {
    resource: "mutatingadmissionpolicybindings",
    validate: |obj| validate(obj, false),
    validate_update: |new, _, _| validate(new, false),
    ..BINDING
};

fn validate(obj: &Value, with_actions: bool) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    spec.at("policyName")
        .required_conforms(&mut e, validation::is_dns1123_subdomain);
    let param = spec.at("paramRef");
    if param.exists() {
        param
            .at("name")
            .optional_conforms(&mut e, validation::is_path_segment_name);
        param.at("selector").label_selector(&mut e);
        match (param.at("name").is_empty(), param.has("selector")) {
            (true, false) => e.push(param.required("one of name or selector must be specified")),
            (false, true) => {
                e.push(
                    param
                        .at("name")
                        .forbidden("name and selector are mutually exclusive"),
                );
                e.push(
                    param
                        .at("selector")
                        .forbidden("name and selector are mutually exclusive"),
                );
            }
            _ => {}
        }
        let action = param.at("parameterNotFoundAction");
        action.required_one_of(&mut e, &["Deny", "Allow"]);
    }
    match_resources(&spec.at("matchResources"), &mut e);
    if !with_actions {
        mutable_operations(&spec.at("matchResources").at("resourceRules"), &mut e);
    }
    if with_actions {
        actions(&spec.at("validationActions"), &mut e);
    }
    e
}

fn actions(list: &At, e: &mut ErrorList) {
    if list.is_empty() {
        return e.push(list.required("at least one validation action is required"));
    }
    let mut seen = BTreeSet::new();
    for action in list.each() {
        action.one_of(e, &["Audit", "Deny", "Warn"]);
        if !seen.insert(action.text()) {
            e.push(action.duplicate());
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        e.push(list.invalid("must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"));
    }
}
