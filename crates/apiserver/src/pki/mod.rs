//! The cluster's certificates and keys: made on the first start, read afterwards, renewed in
//! process. Everything is ECDSA P-256, so that a first start costs milliseconds.

mod issue;
mod serving;
mod shared;

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error;

pub use issue::{Authority, Identity, Usage, not_after_unix};
pub use serving::ServingCertificate;
pub(crate) use serving::chain_and_key;
pub(crate) use shared::load;

#[derive(Debug, Error)]
pub enum Error {
    #[error("reading {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("writing {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("issuing the certificate for {subject}")]
    Issue {
        subject: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("{what} is not usable: {reason}")]
    Unusable { what: String, reason: String },
    #[error("sharing the authorities through the store")]
    Store(#[source] keelson_store::Error),
}

/// Certificates and keys of this cluster, under `<data-dir>/pki`.
pub struct Pki {
    dir: PathBuf,
    /// Signs client, kubelet and serving certificates.
    pub cluster_ca: Authority,
    /// Signs the certificate that proves a request was passed on by this server.
    pub front_proxy_ca: Authority,
    /// Signs service account tokens; PKCS#8 PEM.
    pub service_account_key: String,
    /// The server's own client certificate towards kubelets.
    pub kubelet_client: Identity,
    pub front_proxy_client: Identity,
}

const CA_DAYS: u32 = 3650;
const LEAF_DAYS: u32 = 365;

impl Pki {
    /// Loads what is there and makes what is missing or about to expire.
    pub fn load_or_create(dir: &Path) -> Result<Self, Error> {
        make_dir(dir)?;
        let cluster_ca = authority(dir, "ca", "keelson-ca")?;
        let front_proxy_ca = authority(dir, "front-proxy-ca", "keelson-front-proxy-ca")?;
        let service_account_key = service_account_key(dir)?;
        let kubelet_client = client(
            dir,
            "apiserver-kubelet-client",
            &cluster_ca,
            "kube-apiserver-kubelet-client",
            "system:masters",
        )?;
        let front_proxy_client = client(
            dir,
            "front-proxy-client",
            &front_proxy_ca,
            "front-proxy-client",
            "",
        )?;
        Ok(Self {
            dir: dir.to_owned(),
            cluster_ca,
            front_proxy_ca,
            service_account_key,
            kubelet_client,
            front_proxy_client,
        })
    }

    /// A client certificate kept in a file of this directory and renewed when it is due.
    pub fn client(
        &self,
        file: &str,
        common_name: &str,
        organization: &str,
    ) -> Result<Identity, Error> {
        client(&self.dir, file, &self.cluster_ca, common_name, organization)
    }

    /// The cluster administrator's identity, for the first kubeconfig.
    pub fn admin(&self) -> Result<Identity, Error> {
        self.client("admin", "kubernetes-admin", "system:masters")
    }

    pub fn controller_manager(&self) -> Result<Identity, Error> {
        self.client("controller-manager", "system:kube-controller-manager", "")
    }

    pub fn scheduler(&self) -> Result<Identity, Error> {
        self.client("scheduler", "system:kube-scheduler", "")
    }

    pub fn kubelet(&self, node: &str) -> Result<Identity, Error> {
        self.client(
            "kubelet-client",
            &format!("system:node:{node}"),
            "system:nodes",
        )
    }

    /// A kubelet's serving certificate; not kept on disk.
    pub fn kubelet_serving(&self, node: &str, addresses: &[IpAddr]) -> Result<Identity, Error> {
        let mut names = vec![node.to_owned(), "localhost".to_owned()];
        names.extend(addresses.iter().map(ToString::to_string));
        self.cluster_ca.issue(
            &format!("system:node:{node}"),
            "system:nodes",
            &names,
            &[Usage::Server],
            LEAF_DAYS,
        )
    }

    /// The server's serving certificate for these names and addresses.
    pub fn serving(&self, names: Vec<String>) -> Result<ServingCertificate, Error> {
        ServingCertificate::new(self.cluster_ca.clone(), self.dir.join("apiserver"), names)
    }

    /// A kubeconfig with everything embedded, ready to be written for the administrator.
    pub fn kubeconfig(&self, name: &str, server: &str, identity: &Identity) -> String {
        let ca = STANDARD.encode(&self.cluster_ca.certificate_pem);
        let certificate = STANDARD.encode(&identity.certificate_pem);
        let key = STANDARD.encode(&identity.key_pem);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\nusers:\n- name: {name}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\ncontexts:\n- name: {name}\n  context:\n    cluster: {name}\n    user: {name}\ncurrent-context: {name}\n"
        )
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// For its owner alone.
fn make_dir(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write {
        path: dir.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed)
}

fn authority(dir: &Path, file: &str, common_name: &str) -> Result<Authority, Error> {
    if let Some((certificate, key)) = read_pair(dir, file)? {
        return Authority::from_pem(certificate, key);
    }
    let authority = Authority::create(common_name, CA_DAYS)?;
    write_pair(dir, file, &authority.certificate_pem, &authority.key_pem())?;
    Ok(authority)
}

fn client(
    dir: &Path,
    file: &str,
    ca: &Authority,
    common_name: &str,
    organization: &str,
) -> Result<Identity, Error> {
    if let Some((certificate_pem, key_pem)) = read_pair(dir, file)? {
        let identity = Identity {
            certificate_pem,
            key_pem,
        };
        if identity.is_for(ca, common_name) && !identity.is_due() {
            return Ok(identity);
        }
    }
    let identity = ca.issue(common_name, organization, &[], &[Usage::Client], LEAF_DAYS)?;
    write_pair(dir, file, &identity.certificate_pem, &identity.key_pem)?;
    Ok(identity)
}

fn service_account_key(dir: &Path) -> Result<String, Error> {
    let path = dir.join("sa.key");
    if let Some(pem) = read(&path)? {
        return Ok(pem);
    }
    let key = rcgen::KeyPair::generate().map_err(|source| Error::Issue {
        subject: "service account tokens".to_owned(),
        source,
    })?;
    write_private(&path, key.serialize_pem().as_bytes())?;
    write_private(&dir.join("sa.pub"), key.public_key_pem().as_bytes())?;
    Ok(key.serialize_pem())
}

fn read_pair(dir: &Path, file: &str) -> Result<Option<(String, String)>, Error> {
    let certificate = read(&dir.join(format!("{file}.crt")))?;
    let key = read(&dir.join(format!("{file}.key")))?;
    Ok(certificate.zip(key))
}

fn write_pair(dir: &Path, file: &str, certificate: &str, key: &str) -> Result<(), Error> {
    // The key goes first: a certificate without its key would be served, a key alone is remade.
    write_private(&dir.join(format!("{file}.key")), key.as_bytes())?;
    write_private(&dir.join(format!("{file}.crt")), certificate.as_bytes())
}

fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Replaces the file at once, readable by its owner alone.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

/// Where systems keep the authorities they trust.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The authorities that the machine trusts, for servers of which nothing else is said.
pub(crate) fn system_authorities() -> Vec<CertificateDer<'static>> {
    let mut kept = SYSTEM_AUTHORITIES.iter();
    let bundle = kept.find_map(|path| std::fs::read(path).ok());
    let mut roots = rustls::RootCertStore::empty();
    CertificateDer::pem_slice_iter(&bundle.unwrap_or_default())
        .flatten()
        .filter(|certificate| roots.add(certificate.clone()).is_ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("keelson-pki-{name}-{}", uuid::Uuid::new_v4()))
    }

    #[test]
    fn a_second_start_finds_the_same_authority_and_remakes_nothing() {
        let dir = scratch("again");
        let first = Pki::load_or_create(&dir).unwrap();
        let admin = first.admin().unwrap();
        let second = Pki::load_or_create(&dir).unwrap();
        assert_eq!(
            first.cluster_ca.certificate_pem,
            second.cluster_ca.certificate_pem
        );
        assert_eq!(first.service_account_key, second.service_account_key);
        assert_eq!(
            admin.certificate_pem,
            second.admin().unwrap().certificate_pem
        );
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn keys_are_readable_by_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = scratch("mode");
        Pki::load_or_create(&dir).unwrap();
        for file in ["ca.key", "sa.key", "front-proxy-ca.key"] {
            let mode = fs::metadata(dir.join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_authority_issues_what_names_its_subject() {
        let ca = Authority::create("test-ca", 10).unwrap();
        let identity = ca
            .issue("alice", "system:masters", &[], &[Usage::Client], 1)
            .unwrap();
        assert!(identity.is_for(&ca, "alice"));
        assert!(!identity.is_for(&ca, "bob"));
        let other = Authority::create("other-ca", 10).unwrap();
        assert!(!identity.is_for(&other, "alice"));
    }
}
