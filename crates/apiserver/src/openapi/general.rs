//! Paths that are no resource's: what versions and groups there are, and who the server is.

use serde_json::{Map, Value, json};

use super::Dialect;
use super::operation::path;
use super::paths::{camel, information, uncapital};
use super::render::Definitions;
use crate::discovery::Snapshot;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const JSON: &[&str] = &["application/json"];

/// Each with the name of its v3 document.
pub(super) fn all(
    dialect: Dialect,
    snapshot: &Snapshot,
    definitions: &mut Definitions,
) -> Vec<(String, String, Value)> {
    let mut out = Vec::new();
    let mut add = |name: &str, operation| {
        let at = format!("/{name}/");
        out.push((name.to_owned(), at, path(dialect, vec![operation])));
    };
    let text = "get available API versions";
    let versions = format!("{META}APIVersions");
    let core = information(
        "core",
        "getCoreAPIVersions".into(),
        text,
        &versions,
        definitions,
    );
    add("api", core);
    let groups = format!("{META}APIGroupList");
    let apis = information("apis", "getAPIVersions".into(), text, &groups, definitions);
    add("apis", apis);
    for group in &snapshot.groups {
        let mut resources = group.versions.iter().flat_map(|version| &version.resources);
        if group.name.is_empty() || resources.all(|entry| entry.custom) {
            continue;
        }
        let camel = camel(&group.name);
        let found = information(
            &uncapital(&camel),
            format!("get{camel}APIGroup"),
            "get information of a group",
            &format!("{META}APIGroup"),
            definitions,
        );
        add(&format!("apis/{}", group.name), found);
    }
    let mut version = information(
        "version",
        "getCodeVersion".into(),
        "get the version information for this server",
        "io.k8s.apimachinery.pkg.version.Info",
        definitions,
    );
    version.consumes = JSON;
    version.produces = JSON;
    add("version", version);
    for (name, tag, id, text, media) in [
        (
            ".well-known/openid-configuration",
            "WellKnown",
            "getServiceAccountIssuerOpenIDConfiguration",
            "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
            JSON,
        ),
        (
            "openid/v1/jwks",
            "openid",
            "getServiceAccountIssuerOpenIDKeyset",
            "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
            &["application/jwk-set+json"],
        ),
    ] {
        let mut found = information(tag, id.to_owned(), text, &versions, definitions);
        found.result = json!({"type": "string"});
        found.consumes = &[];
        found.produces = media;
        add(name, found);
    }
    out
}

/// The document of one of them.
pub(super) fn document(snapshot: &Snapshot, name: &str) -> Option<Value> {
    let mut definitions = Definitions::new(Dialect::V3, None);
    let mut scratch = Definitions::new(Dialect::V3, None);
    let found = all(Dialect::V3, snapshot, &mut scratch)
        .into_iter()
        .find(|(known, ..)| known == name);
    let (_, at, path) = found?;
    definitions.refer(&path);
    let paths = Map::from_iter([(at, path)]);
    Some(super::v3::document_of(paths, definitions, false))
}
