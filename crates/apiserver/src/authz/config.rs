//! Who is asked, in which order: by `--authorization-mode`, or by a file of
//! `apiserver.config.k8s.io` `AuthorizationConfiguration`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

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

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(default)]
    authorizers: Vec<AuthorizerConfiguration>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AuthorizerConfiguration {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    webhook: Option<WebhookConfiguration>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WebhookConfiguration {
    #[serde(default)]
    authorized_ttl: String,
    cache_authorized_requests: Option<bool>,
    #[serde(default)]
    unauthorized_ttl: String,
    cache_unauthorized_requests: Option<bool>,
    #[serde(default)]
    timeout: String,
    #[serde(default)]
    subject_access_review_version: String,
    #[serde(default)]
    match_condition_subject_access_review_version: String,
    #[serde(default)]
    failure_policy: String,
    connection_info: ConnectionInfo,
    #[serde(default)]
    match_conditions: Vec<MatchCondition>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConnectionInfo {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(rename = "kubeConfigFile")]
    kubeconfig_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchCondition {
    expression: String,
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
            };
            Ok(Mode::Webhook(Box::new(Webhook::new(remote, settings))))
        }
        other => Err(Error::Mode(other.to_owned())),
    };
    options.modes.iter().map(mode).collect()
}

pub(super) fn from_file(file: &Path, text: &str) -> Result<Chain, Error> {
    let failed = |reason: String| Error::File {
        file: file.display().to_string(),
        reason,
    };
    let configuration: Configuration =
        serde_saphyr::from_str(text).map_err(|error| failed(error.to_string()))?;
    let known = [
        "apiserver.config.k8s.io/v1",
        "apiserver.config.k8s.io/v1beta1",
    ];
    if configuration.kind != "AuthorizationConfiguration"
        || !known.contains(&configuration.api_version.as_str())
    {
        return Err(failed(format!(
            "expected an AuthorizationConfiguration of {}, found {} of {}",
            known[0], configuration.kind, configuration.api_version
        )));
    }
    if configuration.authorizers.is_empty() {
        return Err(failed(
            "authorizers: Required value: at least one authorization mode must be defined"
                .to_owned(),
        ));
    }
    let (mut kinds, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut chain = Chain::new();
    for (index, entry) in configuration.authorizers.into_iter().enumerate() {
        let path = format!("authorizers[{index}]");
        let repeated = !kinds.insert(entry.kind.clone()) && entry.kind != "Webhook";
        if repeated {
            return Err(failed(format!(
                "{path}.type: Duplicate value: {:?}",
                entry.kind
            )));
        }
        if entry.name.is_empty() {
            return Err(failed(format!("{path}.name: Required value")));
        }
        let problems = keelson_machinery::validation::is_dns1123_subdomain(&entry.name);
        if !problems.is_empty() {
            return Err(failed(format!(
                "{path}.name: Invalid value: {:?}: authorizer name is invalid: {}",
                entry.name,
                problems.join(", ")
            )));
        }
        if !names.insert(entry.name.clone()) {
            return Err(failed(format!(
                "{path}.name: Duplicate value: {:?}",
                entry.name
            )));
        }
        chain.push(mode(entry, &path).map_err(|problem| match problem {
            Problem::Text(reason) => failed(reason),
            Problem::Webhook(error) => Error::Webhook(error),
        })?);
    }
    Ok(chain)
}

enum Problem {
    Text(String),
    Webhook(crate::remote::Error),
}

fn mode(entry: AuthorizerConfiguration, path: &str) -> Result<Mode, Problem> {
    let plain = |mode: Mode| match entry.webhook {
        None => Ok(mode),
        Some(_) => Err(Problem::Text(format!(
            "{path}.webhook: Invalid value: \"non-null\": may only be specified when type=Webhook"
        ))),
    };
    match entry.kind.as_str() {
        "AlwaysAllow" => plain(Mode::AlwaysAllow),
        "AlwaysDeny" => plain(Mode::AlwaysDeny),
        "Node" => plain(Mode::Node),
        "RBAC" => plain(Mode::Rbac),
        "Webhook" => {
            let configuration = entry.webhook.ok_or_else(|| {
                Problem::Text(format!(
                    "{path}.webhook: Required value: required when type=Webhook"
                ))
            })?;
            webhook_of(entry.name, configuration, path)
        }
        other => Err(Problem::Text(format!(
            "{path}.type: Unsupported value: {other:?}: supported values: \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\""
        ))),
    }
}

fn webhook_of(name: String, c: WebhookConfiguration, path: &str) -> Result<Mode, Problem> {
    let text = |reason: String| Problem::Text(format!("{path}.{reason}"));
    let duration = |field: &str, value: &str| match crate::duration::parse(value) {
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ if value.is_empty() => Err(text(format!("{field}: Required value"))),
        _ => Err(text(format!(
            "{field}: Invalid value: {value:?}: must be > 0s"
        ))),
    };
    let timeout = duration("timeout", &c.timeout)?;
    if timeout > Duration::from_secs(30) {
        return Err(text(format!(
            "timeout: Invalid value: {:?}: must be > 0s and <= 30s",
            c.timeout
        )));
    }
    let deny_on_failure = match c.failure_policy.as_str() {
        "Deny" => true,
        "NoOpinion" => false,
        other => {
            return Err(text(format!(
                "failurePolicy: Unsupported value: {other:?}: supported values: \"Deny\", \"NoOpinion\""
            )));
        }
    };
    if !matches!(c.subject_access_review_version.as_str(), "v1" | "v1beta1") {
        return Err(text(format!(
            "subjectAccessReviewVersion: Unsupported value: {:?}: supported values: \"v1\", \"v1beta1\"",
            c.subject_access_review_version
        )));
    }
    if let Some(condition) = c.match_conditions.first() {
        if c.match_condition_subject_access_review_version != "v1" {
            return Err(text(
                "matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified".to_owned(),
            ));
        }
        return Err(text(format!(
            "matchConditions[0].expression: {:?}: this server does not evaluate match conditions of authorizers",
            condition.expression
        )));
    }
    let file = match (
        c.connection_info.kind.as_str(),
        c.connection_info.kubeconfig_file,
    ) {
        ("KubeConfigFile", Some(file)) if file.is_absolute() => file,
        ("KubeConfigFile", Some(file)) => {
            return Err(text(format!(
                "connectionInfo.kubeConfigFile: Invalid value: {:?}: must be an absolute path",
                file.display().to_string()
            )));
        }
        ("KubeConfigFile", None) => {
            return Err(text(
                "connectionInfo.kubeConfigFile: Required value".to_owned(),
            ));
        }
        (other, _) => {
            return Err(text(format!(
                "connectionInfo.type: Unsupported value: {other:?}: supported values: \"KubeConfigFile\""
            )));
        }
    };
    let allowed = duration("authorizedTTL", &c.authorized_ttl)?;
    let refused = duration("unauthorizedTTL", &c.unauthorized_ttl)?;
    let kept = |ttl, cached: Option<bool>| {
        if cached == Some(false) {
            Duration::ZERO
        } else {
            ttl
        }
    };
    let settings = webhook::Settings {
        name,
        allowed_ttl: kept(allowed, c.cache_authorized_requests),
        refused_ttl: kept(refused, c.cache_unauthorized_requests),
        timeout,
        version: c.subject_access_review_version,
        deny_on_failure,
    };
    let remote = Remote::from_kubeconfig(&file).map_err(Problem::Webhook)?;
    Ok(Mode::Webhook(Box::new(Webhook::new(remote, settings))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(authorizers: &str) -> Result<Chain, String> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n{authorizers}"
        );
        from_file(Path::new("f"), &text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_who_is_asked_or_what_is_wrong_with_it() {
        let chain = parse("- {type: Node, name: node}\n- {type: RBAC, name: rbac}\n").unwrap();
        assert!(matches!(chain.as_slice(), [Mode::Node, Mode::Rbac]));
        for (text, expected) in [
            (
                "- {type: Node, name: a}\n- {type: Node, name: b}\n",
                "authorizers[1].type: Duplicate value",
            ),
            ("- {type: Node}\n", "authorizers[0].name: Required value"),
            ("- {type: ABAC, name: a}\n", "Unsupported value: \"ABAC\""),
            ("- {type: Webhook, name: a}\n", "required when type=Webhook"),
            (
                "- {type: Webhook, name: a, webhook: {timeout: 31s, connectionInfo: {type: KubeConfigFile}}}\n",
                "must be > 0s and <= 30s",
            ),
            ("- {type: RBAC, name: a, extra: 1}\n", "extra"),
        ] {
            let error = parse(text).err().unwrap();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
