//! Where layers come from: the image store, seen as the runtime needs it.

use std::path::PathBuf;

use async_trait::async_trait;
use keelson_ports::{Error, Result};

use crate::images::ImageStore;

/// What a container's root file system is made of.
#[derive(Debug, Clone, Default)]
pub struct Rootfs {
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// The user as the image's configuration writes it: `user[:group]`.
    pub user: String,
}

#[async_trait]
pub trait RootfsSource: Send + Sync + 'static {
    /// Gives an image's layers and keeps them in place for `holder` until it is released.
    async fn hold(&self, holder: &str, image_id: &str) -> Result<Rootfs>;
    /// Idempotent.
    async fn release(&self, holder: &str) -> Result<()>;
    /// Releases every holder that is not in `live`.
    async fn retain(&self, live: Vec<String>) -> Result<()>;
}

#[async_trait]
impl RootfsSource for ImageStore {
    async fn hold(&self, holder: &str, image_id: &str) -> Result<Rootfs> {
        let (store, holder, image_id) = (self.clone(), holder.to_owned(), image_id.to_owned());
        blocking(move || {
            let rootfs = ImageStore::hold(&store, &holder, &image_id)?;
            Ok(Rootfs {
                layers: rootfs.layers,
                user: rootfs.config.user,
            })
        })
        .await
    }

    async fn release(&self, holder: &str) -> Result<()> {
        let (store, holder) = (self.clone(), holder.to_owned());
        blocking(move || Ok(ImageStore::release(&store, &holder)?)).await
    }

    async fn retain(&self, live: Vec<String>) -> Result<()> {
        let store = self.clone();
        blocking(move || Ok(store.retain_holds(&live)?)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::Failed(format!("the image store's work was interrupted: {error}"))
    })?
}
