//! Impersonation: a caller acts as another user when RBAC lets it, one check per attribute.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use keelson_machinery::status::Status;

use crate::authz::{Attributes, Authorizer};
use crate::request::{UserInfo, percent_decode};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

/// The user the request acts as; the caller itself when no header asks for another.
pub(crate) async fn apply(
    authorizer: &Authorizer,
    caller: Arc<UserInfo>,
    headers: &mut HeaderMap,
) -> Result<Arc<UserInfo>, Status> {
    let Some(wanted) = requested(headers)? else {
        return Ok(caller);
    };
    for (group, resource, subresource, namespace, name) in checks(&wanted) {
        let attributes = Attributes {
            user: &caller,
            verb: "impersonate",
            group,
            version: "v1",
            resource,
            subresource: &subresource,
            namespace: &namespace,
            name: &name,
            is_resource: true,
            path: "",
            field_selector: "",
            label_selector: "",
        };
        authorizer.require(&attributes).await?;
    }
    let names: Vec<_> = headers
        .keys()
        .filter(|k| k.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
    Ok(Arc::new(settle(wanted)))
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
    let nothing = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
    match (wanted.username.is_empty(), nothing) {
        (false, _) => Ok(Some(wanted)),
        (true, true) => Ok(None),
        (true, false) => Err(Status::internal(
            "requested impersonation without impersonating a user",
        )),
    }
}

/// `(group, resource, subresource, namespace, name)` of every attribute to be allowed.
fn checks(wanted: &UserInfo) -> Vec<(&'static str, &'static str, String, String, String)> {
    let mut out = Vec::new();
    match wanted.as_service_account() {
        Some((namespace, name)) => {
            out.push((
                "",
                "serviceaccounts",
                String::new(),
                namespace.to_owned(),
                name.to_owned(),
            ));
        }
        None => out.push((
            "",
            "users",
            String::new(),
            String::new(),
            wanted.username.clone(),
        )),
    }
    for group in &wanted.groups {
        out.push(("", "groups", String::new(), String::new(), group.clone()));
    }
    for (key, values) in &wanted.extra {
        for value in values {
            out.push((
                "authentication.k8s.io",
                "userextras",
                key.clone(),
                String::new(),
                value.clone(),
            ));
        }
    }
    if !wanted.uid.is_empty() {
        out.push((
            "authentication.k8s.io",
            "uids",
            String::new(),
            String::new(),
            wanted.uid.clone(),
        ));
    }
    out
}

fn settle(mut user: UserInfo) -> UserInfo {
    if user.groups.is_empty()
        && let Some((namespace, _)) = user.as_service_account()
    {
        user.groups = vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    let implied = if user.username == "system:anonymous" {
        "system:unauthenticated"
    } else {
        "system:authenticated"
    };
    if !user.in_group("system:authenticated") && !user.in_group("system:unauthenticated") {
        user.groups.push(implied.to_owned());
    }
    user
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

    #[test]
    fn a_group_without_a_user_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(GROUP, "system:masters".parse().unwrap());
        assert!(requested(&headers).is_err());
    }

    #[test]
    fn service_accounts_get_their_groups() {
        let mut headers = HeaderMap::new();
        headers.insert(USER, "system:serviceaccount:ns:sa".parse().unwrap());
        headers.insert("impersonate-extra-scopes%2Fx", "a".parse().unwrap());
        let wanted = requested(&headers).unwrap().unwrap();
        assert_eq!(checks(&wanted)[0].1, "serviceaccounts");
        let user = settle(wanted);
        assert!(
            user.in_group("system:serviceaccounts:ns") && user.in_group("system:authenticated")
        );
        assert_eq!(user.extra["scopes/x"], ["a"]);
    }
}
