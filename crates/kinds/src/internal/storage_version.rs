//! StorageVersion (`internal.apiserver.k8s.io`).

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell::{self, UNSET};
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::Tree;

pub(crate) static STORAGE_VERSION: Kind = Kind {
    group: "internal.apiserver.k8s.io",
    resource: "storageversions",
    storage_version: "v1alpha1",
    prepare_create: rules::clear_status,
    prepare_update: rules::isolate_status_and_metadata,
    validate: |obj| status(&At::new(obj, "status")),
    validate_update: |new, _, ctx| match ctx.subresource {
        "status" => status(&At::new(new, "status")),
        _ => ErrorList::new(),
    },
    validate_name: |name, _| is_name(name),
    columns: &[
        Column::text("CommonEncodingVersion"),
        Column::text("StorageVersions"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let servers = obj.list("status.storageVersions");
        let all: Vec<_> = servers
            .iter()
            .take(3)
            .map(|s| format!("{}={}", s.text("apiServerID"), s.text("encodingVersion")))
            .collect();
        let mut text = all.join(",");
        if servers.len() > 3 {
            text.push_str(&format!(" + {} more...", servers.len() - 3));
        } else if text.is_empty() {
            UNSET.clone_into(&mut text);
        }
        vec![
            obj.at("status.commonEncodingVersion")
                .as_str()
                .unwrap_or(UNSET)
                .into(),
            text.into(),
            cell::age(obj, now),
        ]
    },
    allow_unconditional_update: false,
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};

/// `<group>.<resource>`.
fn is_name(name: &str) -> Vec<String> {
    let Some((group, resource)) = name.rsplit_once('.') else {
        return vec!["name must be in the form of <group>.<resource>".to_owned()];
    };
    let group = validation::is_dns1123_subdomain(group).into_iter();
    let resource = validation::is_dns1035_label(resource).into_iter();
    group
        .map(|message| format!("the group segment {message}"))
        .chain(resource.map(|message| format!("the resource segment {message}")))
        .collect()
}

fn status(status: &At) -> ErrorList {
    let mut e = ErrorList::new();
    let servers = status.at("storageVersions");
    let mut seen = BTreeSet::new();
    for one in servers.each() {
        let id = one.at("apiServerID");
        if !seen.insert(id.text()) {
            e.push(id.duplicate());
        }
        server(&one, &mut e);
    }
    common(status, &servers, &mut e);
    conditions(status, &mut e);
    e
}

fn server(server: &At, e: &mut ErrorList) {
    server
        .at("apiServerID")
        .conforms(e, validation::is_dns1123_subdomain);
    let (encoding, decodable) = (server.at("encodingVersion"), server.at("decodableVersions"));
    api_version(&encoding, e);
    let known: Vec<&str> = decodable.each().map(|v| v.text()).collect();
    decodable
        .each()
        .for_each(|version| api_version(&version, e));
    if !known.contains(&encoding.text()) {
        let missing = format!(
            "decodableVersions must include encodingVersion {}",
            encoding.text()
        );
        e.push(decodable.invalid(missing));
    }
    for served in server.at("servedVersions").each() {
        api_version(&served, e);
        if !known.contains(&served.text()) {
            e.push(served.invalid(format!(
                "individual served version : {} must be included in decodableVersions : [{}]",
                served.text(),
                known.join(" ")
            )));
        }
    }
}

/// A version, after a group and a slash where there is one.
fn api_version(at: &At, e: &mut ErrorList) {
    let parts: Vec<&str> = at.text().split('/').collect();
    let (group, version) = match parts[..] {
        [version] => (None, version),
        [group, version] => (Some(group), version),
        _ => {
            let form = validation::regex_error(
                "an apiVersion is a DNS-1035 label, which must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
                "[a-z]([-a-z0-9]*[a-z0-9])?",
                &["my-name", "abc-123"],
            );
            return e.push(at.invalid(format!(
                "{form} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyVersion')"
            )));
        }
    };
    let part = |name: &str, text: &str, messages: Vec<String>| -> Vec<String> {
        if text.is_empty() {
            return vec![format!("{name} part: must be non-empty")];
        }
        let messages = messages.into_iter();
        messages.map(|m| format!("{name} part: {m}")).collect()
    };
    let mut messages = Vec::new();
    if let Some(group) = group {
        messages.extend(part(
            "group",
            group,
            validation::is_dns1123_subdomain(group),
        ));
    }
    messages.extend(part(
        "version",
        version,
        validation::is_dns1035_label(version),
    ));
    if !messages.is_empty() {
        e.push(at.invalid(messages.join(",")));
    }
}

/// What all servers write, if they agree.
fn common(status: &At, servers: &At, e: &mut ErrorList) {
    let mut versions = servers.each().map(|s| s.at("encodingVersion").text());
    let first = versions.next();
    let actual = first.filter(|first| versions.all(|version| version == *first));
    let said = status.at("commonEncodingVersion");
    match (actual, said.value.as_str()) {
        (None, Some(_)) => e.push(said.invalid("should be nil if servers do not agree on the same encoding version, or if there is no server reporting the supported versions yet")),
        (Some(actual), None) => {
            let detail = format!("the common encoding version is {actual}");
            e.push(FieldError::invalid(&said.path, Value::Null, detail));
        }
        (Some(actual), Some(text)) if actual != text => {
            e.push(said.invalid(format!("the actual common encoding version is {actual}")));
        }
        _ => {}
    }
}

/// Upstream's paths of conditions leave out the list's name.
fn conditions(status: &At, e: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, condition) in status.at("conditions").each().enumerate() {
        let at = |name: &str| At {
            path: status.path.index(index).child(name),
            ..condition.at(name)
        };
        let kind = at("type");
        if let Some(before) = seen.iter().rposition(|other| *other == kind.text()) {
            kind_twice(&kind, before, e);
        }
        seen.push(kind.text());
        kind.label_name(e);
        at("status").label_name(e);
        at("reason").require(e);
        at("message").require(e);
    }
}

fn kind_twice(kind: &At, before: usize, e: &mut ErrorList) {
    e.push(kind.invalid(format!(
        "the type of the condition is not unique, it also appears in conditions[{before}]"
    )));
}
