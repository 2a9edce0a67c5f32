//! Authorization: `system:masters`, then those the configuration names in its order, which is the
//! node authorizer and RBAC unless it says otherwise. Whoever none of them allows is forbidden.

mod conditions;
mod config;
mod node;
pub mod rbac;
pub(crate) mod references;
pub(crate) mod review;
mod validation;
mod webhook;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use keelson_machinery::status::Status;
use tokio_util::sync::CancellationToken;

use crate::objects::Objects;
use crate::reload::Changes;
use crate::request::{RequestInfo, UserInfo};

pub use config::{AuthorizationOptions, Error};
pub use rbac::Rule;

use config::{Chain, Mode, Modes};

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

    /// What becomes of a request on such a verdict: upstream's 403 unless it is allowed, 500 when
    /// somebody who might have allowed it could not be asked.
    pub(crate) fn settle(&self, verdict: Verdict) -> Result<(), Status> {
        match (verdict.decision, verdict.error) {
            (Decision::Allow(_), _) => Ok(()),
            (_, Some(error)) => Err(Status::internal(error)),
            (Decision::Deny(reason) | Decision::NoOpinion(reason), None) => {
                Err(forbidden(self, &reason))
            }
        }
    }

    /// 403 with a reason.
    pub(crate) fn refused(&self, reason: &str) -> Status {
        forbidden(self, reason)
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

/// A decision, and why it was made without everybody's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    pub error: Option<String>,
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        Self {
            decision,
            error: None,
        }
    }
}

pub struct Authorizer {
    objects: Arc<dyn Objects>,
    rbac: rbac::Rbac,
    node: node::NodeAuthorizer,
    chain: ArcSwap<Chain>,
    /// What a configuration file began with.
    modes: Modes,
}

impl Authorizer {
    /// The node authorizer, then RBAC.
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self::with_chain(objects, vec![Mode::Node, Mode::Rbac], Modes::new())
    }

    pub fn open(objects: Arc<dyn Objects>, options: &AuthorizationOptions) -> Result<Self, Error> {
        let (chain, modes) = match &options.config_file {
            Some(file) => config::from_file(file, &read(file)?, None)?,
            None => (config::from_modes(options)?, Modes::new()),
        };
        Ok(Self::with_chain(objects, chain, modes))
    }

    fn with_chain(objects: Arc<dyn Objects>, chain: Chain, modes: Modes) -> Self {
        Self {
            rbac: rbac::Rbac::new(Arc::clone(&objects)),
            node: node::NodeAuthorizer::new(),
            chain: ArcSwap::from_pointee(chain),
            modes,
            objects,
        }
    }

    /// Takes over changes of the configuration file, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, file: PathBuf, stop: CancellationToken) {
        let mut changes = Changes::of(file.clone(), stop);
        while let Some(text) = changes.next().await {
            let read = config::from_file(&file, &text, Some(&self.modes));
            let taken = read.map(|(chain, _)| self.chain.store(Arc::new(chain)));
            changes.settle(taken.map_err(|error| error.to_string()));
        }
    }

    pub async fn authorize(&self, attributes: &Attributes<'_>) -> Verdict {
        if attributes.user.in_group("system:masters") {
            return Decision::Allow(String::new()).into();
        }
        let chain = self.chain.load_full();
        let (mut reasons, mut errors) = (Vec::new(), Vec::new());
        for mode in chain.iter() {
            let verdict = match mode {
                Mode::AlwaysAllow => Decision::Allow(String::new()).into(),
                Mode::AlwaysDeny => {
                    Decision::NoOpinion("Everything is forbidden.".to_owned()).into()
                }
                Mode::Node => self.node.authorize(attributes, &*self.objects).into(),
                Mode::Rbac => self.rbac.authorize(attributes).into(),
                Mode::Webhook(webhook) => webhook.authorize(attributes).await,
            };
            match verdict.decision {
                Decision::NoOpinion(reason) => {
                    reasons.extend(Some(reason).filter(|r| !r.is_empty()));
                    errors.extend(verdict.error);
                }
                _ => return verdict,
            }
        }
        Verdict {
            decision: Decision::NoOpinion(reasons.join("\n")),
            error: match errors.as_slice() {
                [] => None,
                [one] => Some(one.clone()),
                several => Some(format!("[{}]", several.join(", "))),
            },
        }
    }

    /// Whether some that are asked cannot list what they allow.
    pub(crate) fn has_webhook(&self) -> bool {
        let chain = self.chain.load();
        chain.iter().any(|mode| matches!(mode, Mode::Webhook(_)))
    }

    /// As [`Authorizer::authorize`], with upstream's refusal when it is not allowed.
    pub async fn require(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        attributes.settle(self.authorize(attributes).await)
    }

    /// As [`Authorizer::require`], but 403 too when somebody could not be asked.
    pub(crate) async fn check(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        let verdict = self.authorize(attributes).await;
        match (verdict.decision, verdict.error) {
            (Decision::Allow(_), _) => Ok(()),
            (Decision::Deny(reason) | Decision::NoOpinion(reason), None) => {
                Err(forbidden(attributes, &reason))
            }
            (Decision::Deny(reason) | Decision::NoOpinion(reason), Some(error)) => {
                let separator = if reason.is_empty() { "" } else { ": " };
                Err(forbidden(
                    attributes,
                    &format!("{error}{separator}{reason}"),
                ))
            }
        }
    }

    pub async fn is_allowed(&self, attributes: &Attributes<'_>) -> bool {
        let verdict = self.authorize(attributes).await;
        matches!(verdict.decision, Decision::Allow(_))
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
