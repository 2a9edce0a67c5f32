//! Authorization: `system:masters`, then the node authorizer, then RBAC. Whoever none of them
//! allows is forbidden.

mod node;
pub mod rbac;
pub(crate) mod references;
pub(crate) mod review;

use std::sync::Arc;

use keelson_machinery::status::Status;

use crate::objects::Objects;
use crate::request::{RequestInfo, UserInfo};

pub use rbac::Rule;

/// One question: may this user do that?
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub is_resource: bool,
    /// For what is no resource.
    pub path: &'a str,
    /// Of a list, watch or deletecollection, as the client wrote it; empty for none.
    pub field_selector: &'a str,
    pub label_selector: &'a str,
}

impl<'a> Attributes<'a> {
    pub fn of(user: &'a UserInfo, info: &'a RequestInfo) -> Self {
        let selects = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
        let selector = |name: &str| {
            let given = selects.then(|| info.query.get(name)).flatten();
            given.unwrap_or_default()
        };
        Self {
            field_selector: selector("fieldSelector"),
            label_selector: selector("labelSelector"),
            user,
            verb: &info.verb,
            group: &info.group,
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            is_resource: info.is_resource,
            path: &info.path,
        }
    }

    /// A verb on a main resource.
    pub fn resource(
        user: &'a UserInfo,
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        namespace: &'a str,
        name: &'a str,
    ) -> Self {
        Self {
            user,
            verb,
            group,
            version: "*",
            resource,
            subresource: "",
            namespace,
            name,
            is_resource: true,
            path: "",
            field_selector: "",
            label_selector: "",
        }
    }

    /// `(field, value)` of every field that must have exactly that value.
    pub(crate) fn field_requirements(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.field_selector.split(',').filter_map(|term| {
            let (field, value) = term.split_once('=')?;
            let value = value.strip_prefix('=').unwrap_or(value);
            (!field.ends_with('!')).then_some((field, value))
        })
    }

    /// `resource/subresource`.
    pub(crate) fn combined(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow(String),
    /// Nobody allows it; the reason may be empty.
    NoOpinion(String),
}

pub struct Authorizer {
    objects: Arc<dyn Objects>,
    rbac: rbac::Rbac,
    node: node::NodeAuthorizer,
}

impl Authorizer {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self {
            rbac: rbac::Rbac::new(Arc::clone(&objects)),
            node: node::NodeAuthorizer::new(),
            objects,
        }
    }

    pub async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group("system:masters") {
            return Decision::Allow(String::new());
        }
        let node_reason = match self.node.authorize(attributes, &*self.objects) {
            Decision::Allow(reason) => return Decision::Allow(reason),
            Decision::NoOpinion(reason) => reason,
        };
        match self.rbac.authorize(attributes) {
            Decision::NoOpinion(reason) => {
                let reasons: Vec<_> = [node_reason, reason]
                    .into_iter()
                    .filter(|r| !r.is_empty())
                    .collect();
                Decision::NoOpinion(reasons.join("\n"))
            }
            allowed @ Decision::Allow(_) => allowed,
        }
    }

    /// As [`Authorizer::authorize`], with upstream's 403 when it is not allowed.
    pub async fn require(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        match self.authorize(attributes).await {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion(reason) => Err(forbidden(attributes, &reason)),
        }
    }

    pub async fn is_allowed(&self, attributes: &Attributes<'_>) -> bool {
        matches!(self.authorize(attributes).await, Decision::Allow(_))
    }

    pub(crate) fn rbac(&self) -> &rbac::Rbac {
        &self.rbac
    }
}

fn forbidden(a: &Attributes<'_>, reason: &str) -> Status {
    let user = &a.user.username;
    let mut message = if !a.is_resource {
        format!("User {user:?} cannot {} path {:?}", a.verb, a.path)
    } else {
        let scope = if a.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", a.namespace)
        };
        format!(
            "User {user:?} cannot {} resource {:?} in API group {:?} {scope}",
            a.verb,
            a.combined(),
            a.group
        )
    };
    if !reason.is_empty() {
        message.push_str(": ");
        message.push_str(reason);
    }
    Status::forbidden(a.group, a.resource, a.name, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_upstream() {
        let user = UserInfo::new("x", &[]);
        let mut a = Attributes::resource(&user, "list", "", "pods", "y", "");
        assert_eq!(
            forbidden(&a, "").message,
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "y""#
        );
        a = Attributes {
            subresource: "log",
            name: "p",
            verb: "get",
            namespace: "",
            ..a
        };
        assert_eq!(
            forbidden(&a, "because").message,
            r#"pods "p" is forbidden: User "x" cannot get resource "pods/log" in API group "" at the cluster scope: because"#
        );
        let a = Attributes {
            is_resource: false,
            path: "/metrics",
            verb: "get",
            resource: "",
            name: "",
            ..a
        };
        assert_eq!(
            forbidden(&a, "").message,
            r#"forbidden: User "x" cannot get path "/metrics""#
        );
    }
}
