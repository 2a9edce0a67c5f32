//! From a definition to rows of the resource table, one per served version.

use std::sync::Arc;

use keelson_api::Schema;
use serde_json::Value;

use super::convert::Webhook;
use super::rules::CustomRules;
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
    versions
        .iter()
        .filter(|version| version["served"] == true)
        .map(|version| entry(definition, version, &storage, &converter, terminating))
        .collect()
}

fn entry(
    definition: &Value,
    version: &Value,
    storage: &str,
    converter: &Option<Arc<Webhook>>,
    terminating: bool,
) -> ResourceEntry {
    let spec = &definition["spec"];
    let (names, group) = (&definition["status"]["acceptedNames"], text(&spec["group"]));
    let openapi = &version["schema"]["openAPIV3Schema"];
    let schema = if openapi.is_object() {
        Schema::custom_resource(openapi).unwrap_or_else(|error| {
            tracing::error!(definition = %definition["metadata"]["name"], %error, "a schema is not structural");
            Schema::any()
        })
    } else {
        Schema::any()
    };
    let mut schema = schema;
    schema.preserve_unknown |= spec["preserveUnknownFields"] == true;
    let schema = Arc::new(schema);
    let has_status = version["subresources"]["status"].is_object();
    let scale = &version["subresources"]["scale"];
    let mut subresources = Vec::new();
    let own_version = text(&version["name"]);
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
        verbs.retain(|v| *v != "create");
    }
    let rules = CustomRules::new(
        Arc::clone(&schema),
        version,
        has_status,
        spec["versions"].as_array().is_some_and(|all| all.len() > 1),
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
        scale: scale.is_object().then(|| ScalePaths {
            spec_replicas: text(&scale["specReplicasPath"]),
            status_replicas: text(&scale["statusReplicasPath"]),
            label_selector: scale["labelSelectorPath"].as_str().map(ToOwned::to_owned),
        }),
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
