//! How a node is set up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use tokio::sync::watch;

/// Everything that a node needs to know besides its ports and its client.
use crate::sysctls::UnsafeSysctls;

#[derive(Clone)]
pub struct NodeConfig {
    pub node_name: String,
    /// Addresses that other nodes reach this one at, the preferred one first. They may change.
    pub node_ips: watch::Receiver<Vec<IpAddr>>,
    /// Pods' directories and probe state live below it.
    pub data_dir: PathBuf,
    /// `<log dir>/pods/<namespace>_<name>_<uid>/<container>/<n>.log`.
    pub log_dir: PathBuf,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The host's resolver configuration.
    pub resolv_conf: PathBuf,
    pub hosts_file: PathBuf,
    pub max_pods: u32,
    /// Kept back from pods: milli-CPUs and bytes.
    pub reserved_cpu_milli: u64,
    pub reserved_memory_bytes: u64,
    pub labels: Vec<(String, String)>,
    /// `key`, `value`, `effect`; set when the node registers for the first time.
    pub taints: Vec<(String, String, String)>,
    /// Kernel settings besides the safe ones that pods may ask for.
    pub allowed_unsafe_sysctls: UnsafeSysctls,
    /// Pids that one pod may have; `None` is unlimited.
    pub pod_pids_limit: Option<i64>,
    /// A log file is rotated beyond this size, and this many are kept.
    pub container_log_max_bytes: u64,
    pub container_log_max_files: usize,
    /// Memory that must stay free before pods are evicted.
    pub eviction_memory_available_bytes: u64,
    /// Percent of the disk that must stay free before pods are evicted.
    pub eviction_disk_available_percent: u64,
    /// Whether `/logs/` shows the machine's logs, where they are, and whether it finds them by the
    /// name of a service.
    pub enable_system_log_handler: bool,
    pub enable_system_log_query: bool,
    pub system_log_dir: PathBuf,
    /// `None` starts no HTTP server.
    pub server: Option<ServerConfig>,
}

impl NodeConfig {
    /// Upstream's defaults for a node of that name, whose addresses do not change.
    pub fn new(
        node_name: impl Into<String>,
        node_ips: Vec<IpAddr>,
        data_dir: impl Into<PathBuf>,
    ) -> Self {
        let data_dir = data_dir.into();
        Self {
            node_name: node_name.into(),
            node_ips: watch::channel(node_ips).1,
            log_dir: data_dir.join("log"),
            data_dir,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            hosts_file: PathBuf::from("/etc/hosts"),
            max_pods: 110,
            reserved_cpu_milli: 0,
            reserved_memory_bytes: 0,
            labels: Vec::new(),
            taints: Vec::new(),
            allowed_unsafe_sysctls: UnsafeSysctls::default(),
            pod_pids_limit: None,
            container_log_max_bytes: 10 << 20,
            container_log_max_files: 5,
            eviction_memory_available_bytes: 100 << 20,
            eviction_disk_available_percent: 10,
            enable_system_log_handler: true,
            enable_system_log_query: false,
            system_log_dir: PathBuf::from("/var/log"),
            server: None,
        }
    }

    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }

    pub(crate) fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_dir
            .join("pods")
            .join(format!("{namespace}_{name}_{uid}"))
    }
}

/// The node's own HTTP API.
#[derive(Clone)]
pub struct ServerConfig {
    pub address: IpAddr,
    /// 10250; 0 takes a free one.
    pub port: u16,
    /// Certificates are picked per connection, so that they can be renewed. Client certificates are
    /// asked for by this configuration; the server checks them against `client_ca`.
    pub tls: Arc<rustls::ServerConfig>,
    /// PEM certificates of the authorities that sign API clients' certificates.
    pub client_ca: Vec<u8>,
    /// What `tls` shows, for those who watch its age.
    pub certificate: Option<Arc<dyn NodeCertificate>>,
}

/// A serving certificate that renews itself.
pub trait NodeCertificate: Send + Sync + 'static {
    /// When the current one expires.
    fn not_after(&self) -> Option<SystemTime>;
    fn renewal_errors(&self) -> u64;
}

/// Which address ranges the node's pods get, once the cluster has assigned them.
pub type PodCidrs = Vec<IpNet>;
