//! The pod network: an interface and an address per pod, routes between nodes.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Result;

#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Brings the node's side up (bridge, masquerading) for these pod ranges. Idempotent.
    async fn setup_node(&self, pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) -> Result<()>;
    /// Attaches the network namespace at `request.netns`. Idempotent per sandbox id.
    async fn attach(&self, request: &PodNetworkRequest) -> Result<NetworkStatus>;
    /// Releases interface, address and host ports; the namespace may be gone. Idempotent.
    async fn detach(&self, sandbox: &str) -> Result<()>;
    /// Replaces the routes to other nodes' pods: range and the node that has it.
    async fn set_routes(&self, routes: &[(IpNet, IpAddr)]) -> Result<()>;
    /// Detaches every sandbox not in `live` and gives its addresses back.
    async fn retain(&self, live: &[String]) -> Result<()>;
    /// Removes everything this port ever made on the node.
    async fn teardown_node(&self) -> Result<()>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: Option<IpAddr>,
}

#[derive(Debug, Clone)]
pub struct PodNetworkRequest {
    pub sandbox: String,
    pub pod_namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
    /// A bind-mounted network namespace.
    pub netns: PathBuf,
    pub host_ports: Vec<HostPort>,
    /// Bits per second, from the bandwidth annotations.
    pub ingress_bps: Option<u64>,
    pub egress_bps: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    pub ips: Vec<IpAddr>,
    pub gateway: Option<IpAddr>,
    pub mtu: u32,
}
