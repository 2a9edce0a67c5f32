//! RBAC: roles and bindings compiled into an index by subject, rebuilt when any of them changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use keelson_machinery::{labels, meta};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Attributes, Decision};
use crate::objects::Objects;
use crate::request::UserInfo;

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";
const RESOURCES: [&str; 4] = [
    "clusterroles",
    "clusterrolebindings",
    "roles",
    "rolebindings",
];

/// A `PolicyRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub paths: Vec<String>,
}

pub type Rules = Arc<[Rule]>;

impl Rule {
    pub fn from_json(rule: &Value) -> Self {
        let texts = |key: &str| {
            rule[key]
                .as_array()
                .map(|all| {
                    all.iter()
                        .filter_map(|v| v.as_str().map(ToOwned::to_owned))
                        .collect()
                })
                .unwrap_or_default()
        };
        Self {
            verbs: texts("verbs"),
            groups: texts("apiGroups"),
            resources: texts("resources"),
            names: texts("resourceNames"),
            paths: texts("nonResourceURLs"),
        }
    }

    fn has(list: &[String], wanted: &str) -> bool {
        list.iter().any(|item| item == "*" || item == wanted)
    }

    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        if !Self::has(&self.verbs, a.verb) {
            return false;
        }
        if !a.is_resource {
            return self
                .paths
                .iter()
                .any(|pattern| path_matches(pattern, a.path));
        }
        Self::has(&self.groups, a.group)
            && self
                .resources
                .iter()
                .any(|r| resource_matches(r, a.resource, a.subresource))
            && (self.names.is_empty() || self.names.iter().any(|n| n == a.name))
    }

    /// Every single thing this rule grants, as rules with one verb, group, resource and name each.
    fn atoms(&self) -> Vec<Rule> {
        let one = |s: &String| vec![s.clone()];
        let mut out = Vec::new();
        for verb in &self.verbs {
            for group in &self.groups {
                for resource in &self.resources {
                    let base = Rule {
                        verbs: one(verb),
                        groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.names.is_empty() {
                        out.push(base);
                    } else {
                        out.extend(self.names.iter().map(|n| Rule {
                            names: one(n),
                            ..base.clone()
                        }));
                    }
                }
            }
            for path in &self.paths {
                out.push(Rule {
                    verbs: one(verb),
                    paths: one(path),
                    ..Rule::default()
                });
            }
        }
        out
    }

    /// Whether this rule grants all that the single `atom` does.
    fn covers(&self, atom: &Rule) -> bool {
        if !atom.verbs.iter().all(|v| Self::has(&self.verbs, v)) {
            return false;
        }
        if let Some(path) = atom.paths.first() {
            return self.paths.iter().any(|p| path_covers(p, path));
        }
        atom.groups.iter().all(|g| Self::has(&self.groups, g))
            && atom.resources.iter().all(|r| {
                let (resource, subresource) = r.split_once('/').unwrap_or((r, ""));
                self.resources
                    .iter()
                    .any(|own| own == r || resource_matches(own, resource, subresource))
            })
            && (self.names.is_empty()
                || (!atom.names.is_empty() && atom.names.iter().all(|n| self.names.contains(n))))
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut out = json!({"verbs": self.verbs});
        for (key, list) in [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.paths),
        ] {
            if !list.is_empty() {
                out[key] = json!(list);
            }
        }
        out
    }
}

fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('/') {
        None => subresource.is_empty() && pattern == resource,
        Some(("*", sub)) => !subresource.is_empty() && sub == subresource,
        Some((own, sub)) => own == resource && sub == subresource && !subresource.is_empty(),
    }
}

pub(crate) fn path_matches(pattern: &str, path: &str) -> bool {
    pattern == "*"
        || pattern == path
        || pattern
            .strip_suffix('*')
            .is_some_and(|prefix| path.starts_with(prefix))
}

fn path_covers(own: &str, other: &str) -> bool {
    path_matches(own, other.strip_suffix('*').unwrap_or(other))
        && (!other.ends_with('*') || own.ends_with('*'))
}

/// What is granted to whom.
#[derive(Default)]
struct Index {
    cluster: HashMap<Subject, Vec<Grant>>,
    /// By namespace.
    namespaced: HashMap<String, HashMap<Subject, Vec<Grant>>>,
}

/// The rules of a role, and by which binding they are held.
struct Grant {
    rules: Rules,
    reason: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

pub struct Rbac {
    objects: Arc<dyn Objects>,
    state: Mutex<State>,
}

struct State {
    index: Arc<Index>,
    changes: Vec<watch::Receiver<u64>>,
}

impl Rbac {
    pub(super) fn new(objects: Arc<dyn Objects>) -> Self {
        Self {
            objects,
            state: Mutex::new(State {
                index: Arc::default(),
                changes: Vec::new(),
            }),
        }
    }

    /// The index as of the last change the caches have seen.
    fn index(&self) -> Arc<Index> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.changes.is_empty() {
            state.changes = RESOURCES
                .iter()
                .map(|r| self.objects.changes(GROUP, r))
                .collect();
            state
                .changes
                .iter_mut()
                .for_each(watch::Receiver::mark_changed);
        }
        let changed = state.changes.iter_mut().fold(false, |any, receiver| {
            let changed = receiver.has_changed().unwrap_or(false);
            if changed {
                receiver.mark_unchanged();
            }
            any | changed
        });
        if changed {
            state.index = Arc::new(build(&*self.objects));
        }
        Arc::clone(&state.index)
    }

    pub(super) fn authorize(&self, a: &Attributes<'_>) -> Decision {
        let mut reason = None;
        self.visit(a.user, a.namespace, &mut |grant| {
            if grant.rules.iter().any(|rule| rule.allows(a)) {
                reason = Some(grant.reason.to_string());
            }
            reason.is_none()
        });
        match reason {
            Some(reason) => Decision::Allow(reason),
            None => Decision::NoOpinion(String::new()),
        }
    }

    /// Calls `look` with each grant until it answers false.
    fn visit(&self, user: &UserInfo, namespace: &str, look: &mut dyn FnMut(&Grant) -> bool) {
        let index = self.index();
        let subjects: Vec<Subject> = std::iter::once(Subject::User(user.username.clone()))
            .chain(user.groups.iter().cloned().map(Subject::Group))
            .collect();
        let local = (!namespace.is_empty())
            .then(|| index.namespaced.get(namespace))
            .flatten();
        for map in [Some(&index.cluster), local].into_iter().flatten() {
            for subject in &subjects {
                for grant in map.get(subject).into_iter().flatten() {
                    if !look(grant) {
                        return;
                    }
                }
            }
        }
    }

    /// All rules that hold for the user in the namespace (cluster-wide ones included).
    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let mut out = Vec::new();
        if user.in_group("system:masters") {
            out.push(all_resources());
            out.push(Rule {
                verbs: vec!["*".to_owned()],
                paths: vec!["*".to_owned()],
                ..Rule::default()
            });
        }
        self.visit(user, namespace, &mut |grant| {
            out.extend(grant.rules.iter().cloned());
            true
        });
        out
    }

    /// What of `wanted` the user does not hold in the namespace: empty means no escalation.
    pub(crate) fn missing(&self, user: &UserInfo, namespace: &str, wanted: &[Rule]) -> Vec<Rule> {
        let own = self.rules_for(user, namespace);
        wanted
            .iter()
            .flat_map(Rule::atoms)
            .filter(|atom| !own.iter().any(|rule| rule.covers(atom)))
            .collect()
    }

    /// The rules of the role a binding refers to; `None` when there is no such role.
    pub(crate) fn role_rules(&self, reference: &Value, namespace: &str) -> Option<Vec<Rule>> {
        let name = reference["name"].as_str().unwrap_or_default();
        let role = match reference["kind"].as_str() {
            Some("ClusterRole") => self.objects.get(GROUP, "clusterroles", "", name)?,
            Some("Role") => self.objects.get(GROUP, "roles", namespace, name)?,
            _ => return None,
        };
        Some(rules_of(
            &role,
            &self.objects.list(GROUP, "clusterroles", ""),
        ))
    }
}

fn all_resources() -> Rule {
    let any = || vec!["*".to_owned()];
    Rule {
        verbs: any(),
        groups: any(),
        resources: any(),
        ..Rule::default()
    }
}

/// A role's rules; those of the roles it aggregates included, whether or not they have been
/// written into it yet.
pub(crate) fn rules_of(role: &Value, cluster_roles: &[Arc<Value>]) -> Vec<Rule> {
    match aggregate(role, cluster_roles) {
        Some(rules) => rules.iter().map(Rule::from_json).collect(),
        None => role["rules"]
            .as_array()
            .into_iter()
            .flatten()
            .map(Rule::from_json)
            .collect(),
    }
}

/// The `rules` that an aggregated cluster role should hold: those of every selected role, by
/// name, without repeats. `None` for a role that aggregates nothing.
pub(crate) fn aggregate(role: &Value, cluster_roles: &[Arc<Value>]) -> Option<Vec<Value>> {
    aggregate_to_depth(role, cluster_roles, 0)
}

fn aggregate_to_depth(
    role: &Value,
    cluster_roles: &[Arc<Value>],
    depth: usize,
) -> Option<Vec<Value>> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let selectors: Vec<_> = selectors
        .iter()
        .filter_map(|s| labels::Selector::from_label_selector(s).ok())
        .collect();
    let own_name = meta::name(role);
    let mut chosen: Vec<&Arc<Value>> = cluster_roles
        .iter()
        .filter(|other| meta::name(other) != own_name)
        .filter(|other| {
            let labels = meta::labels(other);
            selectors.iter().any(|selector| selector.matches(&labels))
        })
        .collect();
    chosen.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
    let mut rules: Vec<Value> = Vec::new();
    for other in chosen {
        // Aggregates may select aggregates (admin selects edit selects view); a cycle ends here.
        let nested = (depth < 4)
            .then(|| aggregate_to_depth(other, cluster_roles, depth + 1))
            .flatten();
        let theirs =
            nested.unwrap_or_else(|| other["rules"].as_array().cloned().unwrap_or_default());
        for rule in theirs {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    Some(rules)
}

fn build(objects: &dyn Objects) -> Index {
    let cluster_roles = objects.list(GROUP, "clusterroles", "");
    let by_name: HashMap<&str, Rules> = cluster_roles
        .iter()
        .map(|role| (meta::name(role), rules_of(role, &cluster_roles).into()))
        .collect();
    let roles = objects.list(GROUP, "roles", "");
    let by_namespace: HashMap<(&str, &str), Rules> = roles
        .iter()
        .map(|role| {
            (
                (meta::namespace(role), meta::name(role)),
                rules_of(role, &[]).into(),
            )
        })
        .collect();
    let mut index = Index::default();
    for binding in objects.list(GROUP, "clusterrolebindings", "") {
        let name = binding["roleRef"]["name"].as_str().unwrap_or_default();
        if let Some(rules) = by_name.get(name) {
            grant(&mut index.cluster, &binding, rules, "");
        }
    }
    for binding in objects.list(GROUP, "rolebindings", "") {
        let namespace = meta::namespace(&binding);
        let name = binding["roleRef"]["name"].as_str().unwrap_or_default();
        let rules = match binding["roleRef"]["kind"].as_str() {
            Some("ClusterRole") => by_name.get(name),
            _ => by_namespace.get(&(namespace, name)),
        };
        if let Some(rules) = rules {
            grant(
                index.namespaced.entry(namespace.to_owned()).or_default(),
                &binding,
                rules,
                namespace,
            );
        }
    }
    index
}

fn grant(map: &mut HashMap<Subject, Vec<Grant>>, binding: &Value, rules: &Rules, namespace: &str) {
    for subject in binding["subjects"].as_array().into_iter().flatten() {
        let name = subject["name"].as_str().unwrap_or_default().to_owned();
        let reason = reason(binding, subject, namespace).into();
        let subject = match subject["kind"].as_str() {
            Some("User") => Subject::User(name),
            Some("Group") => Subject::Group(name),
            Some("ServiceAccount") => {
                let own = subject["namespace"]
                    .as_str()
                    .filter(|n| !n.is_empty())
                    .unwrap_or(namespace);
                if own.is_empty() {
                    continue;
                }
                Subject::User(format!("system:serviceaccount:{own}:{name}"))
            }
            _ => continue,
        };
        map.entry(subject).or_default().push(Grant {
            rules: Arc::clone(rules),
            reason,
        });
    }
}

/// Upstream's words for why somebody is allowed; SubjectAccessReview and the audit log show them.
fn reason(binding: &Value, subject: &Value, namespace: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, shown) = if namespace.is_empty() {
        ("ClusterRoleBinding", meta::name(binding).to_owned())
    } else {
        (
            "RoleBinding",
            format!("{}/{namespace}", meta::name(binding)),
        )
    };
    let (holder, name) = (text(&subject["kind"]), text(&subject["name"]));
    let who = if holder == "ServiceAccount" {
        let own = text(&subject["namespace"]);
        let own = if own.is_empty() {
            namespace.to_owned()
        } else {
            own
        };
        format!("{name}/{own}")
    } else {
        name
    };
    let role = &binding["roleRef"];
    format!(
        "RBAC: allowed by {kind} {shown:?} of {} {:?} to {holder} {who:?}",
        text(&role["kind"]),
        text(&role["name"])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        Rule {
            verbs: own(verbs),
            groups: own(groups),
            resources: own(resources),
            names: own(names),
            paths: vec![],
        }
    }

    #[test]
    fn rules_match_verbs_groups_resources_and_names() {
        let user = UserInfo::new("u", &[]);
        let ask = |verb, group, resource, subresource, name| Attributes {
            subresource,
            ..Attributes::resource(&user, verb, group, resource, "ns", name)
        };
        let table = [
            (
                rule(&["get"], &[""], &["pods"], &[]),
                ask("get", "", "pods", "", "a"),
                true,
            ),
            (
                rule(&["get"], &[""], &["pods"], &[]),
                ask("get", "", "pods", "log", "a"),
                false,
            ),
            (
                rule(&["get"], &[""], &["pods/log"], &[]),
                ask("get", "", "pods", "log", "a"),
                true,
            ),
            (
                rule(&["get"], &[""], &["pods/log"], &[]),
                ask("get", "", "pods", "", "a"),
                false,
            ),
            (
                rule(&["get"], &["*"], &["*/scale"], &[]),
                ask("get", "apps", "deployments", "scale", "a"),
                true,
            ),
            (
                rule(&["*"], &["*"], &["*"], &[]),
                ask("bind", "x", "y", "z", "a"),
                true,
            ),
            (
                rule(&["get"], &[""], &["pods"], &["b"]),
                ask("get", "", "pods", "", "a"),
                false,
            ),
            (
                rule(&["list"], &[""], &["pods"], &["b"]),
                ask("list", "", "pods", "", ""),
                false,
            ),
            (
                rule(&["get"], &["apps"], &["pods"], &[]),
                ask("get", "", "pods", "", "a"),
                false,
            ),
        ];
        for (rule, attributes, expected) in table {
            assert_eq!(
                rule.allows(&attributes),
                expected,
                "{rule:?} {attributes:?}"
            );
        }
    }

    #[test]
    fn paths_match_exactly_or_by_prefix() {
        assert!(path_matches("/healthz/*", "/healthz/ping"));
        assert!(!path_matches("/healthz", "/healthz/ping"));
        assert!(path_covers("*", "/a/*"));
        assert!(!path_covers("/a", "/a*"));
    }

    #[test]
    fn a_rule_covers_what_it_grants_and_no_more() {
        let own = rule(&["get", "list"], &[""], &["pods", "pods/*"], &[]);
        let wanted = rule(&["get"], &[""], &["pods"], &["x"]);
        assert!(wanted.atoms().iter().all(|atom| own.covers(atom)));
        let narrow = rule(&["get"], &[""], &["pods"], &["x"]);
        let wide = rule(&["get"], &[""], &["pods"], &[]);
        assert!(!wide.atoms().iter().all(|atom| narrow.covers(atom)));
        assert!(
            !rule(&["*"], &[""], &["pods"], &[])
                .atoms()
                .iter()
                .all(|atom| own.covers(atom))
        );
    }

    #[test]
    fn aggregates_follow_labels_through_aggregates() {
        let view = json!({"metadata": {"name": "view"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"v": "1"}}]}, "rules": []});
        let edit = json!({"metadata": {"name": "edit"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"e": "1"}}]}});
        let mut view_labelled = view.clone();
        view_labelled["metadata"]["labels"] = json!({"e": "1"});
        let leaf = json!({"metadata": {"name": "leaf", "labels": {"v": "1"}}, "rules": [{"verbs": ["get"]}]});
        let all = vec![
            Arc::new(view_labelled),
            Arc::new(edit.clone()),
            Arc::new(leaf),
        ];
        assert_eq!(aggregate(&edit, &all).unwrap(), [json!({"verbs": ["get"]})]);
        assert_eq!(aggregate(&json!({"rules": []}), &all), None);
    }
}
