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
use crate::custom::is_recognized;
use crate::expressions::rule;
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
        obj.put(
            "status",
            json!({
                "acceptedNames": {"kind": "", "plural": ""},
                "conditions": null,
                "storedVersions": stored,
            }),
        );
    },
    validate: |obj| validate(obj, None),
    prepare_update,
    validate_update,
    warnings,
    columns: &[Column {
        name: "Created At",
        kind: "date",
        format: "",
        priority: 0,
    }],
    cells: |obj, _| vec![obj.at("metadata.creationTimestamp").clone()],
    allow_unconditional_update: false,
    mark_deleting,
    ..Kind::GENERIC
};

/// Holds a definition that is being deleted until its objects are gone.
pub const CUSTOM_RESOURCE_CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

fn mark_deleting(obj: &mut Value, now: &str) -> bool {
    let mut finalizers = obj.list("metadata.finalizers").to_vec();
    if !finalizers.iter().any(|f| *f == CUSTOM_RESOURCE_CLEANUP) {
        finalizers.push(CUSTOM_RESOURCE_CLEANUP.into());
        obj.put("metadata.finalizers", finalizers);
    }
    let mut conditions = obj.list("status.conditions").to_vec();
    let before = conditions.iter().find(|c| c.text("type") == "Terminating");
    let since = before
        .filter(|c| c.text("status") == "True")
        .map_or(now, |c| c.text("lastTransitionTime"))
        .to_owned();
    conditions.retain(|c| c.text("type") != "Terminating");
    conditions.push(json!({
        "type": "Terminating",
        "status": "True",
        "lastTransitionTime": since,
        "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    }));
    obj.put("status.conditions", conditions);
    true
}

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
    for version in storage_versions(new).into_iter().take(1) {
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
    if old.is_none() && name.text() != format!("{plural}.{group}") {
        e.push(name.invalid("must be spec.names.plural+\".\"+spec.group"));
    }
    self::spec(&spec, old, &mut e);
    if let Some(old) = old {
        immutable(obj, old, &mut e);
    }
    names(&At::new(obj, "status").at("acceptedNames"), &mut e);
    stored_versions(obj, &mut e);
    approval(obj, group, old, &mut e);
    let preserve = spec.at("preserveUnknownFields");
    if preserve.flag() && !old.is_some_and(|o| o.flag("spec.preserveUnknownFields")) {
        e.push(preserve.invalid("cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"));
    }
    e
}

fn immutable(obj: &Value, old: &Value, e: &mut ErrorList) {
    let served: &[&str] = if established(old) {
        &["spec.scope", "spec.names.kind"]
    } else {
        &[]
    };
    for field in served.iter().chain(&["spec.group", "spec.names.plural"]) {
        workload::immutable(obj, old, field, e);
    }
}

/// Upstream's own form of a definition keeps what all versions share in one place beside them, and
/// that is where errors are reported.
struct Shared {
    subresources: bool,
    schema: bool,
    columns: bool,
    selectable: bool,
}

impl Shared {
    fn of(versions: &At) -> Self {
        let all = versions.value.as_array().map_or(&[][..], Vec::as_slice);
        let same_in_all = |key: &str| {
            let mut pairs = all.iter().zip(all.iter().skip(1));
            !all.is_empty() && pairs.all(|(a, b)| same(a.at(key), b.at(key)))
        };
        Self {
            subresources: same_in_all("subresources"),
            schema: same_in_all("schema"),
            columns: same_in_all("additionalPrinterColumns"),
            selectable: same_in_all("selectableFields"),
        }
    }
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
    let versions = spec.at("versions");
    for version in versions.each() {
        let root = version.at("schema").at("openAPIV3Schema");
        if !root.exists() {
            e.push(root.required(""));
        }
    }
    let preserve = spec.at("preserveUnknownFields");
    if preserve.flag() && mentions(versions.value, "default", 0) {
        e.push(preserve.invalid("must be false in order to use defaults in the schema"));
    }
    let shared = Shared::of(&versions);
    let before = Before::new(old);
    let is_structural = !preserve.flag() || old.is_none();
    let mut seen = BTreeSet::new();
    let mut unique = true;
    for version in versions.each() {
        let name = version.at("name");
        unique &= seen.insert(name.text());
        version_name(&name, e);
        deprecation(&version, e);
        parts(
            &version,
            &version,
            &shared,
            false,
            (is_structural, &before),
            e,
        );
    }
    if !unique {
        e.push(versions.invalid("must contain unique version names"));
    }
    if versions.each().filter(|v| v.value.flag("storage")).count() != 1 {
        e.push(versions.invalid("must have exactly one version marked as storage version"));
    }
    let first = versions.each().next();
    if let Some(name) = first.map(|v| v.at("name")).filter(|name| !name.is_empty()) {
        let version = At {
            path: spec.path.child("version"),
            ..name
        };
        version_name(&version, e);
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        spec.at("names").at(field).require(e);
    }
    names(&spec.at("names"), e);
    if let Some(first) = versions.each().next() {
        parts(&first, spec, &shared, true, (is_structural, &before), e);
    }
    conversion(&spec.at("conversion"), preserve.flag(), old, e);
}

fn version_name(name: &At, e: &mut ErrorList) {
    let msgs = validation::is_dns1035_label(name.text());
    if !msgs.is_empty() {
        e.push(FieldError::invalid(&name.path, name.text(), msgs.join(",")));
    }
}

fn deprecation(version: &At, e: &mut ErrorList) {
    let warning = version.at("deprecationWarning");
    if !warning.exists() {
        return;
    }
    let text = warning.text();
    if !version.value.flag("deprecated") {
        return e.push(warning.invalid("can only be set for deprecated versions"));
    }
    if text.len() > 256 {
        e.push(warning.invalid("must be <= 256 characters long"));
    }
    if text.is_empty() {
        e.push(warning.invalid("must not be an empty string"));
    }
    let blank = |c: char| c.is_control() || c.is_whitespace() && c != ' ';
    if let Some((at, _)) = text.char_indices().find(|(_, c)| blank(*c)) {
        e.push(warning.invalid(format!("must only contain printable UTF-8 characters; non-printable character found at index {at}")));
    }
}

/// What a version serves, as far as it is (or is not) shared with all others. Errors are reported
/// below `above`, which is the version itself or the spec.
fn parts(
    version: &At,
    above: &At,
    shared: &Shared,
    only_shared: bool,
    (is_structural, before): (bool, &Before),
    e: &mut ErrorList,
) {
    let part = |key: &str, top: &str| At {
        value: version.value.at(key),
        path: above.path.child(if only_shared { top } else { key }),
    };
    let schema = part("schema", "validation");
    if shared.schema == only_shared {
        let has_status =
            version.has("subresources") && version.value.at("subresources.status").is_object();
        let name = version.value.text("name");
        schema::validate(&schema, name, has_status, is_structural, before, e);
    }
    if shared.subresources == only_shared {
        scale(&part("subresources", "subresources").at("scale"), e);
    }
    if shared.columns == only_shared {
        let columns = part("additionalPrinterColumns", "additionalPrinterColumns");
        columns.each().for_each(|c| column(&c, e));
    }
    if shared.selectable == only_shared {
        let fields = part("selectableFields", "selectableFields");
        let root = schema.value.at("openAPIV3Schema");
        if !fields.is_empty() && !root.is_object() {
            let detail = if only_shared {
                "may only be set when validations.schema is included"
            } else {
                "may only be set when `version.schema.openAPIV3Schema` is not included"
            };
            e.push(FieldError::invalid(&fields.path, "", detail));
        } else {
            let name = version.value.text("name");
            selectable_fields(&fields, root, before.had_selectable(name, fields.value), e);
        }
    }
}

fn scale(scale: &At, e: &mut ErrorList) {
    if !scale.exists() {
        return;
    }
    for (field, under) in [
        ("specReplicasPath", ".spec"),
        ("statusReplicasPath", ".status"),
        ("labelSelectorPath", ""),
    ] {
        let path = scale.at(field);
        let below = |part: &str| path.text().starts_with(&format!("{part}."));
        if path.is_empty() {
            if !under.is_empty() {
                e.push(path.required(""));
            }
        } else if !path.text().starts_with('.') {
            e.push(path.invalid("must be a simple json path starting with ."));
        } else if under.is_empty() && !below(".spec") && !below(".status") {
            e.push(path.invalid("should be a json path under either .spec or .status"));
        } else if !under.is_empty() && !below(under) {
            e.push(path.invalid(format!("should be a json path under {under}")));
        }
    }
}

fn column(column: &At, e: &mut ErrorList) {
    const TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
    const FORMATS: &[&str] = &[
        "byte",
        "date",
        "date-time",
        "double",
        "float",
        "int32",
        "int64",
        "password",
    ];
    column.at("name").require(e);
    let (kind, format) = (column.at("type"), column.at("format"));
    let one_of = |all: &[&str]| format!("must be one of {}", all.join(","));
    if kind.is_empty() {
        e.push(kind.required(&one_of(TYPES)));
    } else if !TYPES.contains(&kind.text()) {
        e.push(kind.invalid(one_of(TYPES)));
    }
    if !format.is_empty() && !FORMATS.contains(&format.text()) {
        e.push(format.invalid(one_of(FORMATS)));
    }
    let path = At {
        path: column.path.child("JSONPath"),
        ..column.at("jsonPath")
    };
    if path.is_empty() {
        e.push(path.required(""));
    } else if !path.text().starts_with('.') {
        e.push(path.invalid("must be a simple json path starting with ."));
    }
}

fn selectable_fields(list: &At, schema: &Value, had: bool, e: &mut ErrorList) {
    const MOST: usize = 8;
    let mut seen = BTreeSet::new();
    for field in list.each() {
        let path = field.at("jsonPath");
        if path.is_empty() {
            e.push(path.required(""));
            continue;
        }
        let (place, found) = match rule::simple_field_path(path.text(), schema) {
            Ok(found) => found,
            Err(problem) => {
                e.push(path.invalid(format!("is an invalid path: {problem}")));
                continue;
            }
        };
        let place = place.to_string();
        if place.split('.').next() == Some("metadata") {
            e.push(path.invalid("must not point to fields in metadata"));
        }
        if !matches!(found.text("type"), "string" | "boolean" | "integer") {
            e.push(path.invalid("must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."));
        }
        if !seen.insert(place) {
            e.push(path.duplicate());
        }
    }
    if seen.len() > MOST && !had {
        e.push(FieldError::too_many(&list.path, seen.len(), MOST));
    }
}

/// Names under which the resource is served, as far as there are any.
fn names(names: &At, e: &mut ErrorList) {
    let mixed = "may have mixed case, but should otherwise match: ";
    let rule = |at: &At, text: &str, before: &str, e: &mut ErrorList| {
        let msgs = validation::is_dns1035_label(text);
        if !msgs.is_empty() {
            let detail = format!("{before}{}", msgs.join(","));
            e.push(FieldError::invalid(&at.path, at.text(), detail));
        }
    };
    for field in ["plural", "singular", "kind", "listKind"] {
        let at = names.at(field);
        if at.is_empty() {
            continue;
        }
        if matches!(field, "kind" | "listKind") {
            rule(&at, &at.text().to_lowercase(), mixed, e);
        } else {
            rule(&at, at.text(), "", e);
        }
    }
    let short = names.at("shortNames");
    short.each().for_each(|n| rule(&n, n.text(), "", e));
    let (kind, list_kind) = (names.at("kind"), names.at("listKind"));
    if !kind.is_empty() && kind.text() == list_kind.text() {
        e.push(list_kind.invalid("kind and listKind may not be the same"));
    }
    let categories = names.at("categories");
    categories.each().for_each(|n| rule(&n, n.text(), "", e));
}

const REVIEWS: &[&str] = &["v1", "v1beta1"];

fn conversion(conversion: &At, preserve: bool, old: Option<&Value>, e: &mut ErrorList) {
    let strategy = conversion.at("strategy");
    if conversion.exists() && strategy.text() != "None" && preserve {
        e.push(strategy.invalid_text("must be None if spec.preserveUnknownFields is true"));
    }
    if !conversion.exists() {
        return;
    }
    strategy.required_one_of(e, &["None", "Webhook"]);
    let webhook = conversion.at("webhook");
    // Upstream's own form of the object is flatter, and so are the paths it reports.
    let part = |key: &str, path: &str| At {
        value: webhook.value.at(key),
        path: conversion.path.child(path),
    };
    let config = part("clientConfig", "webhookClientConfig");
    let reviews = part("conversionReviewVersions", "conversionReviewVersions");
    if strategy.text() != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if config.exists() {
            e.push(config.forbidden(detail));
        }
        if !reviews.is_empty() {
            e.push(reviews.forbidden(detail));
        }
        return;
    }
    if config.exists() {
        rule_of_client(&config, e);
    } else {
        e.push(config.required("required when strategy is set to Webhook"));
    }
    let mut seen = BTreeSet::new();
    for version in reviews.each() {
        if !seen.insert(version.text()) {
            e.push(version.invalid("duplicate version"));
            continue;
        }
        version.conforms(e, validation::is_dns1035_label);
    }
    let known = |list: &[Value]| {
        let mut texts = list.iter().filter_map(Value::as_str);
        texts.any(|v| REVIEWS.contains(&v))
    };
    let before = old.map(|old| old.list("spec.conversion.webhook.conversionReviewVersions"));
    let recognized = before.is_none_or(|before| before.is_empty() || known(before));
    if reviews.is_empty() {
        e.push(reviews.required(""));
    } else if recognized && !REVIEWS.iter().any(|v| seen.contains(v)) {
        e.push(reviews.invalid("must include at least one of v1, v1beta1"));
    }
}

/// Whether a keyword stands anywhere in the schemas; a property of that name counts too.
fn mentions(schema: &Value, key: &str, depth: usize) -> bool {
    depth < 3 * schema::MAX_DEPTH
        && match schema {
            Value::Object(map) => {
                map.contains_key(key) || map.values().any(|v| mentions(v, key, depth + 1))
            }
            Value::Array(items) => items.iter().any(|v| mentions(v, key, depth + 1)),
            _ => false,
        }
}

/// Formats that the schemas name and nobody checks, in the order of the schemas.
fn unknown_formats(obj: &Value) -> Vec<String> {
    fn find(schema: &Value, depth: usize, out: &mut Vec<String>) {
        if depth > schema::MAX_DEPTH {
            return;
        }
        let format = schema.text("format");
        if !format.is_empty() && !is_recognized(format, schema.text("type")) {
            out.push(format.to_owned());
        }
        let single = ["items", "not", "additionalProperties"].iter();
        let lists = ["allOf", "anyOf", "oneOf"].iter();
        let children = single
            .map(|key| schema.at(key))
            .chain(lists.flat_map(|key| schema.list(key)))
            .chain(schema.map("properties").values());
        for child in children.filter(|child| child.is_object()) {
            find(child, depth + 1, out);
        }
    }
    let mut out = Vec::new();
    let versions = At::new(obj, "spec").at("versions");
    let most = if Shared::of(&versions).schema {
        1
    } else {
        versions.len()
    };
    for version in versions.each().take(most) {
        find(version.value.at("schema.openAPIV3Schema"), 0, &mut out);
    }
    out
}

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let before = old.map(unknown_formats).unwrap_or_default();
    let mut out = unknown_formats(new);
    out.retain(|format| !before.contains(format));
    out.iter()
        .map(|format| format!("unrecognized format {format:?}"))
        .collect()
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
    if ctx.subresource != "status" {
        return validate(new, Some(old));
    }
    let mut e = ErrorList::new();
    names(&At::new(new, "status").at("acceptedNames"), &mut e);
    e
}

/// A version that objects were stored in may not leave the definition.
fn stored_versions(obj: &Value, e: &mut ErrorList) {
    let list = At::new(obj, "status").at("storedVersions");
    if list.is_empty() {
        let detail = "must have at least one stored version";
        return e.push(FieldError::invalid(&list.path, (), detail));
    }
    let mut stored: BTreeSet<&str> = list.each().map(|v| v.text()).collect();
    for version in obj.list("spec.versions") {
        let name = version.text("name");
        // A version that stands twice has its place once.
        if !stored.remove(name) && version.flag("storage") {
            e.push(list.invalid(format!("must have the storage version {name}")));
        }
    }
    let known: Vec<_> = obj
        .list("spec.versions")
        .iter()
        .map(|v| v.text("name"))
        .collect();
    for version in list.each().filter(|v| !known.contains(&v.text())) {
        let v = version.text();
        e.push(version.invalid(format!("missing from spec.versions; {v} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {v} and removes {v} from status.storedVersions")));
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
        let at = "spec.validation.openAPIV3Schema.properties[spec].properties";
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
