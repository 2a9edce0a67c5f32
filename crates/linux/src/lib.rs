//! The machine: what the node and the proxy decide is carried out here, on a real Linux kernel.
//!
//! The only crate with `unsafe`, and within it only the modules that are marked so. Nothing here
//! calls another program: containers, cgroups, mounts, interfaces and packet rules are system
//! calls of this process, of its shims, or of processes those clone.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod capabilities;
mod cgroups;
mod clock;
mod conntrack;
mod disk;
mod hello;
mod images;
mod launcher;
mod mountinfo;
mod mounts;
mod netlink;
mod network;
mod nft;
mod packets;
mod runtime;
mod seccomp;
mod shim;
mod spec;
#[allow(unsafe_code)]
mod sys;

pub use cgroups::LinuxCgroups;
pub use clock::SystemClock;
pub use hello::{HELLO_ARGUMENT, HELLO_IMAGE, ensure_hello_image, hello_arguments, hello_main};
pub use images::{
    Error as ImageError, ImageConfig, ImageStore, Reference as ImageReference, RegistryConfig,
    RegistryMirror,
};
pub use mounts::LinuxMounts;
pub use network::{BridgeNetwork, NetworkConfig, follow_host_address};
pub use packets::{NftRules, PacketRulesConfig};
pub use runtime::purge::{PurgeReport, purge};
pub use runtime::{LinuxRuntime, Rootfs, RootfsSource, RuntimeConfig};
pub use shim::{LogLimits, SHIM_ARGUMENT, shim_main};
