//! Signs approved requests of the `kubernetes.io` signers with the cluster's authority.

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use keelson_client::{
    Client, Controller, ControllerContext, Informer, Key, Outcome, ReconcileError, Watches,
};

use super::request::{self, Request};
use super::{Authority, condition, is_issued};
use crate::clock;

const MAX_SECONDS: i64 = 365 * 86_400;
const MIN_SECONDS: i64 = 600;

pub(crate) struct SigningController {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    authority: Option<Authority>,
}

impl SigningController {
    pub(crate) fn new(context: &ControllerContext, authority: Option<&Authority>) -> Self {
        Self {
            client: context.client.clone(),
            requests: context.informer(),
            authority: authority.cloned(),
        }
    }
}

/// What becomes of a request.
#[derive(Debug, PartialEq)]
enum Plan {
    Leave,
    Refuse(String),
    Sign { seconds: i64 },
}

/// Pure; the request comes parsed, or with the reason why it cannot be.
fn plan(csr: &CertificateSigningRequest, parsed: &Result<Request, String>) -> Plan {
    if condition(csr, "Approved").is_none()
        || condition(csr, "Denied").is_some()
        || condition(csr, "Failed").is_some()
        || is_issued(csr)
    {
        return Plan::Leave;
    }
    let usages = csr.spec.usages.as_deref().unwrap_or_default();
    let Ok(parsed) = parsed else {
        return Plan::Leave;
    };
    match request::validate(&csr.spec.signer_name, parsed, usages) {
        None => Plan::Leave,
        Some(Err(reason)) => Plan::Refuse(reason),
        Some(Ok(())) => Plan::Sign {
            seconds: csr.spec.expiration_seconds.map_or(MAX_SECONDS, |s| {
                i64::from(s).clamp(MIN_SECONDS, MAX_SECONDS)
            }),
        },
    }
}

fn failed(reason: String, now: Timestamp) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: "Failed".to_owned(),
        status: "True".to_owned(),
        reason: Some("SignerValidationFailure".to_owned()),
        message: Some(reason),
        last_update_time: Some(clock::stamp(now)),
        last_transition_time: None,
    }
}

#[async_trait]
impl Controller for SigningController {
    fn name(&self) -> &'static str {
        "certificatesigningrequest-signing-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.requests);
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let (Some(csr), Some(authority)) = (self.requests.get("", &key.name), &self.authority)
        else {
            return Ok(Outcome::Done);
        };
        let parsed = Request::parse(&csr.spec.request.0);
        let mut csr = CertificateSigningRequest::clone(&csr);
        match (plan(&csr, &parsed), parsed) {
            (Plan::Sign { seconds }, Ok(parsed)) => {
                let usages = csr.spec.usages.clone().unwrap_or_default();
                let serial = rand::random();
                let pem = authority
                    .sign(&parsed, &usages, seconds, serial, clock::now())
                    .map_err(|error| ReconcileError::Other(error.to_string()))?;
                csr.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
            }
            (Plan::Refuse(reason), _) => csr
                .status
                .get_or_insert_default()
                .conditions
                .get_or_insert_default()
                .push(failed(reason, clock::now())),
            _ => return Ok(Outcome::Done),
        }
        match self.client.update_status(&csr).await {
            Err(error) if error.is_not_found() => Ok(Outcome::Done),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::certificates::v1::{
        CertificateSigningRequestSpec, CertificateSigningRequestStatus,
    };

    fn csr(signer: &str, conditions: &[&str]) -> CertificateSigningRequest {
        let pem = request::tests::request("jane", &["dev"], &[]);
        let conditions = conditions
            .iter()
            .map(|kind| CertificateSigningRequestCondition {
                type_: (*kind).to_owned(),
                status: "True".to_owned(),
                ..CertificateSigningRequestCondition::default()
            });
        CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                request: ByteString(pem.into_bytes()),
                signer_name: signer.to_owned(),
                usages: Some(vec!["client auth".to_owned()]),
                expiration_seconds: Some(60),
                ..CertificateSigningRequestSpec::default()
            },
            status: Some(CertificateSigningRequestStatus {
                conditions: Some(conditions.collect()),
                certificate: None,
            }),
            ..CertificateSigningRequest::default()
        }
    }

    #[test]
    fn only_what_is_approved_and_ours_is_signed() {
        const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
        for (csr, expected) in [
            (csr(CLIENT, &[]), Plan::Leave),
            (csr(CLIENT, &["Approved"]), Plan::Sign { seconds: 600 }),
            (csr(CLIENT, &["Approved", "Failed"]), Plan::Leave),
            (csr(CLIENT, &["Denied"]), Plan::Leave),
            (csr("example.com/own", &["Approved"]), Plan::Leave),
            (
                csr("kubernetes.io/kube-apiserver-client-kubelet", &["Approved"]),
                Plan::Refuse("subject organization is not system:nodes".to_owned()),
            ),
        ] {
            let parsed = Request::parse(&csr.spec.request.0);
            assert_eq!(plan(&csr, &parsed), expected, "{csr:?}");
        }
    }
}
