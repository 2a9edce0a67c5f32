//! `EncryptionConfiguration`: for which resources which keys.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::Cipher;

const FIRST: &str = "k8s:enc:";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    resources: Vec<FileRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    resources: Vec<String>,
    providers: Vec<FileProvider>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct FileProvider {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<serde_json::Map<String, Value>>,
    kms: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    secret: String,
}

pub(super) struct Configuration {
    rules: Vec<Rule>,
}

struct Rule {
    /// `secrets`, `deployments.apps`, `*.apps`, `*.*`.
    resources: Vec<String>,
    /// The first writes, all read.
    providers: Vec<Provider>,
}

pub(super) enum Provider {
    Identity,
    Sealing { prefix: String, cipher: Cipher },
}

impl Configuration {
    /// From YAML; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if file.kind != "EncryptionConfiguration"
            || file.api_version != "apiserver.config.k8s.io/v1"
        {
            return Err(format!(
                "expected an EncryptionConfiguration of apiserver.config.k8s.io/v1, found {} of {}",
                file.kind, file.api_version
            ));
        }
        if file.resources.is_empty() {
            return Err("resources: Required value: at least one resource is needed".to_owned());
        }
        let mut rules = Vec::new();
        for (index, rule) in file.resources.into_iter().enumerate() {
            let at = |reason: String| format!("resources[{index}].{reason}");
            if rule.resources.is_empty() {
                return Err(at("resources: Required value".to_owned()));
            }
            for resource in &rule.resources {
                check_resource(resource).map_err(&at)?;
            }
            if rule.providers.is_empty() {
                return Err(at("providers: Required value".to_owned()));
            }
            let mut providers = Vec::new();
            for (number, provider) in rule.providers.into_iter().enumerate() {
                let read = providers_of(provider)
                    .map_err(|reason| at(format!("providers[{number}]: {reason}")))?;
                providers.extend(read);
            }
            rules.push(Rule {
                resources: rule.resources,
                providers,
            });
        }
        Ok(Self { rules })
    }

    /// What holds for a key of the store, `/registry/<group or core>/<resource>/…`; nothing for
    /// keys that are stored as they are.
    pub(super) fn providers(&self, key: &str) -> Option<&[Provider]> {
        let mut parts = key.strip_prefix(crate::cache::ROOT)?.split('/');
        let (group, resource) = (parts.next()?, parts.next()?);
        let group = if group == "core" { "" } else { group };
        self.rules
            .iter()
            .find(|rule| {
                rule.resources
                    .iter()
                    .any(|own| matches(own, group, resource))
            })
            .map(|rule| rule.providers.as_slice())
    }
}

fn matches(pattern: &str, group: &str, resource: &str) -> bool {
    match pattern.split_once('.') {
        None => group.is_empty() && pattern == resource,
        Some(("*", "*")) => true,
        Some(("*", own)) => own == group,
        Some((own, own_group)) => own == resource && own_group == group,
    }
}

fn check_resource(resource: &str) -> Result<(), String> {
    let refused = |why: &str| Err(format!("resources: Invalid value: {resource:?}: {why}"));
    if resource == "*" {
        return refused(
            "use '*.' to encrypt all resources from core API group or *.* to encrypt all resources",
        );
    }
    if resource.chars().any(char::is_uppercase) {
        return refused("resource name should be lowercase");
    }
    if resource.split_once('.').is_none_or(|(name, _)| name != "*") && resource.contains('*') {
        return refused("resource name has invalid wildcard");
    }
    Ok(())
}

/// Every key of a provider is a provider of its own: the first writes, each reads.
fn providers_of(provider: FileProvider) -> Result<Vec<Provider>, String> {
    type Build = fn(&[u8]) -> Result<Cipher, String>;
    let mut all = Vec::new();
    let mut kinds = 0;
    if provider.identity.is_some() {
        kinds += 1;
        all.push(Provider::Identity);
    }
    let builders: [(&str, Option<Keys>, Build); 3] = [
        ("aesgcm", provider.aesgcm, Cipher::aes_gcm),
        ("aescbc", provider.aescbc, Cipher::aes_cbc),
        ("secretbox", provider.secretbox, Cipher::secretbox),
    ];
    for (kind, keys, build) in builders {
        let Some(Keys { keys }) = keys else {
            continue;
        };
        kinds += 1;
        if keys.is_empty() {
            return Err(format!(
                "{kind}.keys: Required value: at least one key is required"
            ));
        }
        for key in keys {
            if key.name.is_empty() || key.name.contains(':') {
                return Err(format!("{kind}.keys.name: Invalid value: {:?}", key.name));
            }
            let secret = STANDARD
                .decode(&key.secret)
                .map_err(|_| format!("{kind}.keys.secret: the secret is not base64"))?;
            all.push(Provider::Sealing {
                prefix: format!("{FIRST}{kind}:v1:{}:", key.name),
                cipher: build(&secret).map_err(|reason| format!("{kind}.keys.secret: {reason}"))?,
            });
        }
    }
    if provider.kms.is_some() {
        return Err("kms: this server has no KMS provider yet".to_owned());
    }
    if kinds == 1 {
        Ok(all)
    } else {
        Err("provider should contain exactly one of aesgcm, aescbc, secretbox, identity".to_owned())
    }
}

pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(FIRST.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn parse(rules: &str) -> Result<Configuration, String> {
        Configuration::parse(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{rules}"
        ))
    }

    #[test]
    fn the_first_rule_that_names_a_resource_holds() {
        let rules = parse(
            "- {resources: [secrets], providers: [{identity: {}}]}\n\
             - {resources: ['*.apps', events.events.k8s.io], providers: [{identity: {}}, {identity: {}}]}\n\
             - {resources: ['*.'], providers: [{identity: {}}, {identity: {}}, {identity: {}}]}\n",
        )
        .unwrap();
        let count = |key| rules.providers(key).map(<[Provider]>::len);
        assert_eq!(count("/registry/core/secrets/ns/a"), Some(1));
        assert_eq!(count("/registry/apps/deployments/ns/a"), Some(2));
        assert_eq!(count("/registry/core/configmaps/ns/a"), Some(3));
        assert_eq!(count("/registry/batch/jobs/ns/a"), None);
        assert_eq!(count("/other"), None);
    }

    #[test]
    fn bad_configurations_are_refused_with_the_reason() {
        for (text, reason) in [
            (
                "- {resources: ['*'], providers: [{identity: {}}]}",
                "use '*.'",
            ),
            (
                "- {resources: [secrets], providers: []}",
                "providers: Required value",
            ),
            (
                "- {resources: [secrets], providers: [{}]}",
                "exactly one of",
            ),
            (
                "- {resources: [secrets], providers: [{aesgcm: {keys: [{name: a, secret: AAAA}]}}]}",
                "bytes",
            ),
            (
                "- {resources: [secrets], providers: [{secretbox: {keys: []}}]}",
                "at least one key",
            ),
            (
                "- {resources: [secrets], providers: [{rot13: {}}]}",
                "rot13",
            ),
        ] {
            let error = parse(&format!("{text}\n")).err().unwrap();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
