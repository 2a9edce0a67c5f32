//! Rules of what steers scheduling: affinity, tolerations, topology spread.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::check::At;
use crate::tree::Tree;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn affinity(affinity: &At, e: &mut ErrorList) {
    let node = affinity.at("nodeAffinity");
    if node.has(REQUIRED) {
        node_selector(&node.at(REQUIRED), e);
    }
    for term in node.at(PREFERRED).each() {
        weight(&term.at("weight"), e);
        node_selector_term(&term.at("preference"), false, e);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.at(kind);
        pods.at(REQUIRED).each().for_each(|term| pod_term(&term, e));
        for term in pods.at(PREFERRED).each() {
            weight(&term.at("weight"), e);
            pod_term(&term.at("podAffinityTerm"), e);
        }
    }
}

fn weight(weight: &At, e: &mut ErrorList) {
    if !(1..=100).contains(&weight.num()) {
        e.push(FieldError::invalid(
            &weight.path,
            weight.num(),
            "must be in the range 1-100",
        ));
    }
}

/// A node selector, also of volumes and device classes.
pub(crate) fn node_selector(selector: &At, e: &mut ErrorList) {
    let terms = selector.at("nodeSelectorTerms");
    if terms.is_empty() {
        return e.push(terms.required("must have at least one node selector term"));
    }
    terms
        .each()
        .for_each(|term| node_selector_term(&term, true, e));
}

fn node_selector_term(term: &At, check_values: bool, e: &mut ErrorList) {
    for req in term.at("matchExpressions").each() {
        let values = req.at("values");
        match req.at("operator").text() {
            "In" | "NotIn" if values.is_empty() => {
                e.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                e.push(values.forbidden(
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                e.push(
                    values
                        .required("must be specified single value when `operator` is 'Lt' or 'Gt'"),
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => e.push(req.at("operator").invalid("not a valid selector operator")),
        }
        req.at("key").label_name(e);
        if check_values {
            values
                .each()
                .for_each(|v| v.conforms(e, validation::is_valid_label_value));
        }
    }
    for req in term.at("matchFields").each() {
        let (key, values) = (req.at("key"), req.at("values"));
        match req.at("operator").text() {
            "In" | "NotIn" if values.len() != 1 => e.push(values.required(
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            )),
            "In" | "NotIn" => {}
            _ => e.push(req.at("operator").invalid("not a valid selector operator")),
        }
        if key.text() == "metadata.name" {
            values
                .each()
                .for_each(|v| v.conforms(e, validation::is_dns1123_subdomain));
        } else {
            e.push(key.invalid("not a valid field selector key"));
        }
    }
}

fn pod_term(term: &At, e: &mut ErrorList) {
    term.at("labelSelector").label_selector(e);
    term.at("namespaceSelector").label_selector(e);
    let namespace = term.path.child("namespace");
    for name in term
        .value
        .list("namespaces")
        .iter()
        .filter_map(Value::as_str)
    {
        e.extend(
            validation::is_dns1123_label(name)
                .into_iter()
                .map(|m| FieldError::invalid(&namespace, name, m)),
        );
    }
    label_keys(term, e);
    let key = term.at("topologyKey");
    if key.is_empty() {
        e.push(key.required("can not be empty"));
    }
    key.label_name(e);
}

fn label_keys(term: &At, e: &mut ErrorList) {
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = term.at(field);
        if !keys.is_empty() && !term.has("labelSelector") {
            e.push(keys.forbidden("must not be specified when labelSelector is not set"));
            continue;
        }
        keys.each().for_each(|key| key.label_name(e));
    }
    let mut chosen: BTreeSet<&str> = term
        .value
        .map("labelSelector.matchLabels")
        .keys()
        .map(String::as_str)
        .collect();
    let match_keys = term.value.list("matchLabelKeys");
    for expression in term.value.list("labelSelector.matchExpressions") {
        let key = expression.text("key");
        let at = match_keys.iter().rposition(|k| k == key);
        if let (Some(i), true) = (at, chosen.contains(key)) {
            let detail = "exists in both matchLabelKeys and labelSelector";
            e.push(FieldError::invalid(&term.path.index(i), key, detail));
        }
        chosen.insert(key);
    }
    let mismatch = term.value.list("mismatchLabelKeys");
    for key in term.at("matchLabelKeys").each() {
        if mismatch.contains(key.value) {
            e.push(key.invalid("exists in both matchLabelKeys and mismatchLabelKeys"));
        }
    }
}

pub(crate) fn tolerations(list: &At, e: &mut ErrorList) {
    for t in list.each() {
        let (key, operator, value, effect) =
            (t.at("key"), t.at("operator"), t.at("value"), t.at("effect"));
        key.optional_conforms(e, validation::is_qualified_name);
        let invalid =
            |at: &At, shown: &str, detail: &str| FieldError::invalid(&at.path, shown, detail);
        if key.is_empty() && operator.text() != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            e.push(invalid(&operator, operator.text(), detail));
        }
        if t.has("tolerationSeconds") && effect.text() != "NoExecute" {
            e.push(invalid(
                &effect,
                effect.text(),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator.text() {
            "Equal" | "" => {
                let msgs = validation::is_valid_label_value(value.text());
                if !msgs.is_empty() {
                    e.push(invalid(&operator, value.text(), &msgs.join(";")));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    e.push(invalid(
                        &operator,
                        value.text(),
                        "value must be empty when `operator` is 'Exists'",
                    ));
                }
            }
            "Lt" | "Gt" => e.push(operator.not_supported(&["Equal", "Exists", "Lt", "Gt"])),
            _ => e.push(operator.not_supported(&["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            taint_effect(&effect, e);
        }
    }
}

/// The effect of a taint or toleration.
pub(crate) fn taint_effect(effect: &At, e: &mut ErrorList) {
    effect.required_one_of(e, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
}

pub(super) fn topology_spread(list: &At, e: &mut ErrorList) {
    let all: Vec<_> = list.each().collect();
    for (i, c) in all.iter().enumerate() {
        c.at("maxSkew").positive(e);
        let (key, action) = (c.at("topologyKey"), c.at("whenUnsatisfiable"));
        if key.is_empty() {
            e.push(key.required("can not be empty"));
        }
        action.strictly_one_of(e, &["DoNotSchedule", "ScheduleAnyway"]);
        let twin = |o: &&At| {
            o.at("topologyKey").text() == key.text()
                && o.at("whenUnsatisfiable").text() == action.text()
        };
        if all[i + 1..].iter().any(|o| twin(&o)) {
            let path = c.path.child("{topologyKey, whenUnsatisfiable}");
            e.push(FieldError::duplicate(
                &path,
                format!("{{{}, {}}}", key.text(), action.text()),
            ));
        }
        let domains = c.at("minDomains");
        if domains.exists() {
            domains.positive(e);
            if action.text() != "DoNotSchedule" {
                let detail = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                    action.text()
                );
                e.push(domains.invalid(detail));
            }
        }
        c.at("nodeAffinityPolicy").one_of(e, &["Honor", "Ignore"]);
        c.at("nodeTaintsPolicy").one_of(e, &["Honor", "Ignore"]);
        label_keys(c, e);
        c.at("labelSelector").label_selector(e);
    }
}
