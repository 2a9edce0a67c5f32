//! What requests a webhook or policy is about.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::{Value, json};

use crate::check::At;
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
    let all: Vec<_> = list.each().collect();
    for resource in &all {
        let text = resource.text();
        if text.is_empty() {
            e.push(resource.required(""));
            continue;
        }
        let Some((name, sub)) = text.split_once('/') else {
            continue;
        };
        let has = |other: String| other != text && all.iter().any(|o| o.text() == other);
        if sub != "*" && has(format!("{name}/*")) {
            e.push(resource.invalid(format!("if '{name}/*' is present, must not specify {text}")));
        }
        if name != "*" && has(format!("*/{sub}")) {
            e.push(resource.invalid(format!("if '*/{sub}' is present, must not specify {text}")));
        }
    }
    if all.len() > 1 && all.iter().any(|r| r.text() == "*/*") {
        e.push(list.invalid("if '*/*' is present, must not specify other resources"));
    }
    if all.iter().any(|r| r.text() == "*")
        && all
            .iter()
            .any(|r| !r.text().contains('/') && r.text() != "*")
    {
        let detail = "if '*' is present, must not specify other resources without subresources";
        e.push(list.invalid(detail));
    }
}

/// Conditions in CEL; the expressions themselves are compiled where they run.
pub(super) fn match_conditions(list: &At, e: &mut ErrorList) {
    if list.len() > 64 {
        return e.push(FieldError::too_many(&list.path, list.len(), 64));
    }
    let mut names = std::collections::BTreeSet::new();
    for condition in list.each() {
        let name = condition.at("name");
        name.required_conforms(e, validation::is_qualified_name);
        if !name.is_empty() && !names.insert(name.text()) {
            e.push(name.duplicate());
        }
        if condition.at("expression").text().trim().is_empty() {
            e.push(condition.at("expression").required(""));
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
    service.at("name").require(e);
    service.at("namespace").require(e);
    let port = service.at("port");
    if !(1..=65535).contains(&port.num()) {
        e.push(port.invalid("port is not valid: must be between 1 and 65535, inclusive"));
    }
    let path = service.at("path");
    if path.exists() && !path.is_empty() && path.text() != "/" {
        if !path.text().starts_with('/') {
            return e.push(path.invalid("must start with a '/'"));
        }
        let inner = path.text().trim_start_matches('/').trim_end_matches('/');
        for (i, step) in inner.split('/').enumerate() {
            if step.is_empty() {
                e.push(path.invalid(format!("segment[{i}] may not be empty")));
            }
        }
    }
}

fn url(url: &At, e: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let text = url.text();
    let Some(rest) = text.strip_prefix("https://") else {
        return e.push(url.invalid(format!("'https' is the only allowed URL scheme{FORM}")));
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or("");
    if host.is_empty() {
        e.push(url.invalid(format!("host must be specified{FORM}")));
    }
    if host.contains('@') {
        e.push(url.invalid(format!(
            "user information is not permitted in the URL{FORM}"
        )));
    }
    for (mark, what) in [
        ('#', "fragments are not permitted in the URL"),
        ('?', "query parameters are not permitted in the URL"),
    ] {
        if rest.contains(mark) {
            e.push(url.invalid(format!("{what}{FORM}")));
        }
    }
}
