//! MutatingWebhookConfiguration and ValidatingWebhookConfiguration.

use std::collections::BTreeSet;

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::Value;

use super::policy::Stored;
use super::{GROUP, rule};
use crate::cell;
use crate::check::{At, same};
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
    validate: |obj| validate(obj, None, true),
    validate_update: |new, old, _| validate(new, Some(old), true),
    ..WEBHOOKS
};

pub(crate) static VALIDATING_WEBHOOK_CONFIGURATION: Kind = Kind {
    resource: "validatingwebhookconfigurations",
    default: |obj| default(obj, false),
    validate: |obj| validate(obj, None, false),
    validate_update: |new, old, _| validate(new, Some(old), false),
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

fn validate(obj: &Value, old: Option<&Value>, mutating: bool) -> ErrorList {
    let mut e = ErrorList::new();
    let before = old.map_or(&[] as &[Value], |old| old.list("webhooks"));
    let now = obj.list("webhooks");
    let unchanged = old.is_some()
        && before.len() == now.len()
        && now
            .iter()
            .zip(before)
            .all(|(new, old)| same(new.at("matchConditions"), old.at("matchConditions")));
    let stored = Stored::all(
        before
            .iter()
            .flat_map(|hook| hook.list("matchConditions"))
            .map(|condition| condition.text("expression")),
    );
    let mut names = BTreeSet::new();
    for hook in At::new(obj, "webhooks").each() {
        let name = hook.at("name");
        name.required_conforms(&mut e, validation::is_fully_qualified_name);
        let conditions = (!unchanged).then_some(&stored);
        self::hook(&hook, mutating, conditions, &mut e);
        if !name.is_empty() && !names.insert(name.text()) {
            e.push(name.duplicate());
        }
    }
    e
}

/// `stored`: the conditions there were before; nothing when the conditions did not change.
fn hook(hook: &At, mutating: bool, stored: Option<&Stored>, e: &mut ErrorList) {
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
    if let Some(stored) = stored {
        rule::match_conditions(&hook.at("matchConditions"), false, stored, e);
    }
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
