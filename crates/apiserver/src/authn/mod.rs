//! Authentication: who a request comes from. Methods are asked in upstream's order: client
//! certificate, bearer token (header or WebSocket protocol), anonymous. A token is a listed one, a
//! bootstrap token, an OpenID Connect issuer's, a service account's, or known to a webhook.

mod certificate;
pub(crate) mod impersonate;
mod known;
pub(crate) mod legacy;
pub(crate) mod oidc;
pub(crate) mod review;
pub mod token;
mod token_file;
pub(crate) mod token_request;
mod webhook;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::http::{Counter, Metrics};
use crate::objects::Objects;
use crate::request::{Annotations, UserInfo, Warnings};

pub use certificate::Error as CertificateError;
pub(crate) use known::Chain;
pub use oidc::OidcFlags;
pub use token::TokenIssuer;
pub use webhook::WebhookOptions;

/// A token that never expires, given in the configuration.
#[derive(Debug, Clone)]
pub struct StaticToken {
    pub token: String,
    pub user: UserInfo,
}

pub struct Authenticator {
    certificates: certificate::Verifier,
    front_proxy: certificate::Verifier,
    tokens: Arc<TokenIssuer>,
    objects: Arc<dyn Objects>,
    /// Keyed by digest, so that comparing takes the same time for every guess.
    static_tokens: HashMap<[u8; 32], UserInfo>,
    issuers: Arc<oidc::Issuers>,
    webhook: Option<webhook::Webhook>,
    anonymous: bool,
}

/// How callers are known besides certificates, service account tokens and bootstrap tokens.
#[derive(Debug, Clone)]
pub struct AuthenticationOptions {
    pub static_tokens: Vec<StaticToken>,
    /// CSV: token, user, uid, groups.
    pub token_file: Option<PathBuf>,
    /// `AuthenticationConfiguration`.
    pub config_file: Option<PathBuf>,
    pub oidc: OidcFlags,
    pub webhook: Option<WebhookOptions>,
    /// Whether requests without credentials pass; a configuration file may say more.
    pub anonymous: bool,
}

impl Default for AuthenticationOptions {
    fn default() -> Self {
        Self {
            static_tokens: Vec::new(),
            token_file: None,
            config_file: None,
            oidc: OidcFlags::default(),
            webhook: None,
            anonymous: true,
        }
    }
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("client certificates")]
    Certificates(#[source] CertificateError),
    #[error("the token file {file}: {reason}")]
    TokenFile { file: String, reason: String },
    #[error("issuers of tokens")]
    Issuers(#[source] oidc::Error),
    #[error("the token webhook")]
    Webhook(#[source] crate::remote::Error),
}

/// Where authentication leaves what is to be said beside the caller's name.
pub(crate) struct Seen<'a> {
    pub(crate) warnings: &'a Warnings,
    pub(crate) annotations: &'a Annotations,
    pub(crate) metrics: &'a Metrics,
}

impl Seen<'_> {
    fn warn(&self, text: &str) {
        self.warnings.add(text);
    }

    fn annotate(&self, key: &str, value: &str) {
        let key = format!("authentication.k8s.io/{key}");
        self.annotations.add(&key, value);
    }

    fn count(&self, counter: Counter) {
        self.metrics.count(counter, &[]);
    }
}

/// A token's owner and the audiences it was accepted for.
pub(crate) struct Verified {
    pub(crate) user: UserInfo,
    pub(crate) audiences: Vec<String>,
}

impl Authenticator {
    pub fn new(
        client_ca: CertificateDer<'static>,
        front_proxy_ca: CertificateDer<'static>,
        tokens: Arc<TokenIssuer>,
        objects: Arc<dyn Objects>,
        options: &AuthenticationOptions,
    ) -> Result<Self, Error> {
        let listed = match &options.token_file {
            Some(file) => token_file::read(file).map_err(|reason| Error::TokenFile {
                file: file.display().to_string(),
                reason,
            })?,
            None => Vec::new(),
        };
        let static_tokens = options
            .static_tokens
            .iter()
            .chain(&listed)
            .map(|t| (digest(&t.token), t.user.clone()))
            .collect();
        let verifier = |ca| certificate::Verifier::new(ca).map_err(Error::Certificates);
        let issuers = oidc::Issuers::open(
            options.config_file.as_deref(),
            &options.oidc,
            vec![tokens.issuer().to_owned()],
        );
        let webhook = options.webhook.as_ref().map(webhook::Webhook::open);
        Ok(Self {
            certificates: verifier(client_ca)?,
            front_proxy: verifier(front_proxy_ca)?,
            tokens,
            objects,
            static_tokens,
            issuers: Arc::new(issuers.map_err(Error::Issuers)?),
            webhook: webhook.transpose().map_err(Error::Webhook)?,
            anonymous: options.anonymous,
        })
    }

    pub(crate) fn issuers(&self) -> &Arc<oidc::Issuers> {
        &self.issuers
    }

    /// The caller, or 401.
    pub(crate) async fn authenticate(
        &self,
        headers: &HeaderMap,
        chain: &Chain,
        path: &str,
        seen: &Seen<'_>,
    ) -> Result<Arc<UserInfo>, Status> {
        let mut refused = false;
        if !chain.is_empty() {
            if let Some(user) = self.by_front_proxy(headers, chain.certificates()) {
                return Ok(Arc::new(authenticated(user)));
            }
            match chain.user(&self.certificates) {
                Ok(user) => return Ok(user),
                Err(error) => {
                    tracing::debug!(%error, "client certificate not accepted");
                    refused = true;
                }
            }
        }
        if let Some(token) = bearer_token(headers) {
            return match self.by_token(&token, self.tokens.audiences(), seen).await {
                Ok(verified) => Ok(Arc::new(authenticated(verified.user))),
                Err(reason) => {
                    tracing::debug!(%reason, "bearer token not accepted");
                    Err(Status::unauthorized())
                }
            };
        }
        if refused || !self.issuers.allows_anonymous(path, self.anonymous) {
            return Err(Status::unauthorized());
        }
        Ok(Arc::new(UserInfo::anonymous()))
    }

    /// A proxy that shows a certificate of the front-proxy authority speaks for the user it names.
    fn by_front_proxy(
        &self,
        headers: &HeaderMap,
        certificates: &[CertificateDer<'static>],
    ) -> Option<UserInfo> {
        let username = headers.get("x-remote-user")?.to_str().ok()?.to_owned();
        let (proxy, _) = self.front_proxy.verify(certificates).ok()?;
        if proxy.username != "front-proxy-client" {
            return None;
        }
        let mut user = UserInfo {
            username,
            ..UserInfo::default()
        };
        user.uid = headers
            .get("x-remote-uid")
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        user.groups = headers
            .get_all("x-remote-group")
            .iter()
            .filter_map(|v| v.to_str().ok())
            .map(ToOwned::to_owned)
            .collect();
        user.extra = impersonate::extra_headers(headers, "x-remote-extra-");
        Some(user)
    }

    /// Verifies any kind of token; the error is a reason for TokenReview, empty when nobody knows
    /// a token of that kind.
    pub(crate) async fn by_token(
        &self,
        token: &str,
        audiences: &[String],
        seen: &Seen<'_>,
    ) -> Result<Verified, String> {
        if let Some(user) = self.static_tokens.get(&digest(token)) {
            return Ok(Verified {
                user: user.clone(),
                audiences: self.server_audiences(audiences),
            });
        }
        if token.len() == 23 && token.as_bytes()[6] == b'.' {
            let user = self.by_bootstrap_token(token)?;
            return Ok(Verified {
                user,
                audiences: self.server_audiences(audiences),
            });
        }
        if let Some(outcome) = self
            .issuers
            .verify(token, &self.server_audiences(audiences))
            .await
        {
            return outcome;
        }
        let own = token::verify(&self.tokens, &*self.objects, token, audiences, seen).await;
        match (own, &self.webhook) {
            (Err(reason), Some(webhook)) => {
                webhook
                    .verify(token, audiences)
                    .await
                    .map_err(|other| match reason.as_str() {
                        "" => other,
                        reason => format!("{reason}, {other}"),
                    })
            }
            (own, _) => own,
        }
    }

    fn server_audiences(&self, asked: &[String]) -> Vec<String> {
        asked
            .iter()
            .filter(|a| self.tokens.audiences().contains(a))
            .cloned()
            .collect()
    }

    /// `abcdef.0123456789abcdef`, kept in a secret of kube-system.
    fn by_bootstrap_token(&self, token: &str) -> Result<UserInfo, String> {
        let (id, secret) = token.split_once('.').ok_or("malformed bootstrap token")?;
        let name = format!("bootstrap-token-{id}");
        let object = self
            .objects
            .get("", "secrets", "kube-system", &name)
            .ok_or("no such bootstrap token")?;
        let field = |key: &str| {
            let encoded = object["data"][key].as_str().unwrap_or_default();
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(encoded)
                .unwrap_or_default();
            String::from_utf8(bytes).unwrap_or_default()
        };
        if object["type"] != "bootstrap.kubernetes.io/token"
            || meta::deletion_timestamp(&object).is_some()
        {
            return Err("the secret is no bootstrap token".to_owned());
        }
        if digest(&field("token-secret")) != digest(secret) || field("token-id") != id {
            return Err("the bootstrap token's secret does not match".to_owned());
        }
        let expiration = field("expiration");
        if !expiration.is_empty()
            && time::parse_unix(&expiration).is_none_or(|t| t <= time::now_unix())
        {
            return Err("the bootstrap token has expired".to_owned());
        }
        if field("usage-bootstrap-authentication") != "true" {
            return Err("the bootstrap token may not authenticate".to_owned());
        }
        let mut user = UserInfo::new(format!("system:bootstrap:{id}"), &["system:bootstrappers"]);
        let extra = field("auth-extra-groups");
        user.groups.extend(
            extra
                .split(',')
                .filter(|g| g.starts_with("system:bootstrappers:"))
                .map(ToOwned::to_owned),
        );
        Ok(user)
    }
}

fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group("system:authenticated") && !user.in_group("system:unauthenticated") {
        user.groups.push("system:authenticated".to_owned());
    }
    user
}

fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        let value = value.to_str().ok()?.trim();
        let (scheme, token) = value.split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
            .then(|| token.to_owned());
    }
    // Browsers cannot set headers on a WebSocket; they pass the token as a protocol.
    let prefix = "base64url.bearer.authorization.k8s.io.";
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(prefix))
        .and_then(|encoded| URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_by_header_or_websocket_protocol() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, "bearer  abc ".parse().unwrap());
        assert_eq!(bearer_token(&headers).as_deref(), Some("abc"));
        headers.insert(AUTHORIZATION, "Basic abc".parse().unwrap());
        assert_eq!(bearer_token(&headers), None);
        let mut headers = HeaderMap::new();
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj"
                .parse()
                .unwrap(),
        );
        assert_eq!(bearer_token(&headers).as_deref(), Some("abc"));
    }
}
