//! Client certificates: the chain is verified here and not in the handshake; the common name is
//! the user, organizations are groups.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use thiserror::Error;
use x509_parser::der_parser::{Oid, oid};
use x509_parser::x509::X509Name;

use crate::request::UserInfo;

const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);

#[derive(Debug, Error)]
pub enum Error {
    #[error("the client certificate authority is not usable: {0}")]
    Authority(String),
    #[error("verifying the chain")]
    Chain(#[source] rustls::Error),
    #[error("the client certificate cannot be read")]
    Malformed,
    #[error("the client certificate names no user")]
    Nameless,
    #[error("the client certificate names no uid, or several")]
    Uid,
}

pub(super) struct Verifier {
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Verifier {
    pub(super) fn new(authority: CertificateDer<'static>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        roots
            .add(authority)
            .map_err(|e| Error::Authority(e.to_string()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| Error::Authority(e.to_string()))?;
        Ok(Self { verifier })
    }

    /// Whom the chain names, and until when (seconds since 1970) all of it is valid.
    pub(super) fn verify(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<(UserInfo, i64), Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(Error::Malformed)?;
        self.verifier
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(Error::Chain)?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(leaf).map_err(|_| Error::Malformed)?;
        let subject = certificate.subject();
        let username = subject
            .iter_common_name()
            .next()
            .and_then(|cn| cn.as_str().ok())
            .filter(|cn| !cn.is_empty())
            .ok_or(Error::Nameless)?
            .to_owned();
        let groups = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok())
            .map(ToOwned::to_owned)
            .collect();
        let mut user = UserInfo {
            username,
            groups,
            uid: uid(subject)?,
            ..UserInfo::default()
        };
        let fingerprint: String = Sha256::digest(leaf)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        user.extra.insert(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("X509SHA256={fingerprint}")],
        );
        let ends = |der: &CertificateDer<'_>| {
            let parsed = x509_parser::parse_x509_certificate(der);
            parsed.map(|(_, c)| c.validity().not_after.timestamp()).ok()
        };
        let until = chain.iter().filter_map(ends).min().unwrap_or_default();
        Ok((user, until))
    }
}

/// The attribute of Kubernetes for the user's uid; empty without one.
fn uid(subject: &X509Name<'_>) -> Result<String, Error> {
    let mut given = subject.iter_by_oid(&UID);
    let Some(uid) = given.next() else {
        return Ok(String::new());
    };
    match uid.as_str() {
        Ok(uid) if !uid.is_empty() && given.next().is_none() => Ok(uid.to_owned()),
        _ => Err(Error::Uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Pki, Usage};
    use rustls::pki_types::pem::PemObject;

    #[test]
    fn certificates_of_our_authority_name_users_and_others_do_not() {
        let dir = std::env::temp_dir().join(format!("keelson-authn-{}", uuid::Uuid::new_v4()));
        let pki = Pki::load_or_create(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let verifier = Verifier::new(pki.cluster_ca.certificate_der().unwrap()).unwrap();
        let chain = |pem: &str| vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];

        let alice = pki
            .cluster_ca
            .issue("alice", "dev", &[], &[Usage::Client], 1)
            .unwrap();
        let (user, until) = verifier.verify(&chain(&alice.certificate_pem)).unwrap();
        let left = until - UnixTime::now().as_secs() as i64;
        assert!((86_000..=86_400).contains(&left), "valid for a day: {left}");
        assert_eq!(
            (user.username.as_str(), user.groups.as_slice()),
            ("alice", &["dev".to_owned()][..])
        );

        let foreign = pki
            .front_proxy_ca
            .issue("alice", "system:masters", &[], &[Usage::Client], 1)
            .unwrap();
        assert!(matches!(
            verifier.verify(&chain(&foreign.certificate_pem)),
            Err(Error::Chain(_))
        ));

        let server = pki
            .cluster_ca
            .issue("alice", "", &[], &[Usage::Server], 1)
            .unwrap();
        assert!(
            verifier.verify(&chain(&server.certificate_pem)).is_err(),
            "a serving certificate is no client's"
        );
    }
}
