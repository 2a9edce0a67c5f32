//! From a `volumeMount` to a path that a container can mount, `subPath` included.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::VolumeMount;
use keelson_ports::{Mount, MountPropagation, Mounts};

use super::{Mounted, VolumeError, io, port};
use crate::pod::expansion::expand;

/// The runtime's mount for one `volumeMount`. `lookup` gives the container's environment.
pub(crate) async fn mount_source(
    mounts: &dyn Mounts,
    pod_dir: &Path,
    container: &str,
    index: usize,
    mount: &VolumeMount,
    volume: &Mounted,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Mount, VolumeError> {
    let sub_path = match (
        mount.sub_path.as_deref().filter(|p| !p.is_empty()),
        mount.sub_path_expr.as_deref(),
    ) {
        (Some(path), _) => path.to_owned(),
        (None, Some(expression)) if !expression.is_empty() => expand_strictly(expression, lookup)?,
        _ => String::new(),
    };
    let host_path = match (sub_path.is_empty(), &volume.image) {
        (true, _) => volume.host_path.clone(),
        (false, Some(_)) => {
            return Err(VolumeError::Failed(
                "subPath on an image volume is not supported by this node".to_owned(),
            ));
        }
        (false, None) => {
            bind_sub_path(mounts, pod_dir, container, index, mount, volume, &sub_path).await?
        }
    };
    let readonly = volume.readonly || mount.read_only.unwrap_or(false);
    Ok(Mount {
        container_path: absolute(&mount.mount_path),
        host_path,
        image: volume.image.clone(),
        readonly,
        recursive_readonly: readonly
            && matches!(
                mount.recursive_read_only.as_deref(),
                Some("Enabled" | "IfPossible")
            ),
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
    })
}

fn absolute(path: &str) -> PathBuf {
    if path.starts_with('/') {
        PathBuf::from(path)
    } else {
        Path::new("/").join(path)
    }
}

fn expand_strictly(
    expression: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<String, VolumeError> {
    let missing = std::cell::Cell::new(false);
    let path = expand(expression, |name| {
        let value = lookup(name);
        missing.set(missing.get() || value.is_none());
        value
    });
    let escapes = path.starts_with('/') || path.split('/').any(|part| part == "..");
    if missing.get() || escapes {
        return Err(VolumeError::Failed(format!(
            "failed to expand subPathExpr \"{expression}\""
        )));
    }
    Ok(path)
}

/// The sub path is opened without following links out of the volume and bound by that open file,
/// so that what was checked is what gets mounted.
async fn bind_sub_path(
    mounts: &dyn Mounts,
    pod_dir: &Path,
    container: &str,
    index: usize,
    mount: &VolumeMount,
    volume: &Mounted,
    sub_path: &str,
) -> Result<PathBuf, VolumeError> {
    let create = !volume.readonly;
    let opened = mounts
        .open_in_root(&volume.host_path, Path::new(sub_path), create)
        .await
        .map_err(port("failed to prepare subPath for volumeMount"))?;
    let opened = File::from(opened);
    let is_dir = opened
        .metadata()
        .map_err(io(format!("reading {sub_path}")))?
        .is_dir();
    let target = pod_dir
        .join("volume-subpaths")
        .join(&mount.name)
        .join(container)
        .join(index.to_string());
    let what = || format!("creating {}", target.display());
    if mounts.is_mount_point(&target).await.unwrap_or(false) {
        mounts
            .unmount(&target)
            .await
            .map_err(port("unmounting an old subPath"))?;
    }
    if is_dir {
        if target.is_file() {
            std::fs::remove_file(&target).map_err(io(what()))?;
        }
        std::fs::create_dir_all(&target).map_err(io(what()))?;
    } else {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(io(what()))?;
        }
        if target.is_dir() {
            std::fs::remove_dir(&target).map_err(io(what()))?;
        }
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&target)
            .map_err(io(what()))?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    mounts
        .bind(&source, &target, false)
        .await
        .map_err(port("failed to prepare subPath for volumeMount"))?;
    Ok(target)
}
