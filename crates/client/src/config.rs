//! Where the API server is and how to be recognised by it.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Error, Result};

/// What a kubeconfig context comes down to. Certificates and keys are PEM.
#[derive(Clone, Default)]
pub struct ClientConfig {
    /// `https://host:port`, with an optional path prefix.
    pub server: String,
    pub certificate_authority: Vec<u8>,
    pub client_certificate: Vec<u8>,
    pub client_key: Vec<u8>,
    pub token: String,
    /// Checked instead of the host name in `server`.
    pub tls_server_name: Option<String>,
    pub insecure_skip_tls_verify: bool,
    /// The namespace of the context.
    pub namespace: String,
}

impl std::fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConfig")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl ClientConfig {
    /// The TLS side of this configuration, without ALPN.
    pub fn tls(&self) -> Result<rustls::ClientConfig> {
        let bad =
            |what: &str, error: &dyn std::fmt::Display| Error::Config(format!("{what}: {error}"));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| bad("TLS versions", &error))?;
        let builder = if self.insecure_skip_tls_verify {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Trusting { provider }))
        } else {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&self.certificate_authority) {
                let certificate =
                    certificate.map_err(|error| bad("certificate-authority", &error))?;
                roots
                    .add(certificate)
                    .map_err(|error| bad("certificate-authority", &error))?;
            }
            builder.with_root_certificates(roots)
        };
        if self.client_certificate.is_empty() {
            return Ok(builder.with_no_client_auth());
        }
        let chain = CertificateDer::pem_slice_iter(&self.client_certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad("client-certificate", &error))?;
        let key = PrivateKeyDer::from_pem_slice(&self.client_key)
            .map_err(|error| bad("client-key", &error))?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad("client-certificate", &error))
    }
}

/// Accepts any server certificate (`insecure-skip-tls-verify: true`), signatures still checked.
#[derive(Debug)]
struct Trusting {
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
