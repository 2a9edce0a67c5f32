//! Connections to webhooks, kept for the next call: a handshake costs more than a review.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::streaming::{dial_tls, verified_tls};

/// Connections that wait, to all webhooks together.
const MOST: usize = 64;
/// One that waited for so long may have been forgotten by something on the way.
const LONGEST: Duration = Duration::from_secs(60);

const UNTRUSTED: &str =
    "tls: failed to verify certificate: x509: certificate signed by unknown authority";

/// Where a connection leads and whom it trusts. Calls that agree in it may share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// `host:port`.
    pub(super) authority: String,
    /// The name that the certificate has to show.
    pub(super) name: String,
    /// `caBundle` as it is written; empty for the authorities of the machine.
    pub(super) bundle: String,
}

struct Waiting {
    target: Target,
    since: Instant,
    sender: SendRequest<Full<Bytes>>,
}

/// Of the process, like the sockets themselves. The newest are at the end.
static WAITING: Mutex<VecDeque<Waiting>> = Mutex::new(VecDeque::new());

fn waiting() -> MutexGuard<'static, VecDeque<Waiting>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection that one call has for itself.
pub(super) struct Connection {
    target: Target,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    async fn dial(target: Target) -> Result<Self, String> {
        let authorities = authorities(&target.bundle)?;
        // A machine that trusts nobody does not trust this one either.
        if authorities.is_empty() {
            return Err(UNTRUSTED.to_owned());
        }
        let tls = verified_tls(&authorities, None).map_err(|e| e.to_string())?;
        let stream = dial_tls(&target.authority, &target.name, tls).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(Self { target, sender })
    }

    /// One that waits for a call to this target.
    fn kept(target: &Target) -> Option<Self> {
        let mut waiting = waiting();
        waiting.retain(|one| one.since.elapsed() < LONGEST && !one.sender.is_closed());
        let at = waiting
            .iter()
            .rposition(|one| one.target == *target && one.sender.is_ready())?;
        let Waiting { target, sender, .. } = waiting.remove(at)?;
        Some(Self { target, sender })
    }

    /// Sends a request on a connection that waits, or on a new one when there is none or its
    /// other end closed it in this moment.
    pub(super) async fn call(
        target: Target,
        request: Request<Full<Bytes>>,
    ) -> Result<(Self, Response<Incoming>), String> {
        if let Some(mut kept) = Self::kept(&target) {
            match kept.sender.send_request(request.clone()).await {
                Ok(response) => return Ok((kept, response)),
                Err(error) if error.is_timeout() || error.is_parse() => {
                    return Err(error.to_string());
                }
                Err(_) => {}
            }
        }
        let mut new = Self::dial(target).await?;
        let response = new.sender.send_request(request).await;
        Ok((new, response.map_err(|e| e.to_string())?))
    }

    /// For the next call, once the answer has been read to its end.
    pub(super) fn keep(self) {
        let Self { target, sender } = self;
        if sender.is_closed() {
            return;
        }
        let mut waiting = waiting();
        if waiting.len() >= MOST {
            waiting.pop_front();
        }
        waiting.push_back(Waiting {
            target,
            since: Instant::now(),
            sender,
        });
    }
}

fn authorities(bundle: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    if bundle.is_empty() {
        return Ok(crate::pki::system_authorities());
    }
    let pem = STANDARD
        .decode(bundle)
        .map_err(|e| format!("caBundle: {e}"))?;
    CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("caBundle: {e}"))
}
