//! The discovery documents, from a snapshot.

use serde_json::{Map, Value, json};

use super::{Group, Snapshot, Version};
use crate::registry::{ResourceEntry, SubresourceEntry};

/// Upstream's order of built-in groups (by the priorities of its APIServices).
pub(super) const GROUP_ORDER: &[&str] = &[
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "storagemigration.k8s.io",
];

/// Of `apidiscovery.k8s.io`; v1.36 has no other one.
pub(super) const AGGREGATED_VERSION: &str = "v2";

/// `/api`.
pub(super) fn core_versions(endpoint: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": endpoint}],
    })
}

/// `/apis`.
pub(super) fn group_list(snapshot: &Snapshot, aggregated: &[Value]) -> Value {
    let mut groups: Vec<Value> = snapshot
        .groups
        .iter()
        .filter(|g| !g.name.is_empty())
        .map(group)
        .collect();
    groups.extend(aggregated.iter().cloned());
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

pub(super) fn group(group: &Group) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|v| json!({"groupVersion": group.group_version(&v.version), "version": v.version}))
        .collect();
    json!({"name": group.name, "versions": versions, "preferredVersion": versions.first()})
}

/// `/api/v1` and `/apis/<group>/<version>`.
pub(super) fn resource_list(group: &Group, version: &Version) -> Value {
    let mut resources = Vec::new();
    for entry in &version.resources {
        resources.push(resource(entry));
        resources.extend(entry.subresources.iter().map(|sub| subresource(entry, sub)));
    }
    let mut out = json!({
        "kind": "APIResourceList",
        "groupVersion": group.group_version(&version.version),
        "resources": resources,
    });
    // Older clients of the core group know this document without its version.
    if !group.name.is_empty() {
        out["apiVersion"] = "v1".into();
    }
    out
}

fn resource(entry: &ResourceEntry) -> Value {
    let mut out = json!({
        "name": entry.resource,
        "singularName": entry.singular,
        "namespaced": entry.namespaced,
        "kind": entry.kind,
        "verbs": entry.verbs,
    });
    if !entry.short_names.is_empty() {
        out["shortNames"] = json!(entry.short_names);
    }
    if !entry.categories.is_empty() {
        out["categories"] = json!(entry.categories);
    }
    if entry.verbs.iter().any(|v| v == "create") && entry.verbs.iter().any(|v| v == "get") {
        out["storageVersionHash"] = json!(storage_version_hash(entry));
    }
    out
}

/// Kinds that upstream stores in another version than they are stored in here; clients compare
/// the hash with that of other servers.
const STORED_ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicy",
        "v1beta1",
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicyBinding",
        "v1beta1",
    ),
    (
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "v1beta1",
    ),
    ("resource.k8s.io", "DeviceTaintRule", "v1alpha3"),
];

/// The first eight bytes of SHA-256 over `group/version/kind` of the stored form, as upstream.
fn storage_version_hash(entry: &ResourceEntry) -> String {
    use base64::Engine;
    use sha2::Digest;
    let elsewhere = STORED_ELSEWHERE
        .iter()
        .find(|(group, kind, _)| *group == entry.group && *kind == entry.kind);
    let version = elsewhere.map_or(entry.storage_version.as_str(), |(_, _, version)| version);
    let stored = format!("{}/{version}/{}", entry.storage_group, entry.kind);
    base64::engine::general_purpose::STANDARD.encode(&sha2::Sha256::digest(stored.as_bytes())[..8])
}

fn subresource(entry: &ResourceEntry, sub: &SubresourceEntry) -> Value {
    let mut out = json!({
        "name": format!("{}/{}", entry.resource, sub.name),
        "singularName": "",
        "namespaced": entry.namespaced,
        "kind": sub.kind,
        "verbs": sub.verbs,
    });
    if (&sub.group, &sub.version) != (&entry.group, &entry.version) {
        if !sub.group.is_empty() {
            out["group"] = json!(sub.group);
        }
        out["version"] = json!(sub.version);
    }
    out
}

/// `APIGroupDiscoveryList`: the core group alone, or all others.
pub(super) fn aggregated(snapshot: &Snapshot, core: bool) -> Value {
    let items: Vec<Value> = snapshot
        .groups
        .iter()
        .filter(|g| g.name.is_empty() == core)
        .map(|g| {
            let mut metadata = Map::new();
            if !g.name.is_empty() {
                metadata.insert("name".to_owned(), json!(g.name));
            }
            json!({"metadata": metadata, "versions": g.versions.iter().map(aggregated_version).collect::<Vec<_>>()})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{AGGREGATED_VERSION}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_version(version: &Version) -> Value {
    let resources: Vec<Value> = version
        .resources
        .iter()
        .map(|entry| aggregated_resource(entry))
        .collect();
    json!({"version": version.version, "freshness": "Current", "resources": resources})
}

fn aggregated_resource(entry: &ResourceEntry) -> Value {
    // A group in responseKind is left empty when it is the resource's own.
    let kind = |group: &str, version: &str, kind: &str| {
        let own = (group, version) == (entry.group.as_str(), entry.version.as_str());
        let (group, version) = if own { ("", "") } else { (group, version) };
        json!({"group": group, "version": version, "kind": kind})
    };
    let mut out = json!({
        "resource": entry.resource,
        "responseKind": kind(&entry.group, &entry.version, &entry.kind),
        "scope": if entry.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": entry.singular,
        "verbs": entry.verbs,
    });
    if !entry.short_names.is_empty() {
        out["shortNames"] = json!(entry.short_names);
    }
    if !entry.categories.is_empty() {
        out["categories"] = json!(entry.categories);
    }
    let subresources: Vec<Value> = entry
        .subresources
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": kind(&sub.group, &sub.version, &sub.kind),
                "verbs": sub.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        out["subresources"] = json!(subresources);
    }
    out
}
