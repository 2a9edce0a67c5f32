//! Tokens of OpenID Connect issuers: `apiserver.config.k8s.io` `AuthenticationConfiguration`, or
//! the `--oidc-*` flags, which come down to one.

mod claims;
mod config;
mod keys;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use jsonwebtoken::{Algorithm, Validation};
use serde_json::{Map, Value};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::Verified;
pub use config::OidcFlags;
use config::{Anonymous, Configuration, Jwt};
use keys::Keys;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the authentication configuration {file}: {reason}")]
    File { file: String, reason: String },
    #[error("the OIDC flags: {0}")]
    Flags(String),
}

/// Tolerated difference of clocks.
const LEEWAY_S: u64 = 10;

/// Every configured issuer, and what the configuration says about requests without credentials.
pub(crate) struct Issuers {
    state: ArcSwap<State>,
}

#[derive(Default)]
struct State {
    issuers: Vec<Issuer>,
    anonymous: Option<Anonymous>,
}

struct Issuer {
    jwt: Jwt,
    keys: Keys,
}

impl Issuers {
    pub(crate) fn open(file: Option<&Path>, flags: &OidcFlags) -> Result<Self, Error> {
        let state = match file {
            Some(_) if flags.is_set() => {
                return Err(Error::Flags(
                    "they exclude an authentication configuration file".to_owned(),
                ));
            }
            Some(file) => from_text(file, &read(file)?)?,
            None => build(flags.configuration().map_err(Error::Flags)?).map_err(Error::Flags)?,
        };
        Ok(Self {
            state: ArcSwap::from_pointee(state),
        })
    }

    /// Takes over changes of the file, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, file: PathBuf, stop: CancellationToken) {
        let current = read(&file).unwrap_or_default();
        let path = file.clone();
        crate::reload::follow(file, current, stop, move |text| {
            let state = from_text(&path, text).map_err(|error| error.to_string())?;
            self.state.store(Arc::new(state));
            Ok(())
        })
        .await;
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

fn from_text(file: &Path, text: &str) -> Result<State, Error> {
    Configuration::parse(text)
        .and_then(build)
        .map_err(|reason| Error::File {
            file: file.display().to_string(),
            reason,
        })
}

fn build(configuration: Configuration) -> Result<State, String> {
    let issuers = configuration
        .jwt
        .into_iter()
        .map(|jwt| {
            let keys = Keys::new(&jwt.issuer)?;
            Ok(Issuer { jwt, keys })
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
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        // Looked at below, where "one of" is told from "exactly".
        validation.validate_aud = false;
        validation.set_issuer(&[&self.jwt.issuer.url]);
        let mut reason = "no key of the issuer verifies the signature".to_owned();
        for key in self.keys.find(header.kid.as_deref(), header.alg).await? {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation) {
                Ok(data) => return self.accept(&data.claims, api_audiences),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(format!("oidc: verify token: {reason}"))
    }

    fn accept(
        &self,
        claims: &Map<String, Value>,
        api_audiences: &[String],
    ) -> Result<Verified, String> {
        let given = claims::texts(claims.get("aud").unwrap_or(&Value::Null));
        let expected = &self.jwt.issuer.audiences;
        if !given.iter().any(|audience| expected.contains(audience)) {
            return Err(format!(
                "oidc: verify token: oidc: expected audience in {expected:?} got {given:?}"
            ));
        }
        let user = claims::user(&self.jwt, claims)?;
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
