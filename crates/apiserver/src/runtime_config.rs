//! `--runtime-config`: which built-in API versions and resources are served. By default those that
//! are generally available; beta and alpha ones are asked for, as upstream has it since v1.24.

use std::collections::BTreeMap;

use keelson_api::ResourceFacts;
use keelson_machinery::go;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("invalid value {key}={value}")]
    Value { key: String, value: String },
    #[error("group version {0} that has not been registered")]
    Unknown(String),
    #[error(
        "invalid key {key}: group/version/resource and resource is always lowercase plural, not {resource:?}"
    )]
    Resource { key: String, resource: String },
}

/// How stable a version says it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stability {
    Alpha,
    Beta,
    Stable,
}

fn stability(version: &str) -> Stability {
    if version.contains("alpha") {
        Stability::Alpha
    } else if version.contains("beta") {
        Stability::Beta
    } else {
        Stability::Stable
    }
}

/// What is switched on and off, from `api/all`, `api/ga`, `api/beta`, `api/alpha`,
/// `<group>/<version>` and `<group>/<version>/<resource>`; the more specific one wins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    classes: BTreeMap<&'static str, bool>,
    versions: BTreeMap<String, bool>,
    resources: BTreeMap<String, bool>,
}

/// In the order in which they apply.
const CLASSES: [&str; 4] = ["api/all", "api/ga", "api/beta", "api/alpha"];

impl RuntimeConfig {
    /// Every version there is.
    pub fn everything() -> Self {
        Self {
            classes: BTreeMap::from([("api/all", true)]),
            ..Self::default()
        }
    }

    /// From pairs such as `api/beta=true`; a key alone means true. Keys of groups that are not
    /// ours are left to whoever serves them.
    pub fn parse(pairs: &[String]) -> Result<Self, Error> {
        let mut config = Self::default();
        for pair in pairs.iter().filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let enabled = match value {
                "" => true,
                value => go::parse_bool(value).ok_or_else(|| Error::Value {
                    key: key.to_owned(),
                    value: value.to_owned(),
                })?,
            };
            if let Some(class) = CLASSES.into_iter().find(|class| *class == key) {
                config.classes.insert(class, enabled);
                continue;
            }
            config.specific(key, enabled)?;
        }
        Ok(config)
    }

    fn specific(&mut self, key: &str, enabled: bool) -> Result<(), Error> {
        let steps: Vec<&str> = key.split('/').collect();
        let (group, version, resource) = match steps[..] {
            [group, version] => (group, version, None),
            [group, version, resource] => (group, version, Some(resource)),
            _ => return Ok(()),
        };
        // The core group goes by the name of its path.
        let group = if group == "api" { "" } else { group };
        let mut known = keelson_api::resources().iter().filter(|r| r.group == group);
        if known.clone().next().is_none() {
            return Ok(());
        }
        let group_version = format!("{group}/{version}");
        if !known.any(|r| r.version == version) {
            return Err(Error::Unknown(group_version));
        }
        match resource {
            None => self.versions.insert(group_version, enabled),
            Some(resource) if resource != resource.to_lowercase() => {
                return Err(Error::Resource {
                    key: key.to_owned(),
                    resource: resource.to_owned(),
                });
            }
            Some(resource) => self
                .resources
                .insert(format!("{group_version}/{resource}"), enabled),
        };
        Ok(())
    }

    pub(crate) fn serves(&self, facts: &ResourceFacts) -> bool {
        let version = format!("{}/{}", facts.group, facts.version);
        let resource = format!("{version}/{}", facts.resource);
        if let Some(enabled) = self.resources.get(&resource) {
            return *enabled;
        }
        if let Some(enabled) = self.versions.get(&version) {
            return *enabled;
        }
        let stability = stability(facts.version);
        let mut enabled = stability == Stability::Stable;
        for class in CLASSES {
            let about = match class {
                "api/ga" => stability == Stability::Stable,
                "api/beta" => stability == Stability::Beta,
                "api/alpha" => stability == Stability::Alpha,
                _ => true,
            };
            if let Some(switch) = self.classes.get(class).filter(|_| about) {
                enabled = *switch;
            }
        }
        enabled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(pairs: &[&str]) -> Vec<String> {
        let pairs: Vec<String> = pairs.iter().map(|p| (*p).to_owned()).collect();
        let config = RuntimeConfig::parse(&pairs).unwrap();
        let mut all: Vec<String> = keelson_api::resources()
            .iter()
            .filter(|facts| facts.group == "resource.k8s.io" && config.serves(facts))
            .map(|facts| format!("{}/{}", facts.version, facts.resource))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn only_stable_versions_are_there_unless_asked_for() {
        assert!(served(&[]).iter().all(|r| r.starts_with("v1/")));
        assert!(served(&["api/beta=true"]).contains(&"v1beta1/resourceclaims".to_owned()));
        assert!(
            !served(&["api/beta=true"])
                .iter()
                .any(|r| r.contains("alpha"))
        );
        assert_eq!(served(&["api/all=false"]), Vec::<String>::new());
    }

    #[test]
    fn the_more_specific_key_wins() {
        let some = served(&["api/all=true", "resource.k8s.io/v1beta1=false"]);
        assert!(some.iter().any(|r| r.starts_with("v1beta2/")));
        assert!(!some.iter().any(|r| r.starts_with("v1beta1/")));
        let one = served(&["resource.k8s.io/v1beta1/deviceclasses"]);
        assert!(one.contains(&"v1beta1/deviceclasses".to_owned()));
        assert!(!one.contains(&"v1beta1/resourceclaims".to_owned()));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let parse = |pair: &str| RuntimeConfig::parse(&[pair.to_owned()]);
        assert_eq!(
            parse("apps/v7=true").unwrap_err().to_string(),
            "group version apps/v7 that has not been registered"
        );
        assert_eq!(
            parse("api/all=maybe").unwrap_err().to_string(),
            "invalid value api/all=maybe"
        );
        assert!(parse("example.com/v7").is_ok());
    }
}
