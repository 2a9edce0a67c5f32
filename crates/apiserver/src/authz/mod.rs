//! Authorization: `system:masters`, then those the configuration names in its order, which is the
//! node authorizer and RBAC unless it says otherwise. Whoever none of them allows is forbidden.

mod config;
mod node;
pub mod rbac;
pub(crate) mod references;
pub(crate) mod review;
mod webhook;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use keelson_machinery::status::Status;
use tokio_util::sync::CancellationToken;

use crate::objects::Objects;
use crate::request::{RequestInfo, UserInfo};

pub use config::{AuthorizationOptions, Error};
pub use rbac::Rule;

use config::{Chain, Mode};

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

    /// What becomes of a request on such a decision: upstream's 403 unless it is allowed.
    pub(crate) fn settle(&self, decision: Decision) -> Result<(), Status> {
        match decision {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Err(forbidden(self, &reason)),
        }
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
    /// Somebody whose word is final refuses it.
    Deny(String),
    /// Nobody allows it; the reason may be empty.
    NoOpinion(String),
}

pub struct Authorizer {
    objects: Arc<dyn Objects>,
    rbac: rbac::Rbac,
    node: node::NodeAuthorizer,
    chain: ArcSwap<Chain>,
}

impl Authorizer {
    /// The node authorizer, then RBAC.
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self::with_chain(objects, vec![Mode::Node, Mode::Rbac])
    }

    pub fn open(objects: Arc<dyn Objects>, options: &AuthorizationOptions) -> Result<Self, Error> {
        let chain = match &options.config_file {
            Some(file) => config::from_file(file, &read(file)?)?,
            None => config::from_modes(options)?,
        };
        Ok(Self::with_chain(objects, chain))
    }

    fn with_chain(objects: Arc<dyn Objects>, chain: Chain) -> Self {
        Self {
            rbac: rbac::Rbac::new(Arc::clone(&objects)),
            node: node::NodeAuthorizer::new(),
            chain: ArcSwap::from_pointee(chain),
            objects,
        }
    }

    /// Takes over changes of the configuration file, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, file: PathBuf, stop: CancellationToken) {
        let current = read(&file).unwrap_or_default();
        let path = file.clone();
        crate::reload::follow(file, current, stop, move |text| {
            let chain = config::from_file(&path, text).map_err(|error| error.to_string())?;
            self.chain.store(Arc::new(chain));
            Ok(())
        })
        .await;
    }

    pub async fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group("system:masters") {
            return Decision::Allow(String::new());
        }
        let chain = self.chain.load_full();
        let mut reasons = Vec::new();
        for mode in chain.iter() {
            let decision = match mode {
                Mode::AlwaysAllow => Decision::Allow(String::new()),
                Mode::AlwaysDeny => Decision::NoOpinion("Everything is forbidden.".to_owned()),
                Mode::Node => self.node.authorize(attributes, &*self.objects),
                Mode::Rbac => self.rbac.authorize(attributes),
                Mode::Webhook(webhook) => webhook.authorize(attributes).await,
            };
            match decision {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                settled => return settled,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    /// Whether some that are asked cannot list what they allow.
    pub(crate) fn has_webhook(&self) -> bool {
        let chain = self.chain.load();
        chain.iter().any(|mode| matches!(mode, Mode::Webhook(_)))
    }

    /// As [`Authorizer::authorize`], with upstream's 403 when it is not allowed.
    pub async fn require(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        attributes.settle(self.authorize(attributes).await)
    }

    pub async fn is_allowed(&self, attributes: &Attributes<'_>) -> bool {
        matches!(self.authorize(attributes).await, Decision::Allow(_))
    }

    pub(crate) fn rbac(&self) -> &rbac::Rbac {
        &self.rbac
    }
}

fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(|error| Error::File {
        file: file.display().to_string(),
        reason: error.to_string(),
    })
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
