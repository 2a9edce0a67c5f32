//! Which FlowSchema a request belongs to: schemas compiled, so that a request is matched without
//! looking at JSON.

use std::hash::{DefaultHasher, Hash, Hasher};

use keelson_machinery::meta;
use serde_json::Value;

use crate::authz::rbac::path_matches;
use crate::request::{RequestInfo, UserInfo};

pub(super) struct Schema {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) level: String,
    precedence: i64,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

enum Distinguisher {
    None,
    User,
    Namespace,
}

struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

enum Subject {
    User(String),
    Group(String),
    Account { namespace: String, name: String },
}

struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

/// Every schema in the order in which they are asked.
pub(super) fn schemas<'a>(objects: impl Iterator<Item = &'a Value>) -> Vec<Schema> {
    let mut all: Vec<Schema> = objects.map(Schema::compile).collect();
    all.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
    all
}

fn texts(value: &Value) -> Vec<String> {
    let all = value.as_array().into_iter().flatten();
    all.filter_map(|v| v.as_str().map(ToOwned::to_owned))
        .collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Schema {
    fn compile(object: &Value) -> Self {
        let spec = &object["spec"];
        let items = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
        let rules = items(&spec["rules"]).iter().map(Rule::compile).collect();
        Self {
            name: meta::name(object).to_owned(),
            uid: meta::uid(object).to_owned(),
            level: spec["priorityLevelConfiguration"]["name"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            distinguisher: match spec["distinguisherMethod"]["type"].as_str() {
                Some("ByUser") => Distinguisher::User,
                Some("ByNamespace") => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules,
        }
    }

    pub(super) fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| rule.matches(user, info))
    }

    /// The same number for all requests of one flow.
    pub(super) fn flow(&self, user: &UserInfo, info: &RequestInfo) -> u64 {
        let distinguisher = match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.username,
            Distinguisher::Namespace => &info.namespace,
        };
        let mut hasher = DefaultHasher::new();
        (&self.name, distinguisher).hash(&mut hasher);
        hasher.finish()
    }
}

impl Rule {
    fn compile(rule: &Value) -> Self {
        let items = |key: &str| rule[key].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let subject = |subject: Value| match subject["kind"].as_str() {
            Some("User") => Some(Subject::User(text(&subject["user"]["name"]))),
            Some("Group") => Some(Subject::Group(text(&subject["group"]["name"]))),
            Some("ServiceAccount") => Some(Subject::Account {
                namespace: text(&subject["serviceAccount"]["namespace"]),
                name: text(&subject["serviceAccount"]["name"]),
            }),
            _ => None,
        };
        Self {
            subjects: items("subjects").into_iter().filter_map(subject).collect(),
            resources: items("resourceRules")
                .iter()
                .map(|r| ResourceRule {
                    verbs: texts(&r["verbs"]),
                    groups: texts(&r["apiGroups"]),
                    resources: texts(&r["resources"]),
                    namespaces: texts(&r["namespaces"]),
                    cluster_scope: r["clusterScope"] == true,
                })
                .collect(),
            paths: items("nonResourceRules")
                .iter()
                .map(|r| PathRule {
                    verbs: texts(&r["verbs"]),
                    paths: texts(&r["nonResourceURLs"]),
                })
                .collect(),
        }
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.subjects.iter().any(|subject| subject.matches(user))
            && if info.is_resource {
                self.resources.iter().any(|rule| rule.matches(info))
            } else {
                self.paths.iter().any(|rule| {
                    has(&rule.verbs, &info.verb)
                        && rule.paths.iter().any(|p| path_matches(p, &info.path))
                })
            }
    }
}

impl Subject {
    fn matches(&self, user: &UserInfo) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == user.username,
            Self::Group(name) => name == "*" || user.in_group(name),
            Self::Account { namespace, name } => {
                user.as_service_account()
                    .is_some_and(|(own_namespace, own)| {
                        own_namespace == namespace && (name == "*" || name == own)
                    })
            }
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let scope = if info.namespace.is_empty() {
            self.cluster_scope
        } else {
            has(&self.namespaces, &info.namespace)
        };
        let named = |pattern: &String| match pattern.split_once('/') {
            None => pattern == "*" || (info.subresource.is_empty() && *pattern == info.resource),
            Some((resource, sub)) => resource == info.resource && sub == info.subresource,
        };
        scope
            && has(&self.verbs, &info.verb)
            && has(&self.groups, &info.group)
            && self.resources.iter().any(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Uri};
    use serde_json::json;

    fn schema(name: &str, precedence: i64, subject: Value) -> Value {
        json!({"metadata": {"name": name}, "spec": {
            "priorityLevelConfiguration": {"name": "l"}, "matchingPrecedence": precedence,
            "distinguisherMethod": {"type": "ByNamespace"},
            "rules": [{"subjects": [subject], "resourceRules": [
                {"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/status"], "namespaces": ["*"]}],
                "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz/*"]}]}]}})
    }

    #[test]
    fn the_lowest_precedence_that_matches_wins() {
        let all = [
            schema("b", 200, json!({"kind": "Group", "group": {"name": "*"}})),
            schema(
                "a",
                100,
                json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "ns", "name": "*"}}),
            ),
            schema("c", 100, json!({"kind": "User", "user": {"name": "jane"}})),
        ];
        let schemas = schemas(all.iter());
        let found = |user: &UserInfo, path: &'static str| {
            let info = RequestInfo::parse(&Method::GET, &Uri::from_static(path));
            schemas
                .iter()
                .find(|s| s.matches(user, &info))
                .map(|s| s.name.clone())
        };
        let (jane, account) = (
            UserInfo::new("jane", &["x"]),
            UserInfo::service_account("ns", "sa"),
        );
        let pod = "/api/v1/namespaces/a/pods/p";
        assert_eq!(found(&jane, pod).as_deref(), Some("c"));
        assert_eq!(found(&account, pod).as_deref(), Some("a"));
        assert_eq!(
            found(&UserInfo::new("joe", &["x"]), pod).as_deref(),
            Some("b")
        );
        assert_eq!(found(&jane, "/api/v1/namespaces/a/pods/p/log"), None);
        assert_eq!(found(&jane, "/api/v1/nodes/n"), None);
        assert_eq!(found(&jane, "/healthz/ping").as_deref(), Some("c"));
        let flow = |path: &'static str| {
            let info = RequestInfo::parse(&Method::GET, &Uri::from_static(path));
            schemas[0].flow(&jane, &info)
        };
        assert_eq!(flow(pod), flow("/api/v1/namespaces/a/pods/q"));
        assert_ne!(flow(pod), flow("/api/v1/namespaces/b/pods/p"));
    }
}
