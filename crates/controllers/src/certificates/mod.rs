//! Certificate signing requests: nodes' are approved, approved ones are signed by the cluster's
//! authority, old ones go.

pub(crate) mod approver;
mod authority;
pub(crate) mod cleaner;
mod request;
pub(crate) mod signing;

pub use authority::{Authority, Error as AuthorityError};

use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";

/// The request's condition of a type that is true.
fn condition<'a>(
    csr: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = csr.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|c| c.type_ == kind && c.status == "True")
}

fn is_issued(csr: &CertificateSigningRequest) -> bool {
    let certificate = csr.status.as_ref().and_then(|s| s.certificate.as_ref());
    certificate.is_some_and(|c| !c.0.is_empty())
}
