//! `hostPath`: a path of the node, checked against the declared type.

use std::fs::{Metadata, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use super::{Mounted, VolumeContext, VolumeError, VolumeType, io};

pub(super) struct HostPath;

#[async_trait]
impl VolumeType for HostPath {
    fn handles(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    async fn set_up(
        &self,
        _context: &VolumeContext<'_>,
        volume: &Volume,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.host_path.clone().unwrap_or_default();
        check(
            Path::new(&source.path),
            source.type_.as_deref().unwrap_or_default(),
        )?;
        Ok(Mounted::at(PathBuf::from(source.path)))
    }
}

/// Directories that the node makes on a pod's behalf are as upstream's kubelet makes them, whatever
/// the node keeps closed elsewhere.
fn make_directory(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        make_directory(parent)?;
    }
    std::fs::create_dir(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Verifies the path, or makes it where the type says so.
pub(super) fn check(path: &Path, kind: &str) -> Result<(), VolumeError> {
    let creating = || format!("creating {}", path.display());
    let failed = |what: &str| {
        Err(VolumeError::Failed(format!(
            "hostPath type check failed: {} is not a {what}",
            path.display()
        )))
    };
    let is =
        |test: fn(&Metadata) -> bool| std::fs::metadata(path).is_ok_and(|metadata| test(&metadata));
    match kind {
        "" => {
            // Without a type the runtime makes a missing directory.
            if !path.exists() {
                make_directory(path).map_err(io(creating()))?;
            }
            Ok(())
        }
        "DirectoryOrCreate" if !path.exists() => make_directory(path).map_err(io(creating())),
        "DirectoryOrCreate" | "Directory" => {
            if is(Metadata::is_dir) {
                Ok(())
            } else {
                failed("directory")
            }
        }
        "FileOrCreate" if !path.exists() => std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|file| file.set_permissions(Permissions::from_mode(0o644)))
            .map_err(io(creating())),
        "FileOrCreate" | "File" => {
            if is(Metadata::is_file) {
                Ok(())
            } else {
                failed("file")
            }
        }
        "Socket" => {
            if is(|m| m.file_type().is_socket()) {
                Ok(())
            } else {
                failed("socket file")
            }
        }
        "CharDevice" => {
            if is(|m| m.file_type().is_char_device()) {
                Ok(())
            } else {
                failed("character device")
            }
        }
        "BlockDevice" => {
            if is(|m| m.file_type().is_block_device()) {
                Ok(())
            } else {
                failed("block device")
            }
        }
        other => Err(VolumeError::Failed(format!(
            "{other} is an invalid volume type"
        ))),
    }
}
