//! ClusterTrustBundle.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::signer_name;
use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::tree::Tree;
use crate::workload;

pub(crate) static CLUSTER_TRUST_BUNDLE: Kind = Kind {
    group: "certificates.k8s.io",
    resource: "clustertrustbundles",
    storage_version: "v1beta1",
    validate,
    validate_update: |new, old, _| {
        let mut e = named(new);
        // What was there before is not looked into again.
        if new.at("spec.trustBundle") != old.at("spec.trustBundle") {
            bundle(&At::new(new, "spec").at("trustBundle"), &mut e);
        }
        workload::immutable(new, old, "spec.signerName", &mut e);
        e
    },
    columns: &[Column::text("SignerName")],
    cells: |obj, _| vec![cell::or_none(obj.text("spec.signerName")).into()],
    selectable: |obj| vec![("spec.signerName", obj.text("spec.signerName").to_owned())],
    selectable_names: &["spec.signerName"],
    // A bundle bound to a signer carries the signer's name, colons for the slash, before its own.
    validate_name: |name, prefix| {
        let own = name.rsplit(':').next().unwrap_or(name);
        keelson_machinery::validation::is_dns1123_subdomain(crate::check::masked(own, prefix))
    },
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = named(obj);
    bundle(&At::new(obj, "spec").at("trustBundle"), &mut e);
    e
}

/// The name goes with the signer's.
fn named(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let (signer, name) = (
        At::new(obj, "spec").at("signerName"),
        At::new(obj, "metadata").at("name"),
    );
    if signer.is_empty() {
        if name.text().contains(':') {
            let detail = "ClusterTrustBundle without signer name must not have \":\" in its name";
            e.push(name.invalid(detail));
        }
        return e;
    }
    let prefix = format!("{}:", signer.text().replace('/', ":"));
    if !name.text().starts_with(&prefix) {
        let detail = format!(
            "ClusterTrustBundle for signerName {} must be named with prefix {prefix}",
            signer.text()
        );
        e.push(name.invalid(detail));
    }
    signer_name(&signer, &mut e);
    e
}

/// Certificates of authorities in PEM, each once, and nothing else.
fn bundle(at: &At, e: &mut ErrorList) {
    const MOST: usize = 1 << 20;
    if at.text().len() > MOST {
        return e.push(FieldError::too_long(&at.path, MOST));
    }
    let mut refuse = |detail: String| {
        e.push(FieldError::invalid(&at.path, "<value omitted>", detail));
    };
    let (mut anchors, mut sound): (Vec<(Vec<u8>, Vec<usize>)>, bool) = (Vec::new(), true);
    for (index, block) in blocks(at.text()).enumerate() {
        if let Some(problem) = problem(&block) {
            refuse(format!("entry {index} {problem}"));
            sound = false;
        } else if let Some((_, places)) = anchors.iter_mut().find(|(der, _)| *der == block.der) {
            places.push(index);
        } else {
            anchors.push((block.der, vec![index]));
        }
    }
    if !sound {
        return;
    }
    if anchors.is_empty() {
        refuse("at least one trust anchor must be provided".to_owned());
    }
    for (_, places) in anchors.iter().filter(|(_, places)| places.len() > 1) {
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        refuse(format!(
            "duplicate trust anchor (indices [{}])",
            places.join(" ")
        ));
    }
}

fn problem(block: &Block) -> Option<String> {
    if block.label != "CERTIFICATE" {
        return Some(format!("has bad block type: {}", block.label));
    }
    if block.has_headers {
        return Some("has PEM block headers".to_owned());
    }
    let Ok((_, certificate)) = X509Certificate::from_der(&block.der) else {
        return Some("does not parse as X.509".to_owned());
    };
    let is_authority = certificate.basic_constraints().ok().flatten();
    let is_authority = is_authority.is_some_and(|c| c.value.ca);
    (!is_authority).then(|| "does not have the CA bit set".to_owned())
}

struct Block {
    label: String,
    has_headers: bool,
    der: Vec<u8>,
}

/// The blocks of a text that has anything around them; what is no block is skipped.
fn blocks(text: &str) -> impl Iterator<Item = Block> {
    text.split("-----BEGIN ").skip(1).filter_map(|part| {
        let (label, rest) = part.split_once("-----")?;
        let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
        let headers = body
            .lines()
            .take_while(|line| line.contains(':') || line.is_empty());
        let has_headers = headers.clone().any(|line| line.contains(':'));
        let skipped = if has_headers { headers.count() } else { 0 };
        let packed: String = body.lines().skip(skipped).map(str::trim).collect();
        let der = STANDARD.decode(packed).ok()?;
        let label = label.to_owned();
        Some(Block {
            label,
            has_headers,
            der,
        })
    })
}
