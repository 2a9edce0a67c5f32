//! What authentication remembers: signatures are dear, and a client shows the same certificate
//! or token with every request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use keelson_machinery::time;
use rustls::pki_types::CertificateDer;

use super::certificate::{Error, Verifier};
use super::token::Claims;
use crate::request::UserInfo;

/// How long a verdict holds, at most: never beyond the expiry of the certificate or token.
/// Whether what a token is bound to still exists is asked every time.
const LIFETIME: Duration = Duration::from_secs(10);
/// More tokens in use at once than this begin anew.
const MAX_TOKENS: usize = 4096;

/// The certificates a client proved to hold the key of, and whom they were last found to name.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    known: Mutex<Option<(Verdict, Arc<UserInfo>)>>,
}

/// When something was found right, and until when it can be.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    at: Instant,
    /// Seconds since 1970.
    until: i64,
}

impl Verdict {
    fn now(until: i64) -> Self {
        Self {
            at: Instant::now(),
            until,
        }
    }

    fn holds(self) -> bool {
        self.at.elapsed() < LIFETIME && time::now_unix() <= self.until
    }
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
        if let Some((verdict, user)) = &*known
            && verdict.holds()
        {
            return Ok(Arc::clone(user));
        }
        let (user, until) = verifier.verify(&self.certificates)?;
        let user = Arc::new(super::authenticated(user));
        *known = Some((Verdict::now(until), Arc::clone(&user)));
        Ok(user)
    }
}

/// Claims of tokens whose signature was found right, by the token's digest.
#[derive(Default)]
pub(super) struct Signed(Mutex<HashMap<[u8; 32], (Verdict, Arc<Claims>)>>);

impl Signed {
    pub(super) fn get(&self, digest: &[u8; 32]) -> Option<Arc<Claims>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (verdict, claims) = known.get(digest)?;
        verdict.holds().then(|| Arc::clone(claims))
    }

    pub(super) fn insert(&self, digest: [u8; 32], claims: Arc<Claims>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_TOKENS {
            known.retain(|_, (verdict, _)| verdict.holds());
        }
        if known.len() >= MAX_TOKENS {
            known.clear();
        }
        known.insert(digest, (Verdict::now(claims.exp), claims));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_ends_with_what_it_is_about() {
        assert!(Verdict::now(time::now_unix() + 60).holds());
        assert!(!Verdict::now(time::now_unix() - 1).holds());
        let old = Verdict {
            at: Instant::now().checked_sub(LIFETIME).unwrap(),
            until: i64::MAX,
        };
        assert!(!old.holds());
    }
}
