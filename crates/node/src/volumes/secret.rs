//! `secret`: the keys of a Secret as files in memory.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{KeyToPath, Volume};

use super::atomic::{self, Payload};
use super::config_map::{DEFAULT_MODE, select};
use super::{Mounted, VolumeContext, VolumeError, VolumeType, memory_dir};

pub(super) struct SecretVolume;

#[async_trait]
impl VolumeType for SecretVolume {
    fn handles(&self, volume: &Volume) -> bool {
        volume.secret.is_some()
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.secret.clone().unwrap_or_default();
        let name = source.secret_name.unwrap_or_default();
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional.unwrap_or(false);
        let payload = payload(context, &name, source.items.as_deref(), mode, optional).await?;
        let dir = context.dir("secret", &volume.name);
        memory_dir(context, &dir).await?;
        atomic::write(context, &dir, payload).await?;
        Ok(Mounted {
            readonly: true,
            ..Mounted::at(dir)
        })
    }
}

pub(super) async fn payload(
    context: &VolumeContext<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let found = context
        .services
        .objects
        .secret(context.namespace(), name)
        .await
        .map_err(VolumeError::Failed)?;
    match found {
        Some(secret) => {
            let data: BTreeMap<&str, &[u8]> = secret
                .data
                .iter()
                .flatten()
                .map(|(key, value)| (key.as_str(), value.0.as_slice()))
                .collect();
            select("secret", &data, items, mode, optional)
        }
        None if optional => Ok(Payload::new()),
        None => Err(VolumeError::Failed(format!("secret \"{name}\" not found"))),
    }
}
