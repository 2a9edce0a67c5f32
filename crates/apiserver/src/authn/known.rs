//! What authentication remembers: signatures are dear, and a client shows the same certificate
//! or token with every request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;

use super::certificate::{Error, Verifier};
use super::token::Claims;
use crate::request::UserInfo;

/// How long a verdict holds. Within it the expiry of a certificate or token is not noticed;
/// whether what a token is bound to still exists is asked every time.
const LIFETIME: Duration = Duration::from_secs(10);
/// More tokens in use at once than this begin anew.
const MAX_TOKENS: usize = 4096;

/// The certificates a client proved to hold the key of, and whom they were last found to name.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    known: Mutex<Option<(Instant, Arc<UserInfo>)>>,
}

impl Chain {
    pub(crate) fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        Self {
            certificates,
            known: Mutex::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.certificates.is_empty()
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub(super) fn user(&self, verifier: &Verifier) -> Result<Arc<UserInfo>, Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, user)) = &*known
            && at.elapsed() < LIFETIME
        {
            return Ok(Arc::clone(user));
        }
        let user = Arc::new(super::authenticated(verifier.verify(&self.certificates)?));
        *known = Some((Instant::now(), Arc::clone(&user)));
        Ok(user)
    }
}

/// Claims of tokens whose signature was found right, by the token's digest.
#[derive(Default)]
pub(super) struct Signed(Mutex<HashMap<[u8; 32], (Instant, Arc<Claims>)>>);

impl Signed {
    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<Arc<Claims>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, claims) = known.get(digest)?;
        (at.elapsed() < LIFETIME).then(|| Arc::clone(claims))
    }

    pub(super) fn insert(&self, digest: [u8; 32], claims: Arc<Claims>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_TOKENS {
            known.retain(|_, (at, _)| at.elapsed() < LIFETIME);
        }
        if known.len() >= MAX_TOKENS {
            known.clear();
        }
        known.insert(digest, (Instant::now(), claims));
    }
}
