//! `configMap`: the keys of a ConfigMap as files.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, KeyToPath, Volume};

use super::atomic::{self, FileContent, Payload};
use super::{Mounted, VolumeContext, VolumeError, VolumeType};

pub(super) const DEFAULT_MODE: i32 = 0o644;

pub(super) struct ConfigMapVolume;

#[async_trait]
impl VolumeType for ConfigMapVolume {
    fn handles(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.config_map.clone().unwrap_or_default();
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional.unwrap_or(false);
        let payload = payload(
            context,
            &source.name,
            source.items.as_deref(),
            mode,
            optional,
        )
        .await?;
        let dir = context.dir("configmap", &volume.name);
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
        .config_map(context.namespace(), name)
        .await
        .map_err(VolumeError::Failed)?;
    match found {
        Some(map) => select("configmap", &data(&map), items, mode, optional),
        None if optional => Ok(Payload::new()),
        None => Err(VolumeError::Failed(format!(
            "configmap \"{name}\" not found"
        ))),
    }
}

fn data(map: &ConfigMap) -> BTreeMap<&str, &[u8]> {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary = map
        .binary_data
        .iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value.0.as_slice()));
    text.chain(binary).collect()
}

/// All keys, or the listed ones under their own paths and modes.
pub(super) fn select(
    kind: &str,
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, VolumeError> {
    let file = |data: &[u8], mode: i32| FileContent {
        data: data.to_vec(),
        mode: u32::try_from(mode).unwrap_or(0),
        user: None,
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), file(value, mode)))
            .collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(value) => {
                payload.insert(item.path.clone(), file(value, item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => {
                return Err(VolumeError::Failed(format!(
                    "{kind} references non-existent {kind} key: {}",
                    item.key
                )));
            }
        }
    }
    Ok(payload)
}
