//! An issuer's keys, found by discovery and fetched again when a token names one that is new.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use keelson_client::{Client, ClientConfig};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::config::IssuerConfiguration;
use crate::request::read_up_to;

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// A token with a made-up key must not make this server call the issuer at every request.
const PAUSE: Duration = Duration::from_secs(2);
/// Keys are asked for anew after this long: an issuer that withdrew one is to be believed.
const LIFETIME: Duration = Duration::from_secs(3600);
pub(super) struct Keys {
    issuer: String,
    discovery_url: String,
    authorities: Vec<u8>,
    fetched: Mutex<Fetched>,
}

#[derive(Default)]
struct Fetched {
    keys: Arc<Vec<Jwk>>,
    tried: Option<Instant>,
    succeeded: Option<Instant>,
    error: String,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Keys {
    pub(super) fn new(issuer: &IssuerConfiguration) -> Self {
        let given = issuer.certificate_authority.as_deref();
        let authorities = match given.filter(|pem| !pem.is_empty()) {
            Some(pem) => pem.as_bytes().to_vec(),
            None => system_authorities(),
        };
        let given = issuer.discovery_url.clone().filter(|url| !url.is_empty());
        let discovery_url = given.unwrap_or_else(|| {
            format!(
                "{}/.well-known/openid-configuration",
                issuer.url.trim_end_matches('/')
            )
        });
        Self {
            issuer: issuer.url.clone(),
            discovery_url,
            authorities,
            fetched: Mutex::default(),
        }
    }

    /// The keys that may have signed a token with such a header.
    pub(super) async fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<DecodingKey>, String> {
        let keys = {
            // Whoever comes while the keys are being fetched waits for them.
            let mut fetched = self.fetched.lock().await;
            let has = |keys: &[Jwk]| keys.iter().any(|key| fits(key, id, algorithm));
            let old = fetched.succeeded.is_none_or(|at| at.elapsed() > LIFETIME);
            let may = fetched.tried.is_none_or(|at| at.elapsed() > PAUSE);
            if (old || !has(&fetched.keys)) && may {
                fetched.tried = Some(Instant::now());
                match self.fetch().await {
                    Ok(keys) => {
                        fetched.keys = Arc::new(keys);
                        fetched.succeeded = Some(Instant::now());
                    }
                    Err(error) => {
                        tracing::warn!(issuer = self.issuer, error, "fetching an issuer's keys");
                        fetched.error = error;
                    }
                }
            }
            if fetched.succeeded.is_none() {
                return Err(format!(
                    "oidc: authenticator not initialized: {}",
                    fetched.error
                ));
            }
            Arc::clone(&fetched.keys)
        };
        keys.iter()
            .filter(|key| fits(key, id, algorithm))
            .map(|key| DecodingKey::from_jwk(key).map_err(|e| e.to_string()))
            .collect()
    }

    async fn fetch(&self) -> Result<Vec<Jwk>, String> {
        let discovery: Discovery = self.get(&self.discovery_url).await?;
        if discovery.issuer != self.issuer {
            return Err(format!(
                "the discovery document is of issuer {:?}, not of {:?}",
                discovery.issuer, self.issuer
            ));
        }
        if !discovery.jwks_uri.starts_with("https://") {
            return Err(format!(
                "the key address {:?} is not HTTPS",
                discovery.jwks_uri
            ));
        }
        let set: serde_json::Value = self.get(&discovery.jwks_uri).await?;
        // Keys of kinds that are not known here are none of this server's business.
        let keys = set["keys"].as_array().into_iter().flatten();
        let known = keys.filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        let set = JwkSet {
            keys: known.take(256).collect(),
        };
        Ok(set.keys)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let uri: http::Uri = url.parse().map_err(|e| format!("{url:?}: {e}"))?;
        let authority = uri
            .authority()
            .ok_or_else(|| format!("{url:?} names no host"))?;
        let client = Client::https(&ClientConfig {
            server: format!("https://{authority}"),
            certificate_authority: self.authorities.clone(),
            ..ClientConfig::default()
        })
        .map_err(|e| e.to_string())?;
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let call = async {
            let response = client
                .raw(Method::GET, path, None, None, "application/json")
                .await
                .map_err(|e| e.to_string())?;
            let (bytes, whole) = read_up_to(response.into_body(), MAX_ANSWER_BYTES).await;
            if !whole {
                return Err("the answer broke off or is too large".to_owned());
            }
            serde_json::from_slice(&bytes).map_err(|e| e.to_string())
        };
        match tokio::time::timeout(TIMEOUT, call).await {
            Ok(outcome) => outcome.map_err(|reason| format!("{url}: {reason}")),
            Err(_) => Err(format!("{url}: no answer within {TIMEOUT:?}")),
        }
    }
}

fn fits(key: &Jwk, id: Option<&str>, algorithm: Algorithm) -> bool {
    let family = match &key.algorithm {
        AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa,
        AlgorithmParameters::EllipticCurve(_) => AlgorithmFamily::Ec,
        _ => return false,
    };
    let for_signing = !matches!(key.common.public_key_use, Some(PublicKeyUse::Encryption));
    let named = id.is_none() || key.common.key_id.as_deref() == id;
    for_signing && named && family == algorithm.family()
}

/// Those that can be used; a bundle may hold some that cannot.
fn system_authorities() -> Vec<u8> {
    let mut out = String::new();
    for certificate in crate::pki::system_authorities() {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(&certificate);
        out.push_str(&format!(
            "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
        ));
    }
    out.into_bytes()
}
