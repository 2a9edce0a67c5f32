//! The ciphers of upstream's local providers, each with a fresh nonce per value.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey,
    PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use crypto_secretbox::aead::{Aead, KeyInit};
use crypto_secretbox::{Key, Nonce as SecretboxNonce, XSalsa20Poly1305};

const CBC_IV_LEN: usize = 16;
const SECRETBOX_NONCE_LEN: usize = 24;

pub(super) enum Cipher {
    AesGcm(LessSafeKey),
    /// Keeps what is read secret, but does not prove that nobody changed it.
    AesCbc(Box<Cbc>),
    Secretbox(Box<XSalsa20Poly1305>),
}

pub(super) struct Cbc {
    seal: PaddedBlockEncryptingKey,
    open: PaddedBlockDecryptingKey,
}

impl Cipher {
    /// A key of 16, 24 or 32 bytes.
    pub(super) fn aes_gcm(key: &[u8]) -> Result<Self, String> {
        let algorithm = match key.len() {
            16 => &aead::AES_128_GCM,
            24 => &aead::AES_192_GCM,
            32 => &aead::AES_256_GCM,
            other => {
                return Err(format!(
                    "key of {other} bytes, it must have 16, 24 or 32 bytes"
                ));
            }
        };
        let key =
            UnboundKey::new(algorithm, key).map_err(|_| "the key is not usable".to_owned())?;
        Ok(Self::AesGcm(LessSafeKey::new(key)))
    }

    pub(super) fn aes_cbc(key: &[u8]) -> Result<Self, String> {
        let algorithm = match key.len() {
            16 => &AES_128,
            24 => &AES_192,
            32 => &AES_256,
            other => {
                return Err(format!(
                    "key of {other} bytes, it must have 16, 24 or 32 bytes"
                ));
            }
        };
        let unusable = |_| "the key is not usable".to_owned();
        let unbound = || UnboundCipherKey::new(algorithm, key).map_err(unusable);
        Ok(Self::AesCbc(Box::new(Cbc {
            seal: PaddedBlockEncryptingKey::cbc_pkcs7(unbound()?).map_err(unusable)?,
            open: PaddedBlockDecryptingKey::cbc_pkcs7(unbound()?).map_err(unusable)?,
        })))
    }

    /// A key of 32 bytes.
    pub(super) fn secretbox(key: &[u8]) -> Result<Self, String> {
        let key: [u8; 32] = key
            .try_into()
            .map_err(|_| format!("key of {} bytes, it must have 32 bytes", key.len()))?;
        Ok(Self::Secretbox(Box::new(XSalsa20Poly1305::new(
            Key::from_slice(&key),
        ))))
    }

    /// Nonce and sealed bytes. `place` is bound in where the cipher can, so that a value moved
    /// elsewhere does not open.
    pub(super) fn seal(&self, place: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |_| "sealing failed".to_owned();
        match self {
            Self::AesGcm(key) => {
                let nonce: [u8; NONCE_LEN] = rand::random();
                let mut out = plain.to_vec();
                key.seal_in_place_append_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from(place.as_bytes()),
                    &mut out,
                )
                .map_err(failed)?;
                Ok([&nonce[..], &out].concat())
            }
            Self::AesCbc(key) => {
                let iv: [u8; CBC_IV_LEN] = rand::random();
                let mut out = plain.to_vec();
                let context = EncryptionContext::Iv128(FixedLength::from(iv));
                key.seal
                    .less_safe_encrypt(&mut out, context)
                    .map_err(failed)?;
                Ok([&iv[..], &out].concat())
            }
            Self::Secretbox(key) => {
                let nonce: [u8; SECRETBOX_NONCE_LEN] = rand::random();
                let sealed = key
                    .encrypt(SecretboxNonce::from_slice(&nonce), plain)
                    .map_err(|_| "sealing failed".to_owned())?;
                Ok([&nonce[..], &sealed].concat())
            }
        }
    }

    pub(super) fn open(&self, place: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |_| "the value does not open with this key".to_owned();
        let short = || "the sealed value is too short".to_owned();
        match self {
            Self::AesGcm(key) => {
                let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or_else(short)?;
                let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(failed)?;
                let mut out = sealed.to_vec();
                let length = key
                    .open_in_place(nonce, Aad::from(place.as_bytes()), &mut out)
                    .map_err(failed)?
                    .len();
                out.truncate(length);
                Ok(out)
            }
            Self::AesCbc(key) => {
                let (iv, sealed) = sealed.split_at_checked(CBC_IV_LEN).ok_or_else(short)?;
                let iv = <[u8; CBC_IV_LEN]>::try_from(iv).map_err(|_| short())?;
                let mut out = sealed.to_vec();
                let context = DecryptionContext::Iv128(FixedLength::from(iv));
                let length = key.open.decrypt(&mut out, context).map_err(failed)?.len();
                out.truncate(length);
                Ok(out)
            }
            Self::Secretbox(key) => {
                let (nonce, sealed) = sealed
                    .split_at_checked(SECRETBOX_NONCE_LEN)
                    .ok_or_else(short)?;
                key.decrypt(SecretboxNonce::from_slice(nonce), sealed)
                    .map_err(|_| "the value does not open with this key".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_and_what_was_changed_does_not() {
        let table: [(&str, Cipher, bool); 5] = [
            ("gcm 16", Cipher::aes_gcm(&[1; 16]).unwrap(), true),
            ("gcm 32", Cipher::aes_gcm(&[1; 32]).unwrap(), true),
            ("cbc 24", Cipher::aes_cbc(&[1; 24]).unwrap(), false),
            ("cbc 32", Cipher::aes_cbc(&[1; 32]).unwrap(), false),
            ("secretbox", Cipher::secretbox(&[1; 32]).unwrap(), true),
        ];
        for (name, cipher, authentic) in table {
            let sealed = cipher.seal("/a", b"a secret text").unwrap();
            assert_ne!(
                sealed,
                cipher.seal("/a", b"a secret text").unwrap(),
                "{name}: the nonce is fresh"
            );
            assert!(!sealed.windows(6).any(|w| w == b"secret"), "{name}");
            assert_eq!(
                cipher.open("/a", &sealed).unwrap(),
                b"a secret text",
                "{name}"
            );
            let mut changed = sealed.clone();
            let last = changed.len() - 1;
            changed[last] ^= 1;
            assert!(!authentic || cipher.open("/a", &changed).is_err(), "{name}");
            for length in 0..sealed.len() {
                assert!(
                    cipher.open("/a", &sealed[..length]).is_err() || !authentic,
                    "{name} {length}"
                );
            }
        }
        let gcm = Cipher::aes_gcm(&[1; 32]).unwrap();
        let sealed = gcm.seal("/a", b"x").unwrap();
        assert!(gcm.open("/b", &sealed).is_err(), "a value of another key");
        assert!(Cipher::secretbox(&[1; 16]).is_err() && Cipher::aes_cbc(&[1; 15]).is_err());
    }
}
