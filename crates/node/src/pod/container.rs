//! From a container's specification to what the runtime is told.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_ports::{
    CgroupResources, ContainerConfig, DnsConfig, HostNamespaces, HostPort, ImageInfo, Mount,
    PodSandboxConfig, Protocol, SecurityContext,
};

use super::dns;
use super::expansion::expand;
use super::{is_host_network, name, namespace, qos, spec, uid};

/// Labels by which runtimes and tools find a pod's parts.
pub(crate) const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// The image as the specification named it, so that a change in place is noticed.
pub(crate) const ANNOTATION_IMAGE: &str = "keelson.io/image";
/// What the pod asked for, for tools that look at the runtime alone.
pub(crate) const ANNOTATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

const DEFAULT_TERMINATION_PATH: &str = "/dev/termination-log";

fn identity_labels(pod: &Pod) -> BTreeMap<String, String> {
    BTreeMap::from([
        (LABEL_POD_NAME.to_owned(), name(pod).to_owned()),
        (LABEL_POD_NAMESPACE.to_owned(), namespace(pod).to_owned()),
        (LABEL_POD_UID.to_owned(), uid(pod).to_owned()),
    ])
}

pub(crate) struct SandboxInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) attempt: u32,
    pub(crate) cluster_domain: &'a str,
    pub(crate) dns: DnsConfig,
    pub(crate) log_directory: PathBuf,
    /// The node's own host name, for pods on the host's network.
    pub(crate) node_hostname: &'a str,
    pub(crate) runtime_handler: Option<String>,
}

pub(crate) fn sandbox_config(input: SandboxInput<'_>) -> PodSandboxConfig {
    let pod = input.pod;
    let pod_spec = spec(pod);
    let (host, fqdn) = dns::hostname(pod, input.cluster_domain);
    let hostname = if is_host_network(pod) && pod_spec.hostname_override.is_none() {
        input.node_hostname.to_owned()
    } else if pod_spec.set_hostname_as_fqdn.unwrap_or(false) && !fqdn.is_empty() {
        fqdn
    } else {
        host
    };
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(identity_labels(pod));
    PodSandboxConfig {
        name: name(pod).to_owned(),
        namespace: namespace(pod).to_owned(),
        uid: uid(pod).to_owned(),
        attempt: input.attempt,
        hostname,
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        dns: input.dns,
        host_ports: host_ports(pod),
        host_namespaces: HostNamespaces {
            network: is_host_network(pod),
            pid: pod_spec.host_pid.unwrap_or(false),
            ipc: pod_spec.host_ipc.unwrap_or(false),
        },
        share_process_namespace: pod_spec.share_process_namespace.unwrap_or(false),
        sysctls: pod_spec
            .security_context
            .iter()
            .filter_map(|context| context.sysctls.as_ref())
            .flatten()
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
        cgroup_parent: qos::cgroup_path(pod),
        log_directory: input.log_directory,
        runtime_handler: input.runtime_handler,
    }
}

/// On the host's network a container's ports are the host's already.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    if is_host_network(pod) {
        return Vec::new();
    }
    let containers = super::init_containers(pod)
        .iter()
        .filter(|c| super::is_sidecar(c))
        .chain(super::regular_containers(pod));
    containers
        .flat_map(|container| container.ports.as_deref().unwrap_or_default())
        .filter_map(|port| {
            let host_port = u16::try_from(port.host_port?)
                .ok()
                .filter(|port| *port > 0)?;
            Some(HostPort {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                container_port: u16::try_from(port.container_port).ok()?,
                host_port,
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
            })
        })
        .collect()
}

/// What was found out about a container before its configuration is put together.
pub(crate) struct ContainerInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) image: &'a ImageInfo,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) security: SecurityContext,
    pub(crate) resources: CgroupResources,
    pub(crate) oom_score_adj: i32,
    pub(crate) termination_message: PathBuf,
}

pub(crate) fn container_config(input: ContainerInput<'_>) -> ContainerConfig {
    let container = input.container;
    let env: BTreeMap<&str, &str> = input
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let lookup = |name: &str| env.get(name).map(|value| (*value).to_owned());
    let expand_all = |list: &Option<Vec<String>>| {
        list.iter()
            .flatten()
            .map(|text| expand(text, lookup))
            .collect::<Vec<_>>()
    };
    let command = expand_all(&container.command);
    let args = expand_all(&container.args);
    let mut labels = identity_labels(input.pod);
    labels.insert(LABEL_CONTAINER_NAME.to_owned(), container.name.clone());
    let image = container.image.clone().unwrap_or_default();
    let mut annotations = BTreeMap::from([(ANNOTATION_IMAGE.to_owned(), image)]);
    if let Some(grace) = spec(input.pod).termination_grace_period_seconds {
        annotations.insert(ANNOTATION_GRACE.to_owned(), grace.to_string());
    }
    let mut mounts = input.mounts;
    mounts.push(Mount {
        container_path: PathBuf::from(termination_path(container)),
        host_path: input.termination_message.clone(),
        ..Mount::default()
    });
    ContainerConfig {
        name: container.name.clone(),
        attempt: input.attempt,
        image: input.image.id.clone(),
        user_image: container.image.clone().unwrap_or_default(),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        env: input.env,
        mounts,
        devices: Vec::new(),
        labels,
        annotations,
        log_path: PathBuf::from(&container.name).join(format!("{}.log", input.attempt)),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        resources: input.resources,
        oom_score_adj: input.oom_score_adj,
        security: input.security,
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone()),
        termination_message_host_path: Some(input.termination_message),
    }
}

pub(crate) fn termination_path(container: &Container) -> &str {
    container
        .termination_message_path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or(DEFAULT_TERMINATION_PATH)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn image() -> ImageInfo {
        ImageInfo {
            id: "sha256:1".into(),
            repo_tags: vec![],
            repo_digests: vec![],
            size_bytes: 0,
            user: Default::default(),
            entrypoint: vec![],
            cmd: vec![],
            env: vec![],
            working_dir: String::new(),
            stop_signal: None,
            pinned: false,
            last_used_at: None,
        }
    }

    #[test]
    fn commands_expand_and_logs_count_attempts() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "containers": [{"name": "c", "image": "img", "command": ["sh", "-c", "echo $(A) $(B) $$(A)"], "args": ["$(A)"]}]}}))
        .unwrap();
        let config = container_config(ContainerInput {
            pod: &pod,
            container: &super::super::regular_containers(&pod)[0],
            attempt: 2,
            image: &image(),
            env: vec![("A".into(), "1".into())],
            mounts: vec![],
            security: SecurityContext::default(),
            resources: CgroupResources::default(),
            oom_score_adj: 0,
            termination_message: "/t".into(),
        });
        assert_eq!(config.command, ["sh", "-c", "echo 1 $(B) $(A)"]);
        assert_eq!(config.args, ["1"]);
        assert_eq!(config.log_path, PathBuf::from("c/2.log"));
        assert_eq!(
            config.mounts[0].container_path,
            PathBuf::from("/dev/termination-log")
        );
        assert_eq!(config.labels[LABEL_CONTAINER_NAME], "c");
    }

    #[test]
    fn sandboxes_carry_ports_and_names() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "subdomain": "s", "setHostnameAsFQDN": true,
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]}]}}))
        .unwrap();
        let config = sandbox_config(SandboxInput {
            pod: &pod,
            attempt: 0,
            cluster_domain: "c.l",
            dns: DnsConfig::default(),
            log_directory: "/l".into(),
            node_hostname: "node",
            runtime_handler: None,
        });
        assert_eq!(config.hostname, "p.s.n.svc.c.l");
        assert_eq!(config.host_ports.len(), 1);
        assert_eq!(
            (
                config.host_ports[0].host_port,
                config.host_ports[0].container_port
            ),
            (8080, 80)
        );
        assert_eq!(config.cgroup_parent, "/kubepods/besteffort/podu");
    }
}
