//! The OpenAPI documents of other servers: version 3 is listed and passed through, version 2 becomes
//! part of the one document of this server. Read again with every look at the other server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};

use http::HeaderMap;
use serde_json::{Map, Value};

use super::Remote;
use super::probe::ask;
use crate::server::Server;

/// Bound of an index and of a whole document.
const INDEX_BYTES: usize = 1 << 20;
const DOCUMENT_BYTES: usize = 16 << 20;

type GroupVersion = (String, String);

#[derive(Default)]
pub(crate) struct Documents {
    known: RwLock<BTreeMap<GroupVersion, Known>>,
}

#[derive(Default, Clone)]
struct Known {
    /// Names of the third version's documents, and where they are, with their hashes.
    v3: Vec<(String, String)>,
    v2: Option<Arc<Part>>,
    v2_etag: String,
}

/// What of another server's second version concerns one group version.
#[derive(Default)]
struct Part {
    paths: Map<String, Value>,
    definitions: Map<String, Value>,
}

impl Documents {
    pub(super) fn retain(&self, keep: impl Fn(&GroupVersion) -> bool) {
        let mut known = self.known.write().unwrap_or_else(|e| e.into_inner());
        known.retain(|served, _| keep(served));
    }

    /// What cannot be had now is left as it was.
    pub(super) async fn read(&self, server: &Arc<Server>, remote: &Remote) {
        let served = (remote.group.clone(), remote.version.clone());
        let before = {
            let known = self.known.read().unwrap_or_else(|e| e.into_inner());
            known.get(&served).cloned().unwrap_or_default()
        };
        let mut now = before.clone();
        let json = "application/json";
        if let Ok((200, _, bytes)) = ask(server, remote, "/openapi/v3", json, INDEX_BYTES).await
            && let Ok(index) = serde_json::from_slice::<Value>(&bytes)
        {
            let group = format!("apis/{}/", remote.group);
            let listed = index["paths"].as_object().into_iter().flatten();
            let listed = listed.filter(|(name, _)| format!("{name}/").starts_with(&group));
            let listed = listed.filter_map(|(name, document)| {
                Some((
                    name.clone(),
                    document["serverRelativeURL"].as_str()?.to_owned(),
                ))
            });
            now.v3 = listed.collect();
        }
        if let Ok((200, headers, bytes)) =
            ask(server, remote, "/openapi/v2", json, DOCUMENT_BYTES).await
        {
            let etag = etag(&headers);
            let same = before.v2.is_some() && !etag.is_empty() && etag == before.v2_etag;
            if !same && let Ok(document) = serde_json::from_slice(&bytes) {
                now.v2 = Some(Arc::new(part(&document, remote)));
                now.v2_etag = etag;
            }
        }
        let mut known = self.known.write().unwrap_or_else(|e| e.into_inner());
        known.insert(served, now);
    }

    /// Name and address of each document of version 3.
    pub(crate) fn v3(&self) -> Vec<(String, String)> {
        let known = self.known.read().unwrap_or_else(|e| e.into_inner());
        known.values().flat_map(|known| known.v3.clone()).collect()
    }

    /// Whose document of version 3 that is.
    pub(crate) fn v3_owner(&self, name: &str) -> Option<(String, String)> {
        let known = self.known.read().unwrap_or_else(|e| e.into_inner());
        let mut owners = known.iter().filter(|(_, known)| {
            let mut names = known.v3.iter();
            names.any(|(listed, _)| listed == name)
        });
        owners.next().map(|(served, _)| served.clone())
    }

    /// Adds to a document of version 2 what it has not itself.
    pub(crate) fn merge_v2(&self, document: &mut Value) {
        let known = self.known.read().unwrap_or_else(|e| e.into_inner());
        for part in known.values().filter_map(|known| known.v2.as_ref()) {
            for (field, from) in [("paths", &part.paths), ("definitions", &part.definitions)] {
                let Some(to) = document[field].as_object_mut() else {
                    continue;
                };
                for (name, value) in from {
                    to.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
        }
    }
}

fn name_of(remote: &Remote) -> String {
    format!("apis/{}/{}", remote.group, remote.version)
}

fn etag(headers: &HeaderMap) -> String {
    let etag = headers.get(http::header::ETAG);
    let etag = etag.and_then(|value| value.to_str().ok());
    etag.unwrap_or_default().to_owned()
}

/// The paths of the group version and the definitions that they lead to.
fn part(document: &Value, remote: &Remote) -> Part {
    let prefix = format!("/{}/", name_of(remote));
    let paths = document["paths"].as_object().into_iter().flatten();
    let paths: Map<String, Value> = paths
        .filter(|(path, _)| format!("{path}/").starts_with(&prefix))
        .map(|(path, value)| (path.clone(), value.clone()))
        .collect();
    let mut definitions = Map::new();
    let mut wanted = BTreeSet::new();
    paths
        .values()
        .for_each(|value| references(value, &mut wanted));
    while let Some(name) = wanted.pop_first() {
        let found = document["definitions"].get(&name);
        if let Some(found) = found.filter(|_| !definitions.contains_key(&name)) {
            definitions.insert(name, found.clone());
            references(found, &mut wanted);
        }
    }
    Part { paths, definitions }
}

/// The parser bounds how deep a document is.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("$ref", Value::String(target)) => {
                        let name = target.strip_prefix("#/definitions/");
                        found.extend(name.map(str::to_owned));
                    }
                    (_, value) => references(value, found),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_group_version_brings_its_paths_and_what_they_need() {
        let remote = Remote::of(&json!({"metadata": {"name": "v1.x"}, "spec": {
            "group": "x", "version": "v1", "service": {"name": "s", "namespace": "n"}}}))
        .unwrap();
        let schema = |name: &str| json!({"schema": {"$ref": format!("#/definitions/{name}")}});
        let theirs = json!({
            "paths": {"/apis/x/v1/a": schema("A"), "/apis/x/v1/": {}, "/apis/x/v10/a": schema("D"),
                "/healthz": schema("D")},
            "definitions": {"A": {"properties": {"b": schema("B"), "a": schema("A")}}, "B": {},
                "C": {}, "D": {}},
        });
        let part = part(&theirs, &remote);
        let names = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&part.paths), ["/apis/x/v1/", "/apis/x/v1/a"]);
        assert_eq!(names(&part.definitions), ["A", "B"]);
        let documents = Documents::default();
        let known = Known {
            v2: Some(Arc::new(part)),
            ..Known::default()
        };
        documents
            .known
            .write()
            .unwrap()
            .insert(("x".into(), "v1".into()), known);
        let mut ours = json!({"paths": {"/own": {}}, "definitions": {"B": {"type": "own"}}});
        documents.merge_v2(&mut ours);
        assert_eq!(ours["definitions"]["B"]["type"], "own");
        assert_eq!(names(ours["definitions"].as_object().unwrap()), ["A", "B"]);
        assert_eq!(ours["paths"].as_object().unwrap().len(), 3);
        documents.retain(|_| false);
        assert!(documents.v3().is_empty());
    }
}
