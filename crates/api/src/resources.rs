//! Discovery facts: every resource upstream serves, with its verbs and names.

use std::sync::LazyLock;

static TEXT: &str = include_str!("generated/resources.txt");

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceFacts {
    pub group: &'static str,
    pub version: &'static str,
    /// Plural name, as in paths.
    pub resource: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub verbs: Vec<&'static str>,
    pub short_names: Vec<&'static str>,
    pub categories: Vec<&'static str>,
    pub subresources: Vec<SubresourceFacts>,
    /// Empty for virtual resources.
    pub storage_hash: &'static str,
}

/// Group and version are those of the kind that is sent, which may be another group's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubresourceFacts {
    pub name: &'static str,
    pub kind: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    /// The kind's group and version were given by discovery, not implied.
    pub foreign: bool,
    pub verbs: Vec<&'static str>,
}

/// A named group, in the order of `/apis`. The first version is the preferred one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupFacts {
    pub name: &'static str,
    pub versions: Vec<&'static str>,
}

static GROUPS: LazyLock<Vec<GroupFacts>> = LazyLock::new(|| {
    TEXT.lines()
        .filter_map(|l| {
            let (name, versions) = l.strip_prefix("group ")?.split_once(' ')?;
            Some(GroupFacts {
                name,
                versions: versions.split(',').collect(),
            })
        })
        .collect()
});

static RESOURCES: LazyLock<Vec<ResourceFacts>> = LazyLock::new(|| {
    let mut out: Vec<ResourceFacts> = Vec::new();
    for line in TEXT.lines() {
        let Some(rest) = line.strip_prefix("resource ") else {
            continue;
        };
        let words: Vec<&'static str> = rest
            .split(' ')
            .map(|w| if w == "-" { "" } else { w })
            .collect();
        let [
            group_version,
            name,
            singular,
            kind,
            scope,
            verbs,
            short,
            categories,
            hash,
            own,
        ] = words[..]
        else {
            continue;
        };
        let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
        let list = |s: &'static str| -> Vec<&'static str> {
            s.split(',').filter(|s| !s.is_empty()).collect()
        };
        if let Some((resource, sub)) = name.split_once('/') {
            let (own_group, own_version) = own.split_once('/').unwrap_or((group, version));
            let parent = out
                .iter_mut()
                .find(|r| r.group == group && r.version == version && r.resource == resource);
            if let Some(parent) = parent {
                parent.subresources.push(SubresourceFacts {
                    name: sub,
                    kind,
                    group: own_group,
                    version: own_version,
                    foreign: !own.is_empty(),
                    verbs: list(verbs),
                });
            }
            continue;
        }
        out.push(ResourceFacts {
            group,
            version,
            resource: name,
            singular,
            kind,
            namespaced: scope == "namespaced",
            verbs: list(verbs),
            short_names: list(short),
            categories: list(categories),
            subresources: Vec::new(),
            storage_hash: hash,
        });
    }
    out
});

/// Every resource of every version.
pub fn resources() -> &'static [ResourceFacts] {
    &RESOURCES
}

/// Named groups in discovery order; the core group is not among them.
pub fn groups() -> &'static [GroupFacts] {
    &GROUPS
}

pub fn resource(group: &str, version: &str, resource: &str) -> Option<&'static ResourceFacts> {
    RESOURCES
        .iter()
        .find(|r| r.group == group && r.version == version && r.resource == resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_resources() {
        let pods = resource("", "v1", "pods").unwrap();
        assert!(pods.namespaced && pods.short_names == ["po"] && pods.categories == ["all"]);
        let eviction = pods
            .subresources
            .iter()
            .find(|s| s.name == "eviction")
            .unwrap();
        assert_eq!(
            (eviction.group, eviction.version, eviction.kind),
            ("policy", "v1", "Eviction")
        );
        let scale = resource("apps", "v1", "deployments").unwrap();
        let scale = scale
            .subresources
            .iter()
            .find(|s| s.name == "scale")
            .unwrap();
        assert_eq!((scale.group, scale.kind), ("autoscaling", "Scale"));
        assert_eq!(
            groups()
                .iter()
                .find(|g| g.name == "autoscaling")
                .unwrap()
                .versions,
            ["v2", "v1"]
        );
        for r in resources().iter().filter(|r| !r.storage_hash.is_empty()) {
            assert!(
                crate::kind_type(r.group, r.version, r.kind).is_some(),
                "{r:?}"
            );
        }
    }
}
