//! Starting one container: image, environment, mounts, security, create, start, `postStart`.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use keelson_ports::{ImageInfo, Mount, PodSandboxStatus};

use crate::events::Events;
use crate::hooks;
use crate::images::credentials;
use crate::metrics::{STARTED_CONTAINERS, STARTED_CONTAINERS_ERRORS};
use crate::node::Node;
use crate::plan::StartError;
use crate::pod::container::{ContainerInput, container_config};
use crate::pod::env::{self, EnvInput};
use crate::pod::security::{self, SecurityInput};
use crate::pod::{self, ContainerKind, hosts, qos, resources};
use crate::volumes::{self, MountedVolumes};

/// Wrong configurations are read again after this time, and at once when what they name changes.
const CONFIG_RETRY: Duration = Duration::from_secs(10);
const CREATE_RETRY: Duration = Duration::from_secs(5);

pub(crate) struct StartRequest {
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Arc<Container>,
    pub(crate) kind: ContainerKind,
    pub(crate) attempt: u32,
    pub(crate) sandbox: PodSandboxStatus,
    pub(crate) volumes: Arc<MountedVolumes>,
    /// The container whose processes an ephemeral one wants to see.
    pub(crate) target_id: Option<String>,
}

/// Returns the new container's id when it runs and its hook is done.
pub(crate) async fn start(node: &Node, request: &StartRequest) -> Result<String, StartError> {
    let kind = request.kind.metric_label();
    node.metrics.count(&STARTED_CONTAINERS, &[kind]);
    let result = try_start(node, request).await;
    if let Err(error) = &result {
        node.metrics
            .count(&STARTED_CONTAINERS_ERRORS, &[kind, &error.reason]);
    }
    result
}

async fn try_start(node: &Node, request: &StartRequest) -> Result<String, StartError> {
    let StartRequest {
        pod,
        container,
        kind,
        ..
    } = request;
    let auth = credentials::for_pod(
        &node.objects,
        pod,
        container.image.as_deref().unwrap_or_default(),
    )
    .await;
    let image = node.puller.ensure(pod, *kind, container, &auth).await?;
    let fail = |reason: &str, message: String, after: Duration| {
        fail(
            &node.events,
            request,
            reason,
            message,
            node.clock.now() + after,
        )
    };
    let config = configure(node, request, &image)
        .await
        .map_err(|message| fail("CreateContainerConfigError", message, CONFIG_RETRY))?;
    let id = node
        .runtime
        .create_container(&request.sandbox.id, config)
        .await
        .map_err(|error| fail("CreateContainerError", error.to_string(), CREATE_RETRY))?;
    node.events.container(
        pod,
        *kind,
        &container.name,
        "Normal",
        "Created",
        "Container created",
    );
    let started = node.runtime.start_container(&id).await;
    node.state.refresh_container(&id).await;
    if let Err(error) = started {
        return Err(fail(
            "RunContainerError",
            error.to_string(),
            Duration::from_secs(1),
        ));
    }
    node.events.container(
        pod,
        *kind,
        &container.name,
        "Normal",
        "Started",
        "Container started",
    );
    node.learn_digest(&image.id).await;
    if let Some(hook) = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.post_start.as_ref())
    {
        let ip = request
            .sandbox
            .ips
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        // A hook has no deadline of its own; it ends with its container.
        if let Err(error) = hooks::run(node, &id, container, &ip, hook, hooks::NO_DEADLINE).await {
            tracing::debug!(
                pod = pod::name(pod),
                container = container.name,
                error,
                "a postStart hook failed"
            );
            node.events.container(
                pod,
                *kind,
                &container.name,
                "Warning",
                "FailedPostStartHook",
                "PostStartHook failed",
            );
            let stopped = node
                .runtime
                .stop_container(&id, pod::grace_period(pod))
                .await;
            node.state.refresh_container(&id).await;
            if let Err(error) = stopped {
                tracing::warn!(container = container.name, %error, "stopping a container after its hook failed");
            }
            return Err(StartError {
                reason: "PostStartHookError".to_owned(),
                message: "PostStartHookError".to_owned(),
                retry_at: node.clock.now() + Duration::from_secs(1),
            });
        }
    }
    Ok(id)
}

fn fail(
    events: &Events,
    request: &StartRequest,
    reason: &str,
    message: String,
    retry_at: SystemTime,
) -> StartError {
    let text = format!("Error: {message}");
    events.container(
        &request.pod,
        request.kind,
        &request.container.name,
        "Warning",
        "Failed",
        text,
    );
    StartError {
        reason: reason.to_owned(),
        message,
        retry_at,
    }
}

async fn configure(
    node: &Node,
    request: &StartRequest,
    image: &ImageInfo,
) -> Result<keelson_ports::ContainerConfig, String> {
    let StartRequest { pod, container, .. } = request;
    let pod_dir = node.config.pod_dir(pod::uid(pod));
    let extra_groups = volumes::groups_of(container, &request.volumes);
    let mut security = security::merge(&SecurityInput {
        pod,
        container,
        image_user: &image.user,
        seccomp_root: &node.config.data_dir.join("seccomp"),
        extra_groups: &extra_groups,
    })
    .map_err(|error| error.to_string())?;
    security.target_container = request.target_id.clone();
    let mut env = environment(node, request).await?;
    if !env.iter().any(|(name, _)| name == "HOSTNAME") {
        let (hostname, _) = pod::dns::hostname(pod, &node.config.cluster_domain);
        let hostname = if pod::is_host_network(pod) {
            node.machine.hostname.clone()
        } else {
            hostname
        };
        env.insert(0, ("HOSTNAME".to_owned(), hostname));
    }
    let mounts = mounts(node, request, &pod_dir, &env).await?;
    let termination_message = termination_file(&pod_dir, &container.name, request.attempt)
        .map_err(|error| format!("preparing the termination message: {error}"))?;
    Ok(container_config(ContainerInput {
        pod,
        container,
        attempt: request.attempt,
        image,
        env,
        mounts,
        security,
        resources: resources::container_cgroup(container, None),
        oom_score_adj: qos::oom_score_adj(pod, container, node.machine.memory_bytes),
        termination_message,
    }))
}

async fn environment(node: &Node, request: &StartRequest) -> Result<Vec<(String, String)>, String> {
    let namespace = pod::namespace(&request.pod);
    let (config_map_names, secret_names) = env::references(&request.container);
    let mut config_maps: HashMap<String, Arc<ConfigMap>> = HashMap::new();
    for name in config_map_names {
        if let Some(found) = node.objects.config_map(namespace, &name).await? {
            config_maps.insert(name, found);
        }
    }
    let mut secrets: HashMap<String, Arc<Secret>> = HashMap::new();
    for name in secret_names {
        if let Some(found) = node.objects.secret(namespace, &name).await? {
            secrets.insert(name, found);
        }
    }
    let mut services = node.services.list_in(namespace);
    if namespace != "default" {
        services.extend(node.services.get("default", "kubernetes"));
    }
    let pod_ips = if pod::is_host_network(&request.pod) {
        node.host_ips()
    } else {
        request
            .sandbox
            .ips
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    env::build(&EnvInput {
        pod: &request.pod,
        container: &request.container,
        config_maps: &config_maps,
        secrets: &secrets,
        services: &services,
        facts: &node.facts(pod_ips),
    })
    .map_err(|error| error.to_string())
}

async fn mounts(
    node: &Node,
    request: &StartRequest,
    pod_dir: &Path,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let StartRequest { pod, container, .. } = request;
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = request.volumes.get(&mount.name).ok_or_else(|| {
            format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, container.name
            )
        })?;
        let lookup = |name: &str| {
            env.iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        let prepared = volumes::mount_source(
            &*node.mounts,
            pod_dir,
            &container.name,
            index,
            mount,
            volume,
            lookup,
        )
        .await
        .map_err(|error| error.to_string())?;
        mounts.push(prepared);
    }
    if !mounts
        .iter()
        .any(|mount| mount.container_path == Path::new("/etc/hosts"))
    {
        mounts.push(Mount {
            container_path: PathBuf::from("/etc/hosts"),
            host_path: hosts_file(node, pod, &request.sandbox, pod_dir)
                .map_err(|error| format!("writing /etc/hosts: {error}"))?,
            ..Mount::default()
        });
    }
    Ok(mounts)
}

fn hosts_file(
    node: &Node,
    pod: &Pod,
    sandbox: &PodSandboxStatus,
    pod_dir: &Path,
) -> std::io::Result<PathBuf> {
    let aliases = pod::host_aliases(pod);
    let text = if pod::is_host_network(pod) {
        hosts::for_host_network(
            &std::fs::read_to_string(&node.config.hosts_file).unwrap_or_default(),
            &aliases,
        )
    } else {
        let ips: Vec<String> = sandbox.ips.iter().map(ToString::to_string).collect();
        let (hostname, fqdn) = pod::dns::hostname(pod, &node.config.cluster_domain);
        hosts::for_pod(&ips, &hostname, &fqdn, &aliases)
    };
    let path = pod_dir.join("etc-hosts");
    // Containers of the pod that run already have this very file mounted.
    if std::fs::read_to_string(&path).is_ok_and(|existing| existing == text) {
        return Ok(path);
    }
    std::fs::write(&path, text)?;
    // Every user of the pod's containers resolves names.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
    Ok(path)
}

fn termination_file(pod_dir: &Path, container: &str, attempt: u32) -> std::io::Result<PathBuf> {
    let dir = pod_dir.join("containers").join(container);
    std::fs::create_dir_all(&dir)?;
    let file = dir.join(format!("termination-{attempt}"));
    std::fs::write(&file, b"")?;
    // The container's user may be anyone.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))?;
    Ok(file)
}
