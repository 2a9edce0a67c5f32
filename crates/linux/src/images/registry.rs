//! Pulls images from registries: which endpoint to ask, with which credentials, and how to say
//! why it did not work.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use keelson_ports::{PullProgress, RegistryAuth};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth as Credential;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};

use super::config::{ConfigFile, Descriptor, MANIFEST_TYPES, Manifest};
use super::{Error, ImageStore, Reference, Result, blocking, unpack};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two reads: a registry that stays silent this long has gone.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_CONFIG_BYTES: usize = 8 << 20;
/// Blobs fetched at once, over all pulls of a process.
static BLOB_SLOTS: Semaphore = Semaphore::const_new(4);

/// How registries are reached; the default reaches them all over HTTPS, this machine's over HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RegistryConfig {
    /// Registries (`host[:port]`) that speak plain HTTP. Loopback addresses always may.
    #[serde(default)]
    pub insecure: Vec<String>,
    /// PEM certificates to trust besides the system's.
    #[serde(default)]
    pub certificate_authorities: Vec<String>,
    /// Do not verify the certificates of any registry.
    #[serde(default)]
    pub skip_verify: bool,
    #[serde(default)]
    pub mirrors: Vec<RegistryMirror>,
}

/// Endpoints to ask before the registry itself, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RegistryMirror {
    /// `docker.io`, `registry.k8s.io`, …; `*` is every registry.
    pub registry: String,
    /// `host[:port]` of each mirror.
    pub endpoints: Vec<String>,
}

impl RegistryConfig {
    /// Whom to ask, in order; the registry itself comes last.
    fn endpoints(&self, registry: &str) -> Vec<String> {
        let fits = |m: &&RegistryMirror| m.registry == registry || m.registry == "*";
        let mut endpoints: Vec<String> = self
            .mirrors
            .iter()
            .filter(fits)
            .flat_map(|m| m.endpoints.clone())
            .collect();
        endpoints.push(registry.to_owned());
        endpoints
    }

    fn is_insecure(&self, endpoint: &str) -> bool {
        if self.insecure.iter().any(|i| i == endpoint) {
            return true;
        }
        let host = endpoint
            .strip_prefix('[')
            .and_then(|e| e.split_once(']'))
            .map_or_else(
                || endpoint.split(':').next().unwrap_or_default(),
                |(host, _)| host,
            );
        host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
    }

    fn client(&self, endpoint: &str) -> Result<oci_client::Client> {
        // Whoever links this crate alone (tests, tools) may not have chosen a provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let pem = |text: &String| oci_client::client::Certificate {
            encoding: oci_client::client::CertificateEncoding::Pem,
            data: text.clone().into_bytes(),
        };
        let insecure = self.is_insecure(endpoint);
        let protocol = if insecure {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        let config = ClientConfig {
            protocol,
            // Without encryption there is no trust to lose, and a host without any certificate
            // authority can still pull from its own registry.
            accept_invalid_certificates: self.skip_verify || insecure,
            extra_root_certificates: self.certificate_authorities.iter().map(pem).collect(),
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("keelson/", env!("CARGO_PKG_VERSION")),
            https_proxy: proxy("HTTPS_PROXY"),
            http_proxy: proxy("HTTP_PROXY"),
            no_proxy: proxy("NO_PROXY"),
            ..ClientConfig::default()
        };
        oci_client::Client::try_from(config)
            .map_err(|e| Error::Registry(format!("cannot set up a client for {endpoint}: {e}")))
    }
}

fn proxy(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    std::env::var(name)
        .or_else(|_| std::env::var(lower))
        .ok()
        .filter(|v| !v.is_empty())
}

/// Pulls with other credentials are other pulls: joining one would lend them.
pub(super) fn pull_key(name: &Reference, auth: &[RegistryAuth]) -> String {
    let credentials = serde_json::to_vec(auth).unwrap_or_default();
    format!("{name} {}", unpack::sha256(&credentials))
}

/// One place to pull from, with one credential.
struct Source {
    client: oci_client::Client,
    image: oci_client::Reference,
    credential: Credential,
    endpoint: String,
}

struct Resolved {
    source: Source,
    manifest: Manifest,
    /// Of what the tag names: for a multi-platform image, its index.
    digest: String,
}

/// Pulls and unpacks; answers with the image's id.
pub(super) async fn pull(
    store: &ImageStore,
    name: &Reference,
    auth: &[RegistryAuth],
    progress: Option<Arc<dyn PullProgress>>,
) -> Result<String> {
    let resolved = resolve(&store.0.registries, name, auth).await?;
    let source = &resolved.source;
    let config = fetch_config(source, &resolved.manifest, name).await?;
    let id = unpack::sha256(&config);
    let parsed = ConfigFile::parse(&config, &name.to_string())?;
    let order = parsed.rootfs.diff_ids.clone();
    let layers = &resolved.manifest.layers;
    if order.len() != layers.len() {
        return Err(Error::Invalid(format!(
            "{name} is no container image: it has {} layers and describes {}",
            layers.len(),
            order.len()
        )));
    }
    let present = store.present_layers(&order)?;
    let mut wanted: Vec<(String, Descriptor)> = Vec::new();
    for (diff_id, layer) in order.iter().zip(layers) {
        if !present.contains(diff_id) && !wanted.iter().any(|(d, _)| d == diff_id) {
            wanted.push((diff_id.clone(), layer.clone()));
        }
    }
    let meter = Arc::new(Meter {
        done: AtomicU64::new(0),
        total: wanted.iter().map(|(_, l)| l.size).sum(),
        progress,
    });
    let mut fetches = Vec::new();
    for (diff_id, layer) in wanted {
        let meter = Arc::clone(&meter);
        fetches.push(
            async move { fetch_layer(store, source, &diff_id, &layer, &meter).await }.boxed(),
        );
    }
    let unpacked = futures::stream::iter(fetches)
        .buffer_unordered(4)
        .try_collect()
        .await?;
    let (store, name, digest) = (store.clone(), name.clone(), resolved.digest);
    blocking(move || {
        store.publish(&id, &config, &order, unpacked, |index| {
            if let Some(tag) = name.tagged() {
                index.set_tag(&tag, &id);
            }
            if let Some(record) = index.images.get_mut(&id) {
                record.digests.insert(name.with_digest(&digest));
            }
        })?;
        store.touch(&id);
        Ok(id)
    })
    .await
}

/// Finds an endpoint and a credential that give the manifest. The registry's own last answer is
/// what the user reads; a mirror's failure is only logged.
async fn resolve(
    config: &RegistryConfig,
    name: &Reference,
    auth: &[RegistryAuth],
) -> Result<Resolved> {
    let mut failure = Error::Registry(format!("no endpoint for {name}"));
    for endpoint in config.endpoints(&name.registry) {
        let mut refused: Option<Error> = None;
        for credential in credentials(auth)? {
            let mut image = match (&name.digest, &name.tag) {
                (Some(digest), _) => oci_client::Reference::with_digest(
                    name.registry.clone(),
                    name.repository.clone(),
                    digest.clone(),
                ),
                (None, tag) => oci_client::Reference::with_tag(
                    name.registry.clone(),
                    name.repository.clone(),
                    tag.clone().unwrap_or_else(|| "latest".into()),
                ),
            };
            if endpoint != name.registry {
                image.set_mirror_registry(endpoint.clone());
            }
            let client = config.client(&endpoint)?;
            let source = Source {
                client,
                image,
                credential,
                endpoint: endpoint.clone(),
            };
            match fetch_manifest(&source, name).await {
                Ok((manifest, digest)) => {
                    return Ok(Resolved {
                        source,
                        manifest,
                        digest,
                    });
                }
                Err(error @ Error::Unauthorized(_)) => refused = Some(error),
                Err(error) => {
                    // The first refusal tells more than what anonymity met afterwards.
                    refused = refused.or(Some(error));
                    break;
                }
            }
        }
        if let Some(error) = refused {
            tracing::debug!(%endpoint, %error, image = %name, "pull attempt failed");
            failure = error;
        }
    }
    Err(failure)
}

/// Every credential given, then none.
fn credentials(auth: &[RegistryAuth]) -> Result<Vec<Credential>> {
    let mut out = Vec::new();
    for one in auth {
        if let Some(token) = one.registry_token.as_ref().filter(|t| !t.is_empty()) {
            out.push(Credential::Bearer(token.clone()));
        } else if !one.username.is_empty() || !one.password.is_empty() {
            out.push(Credential::Basic(
                one.username.clone(),
                one.password.clone(),
            ));
        } else if one.identity_token.as_ref().is_some_and(|t| !t.is_empty()) {
            return Err(Error::Unauthorized(
                "identity tokens cannot be used to pull; give a user name and a password, or a registry token".into(),
            ));
        }
    }
    out.push(Credential::Anonymous);
    Ok(out)
}

async fn fetch_manifest(source: &Source, name: &Reference) -> Result<(Manifest, String)> {
    let what = name.to_string();
    let get = |image: oci_client::Reference| async move {
        let (bytes, _) = source
            .client
            .pull_manifest_raw(&image, &source.credential, &MANIFEST_TYPES)
            .await
            .map_err(|e| explain(&e, name, &source.endpoint))?;
        let actual = unpack::sha256(&bytes);
        match image.digest() {
            Some(wanted) if wanted != actual => Err(Error::Invalid(format!(
                "the manifest of {name} is {actual}, not {wanted}"
            ))),
            _ => Ok((bytes, actual)),
        }
    };
    let (bytes, digest) = get(source.image.clone()).await?;
    let mut manifest = Manifest::parse(&bytes, &what)?;
    if !manifest.manifests.is_empty() {
        let chosen = manifest.choose_platform(&what)?;
        let (bytes, _) = get(source.image.clone_with_digest(chosen.digest.clone())).await?;
        manifest = Manifest::parse(&bytes, &what)?;
    }
    if manifest.config.is_none() {
        return Err(Error::Invalid(format!(
            "{name} is no container image: its manifest has no configuration"
        )));
    }
    Ok((manifest, digest))
}

async fn fetch_config(source: &Source, manifest: &Manifest, name: &Reference) -> Result<Vec<u8>> {
    let Some(descriptor) = &manifest.config else {
        return Err(Error::Invalid(format!("{name} has no configuration")));
    };
    let mut stream = source
        .client
        .pull_blob_stream(&source.image, descriptor.digest.as_str())
        .await
        .map_err(|e| explain(&e, name, &source.endpoint))?
        .stream;
    let mut config = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|e| Error::Registry(format!("failed to pull {name}: {e}")))?;
        if config.len() + chunk.len() > MAX_CONFIG_BYTES {
            return Err(Error::Invalid(format!(
                "the configuration of {name} is too large"
            )));
        }
        config.extend_from_slice(&chunk);
    }
    let actual = unpack::sha256(&config);
    if actual != descriptor.digest {
        return Err(Error::Invalid(format!(
            "the configuration of {name} is {actual}, not {}",
            descriptor.digest
        )));
    }
    Ok(config)
}

struct Meter {
    done: AtomicU64,
    total: u64,
    progress: Option<Arc<dyn PullProgress>>,
}

impl Meter {
    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(progress) = &self.progress {
            progress.progress(done, self.total);
        }
    }
}

/// Streams a layer from the registry straight into its directory.
async fn fetch_layer(
    store: &ImageStore,
    source: &Source,
    diff_id: &str,
    layer: &Descriptor,
    meter: &Meter,
) -> Result<super::UnpackedLayer> {
    if layer.media_type.contains("foreign") || layer.media_type.contains("nondistributable") {
        return Err(Error::Invalid(format!(
            "layer {} is not distributed by registries",
            layer.digest
        )));
    }
    let _slot = BLOB_SLOTS.acquire().await;
    let fail = |e: &dyn std::fmt::Display| {
        Error::Registry(format!(
            "failed to pull layer {} from {}: {e}",
            layer.digest, source.endpoint
        ))
    };
    let mut stream = source
        .client
        .pull_blob_stream(&source.image, layer.digest.as_str())
        .await
        .map_err(|e| fail(&chain(&e)))?
        .stream;
    let (sender, receiver) = mpsc::channel(16);
    let (dir, descriptor, diff_id) = (store.0.index.tmp_path(), layer.clone(), diff_id.to_owned());
    let unpacker = tokio::task::spawn_blocking(move || {
        let blob = ChannelReader {
            receiver,
            current: Bytes::new(),
        };
        unpack::unpack_layer(blob, Some(&descriptor), &diff_id, dir)
    });
    let mut broken = None;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.inspect_err(|e| broken = Some(fail(e)));
        let (bytes, last) = (chunk.as_ref().map_or(0, Bytes::len), chunk.is_err());
        if sender.send(chunk).await.is_err() || last {
            break;
        }
        meter.add(bytes as u64);
    }
    drop(sender);
    let result = unpacker.await.map_err(|e| fail(&e))?;
    match (broken, result) {
        (Some(error), Err(_)) => Err(error),
        (_, result) => result,
    }
}

/// The unpacker's end of a blob's stream.
struct ChannelReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.current.len());
        self.current.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

/// An error with its causes: what went wrong in a connection stands at the end of the chain.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

fn explain(error: &OciDistributionError, name: &Reference, endpoint: &str) -> Error {
    let failed = |why: &str| {
        format!(
            "failed to pull image {name:?}: {why}",
            name = name.to_string()
        )
    };
    match error {
        OciDistributionError::AuthenticationFailure(_)
        | OciDistributionError::UnauthorizedError { .. } => Error::Unauthorized(failed(
            "unauthorized: authentication required (pull access denied, the repository does not exist or may \
                 need a pull secret)",
        )),
        OciDistributionError::ImageManifestNotFoundError(_) => Error::NotFound(failed(&format!(
            "manifest unknown: {endpoint} has no such image"
        ))),
        OciDistributionError::RegistryError { envelope, .. } => {
            let unknown = |c: &OciErrorCode| {
                matches!(
                    c,
                    OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound
                )
            };
            let refused =
                |c: &OciErrorCode| matches!(c, OciErrorCode::Unauthorized | OciErrorCode::Denied);
            if envelope.errors.iter().any(|e| refused(&e.code)) {
                Error::Unauthorized(failed("unauthorized: authentication required"))
            } else if envelope.errors.iter().any(|e| unknown(&e.code)) {
                Error::NotFound(failed(&format!(
                    "manifest unknown: {endpoint} has no such image"
                )))
            } else {
                Error::Registry(failed(&envelope.to_string()))
            }
        }
        OciDistributionError::ServerError {
            code: 401 | 403, ..
        } => Error::Unauthorized(failed("unauthorized: authentication required")),
        OciDistributionError::ServerError { code: 404, .. } => Error::NotFound(failed(&format!(
            "manifest unknown: {endpoint} has no such image"
        ))),
        OciDistributionError::RequestError(e) if e.is_timeout() => {
            Error::Timeout(failed(&format!("{endpoint} did not answer in time")))
        }
        other => Error::Registry(failed(&chain(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_first_and_loopback_is_plain() {
        let config = RegistryConfig {
            insecure: vec!["registry.lan".into()],
            mirrors: vec![RegistryMirror {
                registry: "docker.io".into(),
                endpoints: vec!["127.0.0.1:5000".into()],
            }],
            ..RegistryConfig::default()
        };
        assert_eq!(
            config.endpoints("docker.io"),
            ["127.0.0.1:5000", "docker.io"]
        );
        assert_eq!(config.endpoints("ghcr.io"), ["ghcr.io"]);
        for insecure in ["127.0.0.1:5000", "localhost", "[::1]:5000", "registry.lan"] {
            assert!(config.is_insecure(insecure), "{insecure}");
        }
        for secure in ["docker.io", "registry.lan:5000", "10.0.0.1:5000"] {
            assert!(!config.is_insecure(secure), "{secure}");
        }
    }
}
