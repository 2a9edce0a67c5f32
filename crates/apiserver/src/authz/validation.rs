//! What an authorization configuration may say. Pure, but for the look at named files.
//!
//! Fields, orders and words are those of upstream's validation of `AuthorizationConfiguration`.

use std::collections::BTreeSet;
use std::time::Duration;

use keelson_cel::Expression;
use keelson_machinery::field::{FieldError, Path};
use keelson_machinery::validation::is_dns1123_subdomain;

use super::conditions;
use super::config::{Configuration, WebhookConfiguration};

const TYPES: [&str; 5] = ["AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
const MAX_CONDITIONS: usize = 64;
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// The conditions of every authorizer, in their order, or all that is wrong.
pub(super) fn validate(
    configuration: &Configuration,
) -> Result<Vec<Vec<Expression>>, Vec<FieldError>> {
    let root = Path::new("authorizers");
    let mut errors = Vec::new();
    if configuration.authorizers.is_empty() {
        let detail = "at least one authorization mode must be defined";
        errors.push(FieldError::required(&root, detail));
    }
    let (mut kinds, mut names) = (BTreeSet::new(), BTreeSet::new());
    let mut all = Vec::new();
    for (index, entry) in configuration.authorizers.iter().enumerate() {
        let path = root.index(index);
        let at = path.child("type");
        all.push(Vec::new());
        if entry.kind.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        if !TYPES.contains(&entry.kind.as_str()) {
            errors.push(FieldError::not_supported(&at, entry.kind.as_str(), &TYPES));
            continue;
        }
        if !kinds.insert(&entry.kind) && entry.kind != "Webhook" {
            errors.push(FieldError::duplicate(&at, entry.kind.as_str()));
            continue;
        }
        let (at, name) = (path.child("name"), entry.name.as_str());
        if name.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if names.contains(name) {
            errors.push(FieldError::duplicate(&at, name));
        } else {
            let problems = is_dns1123_subdomain(name).join(", ");
            if !problems.is_empty() {
                let detail = format!("authorizer name is invalid: {problems}");
                errors.push(FieldError::invalid(&at, name, detail));
            }
        }
        names.insert(name);
        let at = path.child("webhook");
        match (&entry.webhook, entry.kind == "Webhook") {
            (Some(webhook), true) => {
                all[index] = validate_webhook(webhook, &path, &mut errors);
            }
            (None, true) => errors.push(FieldError::required(&at, "required when type=Webhook")),
            (Some(_), false) => errors.push(FieldError::invalid(
                &at,
                "non-null",
                "may only be specified when type=Webhook",
            )),
            (None, false) => {}
        }
    }
    if errors.is_empty() {
        Ok(all)
    } else {
        Err(errors)
    }
}

fn validate_webhook(
    c: &WebhookConfiguration,
    path: &Path,
    errors: &mut Vec<FieldError>,
) -> Vec<Expression> {
    let timeout = path.child("timeout");
    match c.timeout.parsed() {
        Some(Duration::ZERO) => errors.push(FieldError::required(&timeout, "")),
        Some(given) if given <= MAX_TIMEOUT => {}
        _ => errors.push(FieldError::invalid(
            &timeout,
            c.timeout.shown(),
            "must be > 0s and <= 30s",
        )),
    }
    for (name, given) in [
        ("authorizedTTL", &c.authorized_ttl),
        ("unauthorizedTTL", &c.unauthorized_ttl),
    ] {
        if given.parsed().is_none() {
            let at = path.child(name);
            errors.push(FieldError::invalid(&at, given.shown(), "must be > 0s"));
        }
    }
    let mut one_of = |name: &str, given: &str, known: &[&str]| {
        let at = path.child(name);
        if given.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if !known.contains(&given) {
            errors.push(FieldError::not_supported(&at, given, known));
        }
    };
    let version = c.subject_access_review_version.as_str();
    one_of("subjectAccessReviewVersion", version, &["v1", "v1beta1"]);
    let at = path.child("matchConditionSubjectAccessReviewVersion");
    match c.match_condition_subject_access_review_version.as_str() {
        "" if c.match_conditions.is_empty() => {}
        "" => errors.push(FieldError::required(
            &at,
            "required if match conditions are specified",
        )),
        "v1" => {}
        other => errors.push(FieldError::not_supported(&at, other, &["v1"])),
    }
    let at = path.child("failurePolicy");
    match c.failure_policy.as_str() {
        "" => errors.push(FieldError::required(&at, "")),
        "NoOpinion" | "Deny" => {}
        other => errors.push(FieldError::not_supported(
            &at,
            other,
            &["NoOpinion", "Deny"],
        )),
    }
    connection(c, &path.child("connectionInfo"), errors);
    match_conditions(c, &path.child("matchConditions"), errors)
}

fn connection(c: &WebhookConfiguration, path: &Path, errors: &mut Vec<FieldError>) {
    let at = path.child("kubeConfigFile");
    let given = c.connection_info.kubeconfig_file.as_deref();
    let shown = given
        .map(|file| file.display().to_string())
        .unwrap_or_default();
    let mut refuse = |detail: &str| {
        errors.push(FieldError::invalid(&at, shown.as_str(), detail));
    };
    match (c.connection_info.kind.as_str(), given) {
        ("", _) => errors.push(FieldError::required(&path.child("type"), "")),
        ("KubeConfigFile", None) => errors.push(FieldError::required(&at, "")),
        ("KubeConfigFile", Some(file)) if file.as_os_str().is_empty() => {
            errors.push(FieldError::required(&at, ""));
        }
        ("KubeConfigFile", Some(file)) if !file.is_absolute() => refuse("must be an absolute path"),
        ("KubeConfigFile", Some(file)) => match std::fs::metadata(file) {
            Ok(about) if about.is_file() => {}
            Ok(_) => refuse("must be a regular file"),
            Err(error) => refuse(&format!("error loading file: {error}")),
        },
        ("InClusterConfig", Some(_)) => refuse("can only be set when type=KubeConfigFile"),
        ("InClusterConfig", None) => {}
        (other, _) => errors.push(FieldError::not_supported(
            &path.child("type"),
            other,
            &["InClusterConfig", "KubeConfigFile"],
        )),
    }
}

fn match_conditions(
    c: &WebhookConfiguration,
    path: &Path,
    errors: &mut Vec<FieldError>,
) -> Vec<Expression> {
    let count = c.match_conditions.len();
    if count > MAX_CONDITIONS {
        errors.push(FieldError::too_many(path, count, MAX_CONDITIONS));
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for (index, condition) in c.match_conditions.iter().enumerate() {
        let at = path.index(index).child("expression");
        let source = condition.expression.as_str();
        if source.trim().is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if !seen.insert(source) {
            errors.push(FieldError::duplicate(&at, source));
        } else {
            match conditions::compile(source) {
                Ok(expression) => out.push(expression),
                Err(detail) => errors.push(FieldError::invalid(&at, source, detail)),
            }
        }
    }
    out
}
