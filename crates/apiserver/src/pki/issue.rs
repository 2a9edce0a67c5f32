//! A certificate authority and what it issues.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
}

/// A certificate with its key, both PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// A certificate authority; cheap to clone.
#[derive(Clone)]
pub struct Authority {
    pub certificate_pem: String,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

impl Authority {
    pub(super) fn create(common_name: &str, days: u32) -> Result<Self, Error> {
        let failed = |source| Error::Issue {
            subject: common_name.to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params(common_name, "", &[], days).map_err(failed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
        Self::new(certificate_pem, key)
    }

    pub(super) fn from_pem(certificate_pem: String, key_pem: String) -> Result<Self, Error> {
        let key = KeyPair::from_pem(&key_pem).map_err(|e| Error::Unusable {
            what: "a certificate authority's key".to_owned(),
            reason: e.to_string(),
        })?;
        Self::new(certificate_pem, key)
    }

    fn new(certificate_pem: String, key: KeyPair) -> Result<Self, Error> {
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|e| Error::Unusable {
                what: "a certificate authority's certificate".to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self {
            certificate_pem,
            issuer: Arc::new(issuer),
        })
    }

    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub fn certificate_der(&self) -> Result<CertificateDer<'static>, Error> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).map_err(|e| {
            Error::Unusable {
                what: "a certificate authority's certificate".to_owned(),
                reason: e.to_string(),
            }
        })
    }

    /// Makes a key and a certificate for it. `names` may be DNS names and IP addresses.
    pub fn issue(
        &self,
        common_name: &str,
        organization: &str,
        names: &[String],
        usages: &[Usage],
        days: u32,
    ) -> Result<Identity, Error> {
        let failed = |source| Error::Issue {
            subject: common_name.to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = params(common_name, organization, names, days).map_err(failed)?;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = usages.iter().map(|usage| extended(*usage)).collect();
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

impl Identity {
    /// Whether a third or less of the lifetime is left.
    pub fn is_due(&self) -> bool {
        let Some((from, to)) = self.read(|c| {
            (
                c.validity().not_before.timestamp(),
                c.validity().not_after.timestamp(),
            )
        }) else {
            return true;
        };
        let now = unix_now() as i64;
        now >= to - (to - from) / 3
    }

    /// Whether now is within the lifetime.
    pub(crate) fn is_valid(&self) -> bool {
        self.read(|c| c.validity().is_valid()).unwrap_or(false)
    }

    /// Whether `ca` is the issuer by name and key, and the subject is `common_name`.
    pub fn is_for(&self, ca: &Authority, common_name: &str) -> bool {
        let Ok(ca) = ca.certificate_der() else {
            return false;
        };
        let Ok((_, ca)) = x509_parser::parse_x509_certificate(&ca) else {
            return false;
        };
        let key_id = |c: &x509_parser::certificate::X509Certificate<'_>, authority: bool| {
            c.extensions()
                .iter()
                .find_map(|extension| match extension.parsed_extension() {
                    x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id)
                        if authority =>
                    {
                        id.key_identifier.as_ref().map(|k| k.0.to_vec())
                    }
                    x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id)
                        if !authority =>
                    {
                        Some(id.0.to_vec())
                    }
                    _ => None,
                })
        };
        let expected = key_id(&ca, false);
        self.read(|c| {
            let named = c
                .subject()
                .iter_common_name()
                .any(|cn| cn.as_str() == Ok(common_name));
            named && c.issuer() == ca.subject() && key_id(c, true) == expected
        })
        .unwrap_or(false)
    }

    /// Whether every one of `names` is a subject alternative name.
    pub fn covers(&self, names: &[String]) -> bool {
        self.read(|c| {
            let Ok(Some(alternatives)) = c.subject_alternative_name() else {
                return false;
            };
            let have: Vec<String> = alternatives
                .value
                .general_names
                .iter()
                .filter_map(alternative)
                .collect();
            names.iter().all(|name| have.contains(name))
        })
        .unwrap_or(false)
    }

    fn read<T>(
        &self,
        look: impl FnOnce(&x509_parser::certificate::X509Certificate<'_>) -> T,
    ) -> Option<T> {
        let der = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        Some(look(&certificate))
    }
}

/// When the first certificate of a PEM text ends, in seconds since the epoch.
pub fn not_after_unix(certificate_pem: &str) -> Option<i64> {
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

fn alternative(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    match name {
        x509_parser::extensions::GeneralName::DNSName(name) => Some((*name).to_owned()),
        x509_parser::extensions::GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes)
                .ok()
                .map(|b| std::net::Ipv4Addr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|b| std::net::Ipv6Addr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn params(
    common_name: &str,
    organization: &str,
    names: &[String],
    days: u32,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names.to_vec())?;
    let mut subject = rcgen::DistinguishedName::new();
    if !organization.is_empty() {
        subject.push(DnType::OrganizationName, organization);
    }
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    set_validity(&mut params, u64::from(days) * 86_400);
    Ok(params)
}

fn extended(usage: Usage) -> ExtendedKeyUsagePurpose {
    match usage {
        Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
        Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
    }
}

/// Valid from five minutes ago, so that clocks may differ a little.
fn set_validity(params: &mut CertificateParams, seconds: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = unix_now();
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(300));
    params.not_after = epoch + Duration::from_secs(now + seconds);
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
