//! Builds the components from the configuration and supervises them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use keelson_apiserver::{ApiServer, UserInfo};
use keelson_client::{Client, ClientConfig, Informers, Kubeconfig, LeaderOptions, causes};
use keelson_dns::{DnsConfig, DnsServer, InformerSource, upstream_resolvers};
use keelson_linux::{
    BridgeNetwork, LinuxCgroups, LinuxMounts, LinuxRuntime, NetworkConfig, NftRules,
    PacketRulesConfig, RuntimeConfig, SystemClock, follow_host_address,
};
use keelson_node::{NodeConfig, NodePorts, ServerConfig};
use keelson_ports::PodNetwork;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::args::ServerArgs;
use crate::image;
use crate::instance::{Instance, Record, start_ticks};
use crate::node_args::NodeArgs;
use crate::store;

/// The context's, cluster's and user's name in kubeconfigs.
pub(crate) const NAME: &str = "keelson";

pub(crate) struct Cluster {
    api: ApiServer,
    informers: Informers,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    instance: Instance,
    server_url: String,
    node_name: Option<String>,
    dns_ip: IpAddr,
    cluster_domain: String,
}

/// Tells when a component is no more, for whatever reason.
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Starts everything; returns when the API server serves. The rest comes up by itself.
pub(crate) async fn start(args: &ServerArgs, instance: &Instance) -> Result<Cluster, String> {
    let ServerArgs {
        instance: _,
        kubeconfig: _,
        bind_address,
        port,
        kubelet_port,
        node_name,
        no_node,
        no_controllers,
        pod_cidr,
        services,
        cluster_domain,
        etcd,
        runtime_endpoint: _,
        node,
        api: policies,
        config: _,
        log_level: _,
    } = args;
    let services = services.config()?;
    let service_cidrs = services.cidrs.clone();
    let store = store::open(etcd, instance).await?;
    let is_shared = store.is_shared();
    let node_name = (!no_node)
        .then(|| node_name.clone().map_or_else(host_name, Ok))
        .transpose()?;
    let gateway = gateway(*pod_cidr);
    let shutdown = CancellationToken::new();
    let address = match bind_address.is_unspecified() {
        false => watch::channel(*bind_address).1,
        true => {
            // On a machine without any address pods reach the server at the bridge.
            let fallback = match node_name {
                Some(_) => gateway,
                None => IpAddr::V4(Ipv4Addr::LOCALHOST),
            };
            follow_host_address(fallback, shutdown.clone())
                .await
                .map_err(|error| error.to_string())?
        }
    };
    let mut api_config = keelson_apiserver::Config {
        port: *port,
        host_address: Some(address.clone()),
        services,
        cluster_domain: cluster_domain.clone(),
        extra_names: vec![bind_address.to_string()]
            .into_iter()
            .filter(|_| !bind_address.is_unspecified())
            .collect(),
        ..keelson_apiserver::Config::new(&instance.data_dir)
    };
    policies.apply(&mut api_config)?;
    let api = ApiServer::start(api_config, store)
        .await
        .map_err(|error| causes(&error))?;
    let listener = TcpListener::bind((*bind_address, *port))
        .await
        .map_err(|error| {
            format!("listening on {bind_address}:{port}: {error}; choose another port with --port")
        })?;
    api.serve(listener).map_err(|error| causes(&error))?;
    let shown = if bind_address.is_unspecified() {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        *bind_address
    };
    let server_url = format!("https://{}", SocketAddr::new(shown, *port));
    instance.write_record(&Record {
        pid: std::process::id(),
        start_ticks: start_ticks(std::process::id()).unwrap_or_default(),
        server: server_url.clone(),
        node_name: node_name.clone(),
        data_dir: instance.data_dir.clone(),
    })?;
    let reader = api.client(control_plane("system:kube-controller-manager"));
    let cluster = Cluster {
        informers: Informers::new(reader, shutdown.clone()),
        api,
        shutdown,
        tasks: TaskTracker::new(),
        instance: instance.clone(),
        server_url,
        node_name,
        dns_ip: nth_address(service_cidrs[0], 10),
        cluster_domain: cluster_domain.clone(),
    };
    cluster.write_kubeconfig(&instance.admin_kubeconfig())?;
    if !no_controllers {
        cluster.start_control_plane(*pod_cidr, is_shared)?;
    }
    if let Some(name) = &cluster.node_name {
        let network = Network {
            pod_cidr: *pod_cidr,
            service_cidrs,
            gateway,
        };
        cluster
            .start_node(
                name,
                (*bind_address, *kubelet_port),
                address,
                &network,
                node,
            )
            .await?;
    }
    Ok(cluster)
}

struct Network {
    pod_cidr: IpNet,
    service_cidrs: Vec<IpNet>,
    /// The node's own address on the pod bridge.
    gateway: IpAddr,
}

impl Cluster {
    pub(crate) fn server_url(&self) -> &str {
        &self.server_url
    }

    pub(crate) fn node_name(&self) -> Option<&str> {
        self.node_name.as_deref()
    }

    pub(crate) fn dns_ip(&self) -> IpAddr {
        self.dns_ip
    }

    pub(crate) fn cluster_domain(&self) -> &str {
        &self.cluster_domain
    }

    pub(crate) fn informers(&self) -> &Informers {
        &self.informers
    }

    /// Merges the admin's context into a kubeconfig and makes it current.
    pub(crate) fn write_kubeconfig(&self, path: &Path) -> Result<(), String> {
        let pki = self.api.pki();
        let admin = pki.admin().map_err(|error| causes(&error))?;
        let config = ClientConfig {
            server: self.server_url.clone(),
            certificate_authority: pki.cluster_ca.certificate_pem.clone().into_bytes(),
            client_certificate: admin.certificate_pem.into_bytes(),
            client_key: admin.key_pem.into_bytes(),
            ..ClientConfig::default()
        };
        let mut file = if path.exists() {
            Kubeconfig::read(path).map_err(|error| error.to_string())?
        } else {
            Kubeconfig::default()
        };
        file.merge(Kubeconfig::single(NAME, &config));
        file.write(path).map_err(|error| error.to_string())
    }

    /// Ends every component; pods keep running.
    pub(crate) async fn shutdown(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(10), self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some components did not end in time");
        }
        self.api.shutdown().await;
        self.instance.remove_record();
    }

    fn start_control_plane(&self, pod_cidr: IpNet, is_shared: bool) -> Result<(), String> {
        let authority = &self.api.pki().cluster_ca;
        let signing_ca = keelson_controllers::SigningAuthority::from_pem(
            &authority.certificate_pem,
            &authority.key_pem(),
        )
        .map_err(|error| causes(&error))?;
        let config = keelson_controllers::Config {
            root_ca: authority.certificate_pem.clone(),
            signing_ca: Some(signing_ca),
            cluster_cidrs: vec![pod_cidr],
            ..keelson_controllers::Config::default()
        };
        let clients: Vec<(&'static str, Client)> = keelson_controllers::CONTROLLERS
            .iter()
            .map(|row| {
                let user = UserInfo::service_account("kube-system", row.service_account);
                (row.service_account, self.api.client(user))
            })
            .collect();
        let manager = "system:kube-controller-manager";
        let fallback = self.api.client(control_plane(manager));
        let controllers = move |informers| {
            let (clients, fallback, config) = (clients.clone(), fallback.clone(), config.clone());
            async move {
                let client_for = |account: &str| {
                    clients
                        .iter()
                        .find(|(name, _)| *name == account)
                        .map_or_else(|| fallback.clone(), |(_, client)| client.clone())
                };
                keelson_controllers::run_all(informers, client_for, &config).await;
            }
        };
        self.spawn_leading("kube-controller-manager", manager, is_shared, controllers);
        let user = "system:kube-scheduler";
        let client = self.api.client(control_plane(user));
        let scheduler = move |informers| {
            let client = client.clone();
            async move {
                let config = keelson_scheduler::SchedulerConfig::default();
                keelson_scheduler::run(client, &informers, config).await;
            }
        };
        self.spawn_leading("kube-scheduler", user, is_shared, scheduler);
        Ok(())
    }

    /// Runs `work` here; where several servers share a store, on the one that holds the lease.
    fn spawn_leading<F: Future<Output = ()> + Send + 'static>(
        &self,
        lease: &'static str,
        user: &str,
        is_shared: bool,
        work: impl Fn(Informers) -> F + Send + Sync + 'static,
    ) {
        let component = lease.strip_prefix("kube-").unwrap_or(lease);
        let ended = Ended(self.api.component(component));
        if !is_shared {
            let work = work(self.informers.clone());
            self.tasks.spawn(async move {
                let _ended = ended;
                work.await;
            });
            return;
        }
        let identity = format!(
            "{}_{}",
            host_name().unwrap_or_else(|_| "server".to_owned()),
            uuid::Uuid::new_v4()
        );
        let options = LeaderOptions::new(lease, &identity);
        let client = self.api.client(control_plane(user));
        let reader = self
            .api
            .client(control_plane("system:kube-controller-manager"));
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            let _ended = ended;
            while !shutdown.is_cancelled() {
                // Informers of this term alone: they end what runs on them when the lease is lost.
                let term = shutdown.child_token();
                let informers = Informers::new(reader.clone(), term.clone());
                keelson_client::lead(&client, &options, &shutdown, || work(informers)).await;
                term.cancel();
            }
        });
    }

    async fn start_node(
        &self,
        name: &str,
        bind: (IpAddr, u16),
        address: watch::Receiver<IpAddr>,
        network: &Network,
        args: &NodeArgs,
    ) -> Result<(), String> {
        let failed =
            |what: &'static str| move |error: keelson_ports::Error| format!("{what}: {error}");
        let images = image::open(&self.instance)?;
        keelson_linux::ensure_hello_image(&images)
            .map_err(|error| format!("laying out the built-in image: {error}"))?;
        let cgroups =
            LinuxCgroups::open(&self.instance.cgroup_root()).map_err(failed("opening cgroups"))?;
        let pod_network = BridgeNetwork::open(NetworkConfig {
            bridge: self.instance.bridge(),
            table: format!("{}-pods", self.instance.table()),
            service_cidrs: network.service_cidrs.clone(),
            ..NetworkConfig::new(self.instance.run_dir.clone())
        })
        .map_err(failed("opening the pod network"))?;
        let pod_network: Arc<dyn PodNetwork> = Arc::new(pod_network);
        let packets = Arc::new(NftRules::new(PacketRulesConfig {
            table: self.instance.table(),
            service_cidrs: network.service_cidrs.clone(),
            ..PacketRulesConfig::default()
        }));
        let images = Arc::new(images);
        let runtime = LinuxRuntime::open(
            RuntimeConfig {
                state_dir: self.instance.data_dir.join("runtime"),
                run_dir: self.instance.run_dir.clone(),
                shim_executable: None,
                log_limits: args.log_limits()?,
            },
            cgroups.clone(),
            images.clone(),
            images.clone(),
            pod_network.clone(),
        )
        .await
        .map_err(failed("opening the container runtime"))?;
        let ports = NodePorts {
            runtime: Arc::new(runtime),
            images,
            cgroups: Arc::new(cgroups),
            mounts: Arc::new(LinuxMounts),
            clock: Arc::new(SystemClock),
        };
        let mut config = NodeConfig::new(name, Vec::new(), &self.instance.data_dir);
        args.apply(&mut config)?;
        config.node_ips = self.lists(address.clone());
        config.cluster_dns = vec![self.dns_ip];
        config.cluster_domain.clone_from(&self.cluster_domain);
        config.server = Some(self.kubelet_server(name, address, bind)?);
        let user = UserInfo::new(
            format!("system:node:{name}"),
            &["system:nodes", "system:authenticated"],
        );
        let node_informers = Informers::new(self.api.client(user), self.shutdown.clone());
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            if let Err(error) = keelson_node::run(config, node_informers, ports, shutdown).await {
                tracing::error!("the node agent ended: {}", causes(&error));
            }
        });
        let (informers, node) = (self.informers.clone(), name.to_owned());
        let mut cluster_cidrs = vec![network.pod_cidr];
        cluster_cidrs.extend(&network.service_cidrs);
        self.tasks.spawn(keelson_proxy::run_pod_network(
            informers.clone(),
            pod_network,
            node.clone(),
            cluster_cidrs,
        ));
        let mut proxy = keelson_proxy::ProxyConfig::new(node);
        proxy.pod_cidrs = vec![network.pod_cidr];
        self.tasks
            .spawn(keelson_proxy::run(informers, packets, proxy));
        self.start_dns(network.gateway).await
    }

    /// The resolver listens on the bridge, where pods reach it, once the bridge has its address.
    async fn start_dns(&self, gateway: IpAddr) -> Result<(), String> {
        let config = DnsConfig {
            listen: SocketAddr::new(gateway, 53),
            domain: self.cluster_domain.clone(),
            upstream: upstream_resolvers(
                &PathBuf::from("/etc/resolv.conf"),
                &[gateway, self.dns_ip],
            ),
        };
        let admin = self.api.client(UserInfo::admin("system:keelson"));
        let source = Arc::new(InformerSource::new(&self.informers));
        let (dns_ip, shutdown) = (self.dns_ip, self.shutdown.clone());
        self.tasks.spawn(async move {
            crate::dns_service::publish(&admin, dns_ip, config.listen, &shutdown).await;
            source.synced().await;
            let bound = loop {
                match DnsServer::bind(config.clone(), source.clone()).await {
                    Ok(server) => break server,
                    // The bridge gets its address when the node has its pod range.
                    Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {
                        let pause = tokio::time::sleep(Duration::from_millis(10));
                        if shutdown.run_until_cancelled(pause).await.is_none() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::error!("cluster DNS cannot listen on {}: {error}", config.listen);
                        return;
                    }
                }
            };
            bound.run(shutdown).await;
        });
        Ok(())
    }

    /// The one address as the list that a node has.
    fn lists(&self, mut address: watch::Receiver<IpAddr>) -> watch::Receiver<Vec<IpAddr>> {
        let (sender, receiver) = watch::channel(vec![*address.borrow_and_update()]);
        let shutdown = self.shutdown.clone();
        self.tasks
            .spawn(shutdown.run_until_cancelled_owned(async move {
                while address.changed().await.is_ok() {
                    sender.send_replace(vec![*address.borrow_and_update()]);
                }
            }));
        receiver
    }

    fn kubelet_server(
        &self,
        name: &str,
        node_address: watch::Receiver<IpAddr>,
        (address, port): (IpAddr, u16),
    ) -> Result<ServerConfig, String> {
        let pki = self.api.pki();
        let (tls, certificate) = crate::tls::server(pki, name, node_address)?;
        Ok(ServerConfig {
            address,
            port,
            tls: Arc::new(tls),
            client_ca: pki.cluster_ca.certificate_pem.clone().into_bytes(),
            certificate: Some(certificate),
        })
    }
}

fn control_plane(name: &str) -> UserInfo {
    UserInfo::new(name, &["system:authenticated"])
}

/// The name of this machine as a node: lower case, as DNS wants it.
fn host_name() -> Result<String, String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_err(|error| format!("reading the host's name: {error}; give one with --node-name"))?;
    Ok(name.trim().to_lowercase())
}

fn nth_address(net: IpNet, n: u32) -> IpAddr {
    match net {
        IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.network()).saturating_add(n))),
        IpNet::V6(net) => IpAddr::V6(
            u128::from(net.network())
                .saturating_add(u128::from(n))
                .into(),
        ),
    }
}

/// A single node gets the first range of the cluster's, and its bridge the first address of that.
fn gateway(pod_cidr: IpNet) -> IpAddr {
    nth_address(pod_cidr, 1)
}
