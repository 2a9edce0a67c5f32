//! Service-account tokens for pods, requested from the API and renewed before they expire.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::json;

use super::{VolumeContext, VolumeError};
use crate::pod;

/// Tokens are renewed after this share of their life, and at the latest after a day.
const REFRESH_PERCENT: u32 = 80;
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) token: String,
    pub(super) refresh_at: SystemTime,
}

/// By pod uid, audience and life time.
#[derive(Default)]
pub(crate) struct Tokens {
    cached: Mutex<HashMap<(String, String, i64), Token>>,
}

impl Tokens {
    pub(super) async fn get(
        &self,
        context: &VolumeContext<'_>,
        audience: &str,
        expiration_s: i64,
    ) -> Result<Token, VolumeError> {
        let key = (
            pod::uid(context.pod).to_owned(),
            audience.to_owned(),
            expiration_s,
        );
        let now = context.services.clock.now();
        if let Some(token) = self.lock().get(&key).filter(|token| token.refresh_at > now) {
            return Ok(token.clone());
        }
        let token = request(context, audience, expiration_s, now).await?;
        self.lock().insert(key, token.clone());
        Ok(token)
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.lock().retain(|(pod, _, _), _| pod != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String, i64), Token>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn request(
    context: &VolumeContext<'_>,
    audience: &str,
    expiration_s: i64,
    now: SystemTime,
) -> Result<Token, VolumeError> {
    let account = pod::spec(context.pod)
        .service_account_name
        .clone()
        .unwrap_or_else(|| "default".to_owned());
    let audiences: Vec<&str> = if audience.is_empty() {
        Vec::new()
    } else {
        vec![audience]
    };
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": expiration_s,
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod::name(context.pod),
                "uid": pod::uid(context.pod),
            },
        },
    });
    let answer = context
        .services
        .client
        .create_subresource::<ServiceAccount>(context.namespace(), &account, "token", &body)
        .await
        .map_err(|error| VolumeError::Failed(format!("failed to fetch token: {error}")))?;
    let token = answer["status"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(VolumeError::Failed(
            "failed to fetch token: the API server answered without one".to_owned(),
        ));
    }
    let life = answer["status"]["expirationTimestamp"]
        .as_str()
        .and_then(|text| text.parse::<k8s_openapi::jiff::Timestamp>().ok())
        .and_then(|at| SystemTime::from(at).duration_since(now).ok())
        .unwrap_or_else(|| Duration::from_secs(u64::try_from(expiration_s).unwrap_or(3600)));
    Ok(Token {
        token: token.to_owned(),
        refresh_at: now + (life * REFRESH_PERCENT / 100).min(MAX_AGE),
    })
}
