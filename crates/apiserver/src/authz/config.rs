//! Who is asked, in which order: by `--authorization-mode`, or by a file of
//! `apiserver.config.k8s.io` `AuthorizationConfiguration`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keelson_cel::Expression;
use keelson_machinery::field;
use serde::Deserialize;
use thiserror::Error;

use super::conditions::Conditions;
use super::validation;
use super::webhook::{self, Webhook};
use crate::remote::Remote;

#[derive(Debug, Clone)]
pub struct AuthorizationOptions {
    /// `Node`, `RBAC`, `Webhook`, `AlwaysAllow`, `AlwaysDeny`; not read when there is a file.
    pub modes: Vec<String>,
    pub config_file: Option<PathBuf>,
    /// Of the mode `Webhook`.
    pub webhook_config_file: Option<PathBuf>,
    pub webhook_authorized_ttl: Duration,
    pub webhook_unauthorized_ttl: Duration,
}

impl Default for AuthorizationOptions {
    fn default() -> Self {
        Self {
            modes: vec!["Node".to_owned(), "RBAC".to_owned()],
            config_file: None,
            webhook_config_file: None,
            webhook_authorized_ttl: Duration::from_secs(300),
            webhook_unauthorized_ttl: Duration::from_secs(30),
        }
    }
}

#[derive(Debug, Error)]
pub enum Error {
    #[error(
        "unknown authorization mode {0:?}; known are Node, RBAC, Webhook, AlwaysAllow, AlwaysDeny"
    )]
    Mode(String),
    #[error("the authorization mode Webhook needs a kubeconfig of the webhook")]
    NoWebhook,
    #[error("the authorization configuration {file}: {reason}")]
    File { file: String, reason: String },
    #[error("the authorization webhook")]
    Webhook(#[source] crate::remote::Error),
}

/// One that is asked.
pub(super) enum Mode {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
    Webhook(Box<Webhook>),
}

pub(super) type Chain = Vec<Mode>;

/// Which authorizers that are no webhooks a configuration has.
pub(super) type Modes = BTreeSet<String>;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Configuration {
    api_version: String,
    kind: String,
    pub(super) authorizers: Vec<AuthorizerConfiguration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AuthorizerConfiguration {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) webhook: Option<WebhookConfiguration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WebhookConfiguration {
    #[serde(rename = "authorizedTTL")]
    pub(super) authorized_ttl: Lasting,
    cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    pub(super) unauthorized_ttl: Lasting,
    cache_unauthorized_requests: Option<bool>,
    pub(super) timeout: Lasting,
    pub(super) subject_access_review_version: String,
    pub(super) match_condition_subject_access_review_version: String,
    pub(super) failure_policy: String,
    pub(super) connection_info: ConnectionInfo,
    pub(super) match_conditions: Vec<MatchCondition>,
}

/// A duration as it is written; absent ones are empty.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Lasting(String);

impl Lasting {
    /// Zero when absent; nothing when it is negative or none.
    pub(super) fn parsed(&self) -> Option<Duration> {
        if self.0.is_empty() {
            return Some(Duration::ZERO);
        }
        keelson_semantics::duration::parse(&self.0).ok()
    }

    pub(super) fn shown(&self) -> &str {
        &self.0
    }

    fn or(&self, default: Duration) -> Duration {
        self.parsed().filter(|d| !d.is_zero()).unwrap_or(default)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ConnectionInfo {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(rename = "kubeConfigFile")]
    pub(super) kubeconfig_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MatchCondition {
    pub(super) expression: String,
}

/// From the modes on the command line.
pub(super) fn from_modes(options: &AuthorizationOptions) -> Result<Chain, Error> {
    let mode = |name: &String| match name.as_str() {
        "AlwaysAllow" => Ok(Mode::AlwaysAllow),
        "AlwaysDeny" => Ok(Mode::AlwaysDeny),
        "Node" => Ok(Mode::Node),
        "RBAC" => Ok(Mode::Rbac),
        "Webhook" => {
            let file = options
                .webhook_config_file
                .as_deref()
                .ok_or(Error::NoWebhook)?;
            let remote = Remote::from_kubeconfig(file).map_err(Error::Webhook)?;
            let settings = webhook::Settings {
                name: "default".to_owned(),
                allowed_ttl: options.webhook_authorized_ttl,
                refused_ttl: options.webhook_unauthorized_ttl,
                timeout: Duration::from_secs(30),
                version: "v1".to_owned(),
                deny_on_failure: false,
                conditions: Conditions::default(),
            };
            Ok(Mode::Webhook(Box::new(Webhook::new(remote, settings))))
        }
        other => Err(Error::Mode(other.to_owned())),
    };
    options.modes.iter().map(mode).collect()
}

/// The chain that a file describes, and which authorizers it has. A file that is read again must
/// have those of `before`: the others of this server have been told that they count.
pub(super) fn from_file(
    file: &Path,
    text: &str,
    before: Option<&Modes>,
) -> Result<(Chain, Modes), Error> {
    let failed = |reason: String| Error::File {
        file: file.display().to_string(),
        reason,
    };
    let configuration = parse(text).map_err(failed)?;
    let conditions =
        validation::validate(&configuration).map_err(|errors| failed(field::aggregate(&errors)))?;
    let modes = modes(&configuration, before).map_err(failed)?;
    let entries = configuration.authorizers.into_iter().zip(conditions);
    let chain = entries
        .map(|(entry, conditions)| mode(entry, conditions, &failed))
        .collect::<Result<_, _>>()?;
    Ok((chain, modes))
}

fn parse(text: &str) -> Result<Configuration, String> {
    let configuration: Configuration =
        serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let known = [
        "apiserver.config.k8s.io/v1",
        "apiserver.config.k8s.io/v1beta1",
        "apiserver.config.k8s.io/v1alpha1",
    ];
    if configuration.kind == "AuthorizationConfiguration"
        && known.contains(&configuration.api_version.as_str())
    {
        return Ok(configuration);
    }
    Err(format!(
        "expected an AuthorizationConfiguration of {}, found {} of {}",
        known[0], configuration.kind, configuration.api_version
    ))
}

/// Authorizers that are no webhooks have one name each, and stay.
fn modes(configuration: &Configuration, before: Option<&Modes>) -> Result<Modes, String> {
    let own = configuration.authorizers.iter();
    let own: Vec<_> = own.filter(|entry| entry.kind != "Webhook").collect();
    let mut problems: Vec<String> = own
        .iter()
        .filter(|entry| entry.name != entry.kind.to_lowercase())
        .map(|entry| {
            format!(
                "expected name {} for authorizer {} instead of {}",
                entry.kind.to_lowercase(),
                entry.kind,
                entry.name
            )
        })
        .collect();
    let modes: Modes = own.iter().map(|entry| entry.kind.clone()).collect();
    if let Some(before) = before {
        let missing: Vec<_> = before.difference(&modes).cloned().collect();
        if !missing.is_empty() {
            problems.push(format!("missing required types: [{}]", missing.join(" ")));
        }
        let added = modes
            .difference(before)
            .filter(|m| matches!(m.as_str(), "Node" | "RBAC"));
        problems.extend(added.map(|mode| {
            format!("authorizer type {mode} is not allowed if it was not enabled at initial server startup")
        }));
    }
    match problems.as_slice() {
        [] => Ok(modes),
        [one] => Err(one.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

fn mode(
    entry: AuthorizerConfiguration,
    conditions: Vec<Expression>,
    failed: &dyn Fn(String) -> Error,
) -> Result<Mode, Error> {
    match (entry.kind.as_str(), entry.webhook) {
        ("AlwaysAllow", _) => Ok(Mode::AlwaysAllow),
        ("AlwaysDeny", _) => Ok(Mode::AlwaysDeny),
        ("Node", _) => Ok(Mode::Node),
        ("RBAC", _) => Ok(Mode::Rbac),
        (_, Some(configuration)) => webhook_of(entry.name, configuration, conditions, failed),
        (other, None) => Err(failed(format!("no authorizer of type {other:?}"))),
    }
}

fn webhook_of(
    name: String,
    c: WebhookConfiguration,
    conditions: Vec<Expression>,
    failed: &dyn Fn(String) -> Error,
) -> Result<Mode, Error> {
    // What is in the cluster is reached through this server: it would ask itself.
    let file = c.connection_info.kubeconfig_file.ok_or_else(|| {
        failed(format!(
            "authorizer {name}: connectionInfo.type InClusterConfig is not possible for an API server, only KubeConfigFile is"
        ))
    })?;
    let defaults = AuthorizationOptions::default();
    let kept = |ttl: &Lasting, cached: Option<bool>, default: Duration| {
        if cached == Some(false) {
            Duration::ZERO
        } else {
            ttl.or(default)
        }
    };
    let settings = webhook::Settings {
        name,
        allowed_ttl: kept(
            &c.authorized_ttl,
            c.cache_authorized_requests,
            defaults.webhook_authorized_ttl,
        ),
        refused_ttl: kept(
            &c.unauthorized_ttl,
            c.cache_unauthorized_requests,
            defaults.webhook_unauthorized_ttl,
        ),
        timeout: c.timeout.or(defaults.webhook_authorized_ttl),
        version: c.subject_access_review_version,
        deny_on_failure: c.failure_policy == "Deny",
        conditions: Conditions::new(conditions),
    };
    let remote = Remote::from_kubeconfig(&file).map_err(Error::Webhook)?;
    Ok(Mode::Webhook(Box::new(Webhook::new(remote, settings))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(authorizers: &str, before: Option<&Modes>) -> Result<Chain, String> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n{authorizers}"
        );
        let read = from_file(Path::new("f"), &text, before);
        read.map(|(chain, _)| chain)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_who_is_asked_or_what_is_wrong_with_it() {
        let chain = parse(
            "- {type: Node, name: node}\n- {type: RBAC, name: rbac}\n",
            None,
        )
        .unwrap();
        assert!(matches!(chain.as_slice(), [Mode::Node, Mode::Rbac]));
        for (text, expected) in [
            (
                "- {type: Node, name: a}\n- {type: Node, name: b}\n",
                "authorizers[1].type: Duplicate value: \"Node\"",
            ),
            ("- {type: Node}\n", "authorizers[0].name: Required value"),
            (
                "- {type: Node, name: x}\n",
                "expected name node for authorizer Node instead of x",
            ),
            (
                "- {type: ABAC, name: a}\n",
                "authorizers[0].type: Unsupported value: \"ABAC\": supported values: \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\"",
            ),
            (
                "- {type: Webhook, name: a}\n",
                "authorizers[0].webhook: Required value: required when type=Webhook",
            ),
            ("- {type: RBAC, name: a, extra: 1}\n", "extra"),
            (
                "- {type: Webhook, name: a, webhook: {timeout: 31s, connectionInfo: {type: KubeConfigFile}}}\n",
                "[authorizers[0].timeout: Invalid value: \"31s\": must be > 0s and <= 30s, authorizers[0].subjectAccessReviewVersion: Required value, authorizers[0].failurePolicy: Required value, authorizers[0].connectionInfo.kubeConfigFile: Required value]",
            ),
            (
                "- {type: Webhook, name: a, webhook: {timeout: 1s, subjectAccessReviewVersion: v1, failurePolicy: Deny, connectionInfo: {type: InClusterConfig}, matchConditions: [{expression: request.user}]}}\n",
                "[authorizers[0].matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified, authorizers[0].matchConditions[0].expression: Invalid value: \"request.user\": must evaluate to bool but got string]",
            ),
            (
                "- {type: Webhook, name: a, webhook: {timeout: 1s, subjectAccessReviewVersion: v1, failurePolicy: Deny, connectionInfo: {type: KubeConfigFile, kubeConfigFile: x}}}\n",
                "authorizers[0].connectionInfo.kubeConfigFile: Invalid value: \"x\": must be an absolute path",
            ),
        ] {
            let error = parse(text, None).err().unwrap();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_read_again_keeps_its_authorizers() {
        let before: Modes = ["RBAC".to_owned()].into();
        let rbac = "- {type: RBAC, name: rbac}\n";
        assert!(parse(rbac, Some(&before)).is_ok());
        for (text, expected) in [
            (
                "- {type: AlwaysDeny, name: alwaysdeny}\n".to_owned(),
                "missing required types: [RBAC]",
            ),
            (
                format!("{rbac}- {{type: Node, name: node}}\n"),
                "authorizer type Node is not allowed if it was not enabled at initial server startup",
            ),
        ] {
            let error = parse(&text, Some(&before)).err().unwrap();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
