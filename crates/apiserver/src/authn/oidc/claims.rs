//! From the claims of a verified token to a user. Pure.

use keelson_cel::Value as CelValue;
use keelson_machinery::go;
use serde_json::{Map, Value};

use super::config::{Jwt, Mapping};
use super::expressions::{self, Expressions, Subject};
use crate::request::UserInfo;

pub(super) fn user(
    jwt: &Jwt,
    compiled: &Expressions,
    claims: Map<String, Value>,
) -> Result<UserInfo, String> {
    let claims = Value::Object(claims);
    let mut user = UserInfo {
        username: username(jwt, compiled, &claims)?,
        groups: groups(jwt, compiled, &claims)?,
        uid: uid(jwt, compiled, &claims)?,
        ..UserInfo::default()
    };
    if let Some(id) = claims["jti"].as_str().filter(|id| !id.is_empty()) {
        user.extra.insert(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("JTI={id}")],
        );
    }
    extra(compiled, &claims, &mut user)?;
    required_claims(jwt, &claims)?;
    Subject::Claims
        .hold(&compiled.claim_rules, &claims)
        .map_err(|e| format!("oidc: error evaluating claim validation expression: {e}"))?;
    if !compiled.user_rules.is_empty() {
        Subject::User
            .hold(&compiled.user_rules, &visible(&user))
            .map_err(|e| format!("oidc: error evaluating user info validation rule: {e}"))?;
    }
    Ok(user)
}

fn username(jwt: &Jwt, compiled: &Expressions, claims: &Value) -> Result<String, String> {
    if let Some(expression) = &compiled.username {
        let failed = |e: String| format!("oidc: error evaluating username claim expression: {e}");
        let value = Subject::Claims
            .evaluate(expression, claims)
            .map_err(failed)?;
        return match value {
            CelValue::String(name) if name.is_empty() => {
                Err("oidc: empty username via CEL expression is not allowed".to_owned())
            }
            CelValue::String(name) => Ok(name.as_str().to_owned()),
            _ => Err(failed(
                "username claim expression must return a string".to_owned(),
            )),
        };
    }
    let mapping = &jwt.claim_mappings.username;
    let name = text(claims, &mapping.claim)
        .map_err(|e| format!("oidc: parse username claims {:?}: {e}", mapping.claim))?;
    // An issuer lets anybody claim an address; only a verified one is a name.
    if mapping.claim == "email" {
        match claims.get("email_verified") {
            None | Some(Value::Bool(true)) => {}
            Some(Value::Bool(false) | Value::Null) => {
                return Err("oidc: email not verified".to_owned());
            }
            Some(other) => {
                return Err(format!(
                    "oidc: parse 'email_verified' claim: {}",
                    mismatch(other, "bool")
                ));
            }
        }
    }
    Ok(format!("{}{name}", prefix(mapping)))
}

fn groups(jwt: &Jwt, compiled: &Expressions, claims: &Value) -> Result<Vec<String>, String> {
    let mapping = &jwt.claim_mappings.groups;
    if !mapping.claim.is_empty()
        && let Some(groups) = claims.get(&mapping.claim)
    {
        let prefix = prefix(mapping);
        let known = match groups {
            Value::Array(all) => all.iter().all(|g| g.is_string() || g.is_null()),
            other => other.is_string() || other.is_null(),
        };
        if !known {
            let problem = mismatch(groups, "string");
            return Err(format!(
                "oidc: parse groups claim {:?}: {problem}",
                mapping.claim
            ));
        }
        return Ok(texts(groups)
            .iter()
            .map(|group| format!("{prefix}{group}"))
            .collect());
    }
    let Some(expression) = &compiled.groups else {
        return Ok(Vec::new());
    };
    Subject::Claims
        .evaluate(expression, claims)
        .and_then(|value| expressions::texts(&value))
        .map_err(|e| format!("oidc: error evaluating group claim expression: {e}"))
}

fn uid(jwt: &Jwt, compiled: &Expressions, claims: &Value) -> Result<String, String> {
    let claim = jwt.claim_mappings.uid.claim.as_str();
    if !claim.is_empty() {
        return text(claims, claim)
            .map(ToOwned::to_owned)
            .map_err(|e| format!("oidc: parse uid claim {claim:?}: {e}"));
    }
    let Some(expression) = &compiled.uid else {
        return Ok(String::new());
    };
    let failed = |e: String| format!("oidc: error evaluating uid claim expression: {e}");
    match Subject::Claims
        .evaluate(expression, claims)
        .map_err(failed)?
    {
        CelValue::String(uid) => Ok(uid.as_str().to_owned()),
        _ => Err(failed(
            "uid claim expression must return a string".to_owned(),
        )),
    }
}

fn extra(compiled: &Expressions, claims: &Value, user: &mut UserInfo) -> Result<(), String> {
    let values = compiled
        .extra
        .iter()
        .map(|(_, expression)| Subject::Claims.evaluate(expression, claims))
        .collect::<Result<Vec<_>, _>>()?;
    for ((key, expression), value) in compiled.extra.iter().zip(values) {
        let texts = expressions::texts(&value).map_err(|e| {
            format!(
                "oidc: error evaluating extra claim expression: {}: {e}",
                expression.source()
            )
        })?;
        if !texts.is_empty() {
            user.extra.insert(key.clone(), texts);
        }
    }
    Ok(())
}

fn required_claims(jwt: &Jwt, claims: &Value) -> Result<(), String> {
    for rule in &jwt.claim_validation_rules {
        let claim = rule.claim.as_str();
        if claim.is_empty() {
            continue;
        }
        if claims.get(claim).is_none() {
            return Err(format!(
                "oidc: required claim {claim} not present in ID token"
            ));
        }
        let given = text(claims, claim).map_err(|e| format!("oidc: parse claim {claim}: {e}"))?;
        if given != rule.required_value {
            return Err(format!(
                "oidc: required claim {claim} value does not match. Got = {given}, want = {}",
                rule.required_value
            ));
        }
    }
    Ok(())
}

fn prefix(mapping: &Mapping) -> &str {
    mapping.prefix.as_deref().unwrap_or_default()
}

/// The user as rules see it: every field is there.
fn visible(user: &UserInfo) -> Value {
    serde_json::json!({
        "username": user.username, "uid": user.uid, "groups": user.groups, "extra": user.extra,
    })
}

/// A claim that is a text; null is an empty one.
fn text<'c>(claims: &'c Value, name: &str) -> Result<&'c str, String> {
    match claims.get(name) {
        None => Err("claim not present".to_owned()),
        Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(mismatch(other, "string")),
    }
}

fn mismatch(value: &Value, wanted: &str) -> String {
    let given = go::json_kind(value);
    format!("json: cannot unmarshal {given} into Go value of type {wanted}")
}

/// A text or a list of texts.
pub(super) fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(all) => all
            .iter()
            .map(|v| v.as_str().unwrap_or_default().to_owned())
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::parse;
    use super::super::validation::validate;
    use super::*;
    use serde_json::json;

    fn mapped(jwt: &str, claims: &Value) -> Result<UserInfo, String> {
        let configuration = parse(jwt).unwrap();
        let compiled = validate(&configuration, &[]).unwrap();
        let claims = claims.as_object().cloned().unwrap();
        user(&configuration.jwt[0], &compiled[0], claims)
    }

    #[test]
    fn claims_become_a_user_or_a_reason() {
        let jwt = "issuer: {url: 'https://i', audiences: [a]}, \
             claimValidationRules: [{claim: hd, requiredValue: x}], \
             claimMappings: {username: {claim: email, prefix: 'o:'}, groups: {claim: roles, prefix: 'g:'}, uid: {claim: sub}}";
        let good = json!({"hd": "x", "email": "a@b", "email_verified": true, "roles": ["dev", "ops"], "sub": "1", "jti": "j"});
        let jane = mapped(jwt, &good).unwrap();
        assert_eq!((jane.username.as_str(), jane.uid.as_str()), ("o:a@b", "1"));
        assert_eq!(jane.groups, ["g:dev", "g:ops"]);
        for (key, value, reason) in [
            (
                "hd",
                json!("y"),
                "oidc: required claim hd value does not match. Got = y, want = x",
            ),
            ("email_verified", json!(false), "oidc: email not verified"),
            (
                "roles",
                json!([1]),
                "oidc: parse groups claim \"roles\": json: cannot unmarshal array into Go value of type string",
            ),
            (
                "email",
                json!(1),
                "oidc: parse username claims \"email\": json: cannot unmarshal number into Go value of type string",
            ),
            (
                "sub",
                json!({}),
                "oidc: parse uid claim \"sub\": json: cannot unmarshal object into Go value of type string",
            ),
        ] {
            let mut claims = good.clone();
            claims[key] = value;
            assert_eq!(mapped(jwt, &claims).unwrap_err(), reason);
        }
    }

    #[test]
    fn expressions_make_the_user_and_judge_it() {
        let jwt = "issuer: {url: 'https://i', audiences: [a]}, \
             claimMappings: {username: {expression: \"claims.sub + '@' + claims.org\"}, \
               groups: {expression: \"claims.roles.split(',')\"}, \
               uid: {expression: claims.id}, \
               extra: [{key: a.io/tenant, valueExpression: claims.org}, {key: a.io/none, valueExpression: \"''\"}]}, \
             claimValidationRules: [{expression: 'claims.exp - claims.nbf <= 86400.0', message: too long}], \
             userValidationRules: [{expression: \"!user.username.startsWith('system:')\", message: reserved}, \
               {expression: \"user.extra.a__dot__io__slash__tenant == ['x']\", message: tenant}]";
        let good =
            json!({"sub": "jane", "org": "x", "roles": "dev,ops", "id": "7", "nbf": 1, "exp": 100});
        let jane = mapped(jwt, &good).unwrap();
        assert_eq!((jane.username.as_str(), jane.uid.as_str()), ("jane@x", "7"));
        assert_eq!(jane.groups, ["dev", "ops"]);
        assert_eq!(jane.extra.len(), 1);
        for (key, value, reason) in [
            (
                "sub",
                json!("system:x"),
                "oidc: error evaluating user info validation rule: validation expression '!user.username.startsWith('system:')' failed: reserved",
            ),
            (
                "org",
                json!("y"),
                "oidc: error evaluating user info validation rule: validation expression 'user.extra.a__dot__io__slash__tenant == ['x']' failed: tenant",
            ),
            (
                "exp",
                json!(90000),
                "oidc: error evaluating claim validation expression: validation expression 'claims.exp - claims.nbf <= 86400.0' failed: too long",
            ),
            (
                "id",
                json!(7),
                "oidc: error evaluating uid claim expression: uid claim expression must return a string",
            ),
            (
                "roles",
                json!(7),
                "oidc: error evaluating group claim expression: expression 'claims.roles.split(',')' resulted in error: no such overload: split(double, string)",
            ),
        ] {
            let mut claims = good.clone();
            claims[key] = value;
            assert_eq!(mapped(jwt, &claims).unwrap_err(), reason);
        }
    }
}
