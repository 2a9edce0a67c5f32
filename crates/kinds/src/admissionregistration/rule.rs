//! What requests a webhook or policy is about.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::{Value, json};

use super::policy::Stored;
use crate::check::At;
use crate::expressions::admission::{CONDITION, Compiler, Declared};
use crate::tree::TreeMut;

/// Defaults of a webhook, or of a policy's match constraints.
pub(super) fn default_match(obj: &mut Value) {
    obj.fill("matchPolicy", "Equivalent");
    obj.fill("namespaceSelector", json!({}));
    obj.fill("objectSelector", json!({}));
    for list in ["rules", "resourceRules", "excludeResourceRules"] {
        for rule in obj.list_mut(list) {
            rule.fill("scope", "*");
        }
    }
}

fn wildcard_alone(list: &At, others: &str, e: &mut ErrorList) {
    if list.len() > 1 && list.each().any(|v| v.text() == "*") {
        e.push(list.invalid(format!(
            "if '*' is present, must not specify other {others}"
        )));
    }
}

pub(super) fn validate(rule: &At, e: &mut ErrorList) {
    const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    let operations = rule.at("operations");
    operations.require(e);
    wildcard_alone(&operations, "operations", e);
    operations.each().for_each(|o| o.one_of(e, OPERATIONS));
    let (groups, versions) = (rule.at("apiGroups"), rule.at("apiVersions"));
    groups.require(e);
    wildcard_alone(&groups, "API groups", e);
    versions.require(e);
    wildcard_alone(&versions, "API versions", e);
    versions.each().for_each(|v| v.require(e));
    resources(&rule.at("resources"), e);
    rule.at("scope").one_of(e, &["*", "Cluster", "Namespaced"]);
}

fn resources(list: &At, e: &mut ErrorList) {
    list.require(e);
    // What comes after a wildcard is checked against it, as upstream does.
    let (mut all_subresources, mut all_resources) = (BTreeSet::new(), BTreeSet::new());
    let mut last_is_plain = false;
    for resource in list.each() {
        let text = resource.text();
        if text.is_empty() {
            e.push(resource.required(""));
            continue;
        }
        let Some((name, sub)) = text.split_once('/') else {
            last_is_plain = text != "*";
            continue;
        };
        if all_subresources.contains(name) {
            e.push(resource.invalid(format!("if '{name}/*' is present, must not specify {text}")));
        }
        if all_resources.contains(sub) {
            e.push(resource.invalid(format!("if '*/{sub}' is present, must not specify {text}")));
        }
        if sub == "*" {
            all_subresources.insert(name);
        }
        if name == "*" {
            all_resources.insert(sub);
        }
    }
    if list.len() > 1 && list.each().any(|r| r.text() == "*/*") {
        e.push(list.invalid("if '*/*' is present, must not specify other resources"));
    }
    if last_is_plain && list.each().any(|r| r.text() == "*") {
        let detail = "if '*' is present, must not specify other resources without subresources";
        e.push(list.invalid(detail));
    }
}

/// Conditions on a request, of a webhook or a policy.
pub(super) fn match_conditions(list: &At, params: bool, stored: &Stored, e: &mut ErrorList) {
    if list.len() > 64 {
        e.push(FieldError::too_many(&list.path, list.len(), 64));
    }
    let declared = Declared {
        params,
        authorizer: true,
        mutation: false,
    };
    let mut names = BTreeSet::new();
    for condition in list.each() {
        let (name, expression) = (condition.at("name"), condition.at("expression"));
        let trimmed = expression.text().trim();
        if trimmed.is_empty() {
            e.push(expression.required(""));
        } else {
            let version = stored.version(trimmed);
            let compiled = Compiler::stateless().compile(trimmed, declared, &*CONDITION, version);
            if let Err(detail) = compiled {
                e.push(FieldError::invalid(&expression.path, trimmed, detail));
            }
        }
        name.required_conforms(e, validation::is_qualified_name);
        if !name.is_empty() && !names.insert(name.text()) {
            e.push(name.duplicate());
        }
    }
}

/// Where a webhook is called: by URL or by service, never both.
pub(crate) fn client_config(config: &At, e: &mut ErrorList) {
    let (url, service) = (config.at("url"), config.at("service"));
    if url.exists() == service.exists() {
        return e.push(config.required("exactly one of url or service is required"));
    }
    if url.exists() {
        return self::url(&url, e);
    }
    // Upstream hands the two to its check the wrong way round, and clients see it.
    for (missing, named) in [("namespace", "name"), ("name", "namespace")] {
        if service.at(missing).is_empty() {
            e.push(service.at(named).required(""));
        }
    }
    let port = service.at("port");
    if !(1..=65535).contains(&port.num()) {
        e.push(port.invalid("port is not valid: must be between 1 and 65535, inclusive"));
    }
    let path = service.at("path");
    if path.exists() && !path.is_empty() && path.text() != "/" {
        if path.text() == "//" {
            return e.push(path.invalid("segment[0] may not be empty"));
        }
        if !path.text().starts_with('/') {
            e.push(path.invalid("must start with a '/'"));
        }
        let mut letters = path.text().chars();
        letters.next();
        let inner = letters.as_str();
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        for (i, step) in inner.split('/').enumerate() {
            if step.is_empty() {
                e.push(path.invalid(format!("segment[{i}] may not be empty")));
                continue;
            }
            for problem in validation::is_dns1123_subdomain(step) {
                e.push(path.invalid(format!("segment[{i}]: {problem}")));
            }
        }
    }
}

fn url(url: &At, e: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let text = url.text();
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_lowercase(), rest),
        _ => (String::new(), rest),
    };
    let authority = rest.strip_prefix("//").map_or("", |rest| {
        rest.split_once('/')
            .map_or(rest, |(authority, _)| authority)
    });
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    if scheme != "https" {
        let detail = format!("'https' is the only allowed URL scheme{FORM}");
        e.push(FieldError::invalid(&url.path, scheme, detail));
    }
    if host.is_empty() {
        let detail = format!("host must be specified{FORM}");
        e.push(FieldError::invalid(&url.path, "", detail));
    }
    if let Some(user) = user {
        let detail = "user information is not permitted in the URL";
        e.push(FieldError::invalid(&url.path, user, detail));
    }
    for (part, what) in [
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            e.push(FieldError::invalid(&url.path, part, what));
        }
    }
}

fn is_scheme(text: &str) -> bool {
    let mut letters = text.bytes();
    letters.next().is_some_and(|b| b.is_ascii_alphabetic())
        && letters.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}
