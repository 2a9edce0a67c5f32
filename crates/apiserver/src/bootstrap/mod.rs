//! What a cluster holds before anyone wrote to it: namespaces, default roles, priority classes,
//! flow control, and the `kubernetes` Service with its endpoints.

mod authentication;
mod flow_control;
mod identity;
mod objects;
mod peers;
mod service;
mod service_cidr;
mod token_tracking;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use futures::StreamExt;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use crate::authz::rbac;
use crate::objects::Objects;

pub(crate) use authentication::{Authorities, publish as publish_authentication};
pub(crate) use flow_control::maintain as maintain_flow_control;
pub(crate) use identity::Identity;
pub(crate) use peers::{INTERVAL as PEER_INTERVAL, Peers};
pub(crate) use service::ServerAddress;
pub(crate) use service_cidr::DefaultServiceCidr;
pub(crate) use token_tracking::publish as publish_token_tracking;

/// Default roles and bindings, one object a line.
const RBAC: &str = include_str!("rbac.jsonl");

/// One default cluster role.
pub(crate) fn cluster_role(name: &str) -> Option<&'static Value> {
    roles()
        .iter()
        .find(|object| meta::kind(object) == "ClusterRole" && meta::name(object) == name)
}

fn roles() -> &'static [Value] {
    static ROLES: OnceLock<Vec<Value>> = OnceLock::new();
    ROLES.get_or_init(|| {
        RBAC.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    })
}

/// Creates what is missing, and brings default roles that changed back to hold at least their
/// default rules. All of it at once, so that the store commits it in a few batches.
pub(crate) async fn apply(objects: &Arc<dyn Objects>) -> Result<(), Status> {
    // Namespaces first: everything else may live in them.
    run(objects, objects::namespaces()).await?;
    let mut rest: Vec<Wanted> = roles().iter().cloned().map(role_of).collect();
    rest.extend(objects::priority_classes());
    rest.extend(objects::flow_control());
    run(objects, rest).await
}

/// An object to be there.
pub(crate) struct Wanted {
    pub(crate) group: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) object: Value,
}

fn role_of(object: Value) -> Wanted {
    let resource = match meta::kind(&object) {
        "ClusterRole" => "clusterroles",
        "ClusterRoleBinding" => "clusterrolebindings",
        "Role" => "roles",
        _ => "rolebindings",
    };
    Wanted {
        group: rbac::GROUP,
        resource,
        object,
    }
}

async fn run(objects: &Arc<dyn Objects>, wanted: Vec<Wanted>) -> Result<(), Status> {
    let mut outcomes = futures::stream::iter(wanted.into_iter().map(|one| ensure(objects, one)))
        .buffer_unordered(256);
    // One object that cannot be written is no reason to leave out the others.
    let mut first = Ok(());
    while let Some(outcome) = outcomes.next().await {
        first = first.and(outcome);
    }
    first
}

async fn ensure(objects: &Arc<dyn Objects>, wanted: Wanted) -> Result<(), Status> {
    let Wanted {
        group,
        resource,
        object,
    } = wanted;
    let (namespace, name) = (
        meta::namespace(&object).to_owned(),
        meta::name(&object).to_owned(),
    );
    if let Some(found) = objects.get(group, resource, &namespace, &name) {
        if let Some(updated) = reconciled(&found, &object) {
            match objects.update(group, resource, &namespace, updated).await {
                // Another server on the same store brings it back just now.
                Err(status) if !status.is_conflict() => return Err(status),
                _ => {}
            }
        }
        return Ok(());
    }
    match objects.create(group, resource, &namespace, object).await {
        Ok(_) => Ok(()),
        Err(status) if status.is_already_exists() => Ok(()),
        Err(status) => {
            tracing::error!(group, resource, name, %status, "a default object cannot be created");
            Err(status)
        }
    }
}

/// A stored default role or binding with what it lacks of its default; nothing when it lacks
/// nothing, or when the administrator turned `autoupdate` off.
fn reconciled(found: &Value, default: &Value) -> Option<Value> {
    if meta::annotation(found, "rbac.authorization.kubernetes.io/autoupdate") != Some("true") {
        return None;
    }
    let list = ["rules", "subjects"]
        .into_iter()
        .find(|key| default[*key].is_array())?;
    if default["aggregationRule"].is_object() {
        return None;
    }
    let have = found[list].as_array().cloned().unwrap_or_default();
    let missing: Vec<Value> = default[list]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|item| !have.contains(item))
        .cloned()
        .collect();
    if missing.is_empty() {
        return None;
    }
    let mut updated = found.clone();
    let mut all = have;
    all.extend(missing);
    updated[list] = Value::Array(all);
    Some(updated)
}

/// Keeps the `kubernetes` Service true to the server's address, and its endpoints to those of all
/// `servers`.
pub(crate) async fn publish_service(
    objects: &Arc<dyn Objects>,
    address: &ServerAddress,
    servers: &[SocketAddr],
) -> Result<(), Status> {
    service::publish(objects, address, servers).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_default_object_is_read() {
        assert_eq!(roles().len(), RBAC.lines().count());
        for name in [
            "cluster-admin",
            "admin",
            "edit",
            "view",
            "system:node",
            "system:discovery",
        ] {
            assert!(cluster_role(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_role_gets_back_the_rules_it_lost_and_keeps_added_ones() {
        let annotations = json!({"rbac.authorization.kubernetes.io/autoupdate": "true"});
        let found = json!({"metadata": {"name": "a", "annotations": annotations}, "rules": [{"verbs": ["own"]}]});
        let default = json!({"rules": [{"verbs": ["get"]}]});
        let updated = reconciled(&found, &default).unwrap();
        assert_eq!(
            updated["rules"],
            json!([{"verbs": ["own"]}, {"verbs": ["get"]}])
        );
        assert!(reconciled(&updated, &default).is_none());
        let mut off = found;
        off["metadata"]["annotations"] = json!({});
        assert!(reconciled(&off, &default).is_none());
    }
}
