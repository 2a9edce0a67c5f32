//! What an encryption configuration may say. Pure.
//!
//! Fields, orders and words are those of upstream's validation of `EncryptionConfiguration`.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::field::{FieldError, Path};

use super::config::{File, FileProvider, Keys, KmsProvider};

const AES_KEY_BYTES: &[usize] = &[16, 24, 32];
const SECRETBOX_KEY_BYTES: &[usize] = &[32];

/// All that is wrong.
pub(super) fn validate(file: &File) -> Vec<FieldError> {
    let root = Path::new("resources");
    let mut errors = Vec::new();
    if file.resources.is_empty() {
        errors.push(at_least_one(&root));
    }
    let mut names = BTreeSet::new();
    for (index, rule) in file.resources.iter().enumerate() {
        let path = root.index(index);
        let resources = path.child("resources");
        if rule.resources.is_empty() {
            errors.push(at_least_one(&resources));
        }
        overlaps(&rule.resources, &resources, &mut errors);
        for (index, name) in rule.resources.iter().enumerate() {
            if let Some(detail) = name_problem(name) {
                let at = resources.index(index);
                errors.push(FieldError::invalid(&at, name.as_str(), detail));
            }
        }
        let providers = path.child("providers");
        if rule.providers.is_empty() {
            errors.push(at_least_one(&providers));
        }
        for (index, provider) in rule.providers.iter().enumerate() {
            validate_provider(provider, &providers.index(index), &mut names, &mut errors);
        }
    }
    errors
}

fn at_least_one(path: &Path) -> FieldError {
    FieldError::required(path, format!("at least one {path} is required"))
}

fn overlaps(resources: &[String], path: &Path, errors: &mut Vec<FieldError>) {
    let parsed: Vec<_> = resources
        .iter()
        .map(|name| name.split_once('.').unwrap_or((name, "")))
        .collect();
    let pairs = || {
        let indexed = parsed.iter().enumerate();
        indexed.flat_map(|(i, a)| parsed[i + 1..].iter().map(move |b| (a, b)))
    };
    let all = ("*", "*");
    let mut refuse = |detail: &str| {
        errors.push(FieldError::invalid(
            path,
            serde_json::json!(resources),
            detail,
        ));
    };
    if pairs().any(|(a, b)| a == b) {
        refuse("the same resource cannot be specified multiple times");
    }
    let masks = |(a, b): (&(&str, &str), &(&str, &str))| {
        let one_group = a.1 == b.1 && (a.0 == "*" || b.0 == "*");
        a != b && (*a == all || *b == all || one_group)
    };
    if pairs().any(masks) {
        refuse(
            "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked",
        );
    }
}

fn name_problem(name: &str) -> Option<&'static str> {
    let (resource, group) = name.split_once('.').unwrap_or((name, ""));
    let without_api = [
        "apiserveripinfo",
        "serviceipallocations",
        "servicenodeportallocations",
    ];
    if name.to_lowercase() != name {
        Some("resource name should not contain capital letters")
    } else if name == "*" {
        Some(
            "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
        )
    } else if without_api.contains(&name) {
        Some("resources which do not have REST API/s cannot be encrypted")
    } else if group == "events.k8s.io" {
        Some(
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file",
        )
    } else if group == "extensions" {
        Some("'extensions' group has been removed and cannot be used for encryption")
    } else if group == "*" && resource != "*" {
        Some("encrypting the same resource across groups is not supported")
    } else {
        None
    }
}

fn validate_provider<'f>(
    provider: &'f FileProvider,
    path: &Path,
    names: &mut BTreeSet<&'f str>,
    errors: &mut Vec<FieldError>,
) {
    let given = [
        provider.kms.is_some(),
        provider.aesgcm.is_some(),
        provider.aescbc.is_some(),
        provider.secretbox.is_some(),
        provider.identity.is_some(),
    ];
    match given.iter().filter(|is| **is).count() {
        0 => errors.push(FieldError::invalid_unshown(
            path,
            "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
        )),
        1 => {}
        _ => errors.push(FieldError::invalid_unshown(
            path,
            "more than one provider specified in a single element, should split into different list elements",
        )),
    }
    if let Some(kms) = &provider.kms {
        validate_kms(kms, &path.child("kms"), names, errors);
    }
    for (name, keys, sizes) in [
        ("aesgcm", &provider.aesgcm, AES_KEY_BYTES),
        ("aescbc", &provider.aescbc, AES_KEY_BYTES),
        ("secretbox", &provider.secretbox, SECRETBOX_KEY_BYTES),
    ] {
        if let Some(keys) = keys {
            validate_keys(keys, sizes, &path.child(name).child("keys"), errors);
        }
    }
}

fn validate_keys(keys: &Keys, sizes: &[usize], path: &Path, errors: &mut Vec<FieldError>) {
    if keys.keys.is_empty() {
        errors.push(FieldError::required(path, "at least one keys is required"));
    }
    for (index, key) in keys.keys.iter().enumerate() {
        let at = path.index(index);
        if key.name.is_empty() {
            let detail = "name is a mandatory field for a key";
            errors.push(FieldError::required(&at.child("name"), detail));
        }
        let at = at.child("secret");
        if key.secret.is_empty() {
            let detail = "secret is a mandatory field for a key";
            errors.push(FieldError::required(&at, detail));
            continue;
        }
        let detail = match STANDARD.decode(&key.secret) {
            Err(_) => "secrets must be base64 encoded".to_owned(),
            Ok(secret) if sizes.contains(&secret.len()) => continue,
            Ok(secret) => {
                let sizes: Vec<_> = sizes.iter().map(ToString::to_string).collect();
                format!(
                    "secret is not of the expected length, got {}, expected one of [{}]",
                    secret.len(),
                    sizes.join(" ")
                )
            }
        };
        errors.push(FieldError::invalid(&at, "REDACTED", detail));
    }
}

fn validate_kms<'f>(
    kms: &'f KmsProvider,
    path: &Path,
    names: &mut BTreeSet<&'f str>,
    errors: &mut Vec<FieldError>,
) {
    let (at, name) = (path.child("name"), kms.name.as_str());
    if name.is_empty() {
        let detail = "name is a mandatory field for a provider";
        errors.push(FieldError::required(&at, detail));
    }
    if kms.api_version != "v1" && name.contains(':') {
        let detail = format!("invalid KMS provider name {name}, must not contain ':'");
        errors.push(FieldError::invalid(&at, name, detail));
    }
    if !names.insert(name) {
        let detail = format!("duplicate KMS provider name {name}, names must be unique");
        errors.push(FieldError::invalid(&at, name, detail));
    }
    if kms.timeout().is_none_or(|timeout| timeout.is_zero()) {
        let given = kms.timeout.as_deref().unwrap_or_default();
        let detail = "timeout should be a positive value";
        errors.push(FieldError::invalid(&path.child("timeout"), given, detail));
    }
    let (at, endpoint) = (path.child("endpoint"), kms.endpoint.as_str());
    let scheme = endpoint.split_once("://").map_or("", |(scheme, _)| scheme);
    if endpoint.is_empty() {
        let detail = "endpoint is a mandatory field for a kms";
        errors.push(FieldError::invalid(&at, "", detail));
    } else if scheme != "unix" {
        let detail =
            format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
        errors.push(FieldError::invalid(&at, endpoint, detail));
    }
    if let Some(size) = kms.cachesize {
        let at = path.child("cachesize");
        if kms.api_version != "v1" {
            let detail = "cachesize is not supported in v2";
            errors.push(FieldError::invalid(&at, size, detail));
        } else if size == 0 {
            let detail = "cachesize should be a positive value, or negative to disable";
            errors.push(FieldError::invalid(&at, size, detail));
        }
    }
    if !matches!(kms.api_version.as_str(), "v1" | "v2") {
        errors.push(FieldError::invalid(
            &path.child("apiVersion"),
            kms.api_version.as_str(),
            "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported",
        ));
    }
}
