//! The server put together: what it is made of, how it starts and how it stops.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use keelson_client::Client;
use keelson_machinery::status::Status;
use keelson_store::SharedStore;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{AdmissionChain, UnknownPlugin};
use crate::aggregation::Aggregation;
use crate::audit::{self, Audit, AuditOptions};
use crate::authn::{self, AuthenticationOptions, Authenticator, TokenIssuer};
use crate::authz::{self, AuthorizationOptions, Authorizer};
use crate::bootstrap::{self, DefaultServiceCidr, Identity, Peers, ServerAddress};
use crate::component_status::InProcessComponents;
use crate::crd;
use crate::discovery::Discovery;
use crate::encryption::{self, Encryption};
use crate::feature_gates::FeatureGates;
use crate::http::{FlowControl, Health, Metrics, listen, server_config};
use crate::in_process::InProcess;
use crate::objects::Objects;
use crate::openapi::OpenApi;
use crate::pki::{self, Pki, ServingCertificate};
use crate::registry::{Registry, Resources, ServiceConfig, Suspects};
use crate::request::UserInfo;
use crate::runtime_config::RuntimeConfig;
use crate::streaming::Kubelets;

const RENEWAL_INTERVAL: Duration = Duration::from_secs(3600);
const ADDRESS_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    /// The port clients reach the server on.
    pub port: u16,
    /// The address pods and other nodes reach the server by; found out when absent.
    pub advertise_address: Option<IpAddr>,
    /// The same from somebody who watches the machine's devices, where it is to be found out.
    pub host_address: Option<watch::Receiver<IpAddr>>,
    /// From where Services are given addresses and node ports.
    pub services: ServiceConfig,
    pub cluster_domain: String,
    /// More names and addresses for the serving certificate.
    pub extra_names: Vec<String>,
    /// Defaults to `https://kubernetes.default.svc.<cluster domain>`.
    pub service_account_issuer: Option<String>,
    pub authentication: AuthenticationOptions,
    /// Admission plugins besides those that are on by default, and those not to run.
    pub enable_admission_plugins: Vec<String>,
    pub disable_admission_plugins: Vec<String>,
    pub authorization: AuthorizationOptions,
    pub audit: AuditOptions,
    /// EncryptionConfiguration file: what of the store is encrypted, and how.
    pub encryption_file: Option<PathBuf>,
    /// Which versions are served that are not by default, and the other way round: `api/beta=true`.
    pub runtime_config: Vec<String>,
    /// `CBORServingAndStorage=true`.
    pub feature_gates: Vec<String>,
    /// Whether kubelets must show a serving certificate of the cluster's authority. Upstream's
    /// kubelets sign their own, so that upstream's default is not to.
    pub verify_kubelets: bool,
}

impl Config {
    /// As it is at the moment.
    fn current_address(&self) -> IpAddr {
        let watched = self.host_address.as_ref().map(|address| *address.borrow());
        self.advertise_address
            .or(watched)
            .unwrap_or_else(default_address)
    }

    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: 6443,
            advertise_address: None,
            host_address: None,
            services: ServiceConfig::new(&[IpNet::V4(ipnet::Ipv4Net::new_assert(
                Ipv4Addr::new(10, 96, 0, 0),
                12,
            ))]),
            cluster_domain: "cluster.local".to_owned(),
            extra_names: Vec::new(),
            service_account_issuer: None,
            authentication: AuthenticationOptions::default(),
            enable_admission_plugins: Vec::new(),
            disable_admission_plugins: Vec::new(),
            authorization: AuthorizationOptions::default(),
            audit: AuditOptions::default(),
            encryption_file: None,
            runtime_config: Vec::new(),
            feature_gates: Vec::new(),
            verify_kubelets: false,
        }
    }

    fn issuer(&self) -> String {
        self.service_account_issuer
            .clone()
            .unwrap_or_else(|| format!("https://kubernetes.default.svc.{}", self.cluster_domain))
    }

    /// The first address of the service range belongs to this server.
    pub fn service_ip(&self) -> IpAddr {
        match self.services.cidrs.first() {
            Some(IpNet::V4(net)) => {
                IpAddr::V4(Ipv4Addr::from(u32::from(net.network()).saturating_add(1)))
            }
            Some(IpNet::V6(net)) => IpAddr::V6(u128::from(net.network()).saturating_add(1).into()),
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("preparing certificates")]
    Pki(#[source] pki::Error),
    #[error("preparing authentication")]
    Authentication(#[source] authn::Error),
    #[error("preparing service account tokens")]
    Tokens(#[source] crate::authn::token::Error),
    #[error("choosing admission plugins")]
    Admission(#[source] UnknownPlugin),
    #[error("preparing authorization")]
    Authorization(#[source] authz::Error),
    #[error("preparing encryption at rest")]
    Encryption(#[source] encryption::Error),
    #[error("preparing the audit log")]
    Audit(#[source] audit::Error),
    #[error("reading the runtime configuration")]
    RuntimeConfig(#[source] crate::runtime_config::Error),
    #[error("reading --feature-gates")]
    FeatureGates(#[source] crate::feature_gates::Error),
    #[error("configuring TLS")]
    Tls(#[source] rustls::Error),
    #[error("loading the registry: {0}")]
    Registry(Status),
    #[error("writing the cluster's default objects: {0}")]
    Bootstrap(Status),
}

/// Everything a request may need.
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) pki: Arc<Pki>,
    pub(crate) resources: Arc<Resources>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) admission: Arc<AdmissionChain>,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) tokens: Arc<TokenIssuer>,
    pub(crate) discovery: Discovery,
    pub(crate) openapi: OpenApi,
    pub(crate) aggregation: Aggregation,
    pub(crate) kubelets: Kubelets,
    pub(crate) flow: FlowControl,
    /// Absent when nothing is to be recorded.
    pub(crate) audit: Option<Arc<Audit>>,
    pub(crate) health: Health,
    pub(crate) components: InProcessComponents,
    pub(crate) encryption: Option<Arc<Encryption>>,
    pub(crate) metrics: Metrics,
    pub(crate) features: FeatureGates,
    pub(crate) stop: CancellationToken,
}

impl Server {
    /// `address:port` as discovery tells clients.
    pub(crate) fn endpoint(&self) -> String {
        self.address().socket().to_string()
    }
}

/// A running API server. Dropping it does not stop it; [`ApiServer::shutdown`] does.
pub struct ApiServer {
    server: Arc<Server>,
    certificate: Arc<ServingCertificate>,
    tasks: TaskTracker,
}

impl ApiServer {
    /// Opens everything over the store and writes the default objects. Requests are served in
    /// process from then on, and on a socket with [`ApiServer::serve`].
    pub async fn start(config: Config, store: SharedStore) -> Result<Self, Error> {
        let pki = pki::load(&config.data_dir.join("pki"), &store).await;
        let pki = Arc::new(pki.map_err(Error::Pki)?);
        let certificate = Arc::new(pki.serving(serving_names(&config)).map_err(Error::Pki)?);
        let issuer = config.issuer();
        let audiences = vec![issuer.clone()];
        let tokens = Arc::new(
            TokenIssuer::new(&pki.service_account_key, &issuer, audiences)
                .map_err(Error::Tokens)?,
        );

        let encryption = match &config.encryption_file {
            Some(file) => Some(Encryption::open(file).await.map_err(Error::Encryption)?),
            None => None,
        };
        let store = match &encryption {
            Some(encryption) => encryption.over(store),
            None => store,
        };
        let admission = AdmissionChain::with(
            &config.enable_admission_plugins,
            &config.disable_admission_plugins,
        )
        .map_err(Error::Admission)?;
        let served = RuntimeConfig::parse(&config.runtime_config).map_err(Error::RuntimeConfig)?;
        let features = FeatureGates::parse(&config.feature_gates).map_err(Error::FeatureGates)?;
        let resources = Resources::builtin(&served, &features);
        let registry = Registry::start(
            store,
            Arc::clone(&resources),
            Arc::clone(&admission),
            config.services.clone(),
        )
        .await
        .map_err(Error::Registry)?;
        let objects: Arc<dyn Objects> = Arc::clone(&registry) as Arc<dyn Objects>;
        let authorizer = Arc::new(
            Authorizer::open(Arc::clone(&objects), &config.authorization)
                .map_err(Error::Authorization)?,
        );
        admission.bind(Arc::downgrade(&objects), Arc::downgrade(&authorizer));
        let authenticator = Authenticator::new(
            pki.cluster_ca.certificate_der().map_err(Error::Pki)?,
            pki.front_proxy_ca.certificate_der().map_err(Error::Pki)?,
            Arc::clone(&tokens),
            Arc::clone(&objects),
            &config.authentication,
        )
        .map_err(Error::Authentication)?;
        let kubelets = Kubelets::new(&pki, config.verify_kubelets).map_err(Error::Pki)?;
        let audit = Audit::open(&config.audit)
            .map_err(Error::Audit)?
            .map(Arc::new);
        let health = Health::default();
        // The store is open and the caches have read it when these lines are reached.
        health.done(&[
            "log",
            "loopback-serving-certificate",
            "etcd",
            "etcd-readiness",
            "informer-sync",
            "poststarthook/start-apiserver-admission-initializer",
            "poststarthook/generic-apiserver-start-informers",
            "poststarthook/storage-object-count-tracker-hook",
            "poststarthook/storage-readiness",
            "shutdown",
        ]);
        let server = Arc::new(Server {
            resources,
            registry,
            admission,
            authenticator,
            authorizer,
            tokens,
            discovery: Discovery::default(),
            openapi: OpenApi::default(),
            aggregation: Aggregation::new(Arc::clone(&objects)),
            kubelets,
            audit,
            flow: FlowControl::new(Arc::clone(&objects)),
            health,
            components: InProcessComponents::default(),
            encryption,
            metrics: Metrics::default(),
            features,
            stop: CancellationToken::new(),
            objects,
            pki,
            config,
        });
        let this = Self {
            server,
            certificate,
            tasks: TaskTracker::new(),
        };
        if let Some(encryption) = this.server.encryption.clone() {
            this.tasks
                .spawn(encryption.follow(this.server.stop.clone()));
        }
        this.bootstrap().await?;
        Ok(this)
    }

    async fn bootstrap(&self) -> Result<(), Error> {
        let server = &self.server;
        crd::load(server).await.map_err(Error::Bootstrap)?;
        server.health.done(&[
            "poststarthook/start-apiextensions-informers",
            "poststarthook/crd-informer-synced",
            "poststarthook/priority-and-fairness-config-consumer",
            "poststarthook/priority-and-fairness-filter",
        ]);
        // A default object that is missing makes the server unready, not unreachable: an
        // administrator needs it to see why.
        match bootstrap::apply(&server.objects).await {
            Ok(()) => server.health.done(&[
                "poststarthook/start-system-namespaces-controller",
                "poststarthook/rbac/bootstrap-roles",
                "poststarthook/scheduling/bootstrap-system-priority-classes",
                "poststarthook/priority-and-fairness-config-producer",
            ]),
            Err(status) => tracing::error!(%status, "default objects are missing"),
        }
        let mut range = DefaultServiceCidr::new(&server.config.services.cidrs);
        range
            .publish(&server.objects)
            .await
            .map_err(Error::Bootstrap)?;
        let health = &server.health;
        health.done(&["poststarthook/start-kubernetes-service-cidr-controller"]);
        let mut peers = server.peers();
        server
            .publish(peers.as_mut())
            .await
            .map_err(Error::Bootstrap)?;
        bootstrap::publish_authentication(&server.objects, &server.authorities())
            .await
            .map_err(Error::Bootstrap)?;
        bootstrap::publish_token_tracking(&server.objects)
            .await
            .map_err(Error::Bootstrap)?;
        health.done(&[
            "poststarthook/bootstrap-controller",
            "poststarthook/peer-endpoint-reconciler-controller",
            "poststarthook/start-cluster-authentication-info-controller",
            "poststarthook/start-legacy-token-tracking-controller",
        ]);
        let (objects, stop) = (Arc::clone(&server.objects), server.stop.clone());
        self.tasks
            .spawn(bootstrap::maintain_flow_control(objects, stop));
        let identity = Identity::new(&hostname().unwrap_or_default());
        let (objects, stop) = (Arc::clone(&server.objects), server.stop.clone());
        self.tasks.spawn(identity.maintain(objects, stop));
        health.done(&[
            "poststarthook/start-kube-apiserver-identity-lease-controller",
            "poststarthook/start-kube-apiserver-identity-lease-garbage-collector",
        ]);
        if let Some(file) = server.config.authentication.config_file.clone() {
            let issuers = Arc::clone(server.authenticator.issuers());
            self.tasks.spawn(issuers.follow(file, server.stop.clone()));
        }
        if let Some(file) = server.config.authorization.config_file.clone() {
            let authorizer = Arc::clone(&server.authorizer);
            self.tasks
                .spawn(authorizer.follow(file, server.stop.clone()));
        }
        self.tasks.spawn(crd::run(Arc::clone(server)));
        health.done(&["poststarthook/start-apiextensions-controllers"]);
        self.tasks
            .spawn(crate::admission::check_policies(Arc::clone(server)));
        self.tasks
            .spawn(crate::aggregation::run(Arc::clone(server)));
        self.tasks
            .spawn(renew(Arc::clone(server), Arc::clone(&self.certificate)));
        self.tasks
            .spawn(follow_address(Arc::clone(server), peers, range));
        // Before anything is served: what Services have and nobody claimed could be given out.
        let mut suspects = Suspects::default();
        match server.registry.repair_services(&mut suspects).await {
            Ok(()) => health.done(&[REPAIRED]),
            Err(status) => tracing::error!(%status, "claims of Services could not be repaired"),
        }
        self.tasks
            .spawn(repair_services(Arc::clone(server), suspects));
        Ok(())
    }

    /// Serves HTTPS on the listener until shutdown.
    pub fn serve(&self, listener: TcpListener) -> Result<(), Error> {
        let resolver = Arc::clone(&self.certificate) as Arc<dyn rustls::server::ResolvesServerCert>;
        let tls = server_config(resolver).map_err(Error::Tls)?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let (certificate, server) = (Arc::clone(&self.certificate), Arc::clone(&self.server));
        let stop = self.server.stop.clone();
        self.tasks
            .spawn(listen(listener, acceptor, certificate, server, stop));
        Ok(())
    }

    /// A client that acts as `user`, without a socket. Its requests are authorized and admitted
    /// like any other's.
    pub fn client(&self, user: UserInfo) -> Client {
        Client::new(Arc::new(InProcess {
            server: Arc::clone(&self.server),
            user: Arc::new(user),
        }))
    }

    /// A component that starts in this process, as `componentstatuses` tell of it: set the flag to
    /// false when it ends.
    pub fn component(&self, name: &'static str) -> Arc<AtomicBool> {
        self.server.components.add(name)
    }

    pub fn pki(&self) -> &Arc<Pki> {
        &self.server.pki
    }

    /// Whether every start-up step is done.
    pub fn is_ready(&self) -> bool {
        self.server.health.is_ready()
    }

    /// Ends watches and connections, then background work. The store stays the caller's.
    pub async fn shutdown(self) {
        let stopping = Err("process is shutting down".to_owned());
        self.server.health.set("shutdown", stopping);
        self.server.stop.cancel();
        self.server.registry.shutdown().await;
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some connections did not end in time");
        }
    }
}

const REPAIRED: &str = "poststarthook/start-service-ip-repair-controllers";

impl Server {
    fn authorities(&self) -> bootstrap::Authorities<'_> {
        bootstrap::Authorities {
            clients: &self.pki.cluster_ca.certificate_pem,
            front_proxy: &self.pki.front_proxy_ca.certificate_pem,
        }
    }

    /// The list of servers, where there may be more than this one.
    fn peers(&self) -> Option<Peers> {
        let store = self.registry.store();
        store.is_shared().then(|| Peers::new(Arc::clone(store)))
    }

    /// Brings the `kubernetes` Service and its endpoints up to date.
    async fn publish(&self, peers: Option<&mut Peers>) -> Result<(), Status> {
        let address = self.address();
        let own = address.socket();
        let servers = match peers {
            None => vec![own],
            Some(peers) => {
                let failed = |error: keelson_store::Error| Status::internal(error);
                peers.announce(own).await.map_err(failed)?;
                peers.live(Instant::now()).await.map_err(failed)?
            }
        };
        bootstrap::publish_service(&self.objects, &address, &servers).await
    }

    fn address(&self) -> ServerAddress {
        ServerAddress {
            service_ip: self.config.service_ip(),
            address: self.config.current_address(),
            port: self.config.port,
        }
    }
}

fn serving_names(config: &Config) -> Vec<String> {
    let domain = &config.cluster_domain;
    let mut names = vec![
        "localhost".to_owned(),
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{domain}"),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
        config.service_ip().to_string(),
        config.current_address().to_string(),
    ];
    names.extend(hostname());
    names.extend(config.extra_names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// The name of the host, where it can be the name of an object.
fn hostname() -> Option<String> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let host = host.trim().to_lowercase();
    let valid =
        !host.is_empty() && keelson_machinery::validation::is_dns1123_subdomain(&host).is_empty();
    valid.then_some(host)
}

/// The address the host would use towards others: connecting a datagram socket asks the kernel's
/// routing and sends nothing.
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn default_address() -> IpAddr {
    outward_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// What Services were given and what is claimed may differ after a crash only.
const REPAIR_INTERVAL: Duration = Duration::from_secs(180);

async fn repair_services(server: Arc<Server>, mut suspects: Suspects) {
    loop {
        tokio::select! {
            () = server.stop.cancelled() => return,
            () = tokio::time::sleep(REPAIR_INTERVAL) => {}
        }
        match server.registry.repair_services(&mut suspects).await {
            Ok(()) => server.health.done(&[REPAIRED]),
            Err(error) => tracing::warn!(%error, "claims of Services could not be repaired"),
        }
    }
}

/// Looks for a certificate that is due; certificates know no event, so this is a timer.
async fn renew(server: Arc<Server>, certificate: Arc<ServingCertificate>) {
    loop {
        tokio::select! {
            () = server.stop.cancelled() => return,
            () = tokio::time::sleep(RENEWAL_INTERVAL) => {}
        }
        match certificate.renew_if_due() {
            Ok(true) => tracing::info!("the serving certificate was renewed"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "renewing the serving certificate"),
        }
        let valid = certificate.is_valid();
        let valid = valid
            .then_some(())
            .ok_or_else(|| "it has expired".to_owned());
        server.health.set("loopback-serving-certificate", valid);
    }
}

/// Waits for ever where nobody watches.
async fn changed(address: &mut Option<watch::Receiver<IpAddr>>) {
    if let Some(address) = address
        && address.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Endpoints of the `kubernetes` Service follow the machine's address, and are looked at once a
/// minute, where other servers come and go more often.
async fn follow_address(
    server: Arc<Server>,
    mut peers: Option<Peers>,
    mut range: DefaultServiceCidr,
) {
    let interval = match peers {
        Some(_) => bootstrap::PEER_INTERVAL,
        None => ADDRESS_INTERVAL,
    };
    let mut host_address = server.config.host_address.clone();
    let mut announced = server.address().socket();
    loop {
        tokio::select! {
            () = server.stop.cancelled() => break,
            () = tokio::time::sleep(interval) => {}
            () = changed(&mut host_address) => {}
        }
        let current = server.address().socket();
        if let Some(peers) = peers.as_ref().filter(|_| announced != current)
            && let Err(error) = peers.retire(announced).await
        {
            tracing::debug!(%error, "taking this server's old address out of the list of servers");
        }
        announced = current;
        if let Err(status) = range.publish(&server.objects).await {
            tracing::warn!(%status, "publishing the default ServiceCIDR");
        }
        if let Err(status) = server.publish(peers.as_mut()).await {
            tracing::warn!(%status, "publishing the kubernetes Service");
        }
        if let Err(status) =
            bootstrap::publish_authentication(&server.objects, &server.authorities()).await
        {
            tracing::warn!(%status, "publishing how extension API servers authenticate");
        }
    }
    // The others need not wait until this server's entry is stale.
    if let Some(peers) = &peers
        && let Err(error) = peers.retire(server.address().socket()).await
    {
        tracing::debug!(%error, "taking this server out of the list of servers");
    }
}
