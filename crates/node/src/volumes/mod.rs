//! Volumes: one file per type, one row per file in [`TYPES`].

mod atomic;
mod claim;
mod config_map;
mod downward_api;
mod empty_dir;
mod host_path;
mod image;
mod projected;
mod secret;
mod sub_path;
mod token;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use keelson_client::Client;
use keelson_ports::{Clock, Images, Mounts};
use thiserror::Error;

use crate::objects::Objects;
use crate::pod;
use crate::pod::fields::Facts;

pub(crate) use sub_path::mount_source;
pub(crate) use token::Tokens;

#[derive(Debug, Error)]
pub(crate) enum VolumeError {
    /// Shown to the user as it is.
    #[error("{0}")]
    Failed(String),
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    #[error("{what}: {source}")]
    Port {
        what: &'static str,
        source: keelson_ports::Error,
    },
}

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> VolumeError {
    let what = what.into();
    move |source| VolumeError::Io { what, source }
}

fn port(what: &'static str) -> impl FnOnce(keelson_ports::Error) -> VolumeError {
    move |source| VolumeError::Port { what, source }
}

/// What volumes need of the node.
pub(crate) struct VolumeServices {
    pub(crate) client: Client,
    pub(crate) objects: Arc<Objects>,
    pub(crate) mounts: Arc<dyn Mounts>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tokens: Tokens,
}

/// One pod's volumes being set up or brought up to date.
pub(crate) struct VolumeContext<'a> {
    pub(crate) services: &'a VolumeServices,
    pub(crate) pod: &'a Pod,
    /// `<data>/pods/<uid>`.
    pub(crate) pod_dir: &'a Path,
    pub(crate) facts: &'a Facts,
    /// The first time since the agent started; later calls only bring content up to date.
    pub(crate) fresh: bool,
}

impl VolumeContext<'_> {
    /// `<pod>/volumes/kubernetes.io~<type>/<name>`, the layout that tools expect.
    pub(crate) fn dir(&self, kind: &str, volume: &str) -> PathBuf {
        volume_dir(self.pod_dir, kind, volume)
    }

    pub(crate) fn namespace(&self) -> &str {
        pod::namespace(self.pod)
    }

    pub(crate) fn fs_group(&self) -> Option<u32> {
        let group = pod::spec(self.pod).security_context.as_ref()?.fs_group?;
        u32::try_from(group).ok()
    }

    /// The user that all containers run as, if they all say the same one.
    pub(crate) fn fs_user(&self) -> Option<u32> {
        let default = pod::spec(self.pod)
            .security_context
            .as_ref()
            .and_then(|context| context.run_as_user);
        let mut users = pod::all_containers(self.pod)
            .into_iter()
            .map(|(_, container)| {
                container
                    .security_context
                    .as_ref()
                    .and_then(|context| context.run_as_user)
                    .or(default)
            });
        let first = users.next()??;
        users
            .all(|user| user == Some(first))
            .then(|| u32::try_from(first).ok())
            .flatten()
    }
}

/// Where a volume's content is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mounted {
    pub(crate) host_path: PathBuf,
    /// An image whose root is the volume.
    pub(crate) image: Option<String>,
    pub(crate) readonly: bool,
    /// When the content must be written again although nothing it refers to changed.
    pub(crate) refresh_at: Option<SystemTime>,
    /// Groups that a container needs to use it.
    pub(crate) groups: Vec<i64>,
}

impl Mounted {
    pub(crate) fn at(host_path: PathBuf) -> Self {
        Self {
            host_path,
            ..Self::default()
        }
    }
}

pub(crate) type MountedVolumes = BTreeMap<String, Mounted>;

#[async_trait]
pub(crate) trait VolumeType: Send + Sync {
    fn handles(&self, volume: &Volume) -> bool;
    /// Makes the volume or brings its content up to date. Idempotent.
    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
    ) -> Result<Mounted, VolumeError>;
}

static TYPES: &[&dyn VolumeType] = &[
    &empty_dir::EmptyDir,
    &host_path::HostPath,
    &config_map::ConfigMapVolume,
    &secret::SecretVolume,
    &downward_api::DownwardApi,
    &projected::Projected,
    &claim::Claim,
    &image::ImageVolume,
];

/// Sets up every volume of the pod; the error names the first volume that failed.
pub(crate) async fn set_up(context: &VolumeContext<'_>) -> Result<MountedVolumes, VolumeError> {
    let mut mounted = MountedVolumes::new();
    for volume in pod::spec(context.pod)
        .volumes
        .as_deref()
        .unwrap_or_default()
    {
        let Some(kind) = TYPES.iter().find(|kind| kind.handles(volume)) else {
            return Err(VolumeError::Failed(format!(
                "MountVolume.SetUp failed for volume \"{}\" : no volume plugin matched: this node does not support volumes of this type",
                volume.name
            )));
        };
        let done = kind.set_up(context, volume).await.map_err(|error| {
            VolumeError::Failed(format!(
                "MountVolume.SetUp failed for volume \"{}\" : {error}",
                volume.name
            ))
        })?;
        mounted.insert(volume.name.clone(), done);
    }
    Ok(mounted)
}

/// Unmounts everything below the pod's directory and removes it. A mount that stays keeps the
/// directory: removing files through it would destroy what is not the pod's.
pub(crate) async fn tear_down(mounts: &dyn Mounts, pod_dir: &Path) -> Result<(), VolumeError> {
    // The kernel's mount table knows no links: a path through one would hide the mounts below it.
    let Ok(pod_dir) = pod_dir.canonicalize() else {
        return Ok(());
    };
    let pod_dir = pod_dir.as_path();
    for mount in mounts
        .mounts_below(pod_dir)
        .await
        .map_err(port("reading mounts"))?
    {
        mounts.unmount(&mount).await.map_err(port("unmounting"))?;
    }
    let left = mounts
        .mounts_below(pod_dir)
        .await
        .map_err(port("reading mounts"))?;
    if let Some(mount) = left.first() {
        return Err(VolumeError::Failed(format!(
            "{} is still mounted",
            mount.display()
        )));
    }
    let dir = pod_dir.to_owned();
    tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir))
        .await
        .map_err(|error| VolumeError::Failed(error.to_string()))?
        .or_else(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                Ok(())
            } else {
                Err(error)
            }
        })
        .map_err(io(format!("removing {}", pod_dir.display())))
}

/// Groups that the volumes which a container mounts ask for.
pub(crate) fn groups_of(container: &Container, mounted: &MountedVolumes) -> Vec<i64> {
    container
        .volume_mounts
        .iter()
        .flatten()
        .filter_map(|mount| mounted.get(&mount.name))
        .flat_map(|volume| volume.groups.iter().copied())
        .collect()
}

fn volume_dir(pod_dir: &Path, kind: &str, volume: &str) -> PathBuf {
    pod_dir
        .join("volumes")
        .join(format!("kubernetes.io~{kind}"))
        .join(volume)
}

/// Where the files of an emptyDir lie.
pub(crate) fn empty_dir_path(pod_dir: &Path, volume: &str) -> PathBuf {
    volume_dir(pod_dir, EMPTY_DIR, volume)
}

const EMPTY_DIR: &str = "empty-dir";

/// Makes a tmpfs-backed directory once: secrets must not reach the disk.
async fn memory_dir(context: &VolumeContext<'_>, dir: &Path) -> Result<(), VolumeError> {
    std::fs::create_dir_all(dir).map_err(io(format!("creating {}", dir.display())))?;
    let mounts = &context.services.mounts;
    if !mounts
        .is_mount_point(dir)
        .await
        .map_err(port("reading mounts"))?
    {
        mounts
            .mount_tmpfs(dir, None, 0o777)
            .await
            .map_err(port("mounting a tmpfs"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
