//! Tokens of OpenID Connect issuers: `apiserver.config.k8s.io` `AuthenticationConfiguration`, or
//! the `--oidc-*` flags, which come down to one.

mod claims;
mod config;
mod expressions;
mod keys;
mod validation;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, Validation};
use keelson_machinery::field;
use serde_json::{Map, Value};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::Verified;
use crate::reload::Changes;
pub use config::OidcFlags;
use config::{Anonymous, Configuration, Jwt};
use expressions::Expressions;
use keys::Keys;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the authentication configuration {file}: {reason}")]
    File { file: String, reason: String },
    #[error("the OIDC flags: {0}")]
    Flags(String),
}

/// Tolerated when an issuer's clock is ahead of this server's.
const NOT_BEFORE_LEEWAY_S: f64 = 300.0;

/// Every configured issuer, and what the configuration says about requests without credentials.
pub(crate) struct Issuers {
    state: ArcSwap<State>,
    /// This server's own issuers, which no other may claim to be.
    reserved: Vec<String>,
}

#[derive(Default)]
struct State {
    issuers: Vec<Issuer>,
    anonymous: Option<Anonymous>,
}

struct Issuer {
    jwt: Jwt,
    expressions: Expressions,
    keys: Keys,
}

impl Issuers {
    pub(crate) fn open(
        file: Option<&Path>,
        flags: &OidcFlags,
        reserved: Vec<String>,
    ) -> Result<Self, Error> {
        let state = match file {
            Some(_) if flags.is_set() => {
                return Err(Error::Flags(
                    "they exclude an authentication configuration file".to_owned(),
                ));
            }
            Some(file) => from_text(file, &read(file)?, &reserved)?,
            None => flags
                .configuration()
                .and_then(|configuration| build(configuration, &reserved))
                .map_err(Error::Flags)?,
        };
        Ok(Self {
            state: ArcSwap::from_pointee(state),
            reserved,
        })
    }

    /// Takes over changes of the file, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, file: PathBuf, stop: CancellationToken) {
        let mut changes = Changes::of(file.clone(), stop);
        while let Some(text) = changes.next().await {
            let read = from_text(&file, &text, &self.reserved);
            let taken = read.map(|state| self.state.store(Arc::new(state)));
            changes.settle(taken.map_err(|error| error.to_string()));
        }
    }

    /// Whether a request without credentials may pass; `fallback` when the file says nothing.
    pub(crate) fn allows_anonymous(&self, path: &str, fallback: bool) -> bool {
        match &self.state.load().anonymous {
            None => fallback,
            Some(anonymous) => anonymous.allows(path),
        }
    }

    /// Nothing when no configured issuer claims to have made the token.
    pub(crate) async fn verify(
        &self,
        token: &str,
        api_audiences: &[String],
    ) -> Option<Result<Verified, String>> {
        let state = self.state.load_full();
        if state.issuers.is_empty() {
            return None;
        }
        let unverified: Map<String, Value> =
            jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
        let name = unverified.get("iss").and_then(Value::as_str)?;
        let issuer = state.issuers.iter().find(|i| i.jwt.issuer.url == name)?;
        Some(issuer.verify(token, api_audiences).await)
    }
}

fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(|error| Error::File {
        file: file.display().to_string(),
        reason: error.to_string(),
    })
}

fn from_text(file: &Path, text: &str, reserved: &[String]) -> Result<State, Error> {
    Configuration::parse(text)
        .and_then(|configuration| build(configuration, reserved))
        .map_err(|reason| Error::File {
            file: file.display().to_string(),
            reason,
        })
}

fn build(configuration: Configuration, reserved: &[String]) -> Result<State, String> {
    let expressions = validation::validate(&configuration, reserved)
        .map_err(|errors| field::aggregate(&errors))?;
    let issuers = configuration
        .jwt
        .into_iter()
        .zip(expressions)
        .map(|(jwt, expressions)| {
            let egress = &jwt.issuer.egress_selector_type;
            if !egress.is_empty() {
                return Err(format!(
                    "oidc: egress lookup required with egress selector type {egress:?}"
                ));
            }
            Ok(Issuer {
                keys: Keys::new(&jwt.issuer),
                jwt,
                expressions,
            })
        })
        .collect::<Result<_, String>>()?;
    Ok(State {
        issuers,
        anonymous: configuration.anonymous,
    })
}

impl Issuer {
    async fn verify(&self, token: &str, api_audiences: &[String]) -> Result<Verified, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|e| e.to_string())?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(format!(
                "oidc: unsupported signing algorithm {:?}",
                header.alg
            ));
        }
        let mut validation = Validation::new(header.alg);
        validation.leeway = 0;
        // Looked at below, where "one of" is told from "exactly".
        validation.validate_aud = false;
        validation.set_issuer(&[&self.jwt.issuer.url]);
        let mut reason = "no key of the issuer verifies the signature".to_owned();
        for key in self.keys.find(header.kid.as_deref(), header.alg).await? {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation) {
                Ok(data) => return self.accept(data.claims, api_audiences),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(format!("oidc: verify token: {reason}"))
    }

    fn accept(
        &self,
        claims: Map<String, Value>,
        api_audiences: &[String],
    ) -> Result<Verified, String> {
        let now = keelson_machinery::time::now_unix() as f64;
        let begins = claims.get("nbf").and_then(Value::as_f64);
        if begins.is_some_and(|begins| now + NOT_BEFORE_LEEWAY_S < begins) {
            return Err("oidc: verify token: oidc: the token is not valid yet (nbf)".to_owned());
        }
        let given = claims::texts(claims.get("aud").unwrap_or(&Value::Null));
        let expected = &self.jwt.issuer.audiences;
        if !given.iter().any(|audience| expected.contains(audience)) {
            return Err(format!(
                "oidc: verify token: oidc: expected audience in {expected:?} got {given:?}"
            ));
        }
        let user = claims::user(&self.jwt, &self.expressions, claims)?;
        Ok(Verified {
            user,
            audiences: api_audiences.to_vec(),
        })
    }
}

const ALGORITHMS: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
];
