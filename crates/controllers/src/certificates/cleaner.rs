//! Deletes signing requests that nobody needs any more.

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{
    Client, Controller, ControllerContext, DeleteOptions, Informer, Key, Outcome, ReconcileError,
    Watches,
};

use super::{condition, is_issued};
use crate::{clock, pod};

/// How long decided requests stay, and how long those that nobody decided or signed.
const DECIDED_S: i64 = 3600;
const PENDING_S: i64 = 24 * 3600;

pub(crate) struct CleanerController {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
}

impl CleanerController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            requests: context.informer(),
        }
    }
}

/// When a request is due. Pure.
fn due(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let after = |time: Option<&Time>, seconds| time.map(|t| clock::after(t.0, seconds));
    let of = |kind: &str, seconds| {
        condition(csr, kind).and_then(|c| after(c.last_update_time.as_ref(), seconds))
    };
    let pending = csr
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .is_none_or(Vec::is_empty);
    let approved = if is_issued(csr) { DECIDED_S } else { PENDING_S };
    [
        of("Approved", approved),
        of("Denied", DECIDED_S),
        of("Failed", DECIDED_S),
        pending
            .then(|| after(csr.metadata.creation_timestamp.as_ref(), PENDING_S))
            .flatten(),
        condition(csr, "Approved").and_then(|_| expiry(csr)),
    ]
    .into_iter()
    .flatten()
    .min()
}

fn expiry(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let pem = csr.status.as_ref()?.certificate.as_ref()?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem.0).ok()?;
    let certificate = block.parse_x509().ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

#[async_trait]
impl Controller for CleanerController {
    fn name(&self) -> &'static str {
        "certificatesigningrequest-cleaner-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.requests);
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(csr) = self.requests.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        let Some(at) = due(&csr) else {
            return Ok(Outcome::Done);
        };
        if let Some(left) = clock::until(clock::now(), at) {
            return Ok(Outcome::RequeueAfter(left));
        }
        let options = DeleteOptions::default().uid(pod::uid(&csr.metadata));
        match self
            .client
            .delete::<CertificateSigningRequest>("", &key.name, &options)
            .await
        {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(Outcome::Done),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestCondition, CertificateSigningRequestStatus,
    };

    #[test]
    fn requests_stay_an_hour_when_decided_and_a_day_when_not() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let csr = |kind: &str, certificate: &str| {
            let mut csr = CertificateSigningRequest::default();
            csr.metadata.creation_timestamp = Some(Time(at(0)));
            if !kind.is_empty() {
                csr.status = Some(CertificateSigningRequestStatus {
                    conditions: Some(vec![CertificateSigningRequestCondition {
                        type_: kind.to_owned(),
                        status: "True".to_owned(),
                        last_update_time: Some(Time(at(10))),
                        ..CertificateSigningRequestCondition::default()
                    }]),
                    certificate: (!certificate.is_empty())
                        .then(|| ByteString(certificate.as_bytes().to_vec())),
                });
            }
            csr
        };
        assert_eq!(due(&csr("", "")), Some(at(86_400)));
        assert_eq!(due(&csr("Denied", "")), Some(at(3610)));
        assert_eq!(due(&csr("Failed", "")), Some(at(3610)));
        assert_eq!(due(&csr("Approved", "")), Some(at(86_410)));
        assert_eq!(due(&csr("Approved", "pem")), Some(at(3610)));
    }
}
