//! Role and ClusterRole.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::Value;

use super::GROUP;
use crate::check::{At, name_is_path_segment};
use crate::kind::{Column, Kind};
use crate::tree::Tree;
use crate::workload;

/// Roles show when they were made as a date, which clients turn into an age.
const CREATED_AT: &[Column] = &[Column {
    name: "Created At",
    kind: "date",
    format: "",
    priority: 0,
}];

pub(crate) static ROLE: Kind = Kind {
    group: GROUP,
    resource: "roles",
    validate: |obj| policy_rules(obj, true),
    validate_update: |new, _, _| policy_rules(new, true),
    columns: CREATED_AT,
    cells: |obj, _| vec![obj.at("metadata.creationTimestamp").clone()],
    validate_name: name_is_path_segment,
    allow_create_on_update: true,
    ..Kind::GENERIC
};

pub(crate) static CLUSTER_ROLE: Kind = Kind {
    group: GROUP,
    resource: "clusterroles",
    validate: cluster_role,
    validate_update: |new, _, _| cluster_role(new),
    columns: CREATED_AT,
    cells: |obj, _| vec![obj.at("metadata.creationTimestamp").clone()],
    validate_name: name_is_path_segment,
    allow_create_on_update: true,
    ..Kind::GENERIC
};

fn policy_rules(obj: &Value, namespaced: bool) -> ErrorList {
    let mut e = ErrorList::new();
    for rule in At::new(obj, "rules").each() {
        if rule.at("verbs").is_empty() {
            e.push(
                rule.at("verbs")
                    .required("verbs must contain at least one value"),
            );
        }
        let urls = rule.at("nonResourceURLs");
        let (groups, resources) = (rule.at("apiGroups"), rule.at("resources"));
        if !urls.is_empty() {
            if namespaced {
                e.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
            }
            if groups.len() + resources.len() + rule.at("resourceNames").len() > 0 {
                e.push(
                    urls.invalid(
                        "rules cannot apply to both regular resources and non-resource URLs",
                    ),
                );
            }
            continue;
        }
        if groups.is_empty() {
            e.push(groups.required("resource rules must supply at least one api group"));
        }
        if resources.is_empty() {
            e.push(resources.required("resource rules must supply at least one resource"));
        }
    }
    e
}

fn cluster_role(obj: &Value) -> ErrorList {
    let mut e = policy_rules(obj, false);
    if !obj.has("aggregationRule") {
        return e;
    }
    let selectors = At {
        value: obj.at("aggregationRule.clusterRoleSelectors"),
        path: Path::new("aggregationRule").child("clusterRoleSelectors"),
    };
    if selectors.is_empty() {
        e.push(
            selectors.required(
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            ),
        );
    }
    for selector in selectors.each() {
        if !workload::label_selector(&selector, &mut e) {
            let detail = "invalid label selector.";
            e.push(FieldError::invalid(&selector.path, Value::Null, detail));
        }
    }
    e
}
