//! `EncryptionConfiguration`: for which resources which keys.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::field;
use serde::Deserialize;
use serde_json::Value;

use super::Cipher;
use super::kms::Plugin;
use super::validation;

const FIRST: &str = "k8s:enc:";
const KMS_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    api_version: String,
    kind: String,
    pub(super) resources: Vec<FileRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileRule {
    pub(super) resources: Vec<String>,
    pub(super) providers: Vec<FileProvider>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileProvider {
    pub(super) aesgcm: Option<Keys>,
    pub(super) aescbc: Option<Keys>,
    pub(super) secretbox: Option<Keys>,
    pub(super) identity: Option<serde_json::Map<String, Value>>,
    pub(super) kms: Option<KmsProvider>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Keys {
    pub(super) keys: Vec<Key>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) secret: String,
}

#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct KmsProvider {
    pub(super) api_version: String,
    pub(super) name: String,
    #[serde(rename = "cachesize")]
    pub(super) cachesize: Option<i64>,
    pub(super) endpoint: String,
    pub(super) timeout: Option<String>,
}

impl Default for KmsProvider {
    fn default() -> Self {
        Self {
            api_version: "v1".to_owned(),
            name: String::new(),
            cachesize: None,
            endpoint: String::new(),
            timeout: None,
        }
    }
}

impl KmsProvider {
    /// Nothing when it is no duration, or a negative one.
    pub(super) fn timeout(&self) -> Option<Duration> {
        match &self.timeout {
            None => Some(KMS_TIMEOUT),
            Some(text) => keelson_semantics::duration::parse(text).ok(),
        }
    }
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
    Kms(Arc<Plugin>),
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
        let errors = validation::validate(&file);
        if !errors.is_empty() {
            return Err(field::aggregate(&errors));
        }
        let rules = file
            .resources
            .into_iter()
            .map(|rule| {
                let providers = rule.providers.into_iter().map(providers_of);
                let providers = providers.collect::<Result<Vec<_>, _>>()?;
                Ok(Rule {
                    resources: rule.resources,
                    providers: providers.into_iter().flatten().collect(),
                })
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { rules })
    }

    /// The key management services that it names.
    pub(super) fn plugins(&self) -> impl Iterator<Item = &Arc<Plugin>> {
        let providers = self.rules.iter().flat_map(|rule| &rule.providers);
        providers.filter_map(|provider| match provider {
            Provider::Kms(plugin) => Some(plugin),
            Provider::Identity | Provider::Sealing { .. } => None,
        })
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

/// Every key of a provider is a provider of its own: the first writes, each reads.
fn providers_of(provider: FileProvider) -> Result<Vec<Provider>, String> {
    type Build = fn(&[u8]) -> Result<Cipher, String>;
    let mut all = Vec::new();
    if provider.identity.is_some() {
        all.push(Provider::Identity);
    }
    if let Some(kms) = provider.kms {
        if kms.api_version != "v2" {
            return Err(
                "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead."
                    .to_owned(),
            );
        }
        let timeout = kms.timeout().unwrap_or(KMS_TIMEOUT);
        let plugin = Plugin::new(&kms.name, &kms.endpoint, timeout).map_err(|e| {
            format!(
                "could not configure KMSv2-Plugin's probe {:?}, error: {e}",
                kms.name
            )
        })?;
        all.push(Provider::Kms(Arc::new(plugin)));
    }
    let builders: [(&str, Option<Keys>, Build); 3] = [
        ("aesgcm", provider.aesgcm, Cipher::aes_gcm),
        ("aescbc", provider.aescbc, Cipher::aes_cbc),
        ("secretbox", provider.secretbox, Cipher::secretbox),
    ];
    for (kind, keys, build) in builders {
        for key in keys.into_iter().flat_map(|keys| keys.keys) {
            let secret = STANDARD
                .decode(&key.secret)
                .map_err(|_| format!("{kind}: the secret of {:?} is not base64", key.name))?;
            all.push(Provider::Sealing {
                prefix: format!("{FIRST}{kind}:v1:{}:", key.name),
                cipher: build(&secret).map_err(|e| format!("{kind}: {:?}: {e}", key.name))?,
            });
        }
    }
    Ok(all)
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
             - {resources: ['*.apps', events], providers: [{identity: {}}, {identity: {}}]}\n\
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
    fn bad_configurations_are_refused_in_upstreams_words() {
        let kms = |fields: &str| format!("[secrets], providers: [{{kms: {{{fields}}}}}]");
        for (rule, expected) in [
            (
                "[], providers: [{identity: {}}]".to_owned(),
                "resources[0].resources: Required value: at least one resources[0].resources is required",
            ),
            (
                "['*'], providers: [{identity: {}}]".to_owned(),
                "resources[0].resources[0]: Invalid value: \"*\": use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
            ),
            (
                "[secrets, '*.'], providers: [{identity: {}}]".to_owned(),
                "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked",
            ),
            (
                "[a, a], providers: [{identity: {}}]".to_owned(),
                "the same resource cannot be specified multiple times",
            ),
            (
                "[a.events.k8s.io], providers: [{identity: {}}]".to_owned(),
                "Use 'events' instead in the config file",
            ),
            (
                "[secrets], providers: []".to_owned(),
                "resources[0].providers: Required value: at least one resources[0].providers is required",
            ),
            (
                "[secrets], providers: [{}]".to_owned(),
                "resources[0].providers[0]: Invalid value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
            ),
            (
                "[secrets], providers: [{identity: {}, secretbox: {keys: []}}]".to_owned(),
                "resources[0].providers[0].secretbox.keys: Required value: at least one keys is required",
            ),
            (
                "[secrets], providers: [{aesgcm: {keys: [{name: a, secret: AAAA}]}}]".to_owned(),
                "resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 3, expected one of [16 24 32]",
            ),
            ("[secrets], providers: [{rot13: {}}]".to_owned(), "rot13"),
            (
                kms("apiVersion: v2, name: 'a:b', endpoint: 'unix:///x'"),
                "resources[0].providers[0].kms.name: Invalid value: \"a:b\": invalid KMS provider name a:b, must not contain ':'",
            ),
            (
                kms("apiVersion: v2, name: a"),
                "resources[0].providers[0].kms.endpoint: Invalid value: \"\": endpoint is a mandatory field for a kms",
            ),
            (
                kms("apiVersion: v2, name: a, endpoint: 'http://x'"),
                "resources[0].providers[0].kms.endpoint: Invalid value: \"http://x\": unsupported scheme \"http\" for KMS provider, only unix is supported",
            ),
            (
                kms("apiVersion: v2, name: a, endpoint: 'unix:///x', timeout: 0s"),
                "resources[0].providers[0].kms.timeout: Invalid value: \"0s\": timeout should be a positive value",
            ),
            (
                kms("apiVersion: v2, name: a, endpoint: 'unix:///x', cachesize: 5"),
                "resources[0].providers[0].kms.cachesize: Invalid value: 5: cachesize is not supported in v2",
            ),
            (
                kms("apiVersion: v3, name: a, endpoint: 'unix:///x'"),
                "resources[0].providers[0].kms.apiVersion: Invalid value: \"v3\"",
            ),
            (kms("name: a, endpoint: 'unix:///x'"), "KMSv1 is deprecated"),
        ] {
            let error = parse(&format!("- {{resources: {rule}}}\n")).err().unwrap();
            assert!(error.contains(expected), "{rule}: {error}");
        }
    }
}
