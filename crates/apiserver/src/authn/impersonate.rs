//! Impersonation: a caller acts as another user when the authorizers let it.
//!
//! There are several ways to be allowed, asked in upstream's order. The constrained ones take two
//! rights: `impersonate:<mode>` for each attribute of the user, and `impersonate-on:<mode>:<verb>`
//! for what is then done. The last one, `impersonate`, takes one per attribute and allows
//! everything that the user may do.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use keelson_machinery::status::Status;
use keelson_machinery::validation::{is_dns1123_label, is_dns1123_subdomain};

use crate::authz::{Attributes, Authorizer};
use crate::request::{RequestInfo, UserInfo, percent_decode};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

const GROUP_NAME: &str = "authentication.k8s.io";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const MASTERS: &str = "system:masters";
/// From so many on, the right to all of them is asked for first.
const MANY: usize = 4;

/// Whom a request acts as.
pub(crate) struct Acting {
    pub(crate) user: Arc<UserInfo>,
    /// Whether that is not the caller.
    pub(crate) impersonated: bool,
    /// The right that allowed it; empty for `impersonate`, which holds for everything.
    pub(crate) constraint: String,
}

/// The user the request acts as; the caller itself when no header asks for another.
pub(crate) async fn apply(
    authorizer: &Authorizer,
    caller: Arc<UserInfo>,
    info: &RequestInfo,
    headers: &mut HeaderMap,
) -> Result<Acting, Status> {
    let Some(wanted) = requested(headers)? else {
        return Ok(Acting {
            user: caller,
            impersonated: false,
            constraint: String::new(),
        });
    };
    let names: Vec<_> = headers
        .keys()
        .filter(|k| [USER, UID, GROUP].contains(&k.as_str()) || k.as_str().starts_with(EXTRA))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
    let mut first = None;
    for mode in Mode::ALL {
        if !mode.applies(&wanted, &caller) {
            continue;
        }
        match mode.check(authorizer, &caller, info, &wanted).await {
            Ok(()) => {
                return Ok(Acting {
                    user: Arc::new(mode.settle(wanted)),
                    impersonated: true,
                    constraint: mode.constraint(),
                });
            }
            Err(refusal) => {
                first.get_or_insert(refusal);
            }
        }
    }
    Err(first.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
}

fn requested(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let wanted = UserInfo {
        username: text(USER),
        uid: text(UID),
        groups: headers
            .get_all(GROUP)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .map(ToOwned::to_owned)
            .collect(),
        extra: extra_headers(headers, EXTRA),
    };
    match (wanted.username.is_empty(), is_only_named(&wanted)) {
        (false, _) => Ok(Some(wanted)),
        (true, true) => Ok(None),
        (true, false) => Err(Status::bad_request(format!(
            "requested {} without impersonating a user name",
            as_go(&wanted)
        ))),
    }
}

/// The way Go prints such a user.
fn as_go(user: &UserInfo) -> String {
    let texts = |all: &[String]| match all {
        [] => "[]string(nil)".to_owned(),
        all => {
            let quoted: Vec<_> = all.iter().map(|text| format!("{text:?}")).collect();
            format!("[]string{{{}}}", quoted.join(", "))
        }
    };
    let extra = user.extra.iter();
    let extra: Vec<_> = extra
        .map(|(key, values)| format!("{key:?}:{}", texts(values)))
        .collect();
    let extra = match extra.as_slice() {
        [] => "(nil)".to_owned(),
        all => format!("{{{}}}", all.join(", ")),
    };
    format!(
        "&user.DefaultInfo{{Name:{:?}, UID:{:?}, Groups:{}, Extra:map[string][]string{extra}}}",
        user.username,
        user.uid,
        texts(&user.groups)
    )
}

/// A way to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A service account acts as the node that its pod runs on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    /// Everybody who is neither a node nor a service account.
    User,
    Unconstrained,
}

impl Mode {
    const ALL: [Mode; 5] = [
        Mode::AssociatedNode,
        Mode::ArbitraryNode,
        Mode::ServiceAccount,
        Mode::User,
        Mode::Unconstrained,
    ];

    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::User => "user-info",
            Mode::Unconstrained => "",
        }
    }

    fn verb(self) -> String {
        match self {
            Mode::Unconstrained => "impersonate".to_owned(),
            _ => format!("impersonate:{}", self.name()),
        }
    }

    fn constraint(self) -> String {
        match self {
            Mode::Unconstrained => String::new(),
            _ => self.verb(),
        }
    }

    /// Whether this way can lead to the wanted user at all.
    fn applies(self, wanted: &UserInfo, caller: &UserInfo) -> bool {
        let (node, account) = (
            node_of(&wanted.username),
            account_of(&wanted.username).is_some(),
        );
        match self {
            Mode::AssociatedNode => {
                let own = caller.extra.get(NODE_NAME).map(Vec::as_slice);
                is_only_named(wanted)
                    && account_of(&caller.username).is_some()
                    && node.is_some_and(|node| own == Some(&[node.to_owned()]))
            }
            Mode::ArbitraryNode => is_only_named(wanted) && node.is_some(),
            Mode::ServiceAccount => is_only_named(wanted) && account,
            Mode::User => node.is_none() && !account,
            Mode::Unconstrained => true,
        }
    }

    async fn check(
        self,
        authorizer: &Authorizer,
        caller: &UserInfo,
        info: &RequestInfo,
        wanted: &UserInfo,
    ) -> Result<(), Status> {
        let reduced;
        let mut caller = caller;
        if self == Mode::AssociatedNode {
            // That the account runs on the node has been seen to; who it is otherwise does not
            // depend on the node it runs on, and so must not the answer.
            reduced = UserInfo {
                extra: [(
                    "authentication.kubernetes.io/associated-node-keys".to_owned(),
                    caller.extra.keys().cloned().collect(),
                )]
                .into(),
                ..caller.clone()
            };
            caller = &reduced;
        }
        if self != Mode::Unconstrained {
            let verb = format!("impersonate-on:{}:{}", self.name(), info.verb);
            let on = Attributes {
                verb: &verb,
                ..Attributes::of(caller, info)
            };
            authorizer.check(&on).await?;
        }
        let question = Questions {
            mode: self,
            authorizer,
            caller,
            verb: &self.verb(),
        };
        question.username(&wanted.username).await?;
        if !wanted.uid.is_empty() {
            question.uid(&wanted.uid).await?;
        }
        question.groups(&wanted.groups).await?;
        question.extra(&wanted.extra).await
    }

    /// The user with the groups that come with the name.
    fn settle(self, mut user: UserInfo) -> UserInfo {
        if self != Mode::Unconstrained && node_of(&user.username).is_some() {
            user.groups = vec!["system:nodes".to_owned()];
        }
        if user.groups.is_empty()
            && let Some((namespace, _)) = account_of(&user.username)
        {
            user.groups = vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
            ];
        }
        let implied = match user.username.as_str() {
            "system:anonymous" => "system:unauthenticated",
            _ => "system:authenticated",
        };
        if !user.in_group("system:unauthenticated") && !user.in_group(implied) {
            user.groups.push(implied.to_owned());
        }
        user
    }
}

/// The rights to the attributes of a user.
struct Questions<'a> {
    mode: Mode,
    authorizer: &'a Authorizer,
    caller: &'a UserInfo,
    verb: &'a str,
}

impl Questions<'_> {
    fn attributes<'q>(&'q self, resource: &'q str, name: &'q str) -> Attributes<'q> {
        Attributes {
            version: "v1",
            ..Attributes::resource(self.caller, self.verb, GROUP_NAME, resource, "", name)
        }
    }

    /// Names and groups were of the core group before there were modes.
    fn group(&self) -> &'static str {
        match self.mode {
            Mode::Unconstrained => "",
            _ => GROUP_NAME,
        }
    }

    async fn username(&self, username: &str) -> Result<(), Status> {
        let constrained = self.mode != Mode::Unconstrained;
        let mut asked = Attributes {
            group: self.group(),
            ..self.attributes("users", username)
        };
        if let Some((namespace, name)) = account_of(username) {
            asked.resource = "serviceaccounts";
            asked.namespace = namespace;
            asked.name = name;
        } else if let Some(node) = node_of(username).filter(|_| constrained) {
            asked.resource = "nodes";
            asked.name = match self.mode {
                Mode::AssociatedNode => "*",
                _ => node,
            };
        }
        self.authorizer.check(&asked).await
    }

    async fn uid(&self, uid: &str) -> Result<(), Status> {
        self.authorizer.check(&self.attributes("uids", uid)).await
    }

    async fn groups(&self, groups: &[String]) -> Result<(), Status> {
        let asked = |name| Attributes {
            group: self.group(),
            ..self.attributes("groups", name)
        };
        if self.mode != Mode::Unconstrained {
            if groups.iter().any(String::is_empty) {
                let detail = "impersonating the empty string group is not allowed";
                return Err(asked("").refused(detail));
            }
            if groups.iter().any(|group| group == MASTERS) {
                let detail = "impersonating the system:masters group is not allowed";
                return Err(asked(MASTERS).refused(detail));
            }
            if groups.len() >= MANY && self.authorizer.check(&asked("*")).await.is_ok() {
                return Ok(());
            }
        }
        for group in groups {
            self.authorizer.check(&asked(group)).await?;
        }
        Ok(())
    }

    async fn extra(&self, extra: &BTreeMap<String, Vec<String>>) -> Result<(), Status> {
        let asked = |key, value| Attributes {
            subresource: key,
            ..self.attributes("userextras", value)
        };
        if self.mode != Mode::Unconstrained {
            if let Some(problem) = extra_problem(extra) {
                return Err(asked("", "").refused(&problem));
            }
            let values: usize = extra.values().map(Vec::len).sum();
            let many = extra.len() >= MANY || values >= MANY;
            if many && self.authorizer.check(&asked("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                self.authorizer.check(&asked(key, value)).await?;
            }
        }
        Ok(())
    }
}

fn extra_problem(extra: &BTreeMap<String, Vec<String>>) -> Option<String> {
    extra.iter().find_map(|(key, values)| {
        if key.is_empty() {
            return Some("impersonating the empty string key in extra is not allowed".to_owned());
        }
        let detail = match key.split_once('/') {
            Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
                let problems = is_dns1123_subdomain(domain);
                problems
                    .first()
                    .map(|problem| format!("{domain:?}: {problem}"))
            }
            _ => Some(format!(
                "{key:?}: must be a domain-prefixed path (such as \"acme.io/foo\")"
            )),
        };
        if let Some(detail) = detail {
            return Some(format!(
                "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: {detail}"
            ));
        }
        let empty = values.iter().any(String::is_empty);
        empty.then(|| "impersonating the empty string value in extra is not allowed".to_owned())
    })
}

fn is_only_named(user: &UserInfo) -> bool {
    user.uid.is_empty() && user.groups.is_empty() && user.extra.is_empty()
}

fn node_of(username: &str) -> Option<&str> {
    let node = username.strip_prefix("system:node:")?;
    is_dns1123_subdomain(node).is_empty().then_some(node)
}

fn account_of(username: &str) -> Option<(&str, &str)> {
    let (namespace, name) = username
        .strip_prefix("system:serviceaccount:")?
        .split_once(':')?;
    let valid = is_dns1123_label(namespace).is_empty() && is_dns1123_subdomain(name).is_empty();
    valid.then_some((namespace, name))
}

/// Headers `<prefix><escaped key>: value`, keys lower-cased and unescaped.
pub(crate) fn extra_headers(headers: &HeaderMap, prefix: &str) -> BTreeMap<String, Vec<String>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(prefix)
            && let Ok(value) = value.to_str()
        {
            out.entry(percent_decode(key, false).to_lowercase())
                .or_default()
                .push(value.to_owned());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(username: &str) -> UserInfo {
        UserInfo {
            username: username.to_owned(),
            ..UserInfo::default()
        }
    }

    #[test]
    fn a_group_without_a_user_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(GROUP, MASTERS.parse().unwrap());
        let refusal = requested(&headers).unwrap_err();
        assert_eq!(
            (refusal.code, refusal.message.as_str()),
            (
                400,
                "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"system:masters\"}, Extra:map[string][]string(nil)} without impersonating a user name"
            )
        );
    }

    #[test]
    fn groups_come_with_the_name() {
        let mut headers = HeaderMap::new();
        headers.insert(USER, "system:serviceaccount:ns:sa".parse().unwrap());
        headers.insert("impersonate-extra-scopes%2Fx", "a".parse().unwrap());
        let robot = Mode::Unconstrained.settle(requested(&headers).unwrap().unwrap());
        assert!(
            robot.in_group("system:serviceaccounts:ns") && robot.in_group("system:authenticated")
        );
        assert_eq!(robot.extra["scopes/x"], ["a"]);
        let node = Mode::ArbitraryNode.settle(named("system:node:n"));
        assert_eq!(node.groups, ["system:nodes", "system:authenticated"]);
        let node = Mode::Unconstrained.settle(named("system:node:n"));
        assert_eq!(node.groups, ["system:authenticated"]);
        let nobody = Mode::User.settle(named("system:anonymous"));
        assert_eq!(nobody.groups, ["system:unauthenticated"]);
    }

    #[test]
    fn each_name_has_its_modes() {
        let caller = UserInfo {
            extra: [(NODE_NAME.to_owned(), vec!["n".to_owned()])].into(),
            ..named("system:serviceaccount:ns:agent")
        };
        let modes = |wanted: &UserInfo| -> Vec<&str> {
            let all = Mode::ALL.into_iter();
            all.filter(|mode| mode.applies(wanted, &caller))
                .map(Mode::name)
                .collect()
        };
        assert_eq!(
            modes(&named("system:node:n")),
            ["associated-node", "arbitrary-node", ""]
        );
        assert_eq!(modes(&named("system:node:m")), ["arbitrary-node", ""]);
        assert_eq!(
            modes(&named("system:serviceaccount:a:b")),
            ["serviceaccount", ""]
        );
        assert_eq!(
            modes(&named("system:serviceaccount:A:b")),
            ["user-info", ""]
        );
        assert_eq!(modes(&named("jane")), ["user-info", ""]);
        let grouped = UserInfo {
            groups: vec!["g".to_owned()],
            ..named("system:node:n")
        };
        assert_eq!(modes(&grouped), [""]);
    }
}
