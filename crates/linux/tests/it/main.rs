//! Containers on the real kernel.

#![allow(clippy::unwrap_used)]

mod crash;
mod lifecycle;
mod machine;
mod rootfs;
mod security;
mod streams;
