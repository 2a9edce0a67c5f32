//! `persistentVolumeClaim` and `ephemeral`: a claim bound to a volume that this node can reach.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Volume};

use super::{Mounted, VolumeContext, VolumeError, VolumeType, host_path, port};
use crate::pod;

pub(super) struct Claim;

#[async_trait]
impl VolumeType for Claim {
    fn handles(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
    ) -> Result<Mounted, VolumeError> {
        let (name, readonly) = match &volume.persistent_volume_claim {
            Some(source) => (source.claim_name.clone(), source.read_only.unwrap_or(false)),
            None => (format!("{}-{}", pod::name(context.pod), volume.name), false),
        };
        let api = |error: keelson_client::Error| VolumeError::Failed(error.to_string());
        let client = &context.services.client;
        let claim: PersistentVolumeClaim =
            client.get(context.namespace(), &name).await.map_err(api)?;
        let bound = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Bound");
        let volume_name = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.clone())
            .filter(|name| !name.is_empty());
        let Some(volume_name) = volume_name.filter(|_| bound) else {
            return Err(VolumeError::Failed(format!(
                "PVC {}/{name} is not bound",
                context.namespace()
            )));
        };
        let persistent: PersistentVolume = client.get("", &volume_name).await.map_err(api)?;
        let path = path_of(&persistent)?;
        if let Some(group) = context.fs_group().filter(|_| context.fresh) {
            context
                .services
                .mounts
                .set_fs_group(&path, group, readonly)
                .await
                .map_err(port("setting fsGroup"))?;
        }
        let groups = persistent
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get("pv.beta.kubernetes.io/gid"))
            .and_then(|gid| gid.parse().ok())
            .into_iter()
            .collect();
        Ok(Mounted {
            readonly,
            groups,
            ..Mounted::at(path)
        })
    }
}

fn path_of(volume: &PersistentVolume) -> Result<PathBuf, VolumeError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(VolumeError::Failed(format!(
            "volume {name} has volumeMode Block, but is specified in volumeMounts"
        )));
    }
    if let Some(source) = spec.host_path {
        host_path::check(
            Path::new(&source.path),
            source.type_.as_deref().unwrap_or_default(),
        )?;
        return Ok(PathBuf::from(source.path));
    }
    if let Some(source) = spec.local {
        let path = PathBuf::from(source.path);
        if !path.is_dir() {
            return Err(VolumeError::Failed(format!(
                "path \"{}\" does not exist",
                path.display()
            )));
        }
        return Ok(path);
    }
    Err(VolumeError::Failed(format!(
        "the source of volume {name} is not supported by this node"
    )))
}
