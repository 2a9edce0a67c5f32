//! CertificateSigningRequest. Who asks is written by admission; the spec never changes after.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::{Value, json};

use super::signer_name;
use crate::cell::{self, NONE};
use crate::check::{At, name_is_path_segment};
use crate::kind::{Column, Kind, UpdateContext};
use crate::tree::{Tree, TreeMut};

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const DECISIONS: [&str; 2] = ["Approved", "Denied"];

pub(crate) static CERTIFICATE_SIGNING_REQUEST: Kind = Kind {
    group: "certificates.k8s.io",
    resource: "certificatesigningrequests",
    prepare_create: |obj| obj.put("status", json!({})),
    validate,
    prepare_update,
    validate_update,
    columns: &[
        Column::AGE,
        Column::text("SignerName"),
        Column::text("Requestor"),
        Column::text("RequestedDuration"),
        Column::text("Condition"),
    ],
    cells,
    selectable: |obj| vec![("spec.signerName", obj.text("spec.signerName").to_owned())],
    selectable_names: &["spec.signerName"],
    validate_name: name_is_path_segment,
    reset_fields: &[
        ("", &["spec", "status"]),
        ("status", &["spec", "status.conditions"]),
        ("approval", &["spec", "status.certificate"]),
    ],
    ..Kind::GENERIC
};

fn prepare_update(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    new.keep("spec", old);
    match ctx.subresource {
        "approval" => {
            let conditions = new.at("status.conditions").clone();
            new.keep("status", old);
            new.put("status.conditions", conditions);
        }
        "status" => {}
        _ => new.keep("status", old),
    }
    let before = old.list("status.conditions");
    for condition in new.list_mut("status.conditions") {
        condition.fill_text("lastUpdateTime", ctx.now);
        let kept = before.iter().find(|c| {
            c.text("type") == condition.text("type") && c.text("status") == condition.text("status")
        });
        let since = kept.map_or(ctx.now, |c| c.text("lastTransitionTime"));
        condition.fill_text("lastTransitionTime", since);
    }
}

/// A PEM block of the given label holding DER.
fn pem(text: &str, label: &str) -> Option<Vec<u8>> {
    let body = text.split(&format!("-----BEGIN {label}-----")).nth(1)?;
    let body = body.split(&format!("-----END {label}-----")).next()?;
    let packed: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    STANDARD
        .decode(packed)
        .ok()
        .filter(|der| der.first() == Some(&0x30))
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let request = spec.at("request");
    let text = STANDARD
        .decode(request.text())
        .ok()
        .and_then(|b| String::from_utf8(b).ok())
        .unwrap_or_default();
    if pem(&text, "CERTIFICATE REQUEST").is_none() {
        e.push(request.invalid("PEM block type must be CERTIFICATE REQUEST"));
    }
    let usages = spec.at("usages");
    if usages.is_empty() {
        e.push(usages.required(""));
    }
    let mut seen = BTreeSet::new();
    for usage in usages.each() {
        usage.one_of(&mut e, USAGES);
        if !seen.insert(usage.text()) {
            e.push(usage.duplicate());
        }
    }
    let signer = spec.at("signerName");
    if signer.text() == "kubernetes.io/legacy-unknown" {
        e.push(signer.invalid("the legacy signerName is not allowed via this API version"));
    } else {
        signer_name(&signer, &mut e);
    }
    let seconds = spec.at("expirationSeconds");
    if seconds.int().is_some_and(|s| s < 600) {
        e.push(seconds.invalid("may not specify a duration less than 600 seconds (10 minutes)"));
    }
    conditions(obj, &mut e);
    e
}

fn conditions(obj: &Value, e: &mut ErrorList) {
    let list = At::new(obj, "status").at("conditions");
    let mut types = BTreeSet::new();
    for c in list.each() {
        let kind = c.at("type");
        kind.require(e);
        let allowed: &[&str] = if matches!(kind.text(), "Approved" | "Denied" | "Failed") {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        c.at("status").required_one_of(e, allowed);
        if !types.insert(kind.text()) {
            e.push(kind.duplicate());
        }
        if DECISIONS.contains(&kind.text()) && DECISIONS.iter().all(|d| types.contains(d)) {
            let detail = "Approved and Denied conditions are mutually exclusive";
            e.push(FieldError::invalid(&list.path, kind.text(), detail));
        }
    }
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    let mut e = ErrorList::new();
    conditions(new, &mut e);
    let certificate = At::new(new, "status").at("certificate");
    if certificate.value != old.at("status.certificate") {
        let text = STANDARD
            .decode(certificate.text())
            .ok()
            .and_then(|b| String::from_utf8(b).ok())
            .unwrap_or_default();
        if !certificate.is_empty() && pem(&text, "CERTIFICATE").is_none() {
            e.push(FieldError::invalid(
                &certificate.path,
                "<certificate data>",
                "must contain at least one CERTIFICATE PEM block",
            ));
        }
    }
    let path = Path::new("status.conditions");
    let of = |obj: &Value, kind: &str| -> Vec<Value> {
        obj.list("status.conditions")
            .iter()
            .filter(|c| c.text("type") == kind)
            .cloned()
            .collect()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if of(new, kind).len() < of(old, kind).len() {
            e.push(FieldError::forbidden(
                &path,
                format!("updates may not remove a condition of type {kind:?}"),
            ));
        }
    }
    if ctx.subresource != "approval" {
        for kind in DECISIONS {
            let (now, was) = (of(new, kind), of(old, kind));
            if now.len() > was.len() {
                e.push(FieldError::forbidden(
                    &path,
                    format!("updates may not add a condition of type {kind:?}"),
                ));
            } else if now.len() == was.len() && now != was {
                e.push(FieldError::forbidden(
                    &path,
                    format!("updates may not modify a condition of type {kind:?}"),
                ));
            }
        }
    }
    if certificate.value != old.at("status.certificate") {
        if ctx.subresource == "status" {
            if old.has("status.certificate") {
                e.push(
                    certificate
                        .forbidden("updates may not set certificate content after it is set"),
                );
            }
        } else {
            e.push(certificate.forbidden("updates may not set certificate content"));
        }
    }
    e
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let is = |kind: &str| {
        obj.list("status.conditions")
            .iter()
            .any(|c| c.text("type") == kind)
    };
    let mut status = if is("Denied") {
        "Denied"
    } else if is("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if is("Failed") {
        status.push_str(",Failed");
    }
    if !obj.text("status.certificate").is_empty() {
        status.push_str(",Issued");
    }
    vec![
        cell::age(obj, now),
        cell::or_none(obj.text("spec.signerName")).into(),
        obj.text("spec.username").into(),
        obj.int("spec.expirationSeconds")
            .map_or(NONE.to_owned(), keelson_semantics::duration::human)
            .into(),
        status.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_approval_decides() {
        let old = json!({"spec": {}, "status": {}});
        let mut new =
            json!({"spec": {}, "status": {"conditions": [{"type": "Approved", "status": "True"}]}});
        let at = |subresource| UpdateContext {
            subresource,
            now: "2026-01-01T00:00:00Z",
        };
        assert_eq!(validate_update(&new, &old, &at("status")).len(), 1);
        prepare_update(&mut new, &old, &at("approval"));
        assert_eq!(
            validate_update(&new, &old, &at("approval")),
            ErrorList::new()
        );
        assert_eq!(
            new["status"]["conditions"][0]["lastTransitionTime"],
            "2026-01-01T00:00:00Z"
        );
        prepare_update(&mut new, &old, &at(""));
        assert_eq!(new["status"], json!({}));
    }
}
