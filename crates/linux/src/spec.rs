//! What a container's first process becomes: written by the runtime, read by the launcher.
//!
//! It is resolved to the last path, so that the launcher decides nothing, and kept on disk,
//! so that later commands join the container with the same rights.

use std::path::PathBuf;

use keelson_ports::MountPropagation;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LaunchSpec {
    /// Read-only layers, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    /// Where the root file system is put together, in the container's own mount namespace.
    pub(crate) rootfs: PathBuf,
    pub(crate) readonly_rootfs: bool,
    pub(crate) mounts: Vec<MountSpec>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) shm: PathBuf,
    pub(crate) cgroup: CgroupView,
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) privileged: bool,
    pub(crate) process: ProcessSpec,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ProcessSpec {
    pub(crate) arguments: Vec<String>,
    /// `NAME=value`
    pub(crate) environment: Vec<String>,
    pub(crate) working_directory: String,
    pub(crate) user: UserSpec,
    /// Bit `n` is capability `n`.
    pub(crate) capabilities: u64,
    pub(crate) no_new_privs: bool,
    pub(crate) seccomp: Option<Vec<u64>>,
    pub(crate) oom_score_adj: i32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct UserSpec {
    pub(crate) base: UserBase,
    pub(crate) group: Option<u32>,
    pub(crate) supplemental_groups: Vec<u32>,
    /// Leave the groups that `/etc/group` gives the user out.
    pub(crate) strict_groups: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UserBase {
    Id(u32),
    /// `user`, `uid`, `user:group`, …, as an image's configuration writes it; empty is root.
    Image(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MountSpec {
    pub(crate) source: MountSource,
    pub(crate) target: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) recursive_readonly: bool,
    pub(crate) propagation: MountPropagation,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum MountSource {
    Host(PathBuf),
    /// The root of an image: its layers, lowest first. Always read-only.
    Layers(Vec<PathBuf>),
}

/// What lies under `/sys/fs/cgroup`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum CgroupView {
    V1(Vec<(String, PathBuf)>),
    V2,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeviceSpec {
    pub(crate) container_path: PathBuf,
    pub(crate) host_path: PathBuf,
}

/// What a launched process tells the shim on its channel before it becomes the program. The
/// channel closing without an [`Report::Error`] means that the program runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Comes with the terminal's master descriptor.
    Terminal,
    User(RunUser),
    Error(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}
