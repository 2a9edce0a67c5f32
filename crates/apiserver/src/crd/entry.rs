//! From a definition to rows of the resource table, one per served version.

use std::sync::Arc;

use keelson_api::Schema;
use serde_json::Value;

use super::convert::Webhook;
use super::rules::{CustomRules, Versions};
use crate::objects::Objects;
use crate::registry::{ResourceEntry, ScalePaths, SchemaRef, SubresourceEntry};

pub(super) fn entries(
    definition: &Value,
    objects: &Arc<dyn Objects>,
    terminating: bool,
) -> Vec<ResourceEntry> {
    let converter = Webhook::of(definition, objects);
    let spec = &definition["spec"];
    let versions = spec["versions"].as_array().cloned().unwrap_or_default();
    let storage = versions
        .iter()
        .find(|v| v["storage"] == true)
        .map(|v| text(&v["name"]))
        .unwrap_or_default();
    let schemas = versions
        .iter()
        .map(|version| {
            (
                text(&version["name"]),
                Arc::new(schema(definition, version)),
            )
        })
        .collect();
    let schemas = Arc::new(schemas);
    versions
        .iter()
        .filter(|version| version["served"] == true)
        .map(|version| {
            entry(
                definition,
                version,
                &storage,
                &schemas,
                &converter,
                terminating,
            )
        })
        .collect()
}

fn schema(definition: &Value, version: &Value) -> Schema {
    let openapi = &version["schema"]["openAPIV3Schema"];
    let mut schema = if openapi.is_object() {
        Schema::custom_resource(openapi).unwrap_or_else(|error| {
            tracing::error!(definition = %definition["metadata"]["name"], %error, "a schema is not structural");
            Schema::any()
        })
    } else {
        Schema::any()
    };
    schema.preserve_unknown |= definition["spec"]["preserveUnknownFields"] == true;
    schema
}

/// What users of a deprecated version are told: the author's words, or where to go.
fn deprecation(spec: &Value, version: &Value) -> String {
    if version["deprecated"] != true {
        return String::new();
    }
    if let Some(warning) = version["deprecationWarning"].as_str() {
        return warning.to_owned();
    }
    let (group, kind) = (text(&spec["group"]), text(&spec["names"]["kind"]));
    let own = text(&version["name"]);
    let better = spec["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|v| v["served"] == true && v["deprecated"] != true)
        .map(|v| text(&v["name"]))
        .filter(|name| priority(name) > priority(&own))
        .max_by_key(|name| priority(name));
    let said = format!("{group}/{own} {kind} is deprecated");
    match better {
        Some(better) => format!("{said}; use {group}/{better} {kind}"),
        None => said,
    }
}

/// Versions such as v1 come before betas, those before alphas, and the higher number first.
fn priority(version: &str) -> (u8, u64, u64) {
    let number = |text: &str| text.parse::<u64>().ok();
    let found = version.strip_prefix('v').and_then(|rest| {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (major, stage) = rest.split_at(digits);
        let major = number(major)?;
        if stage.is_empty() {
            return Some((3, major, 0));
        }
        let beta = stage.strip_prefix("beta").map(|n| (2, n));
        let (rank, minor) = beta.or_else(|| stage.strip_prefix("alpha").map(|n| (1, n)))?;
        Some((rank, major, number(minor)?))
    });
    found.unwrap_or_default()
}

fn entry(
    definition: &Value,
    version: &Value,
    storage: &str,
    schemas: &Versions,
    converter: &Option<Arc<Webhook>>,
    terminating: bool,
) -> ResourceEntry {
    let spec = &definition["spec"];
    let (names, group) = (&definition["status"]["acceptedNames"], text(&spec["group"]));
    let own_version = text(&version["name"]);
    let schema = schemas.get(&own_version).cloned().unwrap_or_default();
    let has_status = version["subresources"]["status"].is_object();
    let scale = &version["subresources"]["scale"];
    let mut subresources = Vec::new();
    if has_status {
        subresources.push(subresource(
            "status",
            &group,
            &own_version,
            &text(&names["kind"]),
        ));
    }
    if scale.is_object() {
        subresources.push(subresource("scale", "autoscaling", "v1", "Scale"));
    }
    let mut verbs = vec![
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "create",
        "update",
        "watch",
    ];
    if terminating {
        // What is being deleted takes no new objects.
        verbs.retain(|v| !matches!(*v, "create" | "patch" | "update"));
    }
    let scale_paths = scale.is_object().then(|| ScalePaths {
        spec_replicas: text(&scale["specReplicasPath"]),
        status_replicas: text(&scale["statusReplicasPath"]),
        label_selector: scale["labelSelectorPath"].as_str().map(ToOwned::to_owned),
    });
    let rules = CustomRules::new(
        Arc::clone(&schema),
        version,
        has_status,
        scale_paths.clone(),
        Arc::clone(schemas),
        deprecation(spec, version),
        converter.clone(),
    );
    ResourceEntry {
        version: own_version,
        resource: text(&names["plural"]),
        singular: text(&names["singular"]),
        kind: text(&names["kind"]),
        list_kind: text(&names["listKind"]),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        verbs: verbs.into_iter().map(ToOwned::to_owned).collect(),
        subresources,
        storage_group: group.clone(),
        group,
        storage_version: storage.to_owned(),
        schema: SchemaRef::Shared(schema),
        rules: Arc::new(rules),
        scale: scale_paths,
        custom: true,
    }
}

fn subresource(name: &str, group: &str, version: &str, kind: &str) -> SubresourceEntry {
    SubresourceEntry {
        name: name.to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        verbs: ["get", "patch", "update"]
            .iter()
            .map(|v| (*v).to_owned())
            .collect(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(ToOwned::to_owned))
        .collect()
}
