//! What the API server serves right now, for the controllers that treat every resource alike.

use http::Method;
use keelson_client::{Client, Error, ResourceType};
use serde_json::Value;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub resource: ResourceType,
    pub verbs: Vec<String>,
}

impl Served {
    pub(crate) fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Discovery {
    pub served: Vec<Served>,
    /// Groups that did not answer, with the reason: an aggregated API server may be down.
    pub failures: Vec<(String, String)>,
}

/// Every resource in its group's preferred version, and those that only an older version has.
pub(crate) async fn discover(client: &Client) -> Result<Discovery, Error> {
    let mut found = Discovery::default();
    let core = client.request(Method::GET, "/api/v1", None).await?;
    found.served.extend(resources("", "v1", &core));
    let groups = client.request(Method::GET, "/apis", None).await?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        let name = group["name"].as_str().unwrap_or_default();
        let preferred = group["preferredVersion"]["version"]
            .as_str()
            .unwrap_or_default();
        let all = group["versions"].as_array().into_iter().flatten();
        let mut versions: Vec<&str> = all.filter_map(|v| v["version"].as_str()).collect();
        versions.sort_by_key(|v| *v != preferred);
        for version in versions {
            match client
                .request(Method::GET, &format!("/apis/{name}/{version}"), None)
                .await
            {
                Ok(list) => {
                    for served in resources(name, version, &list) {
                        let known = found.served.iter().any(|s| {
                            s.resource.group == name
                                && s.resource.resource == served.resource.resource
                        });
                        if !known {
                            found.served.push(served);
                        }
                    }
                }
                Err(error) => found
                    .failures
                    .push((format!("{name}/{version}"), error.to_string())),
            }
        }
    }
    Ok(found)
}

/// The entries of one `APIResourceList`, without subresources.
fn resources(group: &str, version: &str, list: &Value) -> Vec<Served> {
    list["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let resource = entry["name"].as_str().filter(|n| !n.contains('/'))?;
            Some(Served {
                resource: ResourceType {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    resource: resource.to_owned(),
                    kind: entry["kind"].as_str()?.to_owned(),
                    namespaced: entry["namespaced"].as_bool().unwrap_or(false),
                },
                verbs: entry["verbs"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn subresources_are_left_out() {
        let list = json!({"resources": [
            {"name": "pods", "kind": "Pod", "namespaced": true, "verbs": ["list", "delete"]},
            {"name": "pods/log", "kind": "Pod", "namespaced": true, "verbs": ["get"]},
        ]});
        let found = resources("", "v1", &list);
        assert_eq!(found.len(), 1);
        assert!(found[0].allows("delete") && !found[0].allows("watch"));
    }
}
