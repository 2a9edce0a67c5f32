//! `image`: the root of an OCI image, read-only.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use super::{Mounted, VolumeContext, VolumeError, VolumeType};

pub(super) struct ImageVolume;

#[async_trait]
impl VolumeType for ImageVolume {
    fn handles(&self, volume: &Volume) -> bool {
        volume.image.is_some()
    }

    async fn set_up(
        &self,
        context: &VolumeContext<'_>,
        volume: &Volume,
    ) -> Result<Mounted, VolumeError> {
        let source = volume.image.clone().unwrap_or_default();
        let reference = source.reference.unwrap_or_default();
        let images = &context.services.images;
        let failed = |error: keelson_ports::Error| {
            VolumeError::Failed(format!("image \"{reference}\": {error}"))
        };
        let present = images.resolve(&reference).await.map_err(failed)?;
        let policy = source
            .pull_policy
            .unwrap_or_else(|| crate::images::default_pull_policy(&reference).to_owned());
        let image = match (present, policy.as_str()) {
            (Some(image), "IfNotPresent" | "Never") => image,
            (None, "Never") => {
                return Err(VolumeError::Failed(format!(
                    "Container image \"{reference}\" is not present with pull policy of Never"
                )));
            }
            _ => {
                let auth = crate::images::credentials::for_pod(
                    &context.services.objects,
                    context.pod,
                    &reference,
                )
                .await;
                images.pull(&reference, &auth, None).await.map_err(failed)?
            }
        };
        Ok(Mounted {
            image: Some(image.id),
            readonly: true,
            ..Mounted::default()
        })
    }
}
