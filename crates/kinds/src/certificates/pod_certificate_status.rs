//! How a PodCertificateRequest may end: issued, denied or failed, once.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::Value;
use x509_parser::pem::Pem;

use crate::check::{self, At};
use crate::tree::Tree;

const ENDS: &[&str] = &["Denied", "Failed", "Issued"];
/// Fields of a status besides its conditions.
const OTHERS: &[&str] = &[
    "certificateChain",
    "notBefore",
    "beginRefreshAt",
    "notAfter",
];

pub(super) fn validate(new: &Value, old: &Value, e: &mut ErrorList) {
    let status = At::new(new, "status");
    conditions(&status.at("conditions"), e);
    if !e.is_empty() {
        return;
    }
    let omitted = |detail: &str| FieldError::invalid_unshown(&status.path, detail);
    let before = old.at("status");
    let changed = !check::same(status.value, before);
    let end = end(status.value);
    if self::end(before).is_some() {
        if changed {
            e.push(omitted(
                "immutable after PodCertificateRequest is issued, denied, or failed",
            ));
        }
        return;
    }
    match end {
        Some("Issued") => chain(&status, e),
        Some(_) if OTHERS.iter().any(|field| status.has(field)) => {
            e.push(omitted("non-condition status fields must be empty when denying or failing the PodCertificateRequest"));
        }
        Some(_) => {}
        None if changed => e.push(omitted(
            "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"",
        )),
        None => {}
    }
}

fn end(status: &Value) -> Option<&str> {
    let mut kinds = status.list("conditions").iter().map(|c| c.text("type"));
    kinds.find(|kind| ENDS.contains(kind))
}

fn conditions(list: &At, e: &mut ErrorList) {
    // Upstream writes the brackets of these paths as a name of their own.
    let path = |index: usize, field: &str| Path::new(&format!("{}.[{index}].{field}", list.path));
    let mut known = 0;
    for (index, condition) in list.each().enumerate() {
        let (kind, state) = (condition.at("type"), condition.at("status"));
        if !ENDS.contains(&kind.text()) {
            let shown = ["Issued", "Denied", "Failed"];
            e.push(FieldError::not_supported(
                &path(index, "type"),
                kind.text(),
                &shown,
            ));
            continue;
        }
        known += 1;
        if known > 1 {
            let detail = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            e.push(FieldError::invalid(
                &path(index, "type"),
                kind.text(),
                detail,
            ));
        }
        if state.text() != "True" {
            e.push(FieldError::not_supported(
                &path(index, "status"),
                state.text(),
                &["True"],
            ));
        }
    }
    check::conditions(list, e);
}

/// What was issued is a chain of certificates, with the times it says of itself.
fn chain(status: &At, e: &mut ErrorList) {
    let chain = status.at("certificateChain");
    let refuse = |detail: &str| FieldError::invalid(&chain.path, chain.text(), detail);
    let mut blocks = Pem::iter_from_buffer(chain.text().as_bytes());
    let Some(Ok(leaf)) = blocks.next() else {
        return e.push(refuse(
            "issued certificate chain must contain at least one certificate",
        ));
    };
    if leaf.label != "CERTIFICATE" {
        return e.push(refuse(
            "issued certificate chain must consist entirely of CERTIFICATE PEM blocks",
        ));
    }
    if leaf.parse_x509().is_err() {
        return e.push(refuse("leaf certificate does not parse as valid X.509"));
    }
    let consistent = "must be present and consistent with the issued certificate";
    for (field, detail) in [
        ("notBefore", consistent),
        ("notAfter", consistent),
        (
            "beginRefreshAt",
            "must be present and in the range [notbefore+10min, notafter-10min]",
        ),
    ] {
        let at = status.at(field);
        if at.is_empty() {
            e.push(at.required(detail));
        }
    }
}
