//! Mounts and file-system facts that volumes need.

use std::os::fd::OwnedFd;
use std::path::Path;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::Result;

#[async_trait]
pub trait Mounts: Send + Sync + 'static {
    /// Mounts a tmpfs on an existing directory; no size means half of the memory.
    async fn mount_tmpfs(&self, target: &Path, size_bytes: Option<u64>, mode: u32) -> Result<()>;
    async fn bind(&self, source: &Path, target: &Path, readonly: bool) -> Result<()>;
    /// Mounts a file system by type and options (`ext4`, `nfs`, …).
    async fn mount(
        &self,
        fstype: &str,
        source: &str,
        target: &Path,
        options: &[String],
    ) -> Result<()>;
    /// Lazily unmounts everything mounted on `target`. Idempotent.
    async fn unmount(&self, target: &Path) -> Result<()>;
    async fn is_mount_point(&self, path: &Path) -> Result<bool>;
    /// Mount points below a directory, deepest first.
    async fn mounts_below(&self, path: &Path) -> Result<Vec<std::path::PathBuf>>;
    /// Opens (and with `create` makes, with the mode of `root`) `relative` under `root` without ever leaving
    /// `root`, whatever symbolic links say. For `subPath`.
    async fn open_in_root(&self, root: &Path, relative: &Path, create: bool) -> Result<OwnedFd>;
    /// Sets group and mode bits of a tree as `fsGroup` asks.
    async fn set_fs_group(&self, path: &Path, gid: u32, readonly: bool) -> Result<()>;
    async fn fs_usage(&self, path: &Path) -> Result<FsUsage>;
    /// Walks a tree on one file system; an absent one takes nothing.
    async fn tree_usage(&self, path: &Path) -> Result<TreeUsage>;
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct FsUsage {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub used_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// What a tree takes on its file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeUsage {
    pub bytes: u64,
    pub inodes: u64,
}
