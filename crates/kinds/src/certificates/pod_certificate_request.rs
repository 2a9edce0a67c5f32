//! PodCertificateRequest.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::pod_certificate_status as status;
use super::signer_name;
use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static POD_CERTIFICATE_REQUEST: Kind = Kind {
    group: "certificates.k8s.io",
    resource: "podcertificaterequests",
    storage_version: "v1beta1",
    default: |obj| {
        if obj.has("spec") {
            obj.fill("spec.maxExpirationSeconds", 86400);
        }
    },
    prepare_create: |obj| obj.put("status", json!({})),
    validate,
    prepare_update: rules::isolate_status_and_metadata,
    validate_update: |new, old, ctx| {
        let mut e = ErrorList::new();
        match ctx.subresource {
            "status" => status::validate(new, old, &mut e),
            _ => workload::immutable(new, old, "spec", &mut e),
        }
        e
    },
    columns: &[
        Column::text("PodName"),
        Column::text("ServiceAccountName"),
        Column::text("NodeName"),
        Column::text("SignerName"),
        Column::text("State"),
        Column::text("UnverifiedUserAnnotations"),
    ],
    cells: |obj, _| {
        let decided = obj
            .list("status.conditions")
            .iter()
            .map(|c| c.text("type"))
            .rfind(|t| matches!(*t, "Issued" | "Denied" | "Failed"));
        let text = |path: &str| Value::from(obj.text(path));
        vec![
            text("spec.podName"),
            text("spec.serviceAccountName"),
            text("spec.nodeName"),
            text("spec.signerName"),
            decided.unwrap_or("Pending").into(),
            cell::labels(obj.at("spec.unverifiedUserAnnotations")).into(),
        ]
    },
    selectable: |obj| {
        vec![
            ("spec.signerName", obj.text("spec.signerName").to_owned()),
            ("spec.podName", obj.text("spec.podName").to_owned()),
            ("spec.nodeName", obj.text("spec.nodeName").to_owned()),
        ]
    },
    selectable_names: &["spec.signerName", "spec.podName", "spec.nodeName"],
    allow_unconditional_update: false,
    reset_fields: &[("status", &["spec"])],
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    const MOST_UID: usize = 128;
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    signer_name(&spec.at("signerName"), &mut e);
    for (name, uid) in [
        ("podName", "podUID"),
        ("serviceAccountName", "serviceAccountUID"),
        ("nodeName", "nodeUID"),
    ] {
        spec.at(name)
            .conforms(&mut e, validation::is_dns1123_subdomain);
        let uid = spec.at(uid);
        if uid.is_empty() {
            e.push(uid.invalid_text("must not be empty"));
        }
        if uid.len() > MOST_UID {
            e.push(FieldError::too_long(&uid.path, MOST_UID));
        }
    }
    let (seconds, kubernetes) = (
        spec.at("maxExpirationSeconds"),
        spec.value.text("signerName").starts_with("kubernetes.io/"),
    );
    let most = if kubernetes { 86400 } else { 91 * 86400 };
    if !(3600..=most).contains(&seconds.num()) {
        e.push(seconds.invalid(format!("must be in the range [3600, {most}]")));
    }
    let (request, key, proof) = (
        spec.at("stubPKCS10Request"),
        spec.at("pkixPublicKey"),
        spec.at("proofOfPossession"),
    );
    match (request.is_empty(), key.is_empty(), proof.is_empty()) {
        (false, true, true) => signing_request(&request, &mut e),
        (true, false, false) => {}
        _ => e.push(FieldError::invalid_unshown(
            &spec.path,
            "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set",
        )),
    }
    e
}

/// A request that its own key has signed. What else it says is for signers to judge.
fn signing_request(at: &At, e: &mut ErrorList) {
    let der = STANDARD.decode(at.text()).unwrap_or_default();
    let refusal = match X509CertificationRequest::from_der(&der) {
        Err(_) => "must be a valid PKCS#10 CSR",
        Ok((_, request)) if request.verify_signature().is_err() => "invalid signature",
        Ok(_) => return,
    };
    e.push(FieldError::invalid_unshown(&at.path, refusal));
}
