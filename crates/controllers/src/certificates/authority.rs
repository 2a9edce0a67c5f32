//! The cluster's authority as the signer of requests.
//!
//! A certificate is put together here rather than by `rcgen`, which keeps one value of each kind
//! in a subject: people and robots come with several organizations, their groups.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rcgen::{KeyPair, SigningKey};
use thiserror::Error;
use x509_parser::extensions::ParsedExtension;

use super::request::Request;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the certificate authority cannot be used: {0}")]
    Authority(String),
    #[error("the signer has expired")]
    Expired,
    #[error("unrecognized usage {0:?}")]
    Usage(String),
    #[error("signing a certificate")]
    Sign(#[source] rcgen::Error),
}

/// Cheap to clone; its key never shows.
#[derive(Clone)]
pub struct Authority(Arc<Inner>);

struct Inner {
    key: KeyPair,
    /// DER of the issuer's name and of the algorithm of its signatures.
    name: Vec<u8>,
    algorithm: Vec<u8>,
    key_id: Option<Vec<u8>>,
    not_after: Timestamp,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const BACKDATE_S: i64 = 300;
/// Certificates that live shorter end when asked, not earlier by the backdate.
const SHORT_S: i64 = 8 * 3600;

/// Bits of the key usage extension, and last bytes or whole identifiers of extended usages.
const KEY_USAGES: [(&str, u16); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];
/// `1.3.6.1.5.5.7.3`, under which most extended usages are.
const PURPOSES: [u8; 7] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03];
const EXTENDED_USAGES: [(&str, &[u8]); 13] = [
    ("server auth", &[1]),
    ("client auth", &[2]),
    ("code signing", &[3]),
    ("email protection", &[4]),
    ("s/mime", &[4]),
    ("ipsec end system", &[5]),
    ("ipsec tunnel", &[6]),
    ("ipsec user", &[7]),
    ("timestamping", &[8]),
    ("ocsp signing", &[9]),
    ("any", &[0x55, 0x1d, 0x25, 0x00]),
    (
        "microsoft sgc",
        &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x0a, 0x03, 0x03],
    ),
    (
        "netscape sgc",
        &[0x60, 0x86, 0x48, 0x01, 0x86, 0xf8, 0x42, 0x04, 0x01],
    ),
];

impl Authority {
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let unusable = |reason: String| Error::Authority(reason);
        let key = KeyPair::from_pem(key_pem).map_err(|e| unusable(e.to_string()))?;
        let (_, block) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes())
            .map_err(|e| unusable(e.to_string()))?;
        let certificate = block.parse_x509().map_err(|e| unusable(e.to_string()))?;
        let key_id = certificate.extensions().iter().find_map(|extension| {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            }
        });
        let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp())
            .map_err(|e| unusable(e.to_string()))?;
        let algorithm = algorithm(&key)
            .ok_or_else(|| unusable("its key is of a kind that does not sign here".to_owned()))?;
        Ok(Self(Arc::new(Inner {
            name: certificate.subject().as_raw().to_vec(),
            algorithm,
            key_id,
            not_after,
            key,
        })))
    }

    /// A PEM certificate for the request, valid for `seconds` from now or as long as the
    /// authority itself.
    pub(super) fn sign(
        &self,
        request: &Request,
        usages: &[String],
        seconds: i64,
        serial: [u8; 16],
        now: Timestamp,
    ) -> Result<String, Error> {
        let inner = &*self.0;
        if now >= inner.not_after {
            return Err(Error::Expired);
        }
        let plus = |s: i64| {
            now.checked_add(SignedDuration::from_secs(s))
                .unwrap_or(inner.not_after)
        };
        let end = if seconds < SHORT_S {
            plus(seconds)
        } else {
            plus(seconds - BACKDATE_S)
        };
        let body = tlv(
            SEQUENCE,
            &[
                &tlv(0xa0, &[&tlv(INTEGER, &[&[2]])]),
                &tlv(INTEGER, &[&positive(serial)]),
                &inner.algorithm,
                &inner.name,
                &tlv(
                    SEQUENCE,
                    &[&time(plus(-BACKDATE_S)), &time(end.min(inner.not_after))],
                ),
                &request.subject,
                &request.public_key,
                &tlv(
                    0xa3,
                    &[&tlv(SEQUENCE, &[&extensions(inner, request, usages)?])],
                ),
            ],
        );
        let signature = inner.key.sign(&body).map_err(Error::Sign)?;
        let der = tlv(
            SEQUENCE,
            &[
                &body,
                &inner.algorithm,
                &tlv(BIT_STRING, &[&[0], &signature]),
            ],
        );
        Ok(pem(&der))
    }
}

/// The identifier of the key's signatures, as certificates state it.
fn algorithm(key: &KeyPair) -> Option<Vec<u8>> {
    const NULL: &[u8] = &[0x05, 0x00];
    let table: [(&rcgen::SignatureAlgorithm, &[u8], &[u8]); 4] = [
        (
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
            &[],
        ),
        (
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
            &[],
        ),
        (
            &rcgen::PKCS_RSA_SHA256,
            &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b],
            NULL,
        ),
        (&rcgen::PKCS_ED25519, &[0x2b, 0x65, 0x70], &[]),
    ];
    table
        .iter()
        .find(|(algorithm, ..)| key.algorithm() == *algorithm)
        .map(|(_, id, parameters)| tlv(SEQUENCE, &[&tlv(0x06, &[id]), parameters]))
}

fn extensions(inner: &Inner, request: &Request, usages: &[String]) -> Result<Vec<u8>, Error> {
    let (mut bits, mut purposes) = (0u16, Vec::new());
    for usage in usages {
        let bit = KEY_USAGES.iter().find(|(name, _)| name == usage);
        let purpose = EXTENDED_USAGES.iter().find(|(name, _)| name == usage);
        match (bit, purpose) {
            (Some((_, bit)), _) => bits |= 0x8000 >> bit,
            (None, Some((_, [last]))) => {
                purposes.push(tlv(0x06, &[&PURPOSES, std::slice::from_ref(last)]));
            }
            (None, Some((_, whole))) => purposes.push(tlv(0x06, &[whole])),
            (None, None) => return Err(Error::Usage(usage.clone())),
        }
    }
    let mut out = Vec::new();
    if bits != 0 {
        let bytes = bits.to_be_bytes();
        let used = if bytes[1] == 0 {
            &bytes[..1]
        } else {
            &bytes[..]
        };
        let unused = used.last().map_or(0, |last| last.trailing_zeros() as u8);
        out.extend(extension(15, true, &tlv(BIT_STRING, &[&[unused], used])));
    }
    if !purposes.is_empty() {
        purposes.dedup();
        out.extend(extension(37, false, &tlv(SEQUENCE, &[&purposes.concat()])));
    }
    out.extend(extension(19, true, &tlv(SEQUENCE, &[])));
    if let Some(id) = &inner.key_id {
        out.extend(extension(35, false, &tlv(SEQUENCE, &[&tlv(0x80, &[id])])));
    }
    if let Some(names) = &request.alternative_names {
        let nameless = request.subject == [SEQUENCE, 0];
        out.extend(extension(17, nameless, names));
    }
    Ok(out)
}

/// An extension `2.5.29.<id>`.
fn extension(id: u8, critical: bool, value: &[u8]) -> Vec<u8> {
    let flag: &[u8] = if critical { &[0x01, 0x01, 0xff] } else { &[] };
    tlv(
        SEQUENCE,
        &[
            &tlv(0x06, &[&[0x55, 0x1d, id]]),
            flag,
            &tlv(OCTET_STRING, &[value]),
        ],
    )
}

/// Tag, length and the parts one after the other, in DER.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let from = bytes.iter().position(|b| *b != 0).unwrap_or(0);
        out.push(0x80 | (bytes.len() - from) as u8);
        out.extend_from_slice(&bytes[from..]);
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// A serial number is positive and not zero.
fn positive(mut serial: [u8; 16]) -> [u8; 16] {
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn time(at: Timestamp) -> Vec<u8> {
    let at = at.to_zoned(TimeZone::UTC);
    if at.year() < 2050 {
        tlv(0x17, &[at.strftime("%y%m%d%H%M%SZ").to_string().as_bytes()])
    } else {
        tlv(0x18, &[at.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()])
    }
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::certificates::request::tests::request;

    pub(crate) fn authority() -> (Authority, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let authority = Authority::from_pem(&certificate.pem(), &key.serialize_pem()).unwrap();
        (authority, certificate.der().to_vec())
    }

    #[test]
    fn a_certificate_carries_every_group_and_verifies() {
        let (authority, ca) = authority();
        let parsed = Request::parse(request("jane", &["dev"], &["jane.test"]).as_bytes()).unwrap();
        let usages = ["client auth", "digital signature", "key encipherment"].map(str::to_owned);
        let now = Timestamp::from_second(1_900_000_000).unwrap();
        let pem = authority
            .sign(&parsed, &usages, 3600, [0xff; 16], now)
            .unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = block.parse_x509().unwrap();
        let (_, ca) = x509_parser::parse_x509_certificate(&ca).unwrap();
        certificate.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(certificate.issuer(), ca.subject());
        let names: Vec<_> = certificate
            .subject()
            .iter_organization()
            .map(|o| o.as_str().unwrap())
            .collect();
        assert_eq!(names, ["dev"]);
        let validity = certificate.validity();
        assert_eq!(validity.not_after.timestamp(), 1_900_003_600);
        assert_eq!(validity.not_before.timestamp(), 1_900_000_000 - 300);
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        assert!(
            certificate
                .extended_key_usage()
                .unwrap()
                .unwrap()
                .value
                .client_auth
        );
        assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
        assert!(certificate.subject_alternative_name().unwrap().is_some());
        assert!(
            authority
                .sign(&parsed, &["x".to_owned()], 3600, [0; 16], now)
                .is_err()
        );
        let late = Timestamp::from_second(99_999_999_999).unwrap();
        assert!(matches!(
            authority.sign(&parsed, &usages, 3600, [0; 16], late),
            Err(Error::Expired)
        ));
    }

    #[test]
    fn several_organizations_survive() {
        // rcgen cannot make such a subject, so the request's name is replaced by one of two.
        let (authority, _) = authority();
        let mut parsed = Request::parse(request("jane", &[], &[]).as_bytes()).unwrap();
        let organization = |name: &str| {
            let pair = tlv(
                SEQUENCE,
                &[
                    &tlv(0x06, &[&[0x55, 0x04, 0x0a]]),
                    &tlv(0x0c, &[name.as_bytes()]),
                ],
            );
            tlv(0x31, &[&pair])
        };
        parsed.subject = tlv(SEQUENCE, &[&organization("a"), &organization("b")]);
        let now = Timestamp::from_second(1_900_000_000).unwrap();
        let pem = authority
            .sign(
                &parsed,
                &["client auth".to_owned()],
                86_400 * 365 * 30,
                [1; 16],
                now,
            )
            .unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = block.parse_x509().unwrap();
        assert_eq!(certificate.subject().iter_organization().count(), 2);
    }
}
