//! `authentication.k8s.io`: TokenReview and SelfSubjectReview.

use keelson_machinery::{meta, time};
use serde_json::{Value, json};

use super::{Authenticator, Seen};
use crate::request::UserInfo;

/// Fills the status of a TokenReview.
pub(crate) async fn token_review(
    authenticator: &Authenticator,
    mut review: Value,
    seen: &Seen<'_>,
) -> Value {
    let token = review["spec"]["token"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let asked: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .map(|all| {
            all.iter()
                .filter_map(|a| a.as_str().map(ToOwned::to_owned))
                .collect()
        })
        .unwrap_or_default();
    let audiences = if asked.is_empty() {
        authenticator.tokens.audiences().to_vec()
    } else {
        asked
    };
    let status = if token.is_empty() {
        json!({"user": {}, "error": "no token is given"})
    } else {
        match authenticator.by_token(&token, &audiences, seen).await {
            Ok(verified) => {
                let user = super::authenticated(verified.user);
                json!({"authenticated": true, "user": user.to_json(), "audiences": verified.audiences})
            }
            Err(reason) if reason.is_empty() => {
                json!({"user": {}, "error": "invalid bearer token"})
            }
            Err(reason) => {
                json!({"user": {}, "error": format!("[invalid bearer token, {reason}]")})
            }
        }
    };
    review["status"] = status;
    review
}

/// Fills the status of a SelfSubjectReview.
pub(crate) fn self_subject_review(user: &UserInfo, mut review: Value) -> Value {
    meta::set_creation_timestamp(&mut review, &time::now());
    review["status"] = json!({"userInfo": user.to_json()});
    review
}
