//! The node's image store, in CRI's words.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::Result;

#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Finds an image by id, digest reference or tag; names are normalised as Docker does
    /// (`nginx` is `docker.io/library/nginx:latest`). Does not touch the network.
    async fn resolve(&self, reference: &str) -> Result<Option<ImageInfo>>;
    /// Pulls and unpacks; a pull of the same reference that is under way is joined.
    async fn pull(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        progress: Option<Arc<dyn PullProgress>>,
    ) -> Result<ImageInfo>;
    /// Imports an OCI layout or `docker save` archive, compressed or not; every image in it.
    async fn import(&self, archive: &Path) -> Result<Vec<ImageInfo>>;
    async fn list(&self) -> Result<Vec<ImageInfo>>;
    /// Removes a reference; layers go when no image needs them. Idempotent.
    async fn remove(&self, reference: &str) -> Result<()>;
    async fn fs_usage(&self) -> Result<ImageFsUsage>;
}

/// Told about a pull's progress, bytes of compressed layers.
pub trait PullProgress: Send + Sync {
    fn progress(&self, done_bytes: u64, total_bytes: u64);
}

/// One credential to try, from a pull secret or the node's own configuration.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    /// An OAuth2 identity token, instead of a password.
    pub identity_token: Option<String>,
    /// A bearer token to send as it is.
    pub registry_token: Option<String>,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageUser {
    #[default]
    Unset,
    Id(i64),
    /// A name that only the image's `/etc/passwd` can turn into an id.
    Name(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageInfo {
    /// `sha256:…` of the image's configuration.
    pub id: String,
    /// `registry/repository:tag`.
    pub repo_tags: Vec<String>,
    /// `registry/repository@sha256:…`.
    pub repo_digests: Vec<String>,
    pub size_bytes: u64,
    pub user: ImageUser,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub stop_signal: Option<String>,
    /// Never garbage-collected (the built-in image).
    pub pinned: bool,
    pub last_used_at: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct ImageFsUsage {
    pub used_bytes: u64,
    pub used_inodes: u64,
    pub capacity_bytes: u64,
    pub available_bytes: u64,
}
