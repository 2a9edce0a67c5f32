//! `downwardAPI`: the pod's own fields as files.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Container, DownwardAPIVolumeFile, Volume};

use super::atomic::{self, FileContent, Payload};
use super::config_map::DEFAULT_MODE;
use super::{Mounted, VolumeContext, VolumeError, VolumeType};
use crate::pod::fields;

pub(super) struct DownwardApi;

#[async_trait]
impl VolumeType for DownwardApi {
    fn handles(&self, volume: &Volume) -> bool {
        volume.downward_api.is_some()
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.downward_api.clone().unwrap_or_default();
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let payload = payload(context, source.items.as_deref().unwrap_or_default(), mode)?;
        let dir = context.dir("downward-api", &volume.name);
        atomic::write(context, &dir, payload).await?;
        Ok(Mounted {
            readonly: true,
            ..Mounted::at(dir)
        })
    }
}

pub(super) fn payload(
    context: &VolumeContext<'_>,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
) -> Result<Payload, VolumeError> {
    let mut payload = Payload::new();
    for item in items {
        let value = if let Some(reference) = &item.field_ref {
            fields::field_value(context.pod, &reference.field_path, context.facts)
        } else if let Some(reference) = &item.resource_field_ref {
            fields::resource_value(context.pod, &Container::default(), reference, context.facts)
        } else {
            continue;
        };
        let value = value.map_err(|error| VolumeError::Failed(error.to_string()))?;
        let mode = u32::try_from(item.mode.unwrap_or(mode)).unwrap_or(0);
        payload.insert(
            item.path.clone(),
            FileContent {
                data: value.into_bytes(),
                mode,
                user: None,
            },
        );
    }
    Ok(payload)
}
