//! The node agent's TLS: its own certificate, which follows the node's address and its own age;
//! client certificates asked for and not required.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use keelson_apiserver::pki::{Identity, Pki, not_after_unix};
use keelson_client::causes;
use keelson_node::NodeCertificate;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

pub(crate) fn server(
    pki: &Arc<Pki>,
    node: &str,
    address: watch::Receiver<IpAddr>,
) -> Result<(rustls::ServerConfig, Arc<dyn NodeCertificate>), String> {
    let client_ca = pki.cluster_ca.certificate_pem.as_bytes();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(client_ca) {
        roots.add(certificate.map_err(failed)?).map_err(failed)?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(failed)?;
    let certificate = Arc::new(OwnCertificate::new(pki.clone(), node.to_owned(), address)?);
    let mut config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((config, certificate))
}

fn failed(error: impl std::fmt::Display) -> String {
    format!("the node agent's TLS: {error}")
}

struct OwnCertificate {
    pki: Arc<Pki>,
    node: String,
    address: watch::Receiver<IpAddr>,
    issued: Mutex<Issued>,
    errors: AtomicU64,
}

struct Issued {
    to: IpAddr,
    identity: Identity,
    key: Arc<CertifiedKey>,
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnCertificate")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl OwnCertificate {
    fn new(pki: Arc<Pki>, node: String, address: watch::Receiver<IpAddr>) -> Result<Self, String> {
        let to = *address.borrow();
        let issued = Mutex::new(issue(&pki, &node, to)?);
        Ok(Self {
            pki,
            node,
            address,
            issued,
            errors: AtomicU64::new(0),
        })
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let to = *self.address.borrow();
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if issued.to != to || issued.identity.is_due() {
            match issue(&self.pki, &self.node, to) {
                Ok(fresh) => *issued = fresh,
                Err(error) => {
                    self.errors.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(error, "the old certificate is shown");
                }
            }
        }
        Some(issued.key.clone())
    }
}

impl NodeCertificate for OwnCertificate {
    fn not_after(&self) -> Option<SystemTime> {
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = not_after_unix(&issued.identity.certificate_pem)?;
        let seconds = u64::try_from(seconds).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn renewal_errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

fn issue(pki: &Pki, node: &str, to: IpAddr) -> Result<Issued, String> {
    let addresses = [to, IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let identity = pki
        .kubelet_serving(node, &addresses)
        .map_err(|error| failed(causes(&error)))?;
    let chain = CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(failed)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(failed)?;
    Ok(Issued {
        to,
        identity,
        key: Arc::new(CertifiedKey::new(chain, key)),
    })
}
