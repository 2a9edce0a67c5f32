//! Encryption at rest: what reaches the disk is sealed, what the caches hold is not.
//!
//! Specified by `apiserver.config.k8s.io/v1` `EncryptionConfiguration`. A sealed value begins as
//! upstream's does, `k8s:enc:<provider>:v1:<key name>:`, and is bound to its key in the store. Keys
//! stand in the file, or are guarded by a key management service (`kms`).

mod cipher;
mod config;
mod kms;
mod store;
mod validation;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use keelson_store::SharedStore;
use thiserror::Error;
use tokio_util::sync::{CancellationToken, DropGuard};

use cipher::Cipher;
use config::Configuration;

use crate::reload::Changes;

#[derive(Debug, Error)]
pub enum Error {
    #[error("the encryption configuration {file}: {reason}")]
    File { file: String, reason: String },
}

/// The configuration in force; it may change while the server runs.
pub(crate) struct Encryption {
    file: PathBuf,
    current: ArcSwap<InForce>,
}

struct InForce {
    rules: Arc<Configuration>,
    /// Ends what looks after its key management services.
    _stop: DropGuard,
}

impl InForce {
    /// Must be called where there is a runtime.
    fn new(rules: Configuration) -> Self {
        let stop = CancellationToken::new();
        for plugin in rules.plugins() {
            tokio::spawn(Arc::clone(plugin).follow(stop.clone()));
        }
        Self {
            rules: Arc::new(rules),
            _stop: stop.drop_guard(),
        }
    }
}

impl Encryption {
    /// Key management services are asked once. One that is not there does not keep the server from
    /// starting, it will be asked again; what it guards cannot be read until then.
    pub(crate) async fn open(file: &Path) -> Result<Arc<Self>, Error> {
        let failed = |reason: String| Error::File {
            file: file.display().to_string(),
            reason,
        };
        let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        let rules = Configuration::parse(&text).map_err(failed)?;
        if let Err(error) = well(&rules).await {
            tracing::error!(error, "a KMS provider is not well");
        }
        Ok(Self::with(file, rules))
    }

    fn with(file: &Path, rules: Configuration) -> Arc<Self> {
        Arc::new(Self {
            file: file.to_owned(),
            current: ArcSwap::from_pointee(InForce::new(rules)),
        })
    }

    fn rules(&self) -> Arc<Configuration> {
        Arc::clone(&self.current.load().rules)
    }

    /// The store behind the encryption.
    pub(crate) fn over(self: &Arc<Self>, store: SharedStore) -> SharedStore {
        Arc::new(store::Sealed::new(store, Arc::clone(self)))
    }

    /// Whether every key management service is well; nothing when there is none.
    pub(crate) async fn health(&self) -> Option<Result<(), String>> {
        let rules = self.rules();
        rules.plugins().next()?;
        Some(well(&rules).await)
    }

    /// Takes over changes of the file, until `stop`. A configuration whose key management services
    /// are not well is not taken over.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = Changes::of(self.file.clone(), stop);
        while let Some(text) = changes.next().await {
            changes.settle(self.take_over(&text).await);
        }
    }

    async fn take_over(&self, text: &str) -> Result<(), String> {
        let rules = Configuration::parse(text)?;
        well(&rules).await?;
        self.current.store(Arc::new(InForce::new(rules)));
        Ok(())
    }
}

async fn well(rules: &Configuration) -> Result<(), String> {
    let mut problems = Vec::new();
    for (index, plugin) in rules.plugins().enumerate() {
        if let Err(problem) = plugin.probe().await {
            problems.push(format!("kms-provider-{index}: {problem}"));
        }
    }
    match problems.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}
