//! Encryption at rest: what reaches the disk is sealed, what the caches hold is not.
//!
//! Specified by `apiserver.config.k8s.io/v1` `EncryptionConfiguration`. A sealed value begins as
//! upstream's does, `k8s:enc:<provider>:v1:<key name>:`, and is bound to its key in the store.

mod cipher;
mod config;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use keelson_store::SharedStore;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use cipher::Cipher;
use config::Configuration;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the encryption configuration {file}: {reason}")]
    File { file: String, reason: String },
}

/// The configuration in force; it may change while the server runs.
pub(crate) struct Encryption {
    file: PathBuf,
    rules: ArcSwap<Configuration>,
}

impl Encryption {
    pub(crate) fn open(file: &Path) -> Result<Arc<Self>, Error> {
        let failed = |reason: String| Error::File {
            file: file.display().to_string(),
            reason,
        };
        let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        let rules = Configuration::parse(&text).map_err(failed)?;
        Ok(Arc::new(Self {
            file: file.to_owned(),
            rules: ArcSwap::from_pointee(rules),
        }))
    }

    /// The store behind the encryption.
    pub(crate) fn over(self: &Arc<Self>, store: SharedStore) -> SharedStore {
        Arc::new(store::Sealed::new(store, Arc::clone(self)))
    }

    /// Takes over changes of the file, until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let current = std::fs::read_to_string(&self.file).unwrap_or_default();
        crate::reload::follow(self.file.clone(), current, stop, |text| {
            self.rules.store(Arc::new(Configuration::parse(text)?));
            Ok(())
        })
        .await;
    }
}
