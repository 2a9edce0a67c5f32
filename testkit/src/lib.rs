//! What tests put in the place of a machine and of a network: fakes for the node's ports, an API
//! server in process, and faults on the way to it.
//!
//! Everything here may panic with the reason: a test that cannot be set up has failed.

#![allow(clippy::unwrap_used)]

mod cluster;
pub mod differential;
mod faults;
mod machine;

pub use cluster::{Cluster, UserInfo};
pub use faults::Faults;
pub use machine::{FakeImages, FakeKernel, FakeRuntime, RealClock};
