//! The serving certificate: follows the addresses clients reach the server by, and renews itself.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::issue::{Authority, Identity, Usage};
use super::{Error, LEAF_DAYS, read, write_private};

/// More addresses than one host has; beyond this the oldest names stay and new ones are not added.
const MAX_NAMES: usize = 100;

pub struct ServingCertificate {
    ca: Authority,
    /// Path without `.crt` and `.key`.
    path: PathBuf,
    current: ArcSwap<CertifiedKey>,
    /// What the current certificate names, with its PEM form.
    state: Mutex<State>,
}

struct State {
    names: BTreeSet<String>,
    identity: Identity,
}

impl std::fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingCertificate")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl ServingCertificate {
    pub(super) fn new(ca: Authority, path: PathBuf, names: Vec<String>) -> Result<Self, Error> {
        let kept = read(&path.with_extension("crt"))?.zip(read(&path.with_extension("key"))?);
        let kept = kept.map(|(certificate_pem, key_pem)| Identity {
            certificate_pem,
            key_pem,
        });
        let identity = match kept {
            Some(identity)
                if identity.is_for(&ca, "kube-apiserver")
                    && !identity.is_due()
                    && identity.covers(&names) =>
            {
                identity
            }
            _ => issue(&ca, &path, &names)?,
        };
        let current = ArcSwap::from_pointee(certified(&identity)?);
        let state = Mutex::new(State {
            names: names.into_iter().collect(),
            identity,
        });
        Ok(Self {
            ca,
            path,
            current,
            state,
        })
    }

    /// Called with the local address of every connection before its handshake: when the
    /// certificate does not name the address, one that does is issued.
    pub fn follow(&self, address: IpAddr) -> Result<(), Error> {
        let name = address.to_canonical().to_string();
        let mut state = self.lock();
        if state.names.contains(&name) || state.names.len() >= MAX_NAMES {
            return Ok(());
        }
        state.names.insert(name);
        self.reissue(&mut state)
    }

    /// Renews the certificate when a third of its lifetime is left.
    pub fn renew_if_due(&self) -> Result<bool, Error> {
        let mut state = self.lock();
        if !state.identity.is_due() {
            return Ok(false);
        }
        self.reissue(&mut state)?;
        Ok(true)
    }

    /// Whether clients that look at the time take it.
    pub(crate) fn is_valid(&self) -> bool {
        self.lock().identity.is_valid()
    }

    fn reissue(&self, state: &mut State) -> Result<(), Error> {
        let names: Vec<String> = state.names.iter().cloned().collect();
        state.identity = issue(&self.ca, &self.path, &names)?;
        self.current.store(Arc::new(certified(&state.identity)?));
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn issue(ca: &Authority, path: &std::path::Path, names: &[String]) -> Result<Identity, Error> {
    let identity = ca.issue("kube-apiserver", "", names, &[Usage::Server], LEAF_DAYS)?;
    write_private(&path.with_extension("key"), identity.key_pem.as_bytes())?;
    write_private(
        &path.with_extension("crt"),
        identity.certificate_pem.as_bytes(),
    )?;
    Ok(identity)
}

fn certified(identity: &Identity) -> Result<CertifiedKey, Error> {
    let (chain, key) = chain_and_key(identity)?;
    let key =
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|e| Error::Unusable {
            what: "a private key".to_owned(),
            reason: e.to_string(),
        })?;
    Ok(CertifiedKey::new(chain, key))
}

/// Reads a PEM chain and key into rustls' form.
pub(crate) fn chain_and_key(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
    let unusable = |reason: String| Error::Unusable {
        what: "a certificate".to_owned(),
        reason,
    };
    let chain = CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unusable(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|e| unusable(e.to_string()))?;
    Ok((chain, key))
}
