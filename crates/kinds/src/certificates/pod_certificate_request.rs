//! PodCertificateRequest.

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::{Value, json};

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
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        workload::immutable(new, old, "spec", &mut e);
        e
    },
    columns: &[
        Column::text("PodName"),
        Column::text("ServiceAccountName"),
        Column::text("NodeName"),
        Column::text("SignerName"),
        Column::text("State"),
        Column::wide("UnverifiedUserAnnotations"),
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
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    signer_name(&spec.at("signerName"), &mut e);
    for field in ["podName", "nodeName", "serviceAccountName"] {
        spec.at(field)
            .required_conforms(&mut e, validation::is_dns1123_subdomain);
    }
    for field in ["podUID", "nodeUID", "serviceAccountUID"] {
        spec.at(field).require(&mut e);
    }
    let (seconds, kubernetes) = (
        spec.at("maxExpirationSeconds"),
        spec.value.text("signerName").starts_with("kubernetes.io/"),
    );
    let most = if kubernetes { 86400 } else { 91 * 86400 };
    if !(3600..=most).contains(&seconds.num()) {
        e.push(seconds.invalid(format!("must be in the range [3600, {most}]")));
    }
    e
}
