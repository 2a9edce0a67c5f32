//! The parts of an image's configuration and manifests that running it needs.

use std::collections::BTreeMap;

use keelson_ports::ImageUser;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Error, Result};

/// How an image wants to be run; what a pod does not say, this says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `user[:group]`, each a name or a number; empty is root.
    #[serde(default, deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    pub stop_signal: String,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Paths that the image declares as volumes.
    #[serde(default, deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
}

impl ImageConfig {
    /// The user part alone, as CRI reports it.
    pub fn image_user(&self) -> ImageUser {
        let name = self.user.split(':').next().unwrap_or_default();
        if name.is_empty() {
            ImageUser::Unset
        } else if let Ok(id) = name.parse() {
            ImageUser::Id(id)
        } else {
            ImageUser::Name(name.to_owned())
        }
    }
}

/// The file whose digest is the image's id.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) config: ImageConfig,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RootFs {
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) diff_ids: Vec<String>,
}

impl ConfigFile {
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        let config: ConfigFile = serde_json::from_slice(bytes)
            .map_err(Error::json(format!("the configuration of {what}")))?;
        for diff_id in &config.rootfs.diff_ids {
            check_digest(diff_id)?;
        }
        Ok(config)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) media_type: String,
    pub(super) digest: String,
    #[serde(default)]
    pub(super) size: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) platform: Platform,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) variant: String,
}

/// A manifest or an index of manifests, OCI's or Docker's: they differ by what they hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    #[serde(default)]
    pub(super) schema_version: u32,
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
}

pub(super) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

impl Manifest {
    pub(super) fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        let manifest: Manifest = serde_json::from_slice(bytes)
            .map_err(Error::json(format!("the manifest of {what}")))?;
        if manifest.schema_version == 1 {
            return Err(Error::Invalid(format!(
                "{what} has a manifest of schema version 1, which is obsolete; push the image again"
            )));
        }
        for d in manifest
            .layers
            .iter()
            .chain(&manifest.manifests)
            .chain(&manifest.config)
        {
            check_digest(&d.digest)?;
        }
        Ok(manifest)
    }

    /// The manifest for this machine, of an index.
    pub(super) fn choose_platform(&self, what: &str) -> Result<&Descriptor> {
        let arch = host_architecture();
        let fits = |d: &&Descriptor| d.platform.os == "linux" && d.platform.architecture == arch;
        let mut fitting: Vec<&Descriptor> = self.manifests.iter().filter(fits).collect();
        // An arm64 machine's plain variant is v8; for others no variant is the common case.
        fitting.sort_by_key(|d| !matches!(d.platform.variant.as_str(), "" | "v8"));
        let single = || match self.manifests.as_slice() {
            [only] if only.platform.os.is_empty() => Some(only),
            _ => None,
        };
        fitting.first().copied().or_else(single).ok_or_else(|| {
            Error::Invalid(format!(
                "no match for platform in manifest: {what} has nothing for linux/{arch}"
            ))
        })
    }
}

/// The host's architecture in Go's words, as images name it.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

pub(super) fn check_digest(digest: &str) -> Result<()> {
    let hex = |s: &str, n: usize| {
        s.len() == n
            && s.bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    match digest.split_once(':') {
        Some(("sha256", rest)) if hex(rest, 64) => Ok(()),
        _ => Err(Error::Invalid(format!("{digest:?} is not a sha256 digest"))),
    }
}

/// Go writes absent lists and maps as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}
