//! Which webhooks a write concerns.

use std::sync::Arc;

use keelson_machinery::status::Status;
use keelson_machinery::{labels, meta};
use serde_json::Value;

use super::{GROUP, MUTATING, VALIDATING, Webhook};
use crate::admission::{Attributes, Cluster};

/// The webhooks of all configurations that match, by configuration name and in its order.
pub(super) fn matching(
    attrs: &Attributes,
    cluster: &Cluster,
    resource: &str,
) -> Result<Vec<Webhook>, Status> {
    // A webhook must not be able to keep itself from being removed.
    if attrs.group == GROUP && (attrs.resource == MUTATING || attrs.resource == VALIDATING) {
        return Ok(Vec::new());
    }
    let mut configurations = cluster.objects.list(GROUP, resource, "");
    configurations.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
    let mut out = Vec::new();
    for configuration in configurations {
        for webhook in configuration["webhooks"].as_array().into_iter().flatten() {
            if !rules_match(attrs, webhook) || !still_matches(attrs, cluster, webhook) {
                continue;
            }
            if webhook["matchConditions"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
            {
                if webhook["failurePolicy"] == "Ignore" {
                    continue;
                }
                // Asking or not asking could both be wrong, so neither is done silently.
                return Err(Status::internal(format!(
                    "webhook {} has matchConditions, which this server does not evaluate",
                    webhook["name"]
                )));
            }
            out.push(Arc::new(webhook.clone()));
        }
    }
    Ok(out)
}

fn rules_match(attrs: &Attributes, webhook: &Value) -> bool {
    webhook["rules"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|rule| rule_matches(attrs, rule))
}

fn rule_matches(attrs: &Attributes, rule: &Value) -> bool {
    let has = |key: &str, wanted: &str| {
        rule[key]
            .as_array()
            .into_iter()
            .flatten()
            .any(|v| v == "*" || v.as_str() == Some(wanted))
    };
    let cluster_wide = attrs.namespace.is_empty() || attrs.is_any("", "namespaces");
    let scope = match rule["scope"].as_str() {
        Some("Cluster") => cluster_wide,
        Some("Namespaced") => !cluster_wide,
        _ => true,
    };
    let resources = rule["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let resource = resources.into_iter().any(|pattern| {
        let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
        let own = resource == "*" || resource == attrs.resource;
        own && (subresource == attrs.subresource || subresource == "*" || pattern == "*/*")
    });
    has("operations", attrs.operation.as_str())
        && has("apiGroups", &attrs.group)
        && has("apiVersions", &attrs.version)
        && resource
        && scope
}

/// Whether the selectors hold for the object and its namespace.
pub(super) fn still_matches(attrs: &Attributes, cluster: &Cluster, webhook: &Value) -> bool {
    selects_namespace(attrs, cluster, &webhook["namespaceSelector"])
        && selects_object(attrs, &webhook["objectSelector"])
}

fn selector(value: &Value) -> Option<labels::Selector> {
    let empty = value.as_object().is_none_or(serde_json::Map::is_empty);
    if empty {
        return None;
    }
    labels::Selector::from_label_selector(value).ok()
}

fn selects_namespace(attrs: &Attributes, cluster: &Cluster, wanted: &Value) -> bool {
    let Some(selector) = selector(wanted) else {
        return true;
    };
    if attrs.group.is_empty() && attrs.resource == "namespaces" {
        let own = attrs.object.as_ref().or(attrs.old_object.as_deref());
        return own.is_none_or(|namespace| selector.matches(&meta::labels(namespace)));
    }
    if attrs.namespace.is_empty() {
        return true;
    }
    let namespace = cluster.objects.get("", "namespaces", "", &attrs.namespace);
    namespace.is_some_and(|namespace| selector.matches(&meta::labels(&namespace)))
}

fn selects_object(attrs: &Attributes, wanted: &Value) -> bool {
    let Some(selector) = selector(wanted) else {
        return true;
    };
    [attrs.object.as_ref(), attrs.old_object.as_deref()]
        .into_iter()
        .flatten()
        .any(|object| selector.matches(&meta::labels(object)))
}
