//! Rules of resource names and amounts, shared by containers, nodes, quotas and claims.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::quantity::Quantity;
use keelson_machinery::validation;

use crate::check::{At, NON_NEGATIVE};

/// Counted in whole numbers.
const INTEGERS: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];

const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "storage",
    "requests.storage",
];

/// Whose requests and limits they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Container,
    Pod,
}

pub(crate) fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_quota_huge_page(name: &str) -> bool {
    is_huge_page(name) || name.starts_with("requests.hugepages-")
}

pub(crate) fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name) || INTEGERS.contains(&name) || is_quota_huge_page(name)
}

/// Names without a domain belong to Kubernetes.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && validation::is_qualified_name(&format!("requests.{name}")).is_empty()
}

fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

const OF_CONTAINERS: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// The name of something that containers ask for.
pub(crate) fn container_resource_name(at: &At, e: &mut ErrorList) {
    let text = at.text();
    name(at, text, e);
    if !text.contains('/') {
        if !OF_CONTAINERS.contains(&text) && !is_huge_page(text) {
            e.push(at.invalid("must be a standard resource for containers"));
        }
    } else if !is_native(text) && !is_extended(text) {
        e.push(at.invalid("doesn't follow extended resource name standard"));
    }
}

/// The key of a resource list, reported where the value is.
pub(crate) fn name(at: &At, name: &str, e: &mut ErrorList) -> bool {
    let before = e.len();
    e.extend(
        validation::is_qualified_name(name)
            .into_iter()
            .map(|m| FieldError::invalid(&at.path, name, m)),
    );
    if e.len() == before && !name.contains('/') && !is_standard(name) {
        e.push(FieldError::invalid(
            &at.path,
            name,
            "must be a standard resource type or fully qualified",
        ));
    }
    e.len() == before
}

pub(crate) fn container_name(at: &At, key: &str, e: &mut ErrorList) {
    name(at, key, e);
    if !key.contains('/') {
        if !matches!(key, "cpu" | "memory" | "ephemeral-storage") && !is_huge_page(key) {
            e.push(FieldError::invalid(
                &at.path,
                key,
                "must be a standard resource for containers",
            ));
        }
    } else if !is_native(key) && !is_extended(key) {
        e.push(FieldError::invalid(
            &at.path,
            key,
            "doesn't follow extended resource name standard",
        ));
    }
}

fn pod_name(at: &At, key: &str, e: &mut ErrorList) {
    if name(at, key, e) && !matches!(key, "cpu" | "memory") && !is_huge_page(key) {
        e.push(FieldError::not_supported(
            &at.path,
            key,
            &["cpu", "hugepages-", "memory"],
        ));
    }
}

/// Not negative, and whole where the resource is counted.
pub(crate) fn amount(at: &At, name: &str, e: &mut ErrorList) {
    let Some(q) = at.quantity() else { return };
    let text = q.to_string();
    if text.starts_with('-') {
        e.push(FieldError::invalid(&at.path, text.as_str(), NON_NEGATIVE));
    }
    let counted = INTEGERS.contains(&name) || is_extended(name);
    if counted && q.milli_value() % 1000 != 0 {
        e.push(FieldError::invalid(
            &at.path,
            text.as_str(),
            "must be an integer",
        ));
    }
}

fn huge_page(at: &At, name: &str, q: &Quantity, e: &mut ErrorList) {
    let size = name
        .strip_prefix("hugepages-")
        .and_then(|s| Quantity::parse(s).ok())
        .map_or(0, |s| s.value());
    if size <= 0 || q.value() % size != 0 {
        let text = q.to_string();
        e.push(FieldError::invalid(
            &at.path,
            text.as_str(),
            format!("{text} is not positive integer multiple of {name}"),
        ));
    }
}

/// `resources` of a container or a pod.
pub(crate) fn requirements(
    resources: &At,
    scope: Scope,
    claims: &BTreeSet<&str>,
    e: &mut ErrorList,
) {
    let name_rule = if scope == Scope::Container {
        container_name
    } else {
        pod_name
    };
    let (limits, requests) = (resources.at("limits"), resources.at("requests"));
    let (mut huge, mut compute) = (false, false);
    for list in [&limits, &requests] {
        for (key, at) in list.entries() {
            name_rule(&at, key, e);
            amount(&at, key, e);
            let Some(q) = at.quantity() else { continue };
            if is_huge_page(key) {
                huge = true;
                huge_page(&at, key, &q, e);
            }
            compute |= matches!(key, "cpu" | "memory");
        }
    }
    for (key, at) in requests.entries() {
        let Some(q) = at.quantity() else { continue };
        let text = q.to_string();
        match limits.at(key).quantity() {
            Some(limit) if limit != q && !may_overcommit(key) => {
                e.push(FieldError::invalid(
                    &requests.path,
                    text,
                    format!("must be equal to {key} limit of {limit}"),
                ));
            }
            Some(limit) if q > limit => {
                let detail = format!("must be less than or equal to {key} limit of {limit}");
                e.push(FieldError::invalid(&requests.path, text, detail));
            }
            None if !may_overcommit(key) => {
                e.push(limits.required("Limit must be set for non overcommitable resources"));
            }
            _ => {}
        }
    }
    if huge && !compute {
        e.push(resources.forbidden("HugePages require cpu or memory"));
    }
    claim_names(&resources.at("claims"), claims, e);
}

fn claim_names(list: &At, claims: &BTreeSet<&str>, e: &mut ErrorList) {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for claim in list.each() {
        let (name, request) = (claim.at("name").text(), claim.at("request"));
        if name.is_empty() {
            e.push(claim.required(""));
            continue;
        }
        if seen.contains(name) {
            e.push(FieldError::duplicate(&claim.path, name));
        } else {
            request.optional_conforms(e, validation::is_dns1123_label);
            let key = if request.is_empty() {
                name.to_owned()
            } else {
                format!("{name}/{}", request.text())
            };
            let of_this_claim = |s: &&String| s.split_once('/').is_some_and(|(n, _)| n == name);
            if seen.contains(&key) {
                e.push(FieldError::duplicate(&claim.path, key.as_str()));
            } else if request.is_empty() {
                let overlaps = seen.iter().filter(of_this_claim);
                e.extend(overlaps.map(|_| FieldError::duplicate(&claim.path, name)));
            }
            seen.insert(key);
        }
        if !claims.contains(name) {
            let mut error = FieldError::not_found(&claim.path, name);
            error.detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            if claims.is_empty() {
                error.detail.push_str(" which is empty");
            } else {
                let names: Vec<_> = claims.iter().copied().collect();
                error.detail.push_str(&format!(": {}", names.join(", ")));
            }
            e.push(error);
        }
    }
}
