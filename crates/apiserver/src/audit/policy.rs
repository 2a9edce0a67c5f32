//! Which requests are recorded, and how much of them: the first rule that matches says.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::request::{RequestInfo, UserInfo};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// `audit.k8s.io/v1` `Policy`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Policy {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Map<String, serde_json::Value>,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: BTreeSet<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    paths: Vec<String>,
    #[serde(default)]
    omit_stages: BTreeSet<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What is to be recorded of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) level: Level,
    pub(crate) omit_stages: BTreeSet<Stage>,
    pub(crate) omit_managed_fields: bool,
}

impl Policy {
    /// From YAML; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let policy: Self = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if policy.kind != "Policy" || policy.api_version != "audit.k8s.io/v1" {
            return Err(format!(
                "expected a Policy of audit.k8s.io/v1, found {} of {}",
                policy.kind, policy.api_version
            ));
        }
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".to_owned());
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            rule.check()
                .map_err(|reason| format!("rules[{index}]{reason}"))?;
        }
        Ok(policy)
    }

    pub(crate) fn verdict(&self, user: &UserInfo, info: &RequestInfo) -> Verdict {
        let rule = self.rules.iter().find(|rule| rule.matches(user, info));
        let mut omit_stages = self.omit_stages.clone();
        if let Some(rule) = rule {
            omit_stages.extend(&rule.omit_stages);
        }
        Verdict {
            level: rule.map_or(Level::None, |rule| rule.level),
            omit_stages,
            omit_managed_fields: rule
                .and_then(|rule| rule.omit_managed_fields)
                .unwrap_or(self.omit_managed_fields),
        }
    }
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        if !(self.paths.is_empty() || self.resources.is_empty() && self.namespaces.is_empty()) {
            return Err(
                ".nonResourceURLs: rules cannot apply to both regular resources and non-resource URLs"
                    .to_owned(),
            );
        }
        for path in self.paths.iter().filter(|path| *path != "*") {
            if !path.starts_with('/') {
                return Err(format!(
                    ".nonResourceURLs: {path:?}: non-resource URL rules must begin with a '/' character"
                ));
            }
            if path.find('*').is_some_and(|at| at + 1 < path.len()) {
                return Err(format!(
                    ".nonResourceURLs: {path:?}: non-resource URL wildcards '*' must be the final character of the rule"
                ));
            }
        }
        for resources in &self.resources {
            if !matches!(resources.group.as_str(), "" | "*") {
                let problems =
                    keelson_machinery::validation::is_dns1123_subdomain(&resources.group);
                if !problems.is_empty() {
                    return Err(format!(
                        ".resources.group: {:?}: {}",
                        resources.group,
                        problems.join(",")
                    ));
                }
            }
            if !resources.resource_names.is_empty() && resources.resources.is_empty() {
                return Err(
                    ".resources.resourceNames: using resourceNames requires at least one resource"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        let among = |list: &[String], wanted: &str| {
            list.is_empty() || list.iter().any(|item| item == wanted)
        };
        let grouped =
            self.user_groups.is_empty() || self.user_groups.iter().any(|g| user.in_group(g));
        if !among(&self.users, &user.username) || !grouped || !among(&self.verbs, &info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && among(&self.namespaces, &info.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(info)));
        }
        self.paths.is_empty()
            || (!info.is_resource
                && self
                    .paths
                    .iter()
                    .any(|pattern| crate::authz::rbac::path_matches(pattern, &info.path)))
    }
}

impl Resources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != "*" && self.group != info.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.contains(&info.name) {
            return false;
        }
        self.resources
            .iter()
            .any(|pattern| match pattern.split_once('/') {
                None => {
                    pattern == "*" || (info.subresource.is_empty() && *pattern == info.resource)
                }
                Some(("*", sub)) => !info.subresource.is_empty() && sub == info.subresource,
                // Unlike in RBAC, all of a resource's subresources mean the resource too.
                Some((resource, "*")) => resource == info.resource,
                Some((resource, sub)) => resource == info.resource && sub == info.subresource,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Uri};

    fn verdict(policy: &Policy, user: &UserInfo, method: Method, path: &'static str) -> Level {
        let info = RequestInfo::parse(&method, &Uri::from_static(path));
        policy.verdict(user, &info).level
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::parse(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
             - {level: None, users: ['system:kube-proxy'], verbs: [watch]}\n\
             - {level: Metadata, resources: [{group: '', resources: [secrets, 'pods/*']}]}\n\
             - {level: Request, namespaces: [prod], omitStages: [ResponseStarted]}\n\
             - {level: None, userGroups: ['system:nodes'], nonResourceURLs: ['/healthz*', /version]}\n\
             - {level: RequestResponse, resources: [{group: apps, resources: ['*/scale']}]}\n",
        )
        .unwrap();
        let (proxy, node, user) = (
            UserInfo::new("system:kube-proxy", &[]),
            UserInfo::new("n", &["system:nodes"]),
            UserInfo::new("u", &[]),
        );
        let table = [
            (&proxy, Method::GET, "/api/v1/pods?watch=1", Level::None),
            (
                &user,
                Method::GET,
                "/api/v1/namespaces/a/secrets/x",
                Level::Metadata,
            ),
            (
                &user,
                Method::GET,
                "/api/v1/namespaces/a/pods/x",
                Level::Metadata,
            ),
            (
                &user,
                Method::GET,
                "/api/v1/namespaces/a/pods/x/log",
                Level::Metadata,
            ),
            (
                &user,
                Method::GET,
                "/api/v1/namespaces/prod/configmaps",
                Level::Request,
            ),
            (&node, Method::GET, "/healthz/ping", Level::None),
            (
                &user,
                Method::GET,
                "/apis/apps/v1/namespaces/a/deployments/x/scale",
                Level::RequestResponse,
            ),
            (
                &user,
                Method::GET,
                "/apis/apps/v1/namespaces/a/deployments/x",
                Level::None,
            ),
        ];
        for (user, method, path, expected) in table {
            assert_eq!(verdict(&policy, user, method, path), expected, "{path}");
        }
        let info = RequestInfo::parse(
            &Method::GET,
            &Uri::from_static("/api/v1/namespaces/prod/configmaps"),
        );
        assert_eq!(
            policy.verdict(&user, &info).omit_stages,
            BTreeSet::from([Stage::RequestReceived, Stage::ResponseStarted])
        );
    }

    #[test]
    fn a_bad_policy_is_refused_with_the_reason() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n";
        for (text, reason) in [
            ("- {level: Some}", "Some"),
            (
                "- {level: None, nonResourceURLs: [x]}",
                "must begin with a '/'",
            ),
            (
                "- {level: None, nonResourceURLs: [/x], namespaces: [a]}",
                "cannot apply to both",
            ),
            (
                "- {level: None, resources: [{resourceNames: [a]}]}",
                "requires at least one resource",
            ),
            ("- {level: None, other: 1}", "other"),
        ] {
            let error = Policy::parse(&format!("{head}{text}\n")).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(Policy::parse("apiVersion: v1\nkind: Pod\nrules: []\n").is_err());
    }
}
