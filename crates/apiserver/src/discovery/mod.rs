//! Discovery: what is served, in the legacy documents and the aggregated one, live with custom
//! resources.

mod document;

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, PoisonError};

use keelson_machinery::status::Status;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::registry::ResourceEntry;
use crate::registry::{Output, discovery_output, render_value};
use crate::request::{RequestContext, Response, empty};
use crate::server::Server;

/// What is served at one moment.
#[derive(Default)]
pub(crate) struct Snapshot {
    generation: u64,
    /// The core group first, then upstream's order, then custom groups by name.
    pub(crate) groups: Vec<Group>,
}

pub(crate) struct Group {
    pub(crate) name: String,
    /// The preferred one first.
    pub(crate) versions: Vec<Version>,
}

pub(crate) struct Version {
    pub(crate) version: String,
    pub(crate) resources: Vec<Arc<ResourceEntry>>,
}

impl Group {
    pub(crate) fn group_version(&self, version: &str) -> String {
        if self.name.is_empty() {
            version.to_owned()
        } else {
            format!("{}/{version}", self.name)
        }
    }
}

#[derive(Default)]
pub(crate) struct Discovery {
    current: Mutex<Option<Arc<Snapshot>>>,
}

impl Discovery {
    pub(crate) fn current(&self, server: &Server) -> Arc<Snapshot> {
        let generation = *server.resources.changes().borrow();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = current.as_ref()
            && snapshot.generation == generation
        {
            return Arc::clone(snapshot);
        }
        let snapshot = Arc::new(Snapshot {
            generation,
            groups: group(server.resources.all()),
        });
        *current = Some(Arc::clone(&snapshot));
        snapshot
    }
}

fn group(entries: Vec<Arc<ResourceEntry>>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for entry in entries {
        let at = groups
            .iter()
            .position(|g| g.name == entry.group)
            .unwrap_or_else(|| {
                groups.push(Group {
                    name: entry.group.clone(),
                    versions: Vec::new(),
                });
                groups.len() - 1
            });
        let versions = &mut groups[at].versions;
        let at = versions
            .iter()
            .position(|v| v.version == entry.version)
            .unwrap_or_else(|| {
                versions.push(Version {
                    version: entry.version.clone(),
                    resources: Vec::new(),
                });
                versions.len() - 1
            });
        versions[at].resources.push(entry);
    }
    for group in &mut groups {
        group
            .versions
            .sort_by_key(|v| Reverse(version_priority(&v.version)));
        for version in &mut group.versions {
            version
                .resources
                .sort_by(|a, b| a.resource.cmp(&b.resource));
        }
    }
    groups.sort_by(|a, b| (group_rank(&a.name), &a.name).cmp(&(group_rank(&b.name), &b.name)));
    groups
}

/// Built-in groups keep upstream's order, the core group first.
fn group_rank(name: &str) -> usize {
    if name.is_empty() {
        return 0;
    }
    document::GROUP_ORDER
        .iter()
        .position(|g| *g == name)
        .map_or(usize::MAX, |at| at + 1)
}

/// Kubernetes' order of versions: stable before beta before alpha, higher numbers first, and
/// what is no such version last. Greater is better.
pub(crate) fn version_priority(version: &str) -> (u8, u64, u64, Reverse<String>) {
    let other = || (0, 0, 0, Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else {
        return other();
    };
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse::<u64>() else {
        return other();
    };
    let named = || Reverse(String::new());
    match &rest[digits..] {
        "" => (3, major, 0, named()),
        tail => {
            let (level, minor) = match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                (Some(minor), _) => (2, minor),
                (_, Some(minor)) => (1, minor),
                _ => return other(),
            };
            minor
                .parse()
                .map_or_else(|_| other(), |minor| (level, major, minor, named()))
        }
    }
}

/// Whether the path is one that upstream's router serves, which looks at methods and accepted
/// types before anything else; the lists of groups have handlers of their own.
pub(crate) fn is_routed(segments: &[&str]) -> bool {
    matches!(segments, ["api"] | ["api", _] | ["apis", _, _])
}

pub(crate) fn answer(
    server: &Arc<Server>,
    context: &RequestContext,
    segments: &[&str],
) -> Result<Response, Status> {
    let snapshot = server.discovery.current(server);
    let wanted = discovery_output(context, is_routed(segments), segments.len() == 1)?;
    if wanted.aggregated {
        let core = segments == ["api"];
        return aggregated(context, &snapshot, core, server, &wanted.output);
    }
    let document = match segments {
        ["api"] => document::core_versions(&server.endpoint()),
        ["apis"] => document::group_list(&snapshot, &server.aggregation.groups()),
        ["apis", name] if !name.is_empty() => {
            let groups = snapshot
                .groups
                .iter()
                .map(document::group)
                .collect::<Vec<Value>>();
            let found = groups
                .into_iter()
                .chain(server.aggregation.groups())
                .find(|g| g["name"] == **name);
            let mut found = found.ok_or_else(Status::path_not_found)?;
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            found
        }
        ["api", version] => resource_list(&snapshot, "", version)?,
        ["apis", group, version] if !group.is_empty() => resource_list(&snapshot, group, version)?,
        _ => return Err(Status::path_not_found()),
    };
    render_value(200, &wanted.output, &document)
}

fn resource_list(snapshot: &Snapshot, group: &str, version: &str) -> Result<Value, Status> {
    let found = snapshot
        .groups
        .iter()
        .find(|g| g.name == group)
        .and_then(|g| {
            g.versions
                .iter()
                .find(|v| v.version == version)
                .map(|v| (g, v))
        });
    let (group, version) = found.ok_or_else(Status::path_not_found)?;
    Ok(document::resource_list(group, version))
}

fn aggregated(
    context: &RequestContext,
    snapshot: &Snapshot,
    core: bool,
    server: &Server,
    output: &Output,
) -> Result<Response, Status> {
    let mut value = document::aggregated(snapshot, core);
    if !core && let Some(items) = value["items"].as_array_mut() {
        items.extend(server.aggregation.aggregated_groups());
    }
    let bytes = serde_json::to_vec(&value).unwrap_or_default();
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let etag = format!("\"{digest}\"");
    let kind = format!(
        "{};g=apidiscovery.k8s.io;v={};as=APIGroupDiscoveryList",
        output.encoding.content_type(),
        document::AGGREGATED_VERSION
    );
    let mut response = if context.header("if-none-match") == Some(etag.as_str()) {
        let mut response = http::Response::new(empty());
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        response
    } else {
        render_value(200, output, &value)?
    };
    for (name, value) in [
        ("content-type", kind.as_str()),
        ("etag", etag.as_str()),
        ("vary", "Accept"),
        ("cache-control", "public"),
    ] {
        if let Ok(value) = http::HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_does() {
        let mut versions = vec![
            "v1alpha1", "v10", "foo", "v2", "v1", "v2beta1", "v1beta2", "v11beta2", "a1",
        ];
        versions.sort_by_key(|v| Reverse(version_priority(v)));
        assert_eq!(
            versions,
            [
                "v10", "v2", "v1", "v11beta2", "v2beta1", "v1beta2", "v1alpha1", "a1", "foo"
            ]
        );
    }
}
