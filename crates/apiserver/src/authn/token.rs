//! Service account tokens: signed JWTs bound to a service account and maybe a pod, secret or node.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use keelson_machinery::{meta, time};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::known::Signed;
use super::{Seen, Verified, legacy};
use crate::http::Counter;
use crate::objects::Objects;
use crate::request::UserInfo;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the service account signing key is not usable: {0}")]
    Key(String),
    #[error("signing a token")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// Signs and checks tokens with one ECDSA P-256 key.
pub struct TokenIssuer {
    issuer: String,
    audiences: Vec<String>,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    signed: Signed,
    /// The public key's coordinates, base64url.
    x: String,
    y: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) iss: String,
    pub(crate) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) private: Private,
    pub(crate) nbf: i64,
    pub(crate) sub: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Private {
    pub(crate) namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Reference>,
    pub(crate) serviceaccount: Reference,
    /// When the client should have asked for a new token; the token works on for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warnafter: Option<i64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
}

impl TokenIssuer {
    /// `key_pem` is PKCS#8. The first audience is what tokens without a wish are for.
    pub fn new(key_pem: &str, issuer: &str, audiences: Vec<String>) -> Result<Self, Error> {
        let pair = rcgen::KeyPair::from_pem(key_pem).map_err(|e| Error::Key(e.to_string()))?;
        let point = pair.public_key_raw();
        if point.len() != 65 || point[0] != 4 {
            return Err(Error::Key("not an ECDSA P-256 key".to_owned()));
        }
        let (x, y) = (
            URL_SAFE_NO_PAD.encode(&point[1..33]),
            URL_SAFE_NO_PAD.encode(&point[33..]),
        );
        let key = |e: jsonwebtoken::errors::Error| Error::Key(e.to_string());
        Ok(Self {
            issuer: issuer.to_owned(),
            audiences,
            key_id: URL_SAFE_NO_PAD.encode(Sha256::digest(point)),
            signing: EncodingKey::from_ec_pem(key_pem.as_bytes()).map_err(key)?,
            verifying: DecodingKey::from_ec_components(&x, &y).map_err(key)?,
            signed: Signed::default(),
            x,
            y,
        })
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing).map_err(Error::Sign)
    }

    /// Whether a token says that it comes from here.
    fn is_ours(&self, token: &str) -> bool {
        let mut parts = token.split('.');
        let (Some(_), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let payload = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
        let claims: Value = serde_json::from_slice(&payload).unwrap_or_default();
        claims["iss"] == self.issuer.as_str()
    }

    fn decode(&self, token: &str) -> Result<Arc<Claims>, String> {
        let digest = super::digest(token);
        if let Some(claims) = self.signed.get(&digest) {
            return Ok(claims);
        }
        if !self.is_ours(token) {
            return Err(String::new());
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.leeway = 10;
        validation.set_issuer(&[&self.issuer]);
        let data = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)
            .map_err(|e| e.to_string())?;
        let claims = Arc::new(data.claims);
        self.signed.insert(digest, Arc::clone(&claims));
        Ok(claims)
    }

    /// `/openid/v1/jwks`.
    pub(crate) fn jwks(&self) -> Value {
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": self.x, "y": self.y,
        }]})
    }

    /// `/.well-known/openid-configuration`.
    pub(crate) fn openid_configuration(&self, jwks_uri: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

/// Checks signature, lifetime, audience, and that everything the token is bound to still exists.
/// The error is empty when the token is somebody else's.
pub(super) async fn verify(
    issuer: &TokenIssuer,
    objects: &dyn Objects,
    token: &str,
    audiences: &[String],
    seen: &Seen<'_>,
) -> Result<Verified, String> {
    let claims = issuer.decode(token)?;
    let matching: Vec<String> = audiences
        .iter()
        .filter(|a| claims.aud.contains(a))
        .cloned()
        .collect();
    if matching.is_empty() {
        return Err(format!(
            "token audiences {:?} is invalid for the target audiences {audiences:?}",
            claims.aud
        ));
    }
    let private = &claims.private;
    let (namespace, account) = (private.namespace.as_str(), &private.serviceaccount);
    if claims.sub != format!("system:serviceaccount:{namespace}:{}", account.name) {
        return Err("the token's subject is not its service account".to_owned());
    }
    bound(
        objects,
        "",
        "serviceaccounts",
        namespace,
        account,
        "ServiceAccount",
    )
    .await?;
    if let Some(pod) = &private.pod {
        bound(objects, "", "pods", namespace, pod, "Pod").await?;
    }
    if let Some(secret) = &private.secret {
        bound(objects, "", "secrets", namespace, secret, "Secret").await?;
        if claims.exp - claims.iat == legacy::LIFETIME_SECONDS {
            legacy::check(objects, token, private, seen).await?;
        }
    }
    if let Some(node) = &private.node
        && private.pod.is_none()
    {
        bound(objects, "", "nodes", "", node, "Node").await?;
    }
    if let Some(threshold) = private.warnafter.filter(|at| *at != 0) {
        let late = time::now_unix() - threshold;
        if late > 0 {
            let value = format!(
                "subject: {}, seconds after warning threshold: {late}",
                claims.sub
            );
            seen.annotate("stale-token", &value);
            seen.count(Counter::StaleTokens);
        } else {
            seen.count(Counter::ValidTokens);
        }
    }
    let mut user = UserInfo::service_account(namespace, &account.name);
    user.uid.clone_from(&account.uid);
    let mut extra = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                vec![value.to_owned()],
            );
        }
    };
    if !claims.jti.is_empty() {
        extra("credential-id", &format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &private.pod {
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = &private.node {
        extra("node-name", &node.name);
        extra("node-uid", &node.uid);
    }
    Ok(Verified {
        user,
        audiences: matching,
    })
}

/// The cache may lag behind the creation of what the token names, so a miss asks the store.
async fn bound(
    objects: &dyn Objects,
    group: &str,
    resource: &str,
    namespace: &str,
    wanted: &Reference,
    kind: &str,
) -> Result<(), String> {
    let holds = |object: &Value| {
        // What is being deleted keeps its tokens for a minute, so that it can end in order.
        let gone = meta::deletion_timestamp(object)
            .and_then(time::parse_unix)
            .is_some_and(|deleted| time::now_unix() > deleted + 60);
        (wanted.uid.is_empty() || meta::uid(object) == wanted.uid) && !gone
    };
    if objects
        .get(group, resource, namespace, &wanted.name)
        .is_some_and(|object| holds(&object))
    {
        return Ok(());
    }
    match objects.read(group, resource, namespace, &wanted.name).await {
        Ok(Some(object)) if holds(&object) => Ok(()),
        Ok(_) => Err(format!(
            "{kind} {namespace}/{} of the token does not exist any more",
            wanted.name
        )),
        Err(status) => Err(status.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> TokenIssuer {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        TokenIssuer::new(
            &key,
            "https://kubernetes.default.svc.cluster.local",
            vec!["api".to_owned()],
        )
        .unwrap()
    }

    fn claims(exp: i64) -> Claims {
        Claims {
            aud: vec!["api".to_owned()],
            exp,
            iat: time::now_unix(),
            iss: "https://kubernetes.default.svc.cluster.local".to_owned(),
            jti: "id".to_owned(),
            private: Private {
                namespace: "ns".to_owned(),
                serviceaccount: Reference {
                    name: "sa".to_owned(),
                    uid: "u".to_owned(),
                },
                ..Private::default()
            },
            nbf: time::now_unix(),
            sub: "system:serviceaccount:ns:sa".to_owned(),
        }
    }

    #[test]
    fn a_signed_token_decodes_and_a_changed_or_old_one_does_not() {
        let issuer = issuer();
        let token = issuer.sign(&claims(time::now_unix() + 600)).unwrap();
        assert_eq!(
            issuer.decode(&token).unwrap().sub,
            "system:serviceaccount:ns:sa"
        );
        let other = self::issuer();
        assert!(other.decode(&token).is_err(), "another server's key");
        let old = issuer.sign(&claims(time::now_unix() - 600)).unwrap();
        assert!(issuer.decode(&old).is_err(), "expired");
        let mut tampered = token.clone();
        tampered.replace_range(40..41, if &token[40..41] == "A" { "B" } else { "A" });
        assert!(issuer.decode(&tampered).is_err());
    }
}
