//! From the claims of a verified token to a user. Pure.

use serde_json::{Map, Value};

use super::config::Jwt;
use crate::request::UserInfo;

pub(super) fn user(jwt: &Jwt, claims: &Map<String, Value>) -> Result<UserInfo, String> {
    for rule in &jwt.claim_validation_rules {
        let given = claims.get(&rule.claim).ok_or_else(|| {
            format!(
                "oidc: required claim {} not present in ID token",
                rule.claim
            )
        })?;
        let given = given
            .as_str()
            .ok_or_else(|| format!("oidc: parse claim {}: not a string", rule.claim))?;
        if given != rule.required_value {
            return Err(format!(
                "oidc: required claim {} value does not match. Got = {given}, want = {}",
                rule.claim, rule.required_value
            ));
        }
    }
    let mappings = &jwt.claim_mappings;
    let mut user = UserInfo::default();
    let claim = mappings.username.claim.as_str();
    let name = claims
        .get(claim)
        .and_then(Value::as_str)
        .ok_or_else(|| format!("oidc: parse username claims {claim:?}: claim not present"))?;
    // An issuer lets anybody claim an address; only a verified one is a name.
    if claim == "email" {
        match claims.get("email_verified") {
            None | Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Err("oidc: email not verified".to_owned()),
            Some(_) => return Err("oidc: parse 'email_verified' claim: not a boolean".to_owned()),
        }
    }
    let prefix = |given: &Option<String>| given.clone().unwrap_or_default();
    user.username = format!("{}{name}", prefix(&mappings.username.prefix));
    if user.username.is_empty() {
        return Err("oidc: the username is empty".to_owned());
    }
    if !mappings.groups.claim.is_empty()
        && let Some(groups) = claims.get(&mappings.groups.claim)
    {
        let known = groups.is_string()
            || groups
                .as_array()
                .is_some_and(|all| all.iter().all(Value::is_string));
        if !known {
            return Err(format!(
                "oidc: parse groups claim {:?}: neither a string nor a list of strings",
                mappings.groups.claim
            ));
        }
        let prefix = prefix(&mappings.groups.prefix);
        user.groups = texts(groups)
            .iter()
            .map(|group| format!("{prefix}{group}"))
            .collect();
    }
    if !mappings.uid.claim.is_empty() {
        let uid = claims.get(&mappings.uid.claim).and_then(Value::as_str);
        uid.ok_or_else(|| {
            format!(
                "oidc: error claim {:?} not present or not a string",
                mappings.uid.claim
            )
        })?
        .clone_into(&mut user.uid);
    }
    if let Some(id) = claims.get("jti").and_then(Value::as_str) {
        user.extra.insert(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("JTI={id}")],
        );
    }
    Ok(user)
}

/// A text or a list of texts.
pub(super) fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(all) => all
            .iter()
            .filter_map(|v| v.as_str().map(ToOwned::to_owned))
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::parse;
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_become_a_user_or_a_reason() {
        let configuration = parse(
            "issuer: {url: 'https://i', audiences: [a]}, \
             claimValidationRules: [{claim: hd, requiredValue: x}], \
             claimMappings: {username: {claim: email, prefix: 'o:'}, groups: {claim: roles, prefix: 'g:'}, uid: {claim: sub}}",
        )
        .unwrap();
        let map = |value: Value| value.as_object().cloned().unwrap();
        let good = json!({"hd": "x", "email": "a@b", "email_verified": true, "roles": ["dev", "ops"], "sub": "1", "jti": "j"});
        let jane = user(&configuration.jwt[0], &map(good.clone())).unwrap();
        assert_eq!((jane.username.as_str(), jane.uid.as_str()), ("o:a@b", "1"));
        assert_eq!(jane.groups, ["g:dev", "g:ops"]);
        for (key, value, reason) in [
            ("hd", json!("y"), "does not match"),
            ("email_verified", json!(false), "email not verified"),
            ("roles", json!([1]), "groups claim"),
            ("email", json!(1), "username claims"),
            ("sub", json!(null), "\"sub\""),
        ] {
            let mut claims = map(good.clone());
            claims.insert(key.to_owned(), value);
            let error = user(&configuration.jwt[0], &claims).unwrap_err();
            assert!(error.contains(reason), "{key}: {error}");
        }
    }
}
