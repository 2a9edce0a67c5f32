//! `emptyDir`: scratch space on disk or in memory.

use std::os::unix::fs::PermissionsExt;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use super::{Mounted, VolumeContext, VolumeError, VolumeType, io, port};
use crate::pod::resources;

pub(super) struct EmptyDir;

#[async_trait]
impl VolumeType for EmptyDir {
    fn handles(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.empty_dir.clone().unwrap_or_default();
        let dir = super::empty_dir_path(context.pod_dir, &volume.name);
        let fresh = !dir.exists();
        std::fs::create_dir_all(&dir).map_err(io(format!("creating {}", dir.display())))?;
        let mounts = &context.services.mounts;
        match source.medium.as_deref().unwrap_or_default() {
            "" => {
                if fresh {
                    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777))
                        .map_err(io(format!("opening {}", dir.display())))?;
                }
            }
            "Memory" => {
                if !mounts
                    .is_mount_point(&dir)
                    .await
                    .map_err(port("reading mounts"))?
                {
                    let size = source
                        .size_limit
                        .as_ref()
                        .and_then(resources::value)
                        .filter(|size| *size > 0);
                    let size = size.and_then(|size| u64::try_from(size).ok());
                    mounts
                        .mount_tmpfs(&dir, size, 0o777)
                        .await
                        .map_err(port("mounting a tmpfs"))?;
                }
            }
            other => {
                return Err(VolumeError::Failed(format!(
                    "emptyDir medium {other:?} is not supported on this node"
                )));
            }
        }
        if let Some(group) = context.fs_group().filter(|_| context.fresh) {
            mounts
                .set_fs_group(&dir, group, false)
                .await
                .map_err(port("setting fsGroup"))?;
        }
        Ok(Mounted::at(dir))
    }
}
