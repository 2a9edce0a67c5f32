//! FlowSchema.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::GROUP;
use crate::cell::{self, NONE};
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];

pub(crate) static FLOW_SCHEMA: Kind = Kind {
    group: GROUP,
    resource: "flowschemas",
    default: |obj| {
        if obj.has("spec") && obj.num("spec.matchingPrecedence") == 0 {
            obj.put("spec.matchingPrecedence", 1000);
        }
    },
    prepare_create: rules::first_generation,
    validate,
    prepare_update: |new, old, ctx| {
        rules::with_generation(new, old, ctx);
        if ctx.subresource == "status" {
            rules::keep_metadata(new, old);
        }
    },
    validate_update: |new, _, ctx| {
        if ctx.subresource == "status" {
            super::conditions(new)
        } else {
            validate(new)
        }
    },
    columns: &[
        Column::text("PriorityLevel"),
        Column::text("MatchingPrecedence"),
        Column::text("DistinguisherMethod"),
        Column::AGE,
        Column::text("MissingPL"),
    ],
    cells: |obj, now| {
        let dangling = obj
            .list("status.conditions")
            .iter()
            .find(|c| c.text("type") == "Dangling");
        vec![
            obj.text("spec.priorityLevelConfiguration.name").into(),
            obj.num("spec.matchingPrecedence").into(),
            obj.at("spec.distinguisherMethod.type")
                .as_str()
                .unwrap_or(NONE)
                .into(),
            cell::age(obj, now),
            dangling.map_or("?", |c| c.text("status")).into(),
        ]
    },
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let precedence = spec.at("matchingPrecedence");
    if precedence.num() <= 0 {
        e.push(precedence.invalid("must be a positive value"));
    }
    if precedence.num() > 10_000 {
        e.push(precedence.invalid("must not be greater than 10000"));
    }
    if precedence.num() == 1 && obj.text("metadata.name") != "exempt" {
        e.push(precedence.invalid("only the schema named 'exempt' may have matchingPrecedence 1"));
    }
    if spec.has("distinguisherMethod") {
        let method = spec.at("distinguisherMethod");
        let known = ["ByNamespace", "ByUser"];
        if !known.contains(&method.value.text("type")) {
            let path = method.at("type").path;
            e.push(FieldError::not_supported(
                &path,
                method.value.clone(),
                &known,
            ));
        }
    }
    let level = spec.at("priorityLevelConfiguration").at("name");
    if level.is_empty() {
        e.push(level.required("must reference a priority level"));
    } else {
        level.conforms(&mut e, validation::is_dns1123_subdomain);
    }
    for rule in spec.at("rules").each() {
        self::rule(&rule, &mut e);
    }
    let name = obj.text("metadata.name");
    if super::mandatory::flow_schema(name).is_some_and(|fixed| fixed != *spec.value) {
        e.push(spec.invalid(format!("spec of '{name}' must equal the fixed value")));
    }
    e.extend(super::conditions(obj));
    e
}

fn rule(rule: &At, e: &mut ErrorList) {
    let subjects = rule.at("subjects");
    if subjects.is_empty() {
        e.push(subjects.required("subjects must contain at least one value"));
    }
    subjects.each().for_each(|s| subject(&s, e));
    let (resources, urls) = (rule.at("resourceRules"), rule.at("nonResourceRules"));
    if resources.is_empty() && urls.is_empty() {
        e.push(
            rule.required("at least one of resourceRules and nonResourceRules has to be non-empty"),
        );
    }
    for r in resources.each() {
        verbs(&r.at("verbs"), e);
        list(
            &r.at("apiGroups"),
            "resource rules must supply at least one api group",
            "api groups",
            e,
        );
        list(
            &r.at("resources"),
            "resource rules must supply at least one resource",
            "resources",
            e,
        );
        let namespaces = r.at("namespaces");
        if namespaces.is_empty() && !r.value.flag("clusterScope") {
            e.push(namespaces.required(
                "resource rules that are not cluster scoped must supply at least one namespace",
            ));
        } else if wildcard_alone(&namespaces, "namespaces", e) {
            for namespace in namespaces.each() {
                for problem in validation::is_dns1123_label(namespace.text()) {
                    e.push(namespace.invalid(format!(
                        "each member of this list must be '*' or a DNS-1123 label; {problem}"
                    )));
                }
            }
        }
    }
    for u in urls.each() {
        verbs(&u.at("verbs"), e);
        let list = u.at("nonResourceURLs");
        self::list(
            &list,
            "nonResourceURLs must contain at least one value",
            "non-resource URLs",
            e,
        );
        let urls = list.each().filter(|_| !has_wildcard(&list));
        for url in urls {
            let text = url.text();
            let problem = if text.is_empty() {
                "must not be empty"
            } else if text.contains(' ') {
                "must not contain white-space"
            } else if !text.starts_with('/') {
                "must start with slash"
            } else if text.contains("//") {
                "must not contain double slash"
            } else {
                continue;
            };
            e.push(url.invalid(problem));
        }
    }
}

fn list(list: &At, missing: &str, others: &str, e: &mut ErrorList) {
    if list.is_empty() {
        e.push(list.required(missing));
    } else {
        wildcard_alone(list, others, e);
    }
}

fn has_wildcard(list: &At) -> bool {
    list.each().any(|v| v.text() == "*")
}

/// Whether the list has no wildcard, so that its items are to be looked at.
fn wildcard_alone(list: &At, others: &str, e: &mut ErrorList) -> bool {
    let wildcard = has_wildcard(list);
    if wildcard && list.len() > 1 {
        e.push(list.invalid(format!(
            "if '*' is present, must not specify other {others}"
        )));
    }
    !wildcard
}

fn verbs(verbs: &At, e: &mut ErrorList) {
    list(verbs, "verbs must contain at least one value", "verbs", e);
    if !has_wildcard(verbs) && verbs.each().any(|v| !VERBS.contains(&v.text())) {
        e.push(verbs.not_supported(VERBS));
    }
}

fn subject(subject: &At, e: &mut ErrorList) {
    let kind = subject.at("kind");
    let kinds = [
        ("ServiceAccount", "serviceAccount"),
        ("User", "user"),
        ("Group", "group"),
    ];
    if !kinds.iter().any(|(k, _)| *k == kind.text()) {
        e.push(kind.not_supported(&["Group", "ServiceAccount", "User"]));
        return;
    }
    for (name, field) in kinds {
        let at = subject.at(field);
        if name == kind.text() {
            if !at.exists() {
                e.push(at.required(&format!(
                    "{field} is required when subject kind is '{name}'"
                )));
                continue;
            }
            let (account, namespace) = (at.at("name"), at.at("namespace"));
            account.require(e);
            if name != "ServiceAccount" {
                continue;
            }
            if account.text() != "*" {
                account.optional_conforms(e, validation::is_dns1123_subdomain);
            }
            if namespace.is_empty() {
                e.push(namespace.required("must specify namespace for service account"));
            } else {
                namespace.conforms(e, validation::is_dns1123_label);
            }
        } else if at.exists() {
            e.push(at.forbidden(format!(
                "{field} is forbidden when subject kind is not '{name}'"
            )));
        }
    }
}
