//! The API server: HTTPS front, authentication, authorization, admission, and the registry that
//! serves every kind through one generic engine.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admission;
mod aggregation;
pub mod audit;
pub mod authn;
pub mod authz;
mod bootstrap;
mod cache;
mod component_status;
mod crd;
mod discovery;
pub mod encryption;
mod events;
mod feature_gates;
mod http;
mod in_process;
pub mod objects;
mod openapi;
pub mod pki;
pub mod registry;
mod reload;
mod remote;
pub mod request;
mod reviews;
mod runtime_config;
mod server;
mod streaming;

pub use audit::AuditOptions;
pub use authz::AuthorizationOptions;
pub use feature_gates::FeatureGates;
pub use registry::ServiceConfig;
pub use request::UserInfo;
pub use runtime_config::RuntimeConfig;
pub use server::{ApiServer, Config, Error};
