//! Who may talk to the node: a client certificate of the cluster, or a bearer token; then the API
//! server says whether that user may use the node's API.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use keelson_client::Client;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use serde_json::json;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Body, text};

/// Answers are remembered this long.
const TTL: Duration = Duration::from_secs(60);
const MAX_REMEMBERED: usize = 1024;
const MASTERS: &str = "system:masters";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) groups: Vec<String>,
}

pub(super) struct Authenticator {
    client: Client,
    node_name: String,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    users: Mutex<HashMap<[u8; 32], (Instant, User)>>,
    allowed: Mutex<HashMap<String, Instant>>,
}

impl Authenticator {
    pub(super) fn new(client: Client, node_name: String, client_ca: &[u8]) -> Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(client_ca) {
            let certificate = certificate.map_err(|error| format!("the client CA: {error}"))?;
            roots
                .add(certificate)
                .map_err(|error| format!("the client CA: {error}"))?;
        }
        let verifier = if roots.is_empty() {
            None
        } else {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let built =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            Some(built.map_err(|error| format!("the client CA: {error}"))?)
        };
        Ok(Self {
            client,
            node_name,
            verifier,
            users: Mutex::default(),
            allowed: Mutex::default(),
        })
    }

    pub(super) async fn check(
        &self,
        certificates: &[CertificateDer<'static>],
        request: &Request<Incoming>,
    ) -> Result<(), Response<Body>> {
        let user = match self.certificate_user(certificates) {
            Some(user) => user,
            None => self
                .token_user(request)
                .await
                .ok_or_else(|| text(StatusCode::UNAUTHORIZED, "Unauthorized"))?,
        };
        if user.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        let (verb, subresource) = attributes(request.method(), request.uri().path());
        let key = format!(
            "{}\n{}\n{verb}\n{subresource}",
            user.name,
            user.groups.join("\n")
        );
        if lock(&self.allowed)
            .get(&key)
            .is_some_and(|at| at.elapsed() < TTL)
        {
            return Ok(());
        }
        match self.review_access(&user, verb, subresource).await {
            Ok(true) => {
                let mut allowed = lock(&self.allowed);
                if allowed.len() >= MAX_REMEMBERED {
                    allowed.clear();
                }
                allowed.insert(key, Instant::now());
                Ok(())
            }
            Ok(false) => Err(text(
                StatusCode::FORBIDDEN,
                format!(
                    "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])",
                    user.name
                ),
            )),
            Err(error) => Err(text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("Authorization error: {error}"),
            )),
        }
    }

    fn certificate_user(&self, certificates: &[CertificateDer<'static>]) -> Option<User> {
        let (own, intermediates) = certificates.split_first()?;
        self.verifier
            .as_ref()?
            .verify_client_cert(own, intermediates, UnixTime::now())
            .ok()?;
        subject(own)
    }

    async fn token_user(&self, request: &Request<Incoming>) -> Option<User> {
        let header = request
            .headers()
            .get(http::header::AUTHORIZATION)?
            .to_str()
            .ok()?;
        let token = header
            .strip_prefix("Bearer ")
            .or_else(|| header.strip_prefix("bearer "))?
            .trim();
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some((_, user)) = lock(&self.users)
            .get(&key)
            .filter(|(at, _)| at.elapsed() < TTL)
        {
            return Some(user.clone());
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token},
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let answer = self
            .client
            .request(Method::POST, path, Some(&review))
            .await
            .ok()?;
        let status = &answer["status"];
        if status["authenticated"].as_bool() != Some(true) {
            return None;
        }
        let groups = status["user"]["groups"].as_array().into_iter().flatten();
        let user = User {
            name: status["user"]["username"].as_str()?.to_owned(),
            groups: groups
                .filter_map(|group| group.as_str().map(str::to_owned))
                .collect(),
        };
        let mut users = lock(&self.users);
        if users.len() >= MAX_REMEMBERED {
            users.clear();
        }
        users.insert(key, (Instant::now(), user.clone()));
        Some(user)
    }

    async fn review_access(
        &self,
        user: &User,
        verb: &str,
        subresource: &str,
    ) -> Result<bool, String> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user.name,
                "groups": user.groups,
                "resourceAttributes": {
                    "verb": verb,
                    "version": "v1",
                    "resource": "nodes",
                    "subresource": subresource,
                    "name": self.node_name,
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = self
            .client
            .request(Method::POST, path, Some(&review))
            .await
            .map_err(|error| error.to_string())?;
        Ok(answer["status"]["allowed"].as_bool() == Some(true))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Verb and node subresource that a request stands for.
fn attributes(method: &Method, path: &str) -> (&'static str, &'static str) {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let subresource = match path
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default()
    {
        "stats" => "stats",
        "metrics" => "metrics",
        "logs" => "log",
        "configz" => "configz",
        "pods" | "runningpods" => "pods",
        _ => "proxy",
    };
    (verb, subresource)
}

/// The common name is the user, organisations are its groups.
fn subject(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok())
        .map(str::to_owned)
        .collect();
    Some(User { name, groups })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn requests_map_to_node_subresources() {
        assert_eq!(attributes(&Method::GET, "/stats/summary"), ("get", "stats"));
        assert_eq!(
            attributes(&Method::GET, "/metrics/resource"),
            ("get", "metrics")
        );
        assert_eq!(
            attributes(&Method::POST, "/exec/a/b/c"),
            ("create", "proxy")
        );
        assert_eq!(attributes(&Method::GET, "/pods"), ("get", "pods"));
    }

    #[test]
    fn subjects_name_user_and_groups() {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "me");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "g1");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(
            subject(certificate.der()),
            Some(User {
                name: "me".into(),
                groups: vec!["g1".into()]
            })
        );
    }
}
