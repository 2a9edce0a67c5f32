//! Certificates: who asks for one is written down, and who approves, signs or attests must hold
//! the right to do so for the signer.

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{AdmissionPlugin, Attributes, Cluster, Operation};
use crate::authz::Attributes as Question;

const GROUP: &str = "certificates.k8s.io";
const REQUESTS: &str = "certificatesigningrequests";

/// Writes the requester into a new request, whatever the client said.
pub(super) struct CertificateRequester;

#[async_trait]
impl AdmissionPlugin for CertificateRequester {
    fn name(&self) -> &'static str {
        "CertificateRequester"
    }

    fn is_switchable(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attrs: &mut Attributes, _cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is(GROUP, REQUESTS) {
            return Ok(());
        }
        let user = attrs.user.to_json();
        if let Some(request) = attrs.object.as_mut() {
            let spec = meta::as_map(meta::as_map(request).entry("spec").or_insert(Value::Null));
            for key in ["username", "uid", "groups", "extra"] {
                match user.get(key).filter(|value| **value != json!([])) {
                    Some(value) => spec.insert(key.to_owned(), value.clone()),
                    None => spec.remove(key),
                };
            }
        }
        Ok(())
    }
}

pub(super) struct CertificateApproval;

#[async_trait]
impl AdmissionPlugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is_any(GROUP, REQUESTS) || attrs.subresource != "approval" {
            return Ok(());
        }
        let signer = signer_of(attrs.old_object.as_deref());
        if may(attrs, cluster, "approve", signer).await {
            return Ok(());
        }
        Err(attrs.forbidden(format!(
            "user not permitted to approve requests with signerName {signer:?}"
        )))
    }
}

pub(super) struct CertificateSigning;

#[async_trait]
impl AdmissionPlugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is_any(GROUP, REQUESTS) || attrs.subresource != "status" {
            return Ok(());
        }
        let (Some(new), Some(old)) = (attrs.object.as_ref(), attrs.old_object.as_deref()) else {
            return Ok(());
        };
        let (new, before) = (&new["status"], &old["status"]);
        if new["certificate"] == before["certificate"] && new["conditions"] == before["conditions"]
        {
            return Ok(());
        }
        let signer = signer_of(Some(old));
        if may(attrs, cluster, "sign", signer).await {
            return Ok(());
        }
        Err(attrs.forbidden(format!(
            "user not permitted to sign requests with signerName {signer:?}"
        )))
    }
}

pub(super) struct ClusterTrustBundleAttest;

#[async_trait]
impl AdmissionPlugin for ClusterTrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is(GROUP, "clustertrustbundles") {
            return Ok(());
        }
        let signer = signer_of(attrs.object.as_ref());
        let same = match (attrs.object.as_ref(), attrs.old_object.as_deref()) {
            (Some(new), Some(old)) => new["spec"] == old["spec"],
            _ => false,
        };
        if signer.is_empty() || same || may(attrs, cluster, "attest", signer).await {
            return Ok(());
        }
        Err(attrs.forbidden(format!(
            "user not permitted to attest for signerName {signer:?}"
        )))
    }
}

/// Nobody gets a certificate that makes him an administrator from the general client signer.
pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl AdmissionPlugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn validate(&self, attrs: &Attributes, _cluster: &Cluster) -> Result<(), Status> {
        const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
        if !attrs.is(GROUP, REQUESTS) || signer_of(attrs.object.as_ref()) != SIGNER {
            return Ok(());
        }
        let subject = attrs
            .object
            .as_ref()
            .map_or(Err("no request".to_owned()), subject_of)
            .map_err(|reason| attrs.forbidden(format!("failed to parse CSR: {reason}")))?;
        if subject.organizations.iter().any(|o| o == "system:masters") {
            return Err(attrs.forbidden(format!(
                "use of {SIGNER} signer with system:masters group is not allowed"
            )));
        }
        Ok(())
    }
}

fn signer_of(object: Option<&Value>) -> &str {
    object
        .and_then(|object| object["spec"]["signerName"].as_str())
        .unwrap_or_default()
}

/// Whether the user may do that for the signer, or for all signers of its domain.
async fn may(attrs: &Attributes, cluster: &Cluster, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer, &format!("{domain}/*")] {
        let question = Question::resource(&attrs.user, verb, GROUP, "signers", "", name);
        if cluster.authorizer.is_allowed(&question).await {
            return true;
        }
    }
    false
}

/// Of the X.509 request inside a signing request.
pub(super) struct Subject {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
}

pub(super) fn subject_of(request: &Value) -> Result<Subject, String> {
    let encoded = request["spec"]["request"].as_str().unwrap_or_default();
    let pem = STANDARD.decode(encoded).map_err(|e| e.to_string())?;
    let block = x509_parser::pem::parse_x509_pem(&pem);
    let Some((_, block)) = block.ok().filter(|(_, b)| b.label == "CERTIFICATE REQUEST") else {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    let (_, parsed) =
        X509CertificationRequest::from_der(&block.contents).map_err(|e| e.to_string())?;
    let subject = &parsed.certification_request_info.subject;
    let common_name = subject
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default()
        .to_owned();
    let organizations = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok())
        .map(ToOwned::to_owned)
        .collect();
    Ok(Subject {
        common_name,
        organizations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_read_from_the_request() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "system:node:n");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:nodes");
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let subject = subject_of(&json!({"spec": {"request": STANDARD.encode(pem)}})).unwrap();
        assert_eq!(subject.common_name, "system:node:n");
        assert_eq!(subject.organizations, ["system:nodes"]);
        assert!(subject_of(&json!({"spec": {"request": STANDARD.encode("x")}})).is_err());
    }
}
