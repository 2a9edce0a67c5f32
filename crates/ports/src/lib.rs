//! What the node decides with and the machine carries out: traits and plain types, no behaviour.
//!
//! `node` and `proxy` see only this crate; `linux` implements it for a real kernel and `testkit`
//! fakes it. [`Runtime`] and [`Images`] use the vocabulary of the Container Runtime Interface, so
//! an external CRI runtime is a second implementation of the same port.

mod cgroups;
mod clock;
mod error;
mod images;
mod mounts;
mod network;
mod packets;
mod runtime;

pub use cgroups::{CgroupResources, CgroupStats, Cgroups};
pub use clock::Clock;
pub use error::{Error, Result};
pub use images::{ImageFsUsage, ImageInfo, ImageUser, Images, PullProgress, RegistryAuth};
pub use mounts::{FsUsage, Mounts, TreeUsage};
pub use network::{HostPort, NetworkStatus, PodNetwork, PodNetworkRequest, Protocol};
pub use packets::{Backend, Frontend, PacketRules, ServiceRule, ServiceRules, SourcePolicy};
pub use runtime::*;
