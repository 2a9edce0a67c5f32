//! Discovery: from what a user types (`po`, `deploy.apps`, `Deployment`) to a collection.

use http::Method;
use keelson_client::{Client, ResourceType};
use serde_json::Value;

use crate::Error;

#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) kind: ResourceType,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) verbs: Vec<String>,
}

impl Resource {
    /// `deployment.apps`, as kubectl names objects it has changed.
    pub(crate) fn label(&self) -> String {
        let singular = if self.singular.is_empty() {
            self.kind.kind.to_lowercase()
        } else {
            self.singular.clone()
        };
        if self.kind.group.is_empty() {
            singular
        } else {
            format!("{singular}.{}", self.kind.group)
        }
    }

    fn is_called(&self, name: &str) -> bool {
        self.kind.resource == name
            || self.singular == name
            || self.kind.kind.eq_ignore_ascii_case(name)
            || self.short_names.iter().any(|short| short == name)
    }
}

pub(crate) struct Resources {
    all: Vec<Resource>,
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

impl Resources {
    pub(crate) async fn discover(client: &Client) -> Result<Self, Error> {
        let mut all = Vec::new();
        for root in ["/api", "/apis"] {
            let response = client
                .raw(Method::GET, root, None, None, AGGREGATED)
                .await?;
            let bytes = http_body_util::BodyExt::collect(response.into_body())
                .await
                .map_err(|error| Error::Stream(error.to_string()))?
                .to_bytes();
            let groups: Value =
                serde_json::from_slice(&bytes).map_err(keelson_client::Error::Decode)?;
            for group in list(&groups, "items") {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                for version in list(group, "versions") {
                    for resource in list(version, "resources") {
                        all.push(read(
                            name,
                            version["version"].as_str().unwrap_or_default(),
                            resource,
                        ));
                    }
                }
            }
        }
        Ok(Self { all })
    }

    /// `name`, `name.group` or `name.version.group`; the first version of a group is its preferred.
    pub(crate) fn find(&self, typed: &str) -> Result<&Resource, Error> {
        let typed_lower = typed.to_lowercase();
        let (name, rest) = typed_lower.split_once('.').unwrap_or((&typed_lower, ""));
        let in_group = |resource: &&Resource| {
            rest.is_empty()
                || resource.kind.group == rest
                || rest.split_once('.').is_some_and(|(version, group)| {
                    resource.kind.version == version && resource.kind.group == group
                })
                || resource.kind.version == rest && resource.kind.group.is_empty()
        };
        self.all
            .iter()
            .filter(in_group)
            .find(|resource| resource.is_called(name))
            .ok_or_else(|| Error::NoSuchResource(typed.to_owned()))
    }

    /// What `a,b` or a category such as `all` stands for.
    pub(crate) fn find_all(&self, typed: &str) -> Result<Vec<&Resource>, Error> {
        let mut found = Vec::new();
        for part in typed.split(',').filter(|part| !part.is_empty()) {
            let mut of_category: Vec<&Resource> = Vec::new();
            for resource in self
                .all
                .iter()
                .filter(|resource| resource.categories.iter().any(|c| c == part))
            {
                let known = |other: &&Resource| {
                    other.kind.resource == resource.kind.resource
                        && other.kind.group == resource.kind.group
                };
                if !of_category.iter().any(known) {
                    of_category.push(resource);
                }
            }
            if of_category.is_empty() {
                of_category.push(self.find(part)?);
            }
            found.extend(of_category);
        }
        Ok(found)
    }

    pub(crate) fn of_object(&self, object: &Value) -> Result<&Resource, Error> {
        let (api_version, kind) = (text(object, "apiVersion"), text(object, "kind"));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.all
            .iter()
            .find(|r| r.kind.group == group && r.kind.version == version && r.kind.kind == kind)
            .ok_or_else(|| {
                Error::Usage(format!(
                    "resource mapping not found: no matches for kind {kind:?} in version {api_version:?}\n\
                     ensure CRDs are installed first"
                ))
            })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.all.iter()
    }
}

fn read(group: &str, version: &str, resource: &Value) -> Resource {
    let strings = |key: &str| {
        list(resource, key)
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    Resource {
        kind: ResourceType {
            group: group.to_owned(),
            version: version.to_owned(),
            resource: text(resource, "resource").to_owned(),
            kind: resource["responseKind"]["kind"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            namespaced: text(resource, "scope") == "Namespaced",
        },
        singular: text(resource, "singularResource").to_owned(),
        short_names: strings("shortNames"),
        categories: strings("categories"),
        verbs: strings("verbs"),
    }
}

pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources() -> Resources {
        let resource = |group: &str,
                        name: &str,
                        singular: &str,
                        kind: &str,
                        short: &str,
                        category: &str| {
            read(
                group,
                "v1",
                &serde_json::json!({"resource": name, "singularResource": singular, "scope": "Namespaced",
                    "responseKind": {"kind": kind}, "shortNames": [short], "categories": [category], "verbs": ["get"]}),
            )
        };
        Resources {
            all: vec![
                resource("", "pods", "pod", "Pod", "po", "all"),
                resource("", "events", "event", "Event", "ev", ""),
                resource(
                    "apps",
                    "deployments",
                    "deployment",
                    "Deployment",
                    "deploy",
                    "all",
                ),
                resource("events.k8s.io", "events", "event", "Event", "ev", ""),
            ],
        }
    }

    #[test]
    fn users_name_resources_in_many_ways() {
        let resources = resources();
        for (typed, label) in [
            ("po", "pod"),
            ("Pod", "pod"),
            ("deploy", "deployment.apps"),
            ("deployments.apps", "deployment.apps"),
            ("deployments.v1.apps", "deployment.apps"),
            ("ev", "event"),
            ("events.events.k8s.io", "event.events.k8s.io"),
        ] {
            assert_eq!(resources.find(typed).unwrap().label(), label, "{typed}");
        }
        assert!(resources.find("deployments.batch").is_err());
        assert_eq!(resources.find_all("all").unwrap().len(), 2);
        assert_eq!(resources.find_all("po,deploy").unwrap().len(), 2);
    }
}
