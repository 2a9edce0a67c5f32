//! What the service proxy wants the kernel to do with packets, without saying how.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;

use crate::{Protocol, Result};

#[async_trait]
pub trait PacketRules: Send + Sync + 'static {
    /// Makes the kernel's rules equal to `rules` in one atomic transaction that touches only what
    /// differs from the last call. Established connections keep going.
    async fn apply(&self, rules: &ServiceRules) -> Result<()>;
    /// Removes every rule this port ever made.
    async fn clear(&self) -> Result<()>;
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceRules {
    /// Sorted by frontend; a frontend stands once.
    pub services: Vec<ServiceRule>,
    /// Where pods of the whole cluster live: traffic to a cluster IP from elsewhere is masqueraded.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of this node on which node ports answer; empty means every local address.
    pub node_port_addresses: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    /// A cluster IP, external IP or load-balancer IP.
    Address {
        ip: IpAddr,
        protocol: Protocol,
        port: u16,
    },
    /// A port on the node's own addresses, loopback included for IPv4.
    NodePort {
        ipv6: bool,
        protocol: Protocol,
        port: u16,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRule {
    pub frontend: Frontend,
    /// `namespace/name:port`, for comments.
    pub name: String,
    /// Empty: reject (or drop, when `drop_if_empty`).
    pub backends: Vec<Backend>,
    /// For UDP: all that still serve, to which flows that are there may go on.
    pub serving: Vec<Backend>,
    pub drop_if_empty: bool,
    /// `ClientIP` affinity, with its timeout.
    pub affinity: Option<Duration>,
    pub source: SourcePolicy,
    /// Only these sources may connect (`loadBalancerSourceRanges`); empty means all.
    pub allowed_sources: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourcePolicy {
    /// Masquerade what does not come from a pod (cluster IPs) and hairpins.
    MasqueradeOffCluster,
    /// Masquerade everything (node ports and external IPs with `Cluster` policy).
    MasqueradeAll,
    /// Keep the client's address (`externalTrafficPolicy: Local`); hairpins still masquerade.
    Preserve,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub address: SocketAddr,
}
