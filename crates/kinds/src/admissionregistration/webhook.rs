//! MutatingWebhookConfiguration and ValidatingWebhookConfiguration.

use std::collections::BTreeSet;

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::Value;

use super::{GROUP, rule};
use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

const WEBHOOKS: Kind = Kind {
    group: GROUP,
    prepare_create: |obj| obj.put("metadata.generation", 1),
    prepare_update: |new, old, _| {
        rules::raise_generation(new, old, new.at("webhooks") != old.at("webhooks"))
    },
    columns: &[Column::integer("Webhooks"), Column::AGE],
    cells: |obj, now| vec![obj.list("webhooks").len().into(), cell::age(obj, now)],
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

pub(crate) static MUTATING_WEBHOOK_CONFIGURATION: Kind = Kind {
    resource: "mutatingwebhookconfigurations",
    default: |obj| default(obj, true),
    validate: |obj| validate(obj, true),
    validate_update: |new, _, _| validate(new, true),
    ..WEBHOOKS
};

pub(crate) static VALIDATING_WEBHOOK_CONFIGURATION: Kind = Kind {
    resource: "validatingwebhookconfigurations",
    default: |obj| default(obj, false),
    validate: |obj| validate(obj, false),
    validate_update: |new, _, _| validate(new, false),
    ..WEBHOOKS
};

fn default(obj: &mut Value, mutating: bool) {
    for hook in obj.list_mut("webhooks") {
        hook.fill("failurePolicy", "Fail");
        rule::default_match(hook);
        hook.fill("timeoutSeconds", 10);
        if mutating {
            hook.fill("reinvocationPolicy", "Never");
        }
        if hook.at("clientConfig.service").is_object() {
            hook.fill("clientConfig.service.port", 443);
        }
    }
}

fn validate(obj: &Value, mutating: bool) -> ErrorList {
    let mut e = ErrorList::new();
    let mut names = BTreeSet::new();
    for hook in At::new(obj, "webhooks").each() {
        let name = hook.at("name");
        name.required_conforms(&mut e, validation::is_fully_qualified_name);
        self::hook(&hook, mutating, &mut e);
        if !name.is_empty() && !names.insert(name.text()) {
            e.push(name.duplicate());
        }
    }
    e
}

fn hook(hook: &At, mutating: bool, e: &mut ErrorList) {
    hook.at("rules").each().for_each(|r| rule::validate(&r, e));
    hook.at("failurePolicy").one_of(e, &["Fail", "Ignore"]);
    hook.at("matchPolicy").one_of(e, &["Equivalent", "Exact"]);
    let effects = hook.at("sideEffects");
    if !effects.exists() {
        e.push(effects.required("must specify one of None, NoneOnDryRun"));
    }
    effects.one_of(e, &["None", "NoneOnDryRun"]);
    let timeout = hook.at("timeoutSeconds");
    if timeout.int().is_some_and(|t| !(1..=30).contains(&t)) {
        e.push(timeout.invalid("the timeout value must be between 1 and 30 seconds"));
    }
    hook.at("namespaceSelector").label_selector(e);
    hook.at("objectSelector").label_selector(e);
    if mutating {
        hook.at("reinvocationPolicy")
            .one_of(e, &["IfNeeded", "Never"]);
    }
    rule::client_config(&hook.at("clientConfig"), e);
    rule::match_conditions(&hook.at("matchConditions"), e);
    review_versions(&hook.at("admissionReviewVersions"), e);
}

/// The versions of the review a webhook understands; one of ours must be among them.
pub(crate) fn review_versions(list: &At, e: &mut ErrorList) {
    if list.is_empty() {
        return e.push(list.required("must specify one of v1, v1beta1"));
    }
    let mut seen = BTreeSet::new();
    for version in list.each() {
        if !seen.insert(version.text()) {
            e.push(version.invalid("duplicate version"));
            continue;
        }
        version.conforms(e, validation::is_dns1035_label);
    }
    if !seen.contains("v1") && !seen.contains("v1beta1") {
        e.push(list.invalid("must include at least one of v1, v1beta1"));
    }
}
