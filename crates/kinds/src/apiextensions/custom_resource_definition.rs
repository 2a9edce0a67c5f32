//! CustomResourceDefinition. Establishing it, and the conditions, belong to the server's own
//! controllers; here is what a definition may say.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::{Value, json};

use super::schema;
use super::validations::Before;
use crate::admissionregistration::rule_of_client;
use crate::check::{At, same};
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static CUSTOM_RESOURCE_DEFINITION: Kind = Kind {
    group: "apiextensions.k8s.io",
    resource: "customresourcedefinitions",
    default,
    prepare_create: |obj| {
        rules::first_generation(obj);
        let stored: Vec<_> = storage_versions(obj).into_iter().take(1).collect();
        obj.put("status", json!({"storedVersions": stored}));
    },
    validate: |obj| validate(obj, None),
    prepare_update,
    validate_update,
    columns: &[Column {
        name: "Created At",
        kind: "date",
        format: "",
        priority: 0,
    }],
    cells: |obj, _| vec![obj.at("metadata.creationTimestamp").clone()],
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn storage_versions(obj: &Value) -> Vec<String> {
    obj.list("spec.versions")
        .iter()
        .filter(|v| v.flag("storage"))
        .map(|v| v.text("name").to_owned())
        .collect()
}

fn default(obj: &mut Value) {
    let kind = obj.text("spec.names.kind").to_owned();
    if !kind.is_empty() {
        obj.fill_text("spec.names.singular", &kind.to_lowercase());
        obj.fill_text("spec.names.listKind", &format!("{kind}List"));
    }
    if obj.has("spec") {
        obj.fill("spec.conversion", json!({"strategy": "None"}));
    }
    if obj
        .at("spec.conversion.webhook.clientConfig.service")
        .is_object()
    {
        obj.fill("spec.conversion.webhook.clientConfig.service.port", 443);
    }
    if obj.list("status.storedVersions").is_empty() {
        let stored: Vec<_> = storage_versions(obj).into_iter().take(1).collect();
        if !stored.is_empty() {
            obj.put("status.storedVersions", stored);
        }
    }
}

fn prepare_update(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    rules::with_generation(new, old, ctx);
    if ctx.subresource == "status" {
        return;
    }
    let mut stored = new.list("status.storedVersions").to_vec();
    for version in storage_versions(new) {
        if !stored.iter().any(|s| *s == version) {
            stored.push(version.into());
        }
    }
    new.put("status.storedVersions", stored);
}

fn established(obj: &Value) -> bool {
    obj.list("status.conditions")
        .iter()
        .any(|c| c.text("type") == "Established" && c.text("status") == "True")
}

fn validate(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let (group, plural) = (spec.value.text("group"), spec.value.text("names.plural"));
    let name = At::new(obj, "metadata").at("name");
    let required = format!("{plural}.{group}");
    if name.text() != required {
        e.push(name.invalid("must be spec.names.plural+\".\"+spec.group"));
    }
    self::spec(&spec, old, &mut e);
    approval(obj, group, old, &mut e);
    e
}

fn spec(spec: &At, old: Option<&Value>, e: &mut ErrorList) {
    let group = spec.at("group");
    let msgs = validation::is_dns1123_subdomain(group.text());
    if group.is_empty() {
        e.push(group.required(""));
    } else if !msgs.is_empty() {
        e.push(group.invalid(msgs.join(",")));
    } else if !group.text().contains('.') {
        e.push(group.invalid("should be a domain with at least one dot"));
    }
    spec.at("scope")
        .required_one_of(e, &["Cluster", "Namespaced"]);
    let preserve = spec.at("preserveUnknownFields");
    if preserve.flag() && !old.is_some_and(|o| o.flag("spec.preserveUnknownFields")) {
        e.push(preserve.invalid("cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"));
    }
    let versions = spec.at("versions");
    let before = Before::new(old);
    let mut names = BTreeSet::new();
    let mut unique = true;
    for version in versions.each() {
        let name = version.at("name");
        unique &= names.insert(name.text());
        let msgs = validation::is_dns1035_label(name.text());
        if !msgs.is_empty() {
            e.push(FieldError::invalid(&name.path, name.text(), msgs.join(",")));
        }
        self::version(&version, preserve.flag(), &before, e);
    }
    if !unique {
        e.push(versions.invalid("must contain unique version names"));
    }
    if versions.each().filter(|v| v.value.flag("storage")).count() != 1 {
        e.push(versions.invalid("must have exactly one version marked as storage version"));
    }
    self::names(&spec.at("names"), true, e);
    conversion(&spec.at("conversion"), preserve.flag(), e);
}

fn version(version: &At, preserve: bool, before: &Before, e: &mut ErrorList) {
    let warning = version.at("deprecationWarning");
    if warning.exists() {
        let text = warning.text();
        if !version.value.flag("deprecated") {
            e.push(warning.invalid("can only be set for deprecated versions"));
        }
        if text.len() > 256 {
            e.push(warning.invalid("must be <= 256 characters long"));
        }
        if text.is_empty() {
            e.push(warning.invalid("must not be an empty string"));
        }
        if text.chars().any(char::is_control) {
            e.push(warning.invalid("must only contain printable UTF-8 characters"));
        }
    }
    let root = version.at("schema").at("openAPIV3Schema");
    if !root.exists() {
        e.push(root.required(""));
    } else {
        schema::validate_root(&root, version.value.text("name"), !preserve, before, e);
    }
    let subresources = version.at("subresources");
    let scale = subresources.at("scale");
    if scale.exists() {
        for (field, under) in [
            ("specReplicasPath", ".spec."),
            ("statusReplicasPath", ".status."),
            ("labelSelectorPath", ""),
        ] {
            let path = scale.at(field);
            if path.is_empty() {
                if field != "labelSelectorPath" {
                    e.push(path.required(""));
                }
                continue;
            }
            simple_path(&path, e);
            let fits = if under.is_empty() {
                path.text().starts_with(".spec.") || path.text().starts_with(".status.")
            } else {
                path.text().starts_with(under)
            };
            if !fits {
                let what = if under.is_empty() {
                    "should be a json path under either .spec or .status".to_owned()
                } else {
                    format!(
                        "should be a json path under {}",
                        under.trim_end_matches('.')
                    )
                };
                e.push(path.invalid(what));
            }
        }
    }
    for column in version.at("additionalPrinterColumns").each() {
        column.at("name").require(e);
        column
            .at("type")
            .required_one_of(e, &["integer", "number", "string", "boolean", "date"]);
        column.at("format").one_of(
            e,
            &[
                "int32",
                "int64",
                "float",
                "double",
                "byte",
                "date",
                "date-time",
                "password",
                "",
            ],
        );
        let path = column.at("jsonPath");
        if path.is_empty() {
            e.push(path.required(""));
        }
    }
    selectable_fields(&version.at("selectableFields"), e);
}

fn selectable_fields(list: &At, e: &mut ErrorList) {
    if list.len() > 8 {
        e.push(FieldError::too_many(&list.path, list.len(), 8));
    }
    let mut seen = BTreeSet::new();
    for field in list.each() {
        let path = field.at("jsonPath");
        if path.is_empty() {
            e.push(path.required(""));
            continue;
        }
        simple_path(&path, e);
        if path.text().starts_with(".metadata.") {
            e.push(path.invalid("must not point to fields in metadata"));
        }
        if !seen.insert(path.text()) {
            e.push(path.duplicate());
        }
    }
}

/// A path of plain names: `.spec.replicas`.
fn simple_path(path: &At, e: &mut ErrorList) {
    let fine = |step: &str| {
        !step.is_empty()
            && step
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    match path.text().strip_prefix('.') {
        Some(rest) if rest.split('.').all(fine) => {}
        _ => e.push(
            path.invalid("is an invalid path: must be a simple json path, such as .spec.replicas"),
        ),
    }
}

/// Names under which the resource is served; `required` on the spec, not on what was accepted.
fn names(names: &At, required: bool, e: &mut ErrorList) {
    let rule = |at: &At, text: &str, e: &mut ErrorList| {
        let msgs = validation::is_dns1035_label(text);
        if !msgs.is_empty() {
            e.push(FieldError::invalid(&at.path, at.text(), msgs.join(",")));
        }
    };
    for field in ["plural", "singular", "kind", "listKind"] {
        let at = names.at(field);
        if at.is_empty() {
            if required {
                e.push(at.required(""));
            }
            continue;
        }
        let kind = matches!(field, "kind" | "listKind");
        rule(
            &at,
            &if kind {
                at.text().to_lowercase()
            } else {
                at.text().to_owned()
            },
            e,
        );
    }
    for list in ["shortNames", "categories"] {
        names.at(list).each().for_each(|n| rule(&n, n.text(), e));
    }
    let (kind, list_kind) = (names.at("kind"), names.at("listKind"));
    if !kind.is_empty() && kind.text() == list_kind.text() {
        e.push(list_kind.invalid("kind and listKind may not be the same"));
    }
}

fn conversion(conversion: &At, preserve: bool, e: &mut ErrorList) {
    if !conversion.exists() {
        return;
    }
    let strategy = conversion.at("strategy");
    strategy.required_one_of(e, &["None", "Webhook"]);
    let webhook = conversion.at("webhook");
    if strategy.text() == "Webhook" {
        if preserve {
            e.push(strategy.invalid("must be None if spec.preserveUnknownFields is true"));
        }
        // Upstream's own form of the object is flatter, and so are the paths it reports.
        let config = At {
            value: webhook.value.at("clientConfig"),
            path: conversion.path.child("webhookClientConfig"),
        };
        if config.exists() {
            rule_of_client(&config, e);
        } else {
            e.push(config.required("required when strategy is set to Webhook"));
        }
        let versions = At {
            value: webhook.value.at("conversionReviewVersions"),
            path: conversion.path.child("conversionReviewVersions"),
        };
        if versions.is_empty() {
            e.push(versions.required(""));
        } else if !versions
            .each()
            .any(|v| matches!(v.text(), "v1" | "v1beta1"))
        {
            e.push(versions.invalid("must include at least one of v1, v1beta1"));
        }
    } else if webhook.exists() {
        let path = conversion.path.child("webhookClientConfig");
        e.push(FieldError::forbidden(
            &path,
            "should not be set when strategy is not set to Webhook",
        ));
    }
}

/// Groups of the community need a note of who agreed to them.
fn approval(obj: &Value, group: &str, old: Option<&Value>, e: &mut ErrorList) {
    const KEY: &str = "api-approved.kubernetes.io";
    let protected = group == "k8s.io"
        || group == "kubernetes.io"
        || group.ends_with(".k8s.io")
        || group.ends_with(".kubernetes.io");
    if !protected {
        return;
    }
    let annotation = |o: &Value| {
        o.at("metadata.annotations")
            .get(KEY)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    let now = annotation(obj);
    if old.is_some_and(|o| annotation(o) == now) {
        return;
    }
    let annotations = At::new(obj, "metadata").at("annotations");
    let path = annotations.path.key(KEY);
    if now.is_empty() {
        e.push(FieldError::required(&path, "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111"));
    } else if !now.starts_with("unapproved")
        && !now.starts_with("https://")
        && !now.starts_with("http://")
    {
        e.push(FieldError::invalid(&path, now, "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111"));
    }
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    if ctx.subresource == "status" {
        let mut e = ErrorList::new();
        names(&At::new(new, "status").at("acceptedNames"), false, &mut e);
        stored_versions(new, &mut e);
        return e;
    }
    let mut e = validate(new, Some(old));
    if established(old) {
        for field in [
            "spec.scope",
            "spec.names.kind",
            "spec.group",
            "spec.names.plural",
        ] {
            workload::immutable(new, old, field, &mut e);
        }
    }
    if !same(new.at("spec.versions"), old.at("spec.versions")) {
        stored_versions(new, &mut e);
    }
    e
}

/// A version that objects were stored in may not leave the definition.
fn stored_versions(obj: &Value, e: &mut ErrorList) {
    let list = At::new(obj, "status").at("storedVersions");
    if list.is_empty() {
        e.push(list.invalid("must have at least one stored version"));
    }
    let known: Vec<_> = obj
        .list("spec.versions")
        .iter()
        .map(|v| v.text("name"))
        .collect();
    for version in list.each().filter(|v| !known.contains(&v.text())) {
        let detail = "missing from spec.versions; v was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v and removes v from status.storedVersions";
        let detail = detail
            .replace("; v ", &format!("; {} ", version.text()))
            .replace(" in v ", &format!(" in {} ", version.text()))
            .replace("removes v ", &format!("removes {} ", version.text()));
        e.push(version.invalid(detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        let mut obj = json!({"metadata": {"name": "cats.example.com"}, "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "cats", "kind": "Cat"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": {"type": "object", "properties": {
                    "lives": {"type": "integer", "default": 9}, "names": {"type": "array", "items": {"type": "string"}}}}}}}}]}});
        default(&mut obj);
        obj
    }

    #[test]
    fn a_plain_definition_is_fine() {
        let obj = definition();
        assert_eq!(validate(&obj, None), ErrorList::new());
        assert_eq!(obj["spec"]["names"]["listKind"], "CatList");
        assert_eq!(obj["status"]["storedVersions"], json!(["v1"]));
    }

    #[test]
    fn schemas_must_be_structural() {
        let mut obj = definition();
        let root = &mut obj["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        root["properties"]["spec"]["properties"]["lives"] = json!({"description": "no type"});
        root["properties"]["spec"]["properties"]["names"] = json!({"type": "array"});
        let texts: Vec<_> = validate(&obj, None)
            .iter()
            .map(ToString::to_string)
            .collect();
        let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec].properties";
        assert!(
            texts.contains(&format!(
                "{at}[lives].type: Required value: must not be empty for specified object fields"
            )),
            "{texts:?}"
        );
        assert!(
            texts
                .iter()
                .any(|t| t.starts_with(&format!("{at}[names].items: Required value"))),
            "{texts:?}"
        );
    }

    #[test]
    fn a_stored_version_stays() {
        let old = definition();
        let mut new = old.clone();
        new["spec"]["versions"][0]["name"] = json!("v2");
        let ctx = UpdateContext {
            subresource: "",
            now: "",
        };
        prepare_update(&mut new, &old, &ctx);
        let texts: Vec<_> = validate_update(&new, &old, &ctx)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(texts[0].starts_with("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was"), "{texts:?}");
    }
}
