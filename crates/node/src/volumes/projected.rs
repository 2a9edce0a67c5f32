//! `projected`: several sources in one directory, service-account tokens among them.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ServiceAccountTokenProjection, Volume};

use super::atomic::{self, FileContent};
use super::config_map::DEFAULT_MODE;
use super::{
    Mounted, VolumeContext, VolumeError, VolumeType, config_map, downward_api, memory_dir, secret,
};

pub(super) struct Projected;

#[async_trait]
impl VolumeType for Projected {
    fn handles(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.projected.clone().unwrap_or_default();
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let mut payload = atomic::Payload::new();
        let mut refresh_at = None;
        for part in source.sources.as_deref().unwrap_or_default() {
            if let Some(map) = &part.config_map {
                let optional = map.optional.unwrap_or(false);
                payload.extend(
                    config_map::payload(context, &map.name, map.items.as_deref(), mode, optional)
                        .await?,
                );
            }
            if let Some(secret) = &part.secret {
                let optional = secret.optional.unwrap_or(false);
                payload.extend(
                    secret::payload(
                        context,
                        &secret.name,
                        secret.items.as_deref(),
                        mode,
                        optional,
                    )
                    .await?,
                );
            }
            if let Some(downward) = &part.downward_api {
                payload.extend(downward_api::payload(
                    context,
                    downward.items.as_deref().unwrap_or_default(),
                    mode,
                )?);
            }
            if let Some(token) = &part.service_account_token {
                let (file, at) = token_file(context, token, mode).await?;
                payload.insert(token.path.clone(), file);
                refresh_at =
                    Some(refresh_at.map_or(at, |earlier: std::time::SystemTime| earlier.min(at)));
            }
            if part
                .cluster_trust_bundle
                .as_ref()
                .is_some_and(|bundle| !bundle.optional.unwrap_or(false))
            {
                return Err(VolumeError::Failed(
                    "clusterTrustBundle projections are not supported by this node".to_owned(),
                ));
            }
            if part.pod_certificate.is_some() {
                return Err(VolumeError::Failed(
                    "podCertificate projections are not supported by this node".to_owned(),
                ));
            }
        }
        let dir = context.dir("projected", &volume.name);
        memory_dir(context, &dir).await?;
        atomic::write(context, &dir, payload).await?;
        Ok(Mounted {
            readonly: true,
            refresh_at,
            ..Mounted::at(dir)
        })
    }
}

async fn token_file(
    context: &VolumeContext<'_>,
    source: &ServiceAccountTokenProjection,
    mode: i32,
) -> Result<(FileContent, std::time::SystemTime), VolumeError> {
    let audience = source.audience.clone().unwrap_or_default();
    let expiration_s = source.expiration_seconds.unwrap_or(3600);
    let token = context
        .services
        .tokens
        .get(context, &audience, expiration_s)
        .await?;
    let user = context.fs_user();
    // A token is the pod's identity: when we know who reads it, nobody else may.
    let mode = if user.is_some() || context.fs_group().is_some() {
        0o600
    } else {
        u32::try_from(mode).unwrap_or(0o644)
    };
    Ok((
        FileContent {
            data: token.token.into_bytes(),
            mode,
            user,
        },
        token.refresh_at,
    ))
}
