//! The service proxy: Services and EndpointSlices become packet rules on this node.
//!
//! [`plan`] holds the rules of the Kubernetes Service API and touches nothing; [`run`] gathers
//! what it needs from shared informers and hands the result to the [`PacketRules`] port.
//!
//! [`PacketRules`]: keelson_ports::PacketRules

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod health;
mod plan;
mod pod_network;
mod run;

pub use plan::{HealthCheck, NodeFacts, Plan, plan};
pub use pod_network::run_pod_network;
pub use run::{ProxyConfig, run};
