//! Nobody grants what he does not hold: roles need their rules or `escalate`, bindings the role's
//! rules or `bind`.

use async_trait::async_trait;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::{AdmissionPlugin, Attributes, Cluster, Operation};
use crate::authz::rbac::{GROUP, rules_of};
use crate::authz::{Attributes as Question, Rule};

pub(super) struct RbacEscalation;

#[async_trait]
impl AdmissionPlugin for RbacEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        if attrs.group != GROUP
            || !attrs.subresource.is_empty()
            || attrs.user.in_group("system:masters")
        {
            return Ok(());
        }
        let Some(object) = attrs.object.as_ref() else {
            return Ok(());
        };
        match attrs.resource.as_str() {
            "roles" | "clusterroles" => role(attrs, cluster, object).await,
            "rolebindings" | "clusterrolebindings" => binding(attrs, cluster, object).await,
            _ => Ok(()),
        }
    }
}

async fn role(attrs: &Attributes, cluster: &Cluster, role: &Value) -> Result<(), Status> {
    let old = attrs.old_object.as_deref();
    let same = old.is_some_and(|old| {
        old["rules"] == role["rules"] && old["aggregationRule"] == role["aggregationRule"]
    });
    if same || may(attrs, cluster, "escalate", &attrs.resource, &attrs.name).await {
        return Ok(());
    }
    let wanted = if role["aggregationRule"].is_object() {
        vec![Rule {
            verbs: vec!["*".to_owned()],
            groups: vec!["*".to_owned()],
            resources: vec!["*".to_owned()],
            ..Rule::default()
        }]
    } else {
        rules_of(role, &[])
    };
    covered(attrs, cluster, &wanted)
}

async fn binding(attrs: &Attributes, cluster: &Cluster, binding: &Value) -> Result<(), Status> {
    let old = attrs.old_object.as_deref();
    if old.is_some_and(|old| {
        old["roleRef"] == binding["roleRef"] && old["subjects"] == binding["subjects"]
    }) {
        return Ok(());
    }
    let reference = &binding["roleRef"];
    let resource = if reference["kind"] == "ClusterRole" {
        "clusterroles"
    } else {
        "roles"
    };
    let name = reference["name"].as_str().unwrap_or_default();
    if may(attrs, cluster, "bind", resource, name).await {
        return Ok(());
    }
    let rules = cluster
        .authorizer
        .rbac()
        .role_rules(reference, &attrs.namespace);
    let rules = rules.ok_or_else(|| Status::not_found(GROUP, resource, name))?;
    covered(attrs, cluster, &rules)
}

async fn may(
    attrs: &Attributes,
    cluster: &Cluster,
    verb: &str,
    resource: &str,
    name: &str,
) -> bool {
    cluster
        .authorizer
        .is_allowed(&Question::resource(
            &attrs.user,
            verb,
            GROUP,
            resource,
            &attrs.namespace,
            name,
        ))
        .await
}

fn covered(attrs: &Attributes, cluster: &Cluster, wanted: &[Rule]) -> Result<(), Status> {
    let missing = cluster
        .authorizer
        .rbac()
        .missing(&attrs.user, &attrs.namespace, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let user = &attrs.user;
    let shown: Vec<String> = missing.iter().take(20).map(show).collect();
    Err(attrs.forbidden(format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.username,
        user.groups,
        shown.join("\n")
    )))
}

fn show(rule: &Rule) -> String {
    let mut parts = Vec::new();
    for (label, list) in [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("NonResourceURLs", &rule.paths),
        ("Verbs", &rule.verbs),
    ] {
        if !list.is_empty() {
            parts.push(format!("{label}:{list:?}"));
        }
    }
    format!("{{{}}}", parts.join(", "))
}
