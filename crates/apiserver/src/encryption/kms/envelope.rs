//! What a value looks like that a key management service guards. Pure.
//!
//! The format is upstream's, envelope v2: an `EncryptedObject` behind the prefix
//! `k8s:enc:kms:v2:<provider>:`. The value is sealed with a key derived from a seed, the seed is
//! sealed by the service and travels with the value.

use std::collections::BTreeMap;

use aws_lc_rs::hkdf;
use keelson_machinery::validation::{is_dns1123_label, is_dns1123_subdomain};
use sha2::{Digest, Sha256};

use super::super::cipher::Cipher;

/// The seed is sealed itself, or it is the key: what old servers wrote.
pub(super) const KEY: i32 = 0;
/// Every value has a key of its own, derived from the seed.
pub(super) const SEED: i32 = 1;

/// Bytes of a seed, and of what a key is derived with.
pub(super) const SEED_BYTES: usize = 32;
const INFO_BYTES: usize = 32;
const MAX_KEY_ID_BYTES: usize = 1024;
const MAX_SEALED_SEED_BYTES: usize = 1024;
const MAX_ANNOTATIONS_BYTES: usize = 32 * 1024;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) encrypted_data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) encrypted_dek_source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub(super) annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub(super) encrypted_dek_source_type: i32,
}

impl EncryptedObject {
    /// Whether it is one that may be written, or that may have been.
    pub(super) fn validate(&self) -> Result<(), String> {
        if !matches!(self.encrypted_dek_source_type, KEY | SEED) {
            return Err(format!(
                "unknown encryptedDEKSourceType: {}",
                self.encrypted_dek_source_type
            ));
        }
        if self.encrypted_data.is_empty() {
            return Err("encrypted data is empty".to_owned());
        }
        let length = self.encrypted_dek_source.len();
        let problem = match length {
            0 => Some("encrypted DEK source is empty".to_owned()),
            n if n > MAX_SEALED_SEED_BYTES => Some(format!(
                "encrypted DEK source is {n} bytes, which exceeds the max size of {MAX_SEALED_SEED_BYTES}"
            )),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(format!(
                "failed to validate encrypted DEK source: {problem}"
            ));
        }
        validate_key_id(&self.key_id).map_err(|e| format!("failed to validate key id: {e}"))?;
        validate_annotations(&self.annotations)
            .map_err(|e| format!("failed to validate annotations: {e}"))
    }

    /// What tells one sealed seed from another.
    pub(super) fn seed_digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let mut add = |part: &[u8]| {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        };
        add(&self.encrypted_dek_source_type.to_be_bytes());
        add(&self.encrypted_dek_source);
        add(self.key_id.as_bytes());
        for (key, value) in &self.annotations {
            add(key.as_bytes());
            add(value);
        }
        digest.finalize().into()
    }
}

pub(super) fn validate_key_id(id: &str) -> Result<(), String> {
    match id.len() {
        0 => Err("keyID is empty".to_owned()),
        n if n > MAX_KEY_ID_BYTES => Err(format!(
            "keyID is {n} bytes, which exceeds the max size of {MAX_KEY_ID_BYTES}"
        )),
        _ => Ok(()),
    }
}

fn validate_annotations(annotations: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
    let mut problems = Vec::new();
    for key in annotations.keys() {
        problems.extend(domain_problem(key));
    }
    let total: usize = annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if total > MAX_ANNOTATIONS_BYTES {
        problems.push(format!(
            "total size of annotations is {total}, which exceeds the max size of {MAX_ANNOTATIONS_BYTES}"
        ));
    }
    match problems.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

/// A name of an annotation is a domain of two parts at least.
fn domain_problem(name: &str) -> Option<String> {
    let refused = |value: &str, detail: String| {
        Some(format!("annotations: Invalid value: {value:?}: {detail}"))
    };
    if name.is_empty() {
        return Some("annotations: Required value".to_owned());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let problems = is_dns1123_subdomain(name);
    if !problems.is_empty() {
        return refused(name, problems.join(","));
    }
    if !name.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        return refused(name, detail.to_owned());
    }
    name.split('.').find_map(|label| {
        let problems = is_dns1123_label(label);
        (!problems.is_empty()).then(|| refused(label, problems.join(",")))?
    })
}

/// Opens and seals values.
pub(super) enum Seed {
    Derived(Vec<u8>),
    Direct(Cipher),
}

impl Seed {
    /// From what the service unsealed.
    pub(super) fn new(source_type: i32, secret: Vec<u8>) -> Result<Self, String> {
        match source_type {
            SEED if secret.len() < SEED_BYTES => Err(format!(
                "invalid seed length {} used for key generation",
                secret.len()
            )),
            SEED => Ok(Self::Derived(secret)),
            _ => Cipher::aes_gcm(&secret).map(Self::Direct),
        }
    }

    /// `place` is bound in, so that a value moved elsewhere does not open.
    pub(super) fn seal(&self, place: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Direct(cipher) => cipher.seal(place, plain),
            Self::Derived(seed) => {
                let info: [u8; INFO_BYTES] = rand::random();
                let sealed = derived(seed, &info)?.seal(place, plain)?;
                Ok([&info[..], &sealed].concat())
            }
        }
    }

    pub(super) fn open(&self, place: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Direct(cipher) => cipher.open(place, sealed),
            Self::Derived(seed) => {
                let (info, sealed) = sealed.split_at_checked(INFO_BYTES).ok_or_else(|| {
                    "the stored data was shorter than the required size".to_owned()
                })?;
                derived(seed, info)?.open(place, sealed)
            }
        }
    }
}

/// A key for one value: the seed expanded by HKDF with SHA-256.
fn derived(seed: &[u8], info: &[u8]) -> Result<Cipher, String> {
    struct Length;
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            SEED_BYTES
        }
    }
    let mut key = [0; SEED_BYTES];
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, seed)
        .expand(&[info], Length)
        .and_then(|okm| okm.fill(&mut key))
        .map_err(|_| "failed to derive a key".to_owned())?;
    Cipher::aes_gcm(&key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn a_value_opens_with_its_seed_at_its_place_only() {
        for source in [SEED, KEY] {
            let seed = Seed::new(source, vec![7; 32]).unwrap();
            let sealed = seed.seal("/a", b"text").unwrap();
            assert_eq!(seed.open("/a", &sealed).unwrap(), b"text");
            assert!(seed.open("/b", &sealed).is_err());
            assert!(
                Seed::new(source, vec![8; 32])
                    .unwrap()
                    .open("/a", &sealed)
                    .is_err()
            );
            for length in 0..sealed.len() {
                assert!(seed.open("/a", &sealed[..length]).is_err());
            }
        }
        assert!(Seed::new(SEED, vec![7; 31]).is_err());
    }

    #[test]
    fn what_upstream_sealed_opens() {
        // Of the reference's own code, with the seed 0, 1, 2 … 31.
        let sealed = "858500feb4fee3692e4351fdc8e75da46ad4651759174b1e08412a0a67f08ee9d7dc3aa2dc18d92133cfaaec91ea1e8b2ffd8475e4e2c8890baba6f89080cbcfcd87e933e8d7";
        let sealed: Vec<u8> = (0..sealed.len() / 2)
            .map(|i| u8::from_str_radix(&sealed[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let seed = Seed::new(SEED, (0..32).collect()).unwrap();
        let plain = seed.open("/registry/secrets/ns/a", &sealed).unwrap();
        assert_eq!(plain, b"plain text");
    }

    #[test]
    fn what_a_service_answers_has_bounds() {
        let good = EncryptedObject {
            encrypted_data: vec![0],
            key_id: "k".to_owned(),
            encrypted_dek_source: vec![1],
            annotations: [("a.example.com".to_owned(), vec![1])].into(),
            encrypted_dek_source_type: SEED,
        };
        assert_eq!(good.validate(), Ok(()));
        let decoded = EncryptedObject::decode(good.encode_to_vec().as_slice()).unwrap();
        assert_eq!(decoded, good);
        let changes: [(fn(&mut EncryptedObject), &str); 7] = [
            (
                |o| o.encrypted_dek_source_type = 2,
                "unknown encryptedDEKSourceType: 2",
            ),
            (|o| o.encrypted_data.clear(), "encrypted data is empty"),
            (
                |o| o.encrypted_dek_source.clear(),
                "failed to validate encrypted DEK source: encrypted DEK source is empty",
            ),
            (
                |o| o.encrypted_dek_source = vec![0; 1025],
                "failed to validate encrypted DEK source: encrypted DEK source is 1025 bytes, which exceeds the max size of 1024",
            ),
            (
                |o| o.key_id.clear(),
                "failed to validate key id: keyID is empty",
            ),
            (
                |o| {
                    o.annotations.insert("plain".to_owned(), vec![]);
                },
                "failed to validate annotations: annotations: Invalid value: \"plain\": should be a domain with at least two segments separated by dots",
            ),
            (
                |o| {
                    o.annotations.insert("b.c".to_owned(), vec![0; 32 * 1024]);
                },
                "failed to validate annotations: total size of annotations is 32785, which exceeds the max size of 32768",
            ),
        ];
        for (change, expected) in changes {
            let mut object = good.clone();
            change(&mut object);
            assert_eq!(object.validate().unwrap_err(), expected);
        }
    }
}
