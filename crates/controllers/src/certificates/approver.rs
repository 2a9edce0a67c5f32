//! Approves the client certificates of kubelets whose askers may have them.

use async_trait::async_trait;
use http::Method;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use keelson_client::{
    Client, Controller, ControllerContext, Informer, Key, Outcome, ReconcileError, Watches,
};
use serde_json::{Value, json};

use super::request::{Request, kubelet_client};
use super::{KUBELET_CLIENT, condition, is_issued};

pub(crate) struct ApprovingController {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
}

impl ApprovingController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            requests: context.informer(),
        }
    }

    async fn is_allowed(
        &self,
        csr: &CertificateSigningRequest,
        subresource: &str,
    ) -> Result<bool, ReconcileError> {
        let spec = &csr.spec;
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
                "resourceAttributes": {
                    "group": "certificates.k8s.io", "version": "*", "verb": "create",
                    "resource": "certificatesigningrequests", "subresource": subresource,
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = self.client.request(Method::POST, path, Some(&body)).await?;
        Ok(answer["status"]["allowed"] == Value::Bool(true))
    }

    async fn approve(
        &self,
        csr: &CertificateSigningRequest,
        message: &str,
    ) -> Result<(), ReconcileError> {
        let mut csr = csr.clone();
        csr.status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default()
            .push(CertificateSigningRequestCondition {
                type_: "Approved".to_owned(),
                status: "True".to_owned(),
                reason: Some("AutoApproved".to_owned()),
                message: Some(message.to_owned()),
                ..CertificateSigningRequestCondition::default()
            });
        let name = csr.metadata.name.clone().unwrap_or_default();
        let path =
            format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}/approval");
        let mut body =
            serde_json::to_value(&csr).map_err(|error| ReconcileError::Other(error.to_string()))?;
        body["apiVersion"] = json!("certificates.k8s.io/v1");
        body["kind"] = json!("CertificateSigningRequest");
        match self.client.request(Method::PUT, &path, Some(&body)).await {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }
}

/// The rights that would let the asker have what he asks for, with the message of the approval.
/// Pure.
fn plan(csr: &CertificateSigningRequest) -> Vec<(&'static str, &'static str)> {
    let decided = condition(csr, "Approved").is_some() || condition(csr, "Denied").is_some();
    if decided || is_issued(csr) || csr.spec.signer_name != KUBELET_CLIENT {
        return Vec::new();
    }
    let usages = csr.spec.usages.as_deref().unwrap_or_default();
    let Ok(request) = Request::parse(&csr.spec.request.0) else {
        return Vec::new();
    };
    if kubelet_client(&request, usages).is_err() {
        return Vec::new();
    }
    let mut out = Vec::new();
    if csr.spec.username.as_deref() == Some(request.common_name.as_str()) {
        out.push((
            "selfnodeclient",
            "Auto approving self kubelet client certificate after SubjectAccessReview.",
        ));
    }
    out.push((
        "nodeclient",
        "Auto approving kubelet client certificate after SubjectAccessReview.",
    ));
    out
}

#[async_trait]
impl Controller for ApprovingController {
    fn name(&self) -> &'static str {
        "certificatesigningrequest-approving-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.requests);
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(csr) = self.requests.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        let rights = plan(&csr);
        for (right, message) in &rights {
            if self.is_allowed(&csr, right).await? {
                self.approve(&csr, message).await?;
                return Ok(Outcome::Done);
            }
        }
        if rights.is_empty() {
            return Ok(Outcome::Done);
        }
        // The right may still be granted; the back-off asks again.
        let tried: Vec<&str> = rights.iter().map(|(right, _)| *right).collect();
        Err(ReconcileError::Other(format!(
            "recognized csr {:?} as {tried:?} but subject access review was not approved",
            key.name
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::request::tests::request;
    use k8s_openapi::ByteString;
    use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;

    #[test]
    fn kubelets_ask_for_themselves_or_by_a_bootstrap_token() {
        let csr = |user: &str, organization: &str| CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                request: ByteString(request("system:node:a", &[organization], &[]).into_bytes()),
                signer_name: KUBELET_CLIENT.to_owned(),
                usages: Some(vec![
                    "client auth".to_owned(),
                    "digital signature".to_owned(),
                ]),
                username: Some(user.to_owned()),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        };
        let rights = |csr| plan(&csr).into_iter().map(|(r, _)| r).collect::<Vec<_>>();
        assert_eq!(
            rights(csr("system:node:a", "system:nodes")),
            ["selfnodeclient", "nodeclient"]
        );
        assert_eq!(
            rights(csr("system:bootstrap:x", "system:nodes")),
            ["nodeclient"]
        );
        assert_eq!(rights(csr("system:bootstrap:x", "dev")), Vec::<&str>::new());
    }
}
