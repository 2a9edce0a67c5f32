//! The node's ports with a stopwatch.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::BoxStream;
use keelson_ports::*;

use super::*;

pub(crate) struct MeasuredRuntime {
    pub(crate) inner: Arc<dyn Runtime>,
    pub(crate) metrics: Arc<Metrics>,
}

async fn timed<T>(
    metrics: &Metrics,
    operation: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let started = Instant::now();
    metrics.count(&RUNTIME_OPERATIONS, &[operation]);
    let result = work.await;
    metrics.observe(
        &RUNTIME_OPERATIONS_DURATION,
        &[operation],
        started.elapsed(),
    );
    if result.is_err() {
        metrics.count(&RUNTIME_OPERATIONS_ERRORS, &[operation]);
    }
    result
}

impl MeasuredRuntime {
    async fn timed<T>(&self, operation: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        timed(&self.metrics, operation, work).await
    }
}

#[async_trait]
impl Runtime for MeasuredRuntime {
    fn version(&self) -> (String, String) {
        self.inner.version()
    }

    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<SandboxId> {
        let handler = config.runtime_handler.clone().unwrap_or_default();
        let started = Instant::now();
        let result = self
            .timed("run_podsandbox", self.inner.run_pod_sandbox(config))
            .await;
        let took = started.elapsed();
        self.metrics
            .observe(&RUN_POD_SANDBOX_DURATION, &[&handler], took);
        match result {
            Ok(_) => self.metrics.count(&STARTED_PODS, &[]),
            Err(_) => {
                self.metrics.count(&RUN_POD_SANDBOX_ERRORS, &[&handler]);
                self.metrics.count(&STARTED_PODS_ERRORS, &[]);
            }
        }
        result
    }

    async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        self.timed("stop_podsandbox", self.inner.stop_pod_sandbox(id))
            .await
    }

    async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        self.timed("remove_podsandbox", self.inner.remove_pod_sandbox(id))
            .await
    }

    async fn pod_sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        self.timed("podsandbox_status", self.inner.pod_sandbox_status(id))
            .await
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>> {
        self.timed("list_podsandbox", self.inner.list_pod_sandboxes())
            .await
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<ContainerId> {
        self.timed(
            "create_container",
            self.inner.create_container(sandbox, config),
        )
        .await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.timed("start_container", self.inner.start_container(id))
            .await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.timed("stop_container", self.inner.stop_container(id, grace))
            .await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.timed("remove_container", self.inner.remove_container(id))
            .await
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        self.timed("container_status", self.inner.container_status(id))
            .await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>> {
        self.timed("list_containers", self.inner.list_containers())
            .await
    }

    async fn update_container_resources(&self, id: &str, resources: CgroupResources) -> Result<()> {
        let work = self.inner.update_container_resources(id, resources);
        self.timed("update_container", work).await
    }

    async fn reopen_container_log(&self, id: &str) -> Result<()> {
        self.timed("reopen_container_log", self.inner.reopen_container_log(id))
            .await
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        self.timed("container_stats", self.inner.container_stats(id))
            .await
    }

    async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput> {
        self.timed("exec_sync", self.inner.exec_sync(id, command, timeout))
            .await
    }

    async fn exec(&self, id: &str, request: ExecRequest) -> Result<ExecSession> {
        self.timed("exec", self.inner.exec(id, request)).await
    }

    async fn attach(&self, id: &str, request: AttachRequest) -> Result<ExecSession> {
        self.timed("attach", self.inner.attach(id, request)).await
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>> {
        self.timed("port_forward", self.inner.port_forward(sandbox, port))
            .await
    }

    fn events(&self) -> BoxStream<'static, RuntimeEvent> {
        self.inner.events()
    }
}

pub(crate) struct MeasuredImages {
    pub(crate) inner: Arc<dyn Images>,
    pub(crate) metrics: Arc<Metrics>,
}

#[async_trait]
impl Images for MeasuredImages {
    async fn resolve(&self, reference: &str) -> Result<Option<ImageInfo>> {
        timed(&self.metrics, "image_status", self.inner.resolve(reference)).await
    }

    async fn pull(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        progress: Option<Arc<dyn PullProgress>>,
    ) -> Result<ImageInfo> {
        let work = self.inner.pull(reference, auth, progress);
        timed(&self.metrics, "pull_image", work).await
    }

    async fn import(&self, archive: &Path) -> Result<Vec<ImageInfo>> {
        self.inner.import(archive).await
    }

    async fn list(&self) -> Result<Vec<ImageInfo>> {
        timed(&self.metrics, "list_images", self.inner.list()).await
    }

    async fn remove(&self, reference: &str) -> Result<()> {
        timed(&self.metrics, "remove_image", self.inner.remove(reference)).await
    }

    async fn fs_usage(&self) -> Result<ImageFsUsage> {
        timed(&self.metrics, "image_fs_info", self.inner.fs_usage()).await
    }
}

pub(crate) struct MeasuredCgroups {
    pub(crate) inner: Arc<dyn Cgroups>,
    pub(crate) metrics: Arc<Metrics>,
}

impl MeasuredCgroups {
    async fn timed<T>(&self, operation: &str, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let result = work.await;
        let took = started.elapsed();
        self.metrics
            .observe(&CGROUP_MANAGER_DURATION, &[operation], took);
        result
    }
}

#[async_trait]
impl Cgroups for MeasuredCgroups {
    fn version(&self) -> u8 {
        self.inner.version()
    }

    /// Whether the group was there is not told: both count as an update.
    async fn ensure(&self, path: &str, resources: &CgroupResources) -> Result<()> {
        self.timed("update", self.inner.ensure(path, resources))
            .await
    }

    async fn remove(&self, path: &str) -> Result<()> {
        self.timed("destroy", self.inner.remove(path)).await
    }

    async fn stats(&self, path: &str) -> Result<CgroupStats> {
        self.inner.stats(path).await
    }

    async fn children(&self, path: &str) -> Result<Vec<String>> {
        self.inner.children(path).await
    }
}
