//! ClusterRoles that are the union of others.

use async_trait::async_trait;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use keelson_client::{
    Client, Controller, ControllerContext, Informer, Key, Outcome, ReconcileError, Watches,
};
use keelson_semantics::label_selector;
use std::sync::Arc;

use crate::pod;

pub(crate) struct ClusterRoleAggregationController {
    client: Client,
    roles: Informer<ClusterRole>,
}

impl ClusterRoleAggregationController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            roles: context.informer(),
        }
    }
}

/// The rules of every selected role, in the order of names, each once. Pure.
fn union(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    let selectors = role
        .aggregation_rule
        .as_ref()
        .and_then(|r| r.cluster_role_selectors.as_ref());
    for selector in selectors.into_iter().flatten() {
        for other in all {
            if other.metadata.name == role.metadata.name
                || !label_selector::matches(selector, other.metadata.labels.as_ref())
            {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    rules
}

#[async_trait]
impl Controller for ClusterRoleAggregationController {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        let roles = self.roles.clone();
        watches.mapped(&self.roles, move |change| {
            let mut keys: Vec<Key> = roles
                .list()
                .iter()
                .filter(|r| r.aggregation_rule.is_some())
                .map(|r| Key::of(&r.metadata))
                .collect();
            keys.push(Key::of(&change.object().metadata));
            keys
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(role) = self
            .roles
            .get("", &key.name)
            .filter(|r| r.aggregation_rule.is_some())
        else {
            return Ok(Outcome::Done);
        };
        let mut all = self.roles.list();
        all.sort_by(|a, b| pod::name(&a.metadata).cmp(pod::name(&b.metadata)));
        let rules = union(&role, &all);
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(Outcome::Done);
        }
        let next = ClusterRole {
            rules: Some(rules),
            ..ClusterRole::clone(&role)
        };
        match self.client.update(&next).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_are_merged_once_and_never_from_itself() {
        let role = |name: &str, label: &str, verb: &str| -> Arc<ClusterRole> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": name, "labels": {"agg": label}},
                    "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}],
                }))
                .unwrap(),
            )
        };
        let mut target = ClusterRole::clone(&role("t", "yes", "own"));
        target.aggregation_rule = Some(
            serde_json::from_value(
                json!({"clusterRoleSelectors": [{"matchLabels": {"agg": "yes"}}]}),
            )
            .unwrap(),
        );
        let all = [
            role("a", "yes", "get"),
            role("b", "no", "list"),
            role("c", "yes", "get"),
            role("t", "yes", "own"),
        ];
        let rules = union(&target, &all);
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].verbs, ["get"]);
    }
}
