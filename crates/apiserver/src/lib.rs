//! The API server: HTTPS front, authentication, authorization, admission, and the registry that
//! serves every kind through one generic engine.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admission;
pub mod objects;
pub mod request;
