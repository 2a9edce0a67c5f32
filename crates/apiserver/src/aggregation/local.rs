//! APIServices of what is served here. Those of built-in groups are made once, at the start, and
//! are then the administrator's; those of custom resources are kept.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use keelson_machinery::meta;
use serde_json::{Value, json};

use super::{GROUP, RESOURCE, report, tell};
use crate::objects::Objects;
use crate::server::Server;

const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const ON_START: &str = "onstart";
const ALWAYS: &str = "true";
/// Custom groups stand behind the built-in ones.
const CUSTOM: (i64, i64) = (1000, 100);

/// Group, version, and upstream's priorities of both.
#[rustfmt::skip]
const PRIORITIES: &[(&str, &str, i64, i64)] = &[
    ("", "v1", 18000, 1),
    ("apps", "v1", 17800, 15),
    ("events.k8s.io", "v1", 17750, 15),
    ("events.k8s.io", "v1beta1", 17750, 5),
    ("authentication.k8s.io", "v1", 17700, 15),
    ("authentication.k8s.io", "v1beta1", 17700, 9),
    ("authentication.k8s.io", "v1alpha1", 17700, 1),
    ("authorization.k8s.io", "v1", 17600, 15),
    ("autoscaling", "v2", 17500, 30),
    ("autoscaling", "v1", 17500, 15),
    ("autoscaling", "v2beta1", 17500, 9),
    ("autoscaling", "v2beta2", 17500, 1),
    ("batch", "v1", 17400, 15),
    ("batch", "v1beta1", 17400, 9),
    ("batch", "v2alpha1", 17400, 9),
    ("certificates.k8s.io", "v1", 17300, 15),
    ("certificates.k8s.io", "v1beta1", 17300, 9),
    ("certificates.k8s.io", "v1alpha1", 17300, 1),
    ("networking.k8s.io", "v1", 17200, 15),
    ("networking.k8s.io", "v1beta1", 17200, 9),
    ("policy", "v1", 17100, 15),
    ("policy", "v1beta1", 17100, 9),
    ("rbac.authorization.k8s.io", "v1", 17000, 15),
    ("storage.k8s.io", "v1", 16800, 15),
    ("storage.k8s.io", "v1beta1", 16800, 9),
    ("storage.k8s.io", "v1alpha1", 16800, 1),
    ("admissionregistration.k8s.io", "v1", 16700, 15),
    ("admissionregistration.k8s.io", "v1beta1", 16700, 12),
    ("admissionregistration.k8s.io", "v1alpha1", 16700, 9),
    ("apiextensions.k8s.io", "v1", 16700, 15),
    ("scheduling.k8s.io", "v1", 16600, 15),
    ("scheduling.k8s.io", "v1alpha2", 16600, 2),
    ("coordination.k8s.io", "v1", 16500, 15),
    ("coordination.k8s.io", "v1beta1", 16500, 13),
    ("coordination.k8s.io", "v1alpha2", 16500, 12),
    ("node.k8s.io", "v1", 16300, 15),
    ("node.k8s.io", "v1beta1", 16300, 9),
    ("node.k8s.io", "v1alpha1", 16300, 1),
    ("discovery.k8s.io", "v1", 16200, 15),
    ("discovery.k8s.io", "v1beta1", 16200, 12),
    ("resource.k8s.io", "v1", 16200, 21),
    ("resource.k8s.io", "v1beta2", 16200, 15),
    ("resource.k8s.io", "v1beta1", 16200, 9),
    ("resource.k8s.io", "v1alpha3", 16200, 1),
    ("flowcontrol.apiserver.k8s.io", "v1", 16100, 21),
    ("flowcontrol.apiserver.k8s.io", "v1beta3", 16100, 18),
    ("flowcontrol.apiserver.k8s.io", "v1beta2", 16100, 15),
    ("flowcontrol.apiserver.k8s.io", "v1beta1", 16100, 12),
    ("flowcontrol.apiserver.k8s.io", "v1alpha1", 16100, 9),
    ("internal.apiserver.k8s.io", "v1alpha1", 16000, 9),
    ("storagemigration.k8s.io", "v1beta1", 15800, 9),
];

/// Names of APIServices, of which some are only made or changed once.
pub(super) struct Registration {
    at_start: HashSet<String>,
    done: HashSet<String>,
}

struct Wanted {
    spec: Value,
    sync: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Create,
    Delete,
    Update,
}

impl Registration {
    pub(super) fn new(objects: &Arc<dyn Objects>) -> Self {
        let found = objects.list(GROUP, RESOURCE, "");
        Self {
            at_start: found.iter().map(|o| meta::name(o).to_owned()).collect(),
            done: HashSet::new(),
        }
    }

    /// Makes, changes and removes what is managed here, and says of all local ones that they are
    /// available.
    pub(super) async fn keep(&mut self, server: &Arc<Server>) {
        let objects = &server.objects;
        let mut wanted = wanted(server);
        let found = objects.list(GROUP, RESOURCE, "");
        let mut names: Vec<String> = found.iter().map(|o| meta::name(o).to_owned()).collect();
        names.extend(wanted.keys().cloned());
        names.sort();
        names.dedup();
        let changes = names.into_iter().filter_map(|name| {
            let wanted = wanted.remove(&name);
            let found = objects.get(GROUP, RESOURCE, "", &name);
            let step = self.step(&name, wanted.as_ref(), found.as_deref());
            (step != Step::Nothing).then_some((name, wanted, found, step))
        });
        let changes: Vec<_> = changes.collect();
        let writes = changes
            .into_iter()
            .map(|(name, wanted, found, step)| async move {
                let outcome = match (step, wanted, found) {
                    (Step::Create, Some(wanted), _) => {
                        let object = json!({
                            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                            "metadata": {"name": name, "labels": {AUTOMANAGED: wanted.sync}},
                            "spec": wanted.spec,
                        });
                        objects.create(GROUP, RESOURCE, "", object).await
                    }
                    (Step::Update, Some(wanted), Some(found)) => {
                        let mut updated = Value::clone(&found);
                        updated["spec"] = wanted.spec;
                        objects.update(GROUP, RESOURCE, "", updated).await
                    }
                    _ => {
                        let deleted = objects.delete(GROUP, RESOURCE, "", &name).await;
                        deleted.map(|()| Value::Null)
                    }
                };
                report(outcome, &name);
            });
        futures::future::join_all(writes).await;
        let local = objects.list(GROUP, RESOURCE, "");
        let local = local.iter().filter(|o| o["spec"]["service"].is_null());
        let told = local.map(|object| {
            let message = "Local APIServices are always available";
            tell(server, meta::name(object), "True", "Local", message)
        });
        futures::future::join_all(told).await;
    }

    fn step(&mut self, name: &str, wanted: Option<&Wanted>, found: Option<&Value>) -> Step {
        let first = self.done.insert(name.to_owned());
        if wanted.is_some_and(|wanted| wanted.sync == ON_START) && !first {
            return Step::Nothing;
        }
        let Some(found) = found else {
            return match wanted {
                Some(_) => Step::Create,
                None => Step::Nothing,
            };
        };
        match meta::label(found, AUTOMANAGED) {
            Some(ON_START) if !first || !self.at_start.contains(name) => Step::Nothing,
            Some(ON_START | ALWAYS) => match wanted {
                None => Step::Delete,
                Some(wanted) if found["spec"] == wanted.spec => Step::Nothing,
                Some(_) => Step::Update,
            },
            _ => Step::Nothing,
        }
    }
}

fn wanted(server: &Arc<Server>) -> BTreeMap<String, Wanted> {
    let snapshot = server.discovery.current(server);
    let mut wanted = BTreeMap::new();
    for group in &snapshot.groups {
        for version in &group.versions {
            let custom = version.resources.iter().all(|r| r.custom);
            let (group_name, version) = (group.name.as_str(), version.version.as_str());
            let known = PRIORITIES
                .iter()
                .find(|(g, v, ..)| (*g, *v) == (group_name, version));
            let priorities = match known {
                Some((.., group, version)) => (*group, *version),
                None if custom => CUSTOM,
                // The group of APIServices is in no need of one.
                None => continue,
            };
            let mut spec = json!({
                "group": group_name, "version": version,
                "groupPriorityMinimum": priorities.0, "versionPriority": priorities.1,
            });
            if group_name.is_empty()
                && let Some(spec) = spec.as_object_mut()
            {
                spec.remove("group");
            }
            let sync = if custom { ALWAYS } else { ON_START };
            wanted.insert(format!("{version}.{group_name}"), Wanted { spec, sync });
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_ones_are_made_once_and_custom_ones_kept() {
        let mut registration = Registration {
            at_start: HashSet::from(["v1.old".to_owned(), "v1.gone".to_owned()]),
            done: HashSet::new(),
        };
        let spec = json!({"group": "g"});
        let wanted = |sync| Wanted {
            spec: spec.clone(),
            sync,
        };
        let found = |sync: &str, group: &str| json!({"metadata": {"labels": {AUTOMANAGED: sync}}, "spec": {"group": group}});
        let (built_in, custom) = (wanted(ON_START), wanted(ALWAYS));
        let mut step = |name: &str, wanted: Option<&Wanted>, found: Option<Value>| {
            registration.step(name, wanted, found.as_ref())
        };
        assert_eq!(step("v1.apps", Some(&built_in), None), Step::Create);
        assert_eq!(step("v1.apps", Some(&built_in), None), Step::Nothing);
        assert_eq!(
            step("v1.old", Some(&built_in), Some(found(ON_START, "x"))),
            Step::Update
        );
        assert_eq!(
            step("v1.old", Some(&built_in), Some(found(ON_START, "x"))),
            Step::Nothing
        );
        assert_eq!(
            step("v1.gone", None, Some(found(ON_START, "x"))),
            Step::Delete
        );
        assert_eq!(
            step("v1.later", None, Some(found(ON_START, "x"))),
            Step::Nothing
        );
        assert_eq!(step("v1.crd", Some(&custom), None), Step::Create);
        assert_eq!(step("v1.crd", Some(&custom), None), Step::Create);
        assert_eq!(
            step("v1.crd", Some(&custom), Some(found(ALWAYS, "x"))),
            Step::Update
        );
        assert_eq!(
            step("v1.crd", Some(&custom), Some(found(ALWAYS, "g"))),
            Step::Nothing
        );
        assert_eq!(
            step("v1.crd", Some(&custom), Some(found("", "x"))),
            Step::Nothing
        );
        assert_eq!(step("v1.crd", None, Some(found(ALWAYS, "g"))), Step::Delete);
    }
}
