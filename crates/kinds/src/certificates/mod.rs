//! The group `certificates.k8s.io`.

pub(crate) mod certificate_signing_request;
pub(crate) mod cluster_trust_bundle;
pub(crate) mod pod_certificate_request;
mod pod_certificate_status;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;

use crate::check::At;

/// A signer's name: a domain, a slash, a path of dotted labels.
pub(crate) fn signer_name(at: &At, e: &mut ErrorList) {
    if at.is_empty() {
        return e.push(at.required(""));
    }
    let segments: Vec<_> = at.text().split('/').collect();
    let [domain, path] = segments[..] else {
        return e.push(at.invalid(
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ));
    };
    let mut report = |text: &str, msgs: Vec<String>, what: &str| {
        e.extend(
            msgs.into_iter()
                .map(|m| FieldError::invalid(&at.path, text, format!("validating {what}: {m}"))),
        );
    };
    report(domain, validation::is_dns1123_subdomain(domain), "label");
    for segment in path.split('.') {
        report(segment, validation::is_dns1123_subdomain(segment), "label");
    }
    if domain.split('.').count() < 2 {
        let detail = "should be a domain with at least two segments separated by dots";
        e.push(FieldError::invalid(&at.path, domain, detail));
    }
    // The signer's name becomes part of other names, so it is bounded as a whole.
    if path.len() + domain.len() + 1 > 571 {
        e.push(FieldError::too_long(&at.path, 571));
    }
}
