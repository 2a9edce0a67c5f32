//! ClusterTrustBundle.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

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
        let mut e = validate(new);
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
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let (signer, name) = (spec.at("signerName"), At::new(obj, "metadata").at("name"));
    let prefix = format!("{}:", signer.text().replace('/', ":"));
    if signer.is_empty() {
        if name.text().contains(':') {
            e.push(
                name.invalid(
                    "ClusterTrustBundle without signer name must not have \":\" in its name",
                ),
            );
        }
    } else {
        signer_name(&signer, &mut e);
        if !name.text().starts_with(&prefix) {
            let detail = format!(
                "ClusterTrustBundle for signerName {} must be named with prefix {prefix}",
                signer.text()
            );
            e.push(name.invalid(detail));
        }
    }
    let bundle = spec.at("trustBundle");
    let text = bundle.text();
    let blocks: Vec<_> = text.split("-----BEGIN ").skip(1).collect();
    let sound = |block: &&str| {
        block
            .strip_prefix("CERTIFICATE-----")
            .and_then(|b| b.split("-----END CERTIFICATE-----").next())
            .is_some_and(|body| {
                let packed: String = body.chars().filter(|c| !c.is_whitespace()).collect();
                STANDARD
                    .decode(packed)
                    .is_ok_and(|der| der.first() == Some(&0x30))
            })
    };
    if blocks.is_empty() {
        e.push(FieldError::invalid(
            &bundle.path,
            "<value omitted>",
            "at least one trust anchor must be provided",
        ));
    } else if !blocks.iter().all(sound) {
        e.push(FieldError::invalid(
            &bundle.path,
            "<value omitted>",
            "every entry must be a CERTIFICATE block",
        ));
    }
    if text.len() > 1024 * 1024 {
        e.push(FieldError::too_long(&bundle.path, 1024 * 1024));
    }
    e
}
