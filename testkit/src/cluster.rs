//! An API server over a store in memory, and whatever a test runs beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use keelson_apiserver::{ApiServer, Config, ServiceConfig};
use keelson_client::{Client, Error, Informers};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use keelson_apiserver::UserInfo;

/// The gates of resources that upstream serves only with them.
const ALL_VERSIONS_GATES: &[&str] = &[
    "ClusterTrustBundle",
    "GenericWorkload",
    "PodCertificateRequest",
    "StorageVersionMigrator",
];

/// Longer than anything should take on a machine that runs other tests as well.
const PATIENCE: Duration = Duration::from_secs(90);

/// Requests go through authentication's result, authorization, admission and the registry as they
/// do over a socket; there is just none. Give it back with [`Cluster::stop`].
pub struct Cluster {
    server: ApiServer,
    informers: Informers,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    dir: Directory,
}

/// Removed when dropped, so that a test that panics leaves nothing behind.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With services of both families, of upstream's documentation's ranges.
    pub async fn start_dual_stack() -> Self {
        Self::start_with(|config| {
            let cidrs = ["10.96.0.0/16", "fd00:10::/108"].map(|cidr| cidr.parse().unwrap());
            config.services = ServiceConfig::new(&cidrs);
        })
        .await
    }

    /// With every version of every built-in kind, and the gates that some of them stand behind.
    pub async fn start_all_versions() -> Self {
        Self::start_with(|config| {
            config.runtime_config = vec!["api/all=true".to_owned()];
            config.feature_gates = ALL_VERSIONS_GATES
                .iter()
                .map(|gate| format!("{gate}=true"))
                .collect();
        })
        .await
    }

    async fn start_with(configure: impl FnOnce(&mut Config)) -> Self {
        let dir = std::env::temp_dir().join(format!("keelson-testkit-{}", uuid::Uuid::new_v4()));
        let mut config = Config {
            // Nobody connects; a loopback address would be refused in Endpoints.
            advertise_address: Some([192, 0, 2, 1].into()),
            ..Config::new(&dir)
        };
        configure(&mut config);
        let server = ApiServer::start(config, keelson_testkit_etcd::store().await)
            .await
            .unwrap();
        let shutdown = CancellationToken::new();
        let reader = server.client(UserInfo::admin("testkit"));
        Self {
            informers: Informers::new(reader, shutdown.clone()),
            server,
            shutdown,
            tasks: TaskTracker::new(),
            dir: Directory(dir),
        }
    }

    /// A client that acts as this user.
    pub fn client(&self, user: UserInfo) -> Client {
        self.server.client(user)
    }

    pub fn admin(&self) -> Client {
        self.client(UserInfo::admin("test-admin"))
    }

    /// Shared by everything that may see all objects.
    pub fn informers(&self) -> &Informers {
        &self.informers
    }

    /// Informers of their own for somebody who may not see all objects.
    pub fn informers_of(&self, user: UserInfo) -> Informers {
        Informers::new(self.client(user), self.shutdown.clone())
    }

    /// A directory that goes with the cluster.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    pub fn root_ca(&self) -> String {
        self.server.pki().cluster_ca.certificate_pem.clone()
    }

    /// Cancelled when the cluster stops.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Runs a component beside the server. It must end when the informers are shut down.
    pub fn spawn(&self, component: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(component);
    }

    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.admin().request(Method::GET, path, None).await
    }

    /// Creates the object in the collection at `path` as an administrator.
    pub async fn create(&self, path: &str, object: Value) -> Value {
        let created = self
            .admin()
            .request(Method::POST, path, Some(&object))
            .await;
        created.unwrap_or_else(|error| panic!("creating {object} at {path}: {error}"))
    }

    /// Reads `path` until the object satisfies the condition.
    pub async fn until(&self, path: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.until_answer(path, |answer| {
            answer.ok().filter(|object| condition(object))
        })
        .await
    }

    /// Reads `path` until there is no such object.
    pub async fn until_gone(&self, path: &str) {
        self.until_answer(path, |answer| {
            answer.err().filter(Error::is_not_found).map(drop)
        })
        .await;
    }

    async fn until_answer<T>(
        &self,
        path: &str,
        accept: impl Fn(Result<Value, Error>) -> Option<T>,
    ) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(accepted) = accept(self.get(path).await) {
                return accepted;
            }
            if tokio::time::Instant::now() > deadline {
                match self.get(path).await {
                    Ok(object) => panic!("{path} stayed {object:#}"),
                    Err(error) => panic!("{path} stayed {error}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends components and server and removes the directory.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(Duration::from_secs(30), self.tasks.wait()).await;
        self.server.shutdown().await;
        assert!(ended.is_ok(), "a component outlives its informers");
    }
}
