//! Containers on the real kernel.

#![allow(clippy::unwrap_used)]

mod lifecycle;
mod machine;
mod rootfs;
mod security;
mod streams;
