//! Secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::{json_syntax, validation};
use serde_json::Value;

use super::config_map::{MAX_SIZE, decoded_size, frozen};
use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static SECRET: Kind = Kind {
    group: "",
    resource: "secrets",
    default: |obj| {
        obj.fill_text("type", "Opaque");
        merge_string_data(obj);
    },
    validate,
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        workload::immutable(new, old, "type", &mut e);
        e.append(&mut frozen(new, old, &["data"]));
        e.append(&mut validate(new));
        e
    },
    prepare_update: |new, old, _| {
        // An update that leaves the type out means the old one.
        if new.text("type").is_empty() {
            new.keep("type", old);
        }
    },
    warnings: |new, _| pair_warning(new).into_iter().collect(),
    columns: &[Column::text("Type"), Column::text("Data"), Column::AGE],
    cells: |obj, now| {
        vec![
            obj.text("type").into(),
            obj.map("data").len().into(),
            cell::age(obj, now),
        ]
    },
    selectable: |obj| vec![("type", obj.text("type").to_owned())],
    selectable_names: &["type"],
    ..Kind::GENERIC
};

/// `stringData` is for writing only: it ends up in `data`.
fn merge_string_data(obj: &mut Value) {
    let plain = obj.map("stringData").clone();
    if obj.get("stringData").is_some() {
        obj.remove("stringData");
    }
    if plain.is_empty() {
        return;
    }
    if let Some(data) = obj.object("data") {
        for (key, value) in plain {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or("")).into());
        }
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let data = At::new(obj, "data");
    let mut size = 0;
    for (key, value) in data.entries() {
        e.extend(
            validation::is_config_map_key(key)
                .into_iter()
                .map(|m| FieldError::invalid(&value.path, key, m)),
        );
        size += decoded_size(value.text());
    }
    if size > MAX_SIZE {
        e.push(FieldError::too_long(&data.path, MAX_SIZE));
    }
    let missing = |key: &str| FieldError::required(&data.path.key(key), "");
    let has = |key: &str| data.value.get(key).is_some();
    match obj.text("type") {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            let annotations = At::new(obj, "metadata").at("annotations");
            if annotations
                .value
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or("")
                .is_empty()
            {
                e.push(FieldError::required(&annotations.path.key(key), ""));
            }
        }
        "kubernetes.io/dockercfg" => json_map(&data, ".dockercfg", &mut e),
        "kubernetes.io/dockerconfigjson" => json_map(&data, ".dockerconfigjson", &mut e),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            e.push(missing("username"));
            e.push(missing("password"));
        }
        "kubernetes.io/ssh-auth" if data.value.text("ssh-privatekey").is_empty() => {
            e.push(missing("ssh-privatekey"));
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if !has(key) {
                    e.push(missing(key));
                }
            }
        }
        _ => {}
    }
    e
}

fn json_map(data: &At, key: &str, e: &mut ErrorList) {
    let path = data.path.key(key);
    let Some(text) = data.value.get(key).and_then(Value::as_str) else {
        return e.push(FieldError::required(&path, ""));
    };
    let bytes = STANDARD.decode(text).unwrap_or_default();
    if let Err(err) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        let detail = json_syntax::error(&bytes).unwrap_or_else(|| err.to_string());
        e.push(FieldError::invalid(
            &path,
            "<secret contents redacted>",
            detail,
        ));
    }
}

/// What is wrong with the certificate and the key of a TLS secret before they are looked into.
fn pair_warning(obj: &Value) -> Option<String> {
    if obj.text("type") != "kubernetes.io/tls" {
        return None;
    }
    let blocks = |key: &str| {
        let text = obj.at("data").get(key).and_then(Value::as_str);
        let bytes = STANDARD.decode(text.unwrap_or_default());
        pem_labels(&String::from_utf8_lossy(&bytes.unwrap_or_default()))
    };
    let is_key = |label: &str| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY");
    let certificates = blocks("tls.crt");
    if !certificates.iter().any(|label| label == "CERTIFICATE") {
        return Some(match certificates.as_slice() {
            [] => "tls: failed to find any PEM data in certificate input".to_owned(),
            [one] if is_key(one) => "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched".to_owned(),
            all => format!("tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{}]", all.join(" ")),
        });
    }
    let keys = blocks("tls.key");
    if !keys.iter().any(|label| is_key(label)) {
        return Some(match keys.as_slice() {
            [] => "tls: failed to find any PEM data in key input".to_owned(),
            [one] if one == "CERTIFICATE" => {
                "tls: found a certificate rather than a key in the PEM for the private key"
                    .to_owned()
            }
            all => format!(
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{}]",
                all.join(" ")
            ),
        });
    }
    None
}

/// The labels of the PEM blocks in a text.
fn pem_labels(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for part in text.split("-----BEGIN ").skip(1) {
        let Some((label, body)) = part.split_once("-----") else {
            continue;
        };
        let Some((body, _)) = body.split_once(&format!("-----END {label}-----")) else {
            continue;
        };
        let packed: String = body.chars().filter(|c| !c.is_whitespace()).collect();
        if STANDARD.decode(packed).is_ok() {
            out.push(label.to_owned());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn string_data_becomes_data() {
        let mut obj = json!({"stringData": {"a": "hello"}, "data": {"b": "eA=="}});
        (SECRET.default)(&mut obj);
        assert_eq!(
            obj,
            json!({"type": "Opaque", "data": {"a": "aGVsbG8=", "b": "eA=="}})
        );
    }

    #[test]
    fn tls_secrets_need_both_halves() {
        let e = validate(&json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}));
        assert_eq!(e.len(), 1);
        assert_eq!(e[0].to_string(), "data[tls.key]: Required value");
    }
}
