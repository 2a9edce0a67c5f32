//! The Node object: registration, status, and the lease that says the node is alive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node as ApiNode, NodeAddress, NodeCondition,
    NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use keelson_client::Patch;
use serde_json::{Value, json};

use crate::machine;
use crate::node::Node;
use crate::pod;

pub(crate) const KUBELET_VERSION: &str = "v1.36.2";
const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_DURATION_S: i32 = 40;
/// A quarter of the lease's duration: one renewal may fail without anyone noticing.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
/// How often the status is compared with what was last written.
const STATUS_PERIOD: Duration = Duration::from_secs(10);
/// How often it is written even if nothing changed.
const STATUS_REPORT: Duration = Duration::from_secs(300);
const REGISTER_RETRY: Duration = Duration::from_millis(500);
/// Names listed per image, and images listed.
const MAX_IMAGES: usize = 50;
const MAX_NAMES: usize = 5;

/// What eviction found out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

/// Creates the Node object, or brings labels of an existing one up to date. Returns when done.
pub(crate) async fn register(node: &Node, port: u16) -> ApiNode {
    let mut pause = REGISTER_RETRY;
    loop {
        match try_register(node, port).await {
            Ok(registered) => return registered,
            Err(error) => tracing::warn!(%error, "registering the node failed; trying again"),
        }
        node.clock.sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

async fn try_register(node: &Node, port: u16) -> keelson_client::Result<ApiNode> {
    let name = &node.config.node_name;
    let labels = labels(node);
    let status = status(node, port, Pressure::default(), None, &[]);
    if let Some(existing) = node.client.try_get::<ApiNode>("", name).await? {
        let current = existing.metadata.labels.clone().unwrap_or_default();
        if labels
            .iter()
            .all(|(key, value)| current.get(key) == Some(value))
        {
            return Ok(existing);
        }
        let patch = Patch::Strategic(json!({"metadata": {"labels": labels}}));
        return node.client.patch("", name, &patch, None).await;
    }
    let taints: Vec<Taint> = node
        .config
        .taints
        .iter()
        .map(|(key, value, effect)| Taint {
            key: key.clone(),
            value: Some(value.clone()).filter(|value| !value.is_empty()),
            effect: effect.clone(),
            time_added: None,
        })
        .collect();
    let fresh = ApiNode {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(
                "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                "true".to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            ..NodeSpec::default()
        }),
        status: Some(status),
    };
    match node.client.create(&fresh).await {
        Err(error) if error.is_already_exists() => node.client.get("", name).await,
        other => other,
    }
}

fn labels(node: &Node) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (key, value) in [
        ("kubernetes.io/hostname", node.config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine::architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", machine::architecture()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels.extend(node.config.labels.iter().cloned());
    labels
}

/// Writes the status now and again, until shutdown.
pub(crate) async fn keep_status(
    node: Arc<Node>,
    port: u16,
    mut pressure: tokio::sync::watch::Receiver<Pressure>,
) {
    let mut last: Option<(NodeStatus, SystemTime)> = None;
    let mut node_ips = node.config.node_ips.clone();
    loop {
        if let Err(error) = keep_once(&node, port, &mut pressure, &mut last).await {
            tracing::warn!(%error, "the node's status was not written");
        }
        tokio::select! {
            () = node.clock.sleep(STATUS_PERIOD) => {}
            () = Node::host_ips_changed(&mut node_ips) => {}
            changed = pressure.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// The object is read each time: others (node lifecycle) write to it, and what they say when this
/// node was out of reach must be put right as soon as it is back.
async fn keep_once(
    node: &Node,
    port: u16,
    pressure: &mut tokio::sync::watch::Receiver<Pressure>,
    last: &mut Option<(NodeStatus, SystemTime)>,
) -> keelson_client::Result<()> {
    let known = match node
        .client
        .try_get::<ApiNode>("", &node.config.node_name)
        .await?
    {
        Some(known) => known,
        None => register(node, port).await,
    };
    let known = known.status.unwrap_or_default();
    let now = node.clock.now();
    let current = *pressure.borrow_and_update();
    let new = status(node, port, current, Some(&known), &images(node).await);
    let due = last.as_ref().is_none_or(|(status, at)| {
        !same(status, &new) || now.duration_since(*at).unwrap_or_default() >= STATUS_REPORT
    });
    if !due && !is_contradicted(&new, &known) {
        return Ok(());
    }
    write(node, &new).await?;
    if !is_ready(&known) {
        let name = &node.config.node_name;
        node.events.node(
            "Normal",
            "NodeReady",
            format!("Node {name} status is now: NodeReady"),
        );
    }
    *last = Some((new, now));
    Ok(())
}

fn condition<'a>(status: &'a NodeStatus, kind: &str) -> Option<&'a NodeCondition> {
    status
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
}

fn is_ready(status: &NodeStatus) -> bool {
    condition(status, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Whether the API says something else about one of this node's conditions.
fn is_contradicted(own: &NodeStatus, known: &NodeStatus) -> bool {
    own.conditions
        .iter()
        .flatten()
        .any(|own| condition(known, &own.type_).is_none_or(|known| known.status != own.status))
}

/// Equal but for heartbeats.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let strip = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
            condition.last_transition_time = None;
        }
        status
    };
    strip(a) == strip(b)
}

async fn write(node: &Node, status: &NodeStatus) -> keelson_client::Result<()> {
    let mut value = serde_json::to_value(status).map_err(keelson_client::Error::Decode)?;
    // Addresses merge by type, of which there may be several: replace the list as a whole.
    if let Some(Value::Array(addresses)) = value.get_mut("addresses") {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    let patch = Patch::Strategic(json!({"status": value}));
    node.client
        .patch::<ApiNode>("", &node.config.node_name, &patch, Some("status"))
        .await
        .map(drop)
}

async fn images(node: &Node) -> Vec<ContainerImage> {
    let mut images = node.images.list().await.unwrap_or_default();
    images.sort_by_key(|image| std::cmp::Reverse(image.size_bytes));
    images
        .into_iter()
        .take(MAX_IMAGES)
        .map(|image| ContainerImage {
            names: Some(
                image
                    .repo_digests
                    .into_iter()
                    .chain(image.repo_tags)
                    .take(MAX_NAMES)
                    .collect(),
            ),
            size_bytes: i64::try_from(image.size_bytes).ok(),
        })
        .collect()
}

fn status(
    node: &Node,
    port: u16,
    pressure: Pressure,
    last: Option<&NodeStatus>,
    images: &[ContainerImage],
) -> NodeStatus {
    let machine = &node.machine;
    let allocatable = machine.allocatable(&node.config);
    let quantity = |text: String| Quantity(text);
    let pods = node.config.max_pods.to_string();
    let capacity = BTreeMap::from([
        ("cpu".to_owned(), quantity(machine.cpus.to_string())),
        (
            "memory".to_owned(),
            quantity(format!("{}Ki", machine.memory_bytes / 1024)),
        ),
        (
            "ephemeral-storage".to_owned(),
            quantity(format!("{}Ki", machine.storage_bytes / 1024)),
        ),
        ("pods".to_owned(), quantity(pods.clone())),
        ("hugepages-2Mi".to_owned(), quantity("0".to_owned())),
    ]);
    let cpu = if allocatable.cpu_milli % 1000 == 0 {
        (allocatable.cpu_milli / 1000).to_string()
    } else {
        format!("{}m", allocatable.cpu_milli)
    };
    let allocatable = BTreeMap::from([
        ("cpu".to_owned(), quantity(cpu)),
        (
            "memory".to_owned(),
            quantity(format!("{}Ki", allocatable.memory_bytes / 1024)),
        ),
        (
            "ephemeral-storage".to_owned(),
            quantity(allocatable.storage_bytes.to_string()),
        ),
        ("pods".to_owned(), quantity(pods)),
        ("hugepages-2Mi".to_owned(), quantity("0".to_owned())),
    ]);
    let address = |kind: &str, address: String| NodeAddress {
        type_: kind.to_owned(),
        address,
    };
    let mut addresses: Vec<NodeAddress> = node
        .host_ips()
        .into_iter()
        .map(|ip| address("InternalIP", ip))
        .collect();
    addresses.push(address("Hostname", node.config.node_name.clone()));
    let (runtime, version) = node.runtime.version();
    NodeStatus {
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        addresses: Some(addresses),
        conditions: Some(conditions(pressure, last, node.clock.now())),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(port),
            }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: machine::architecture().to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: format!("{runtime}://{version}"),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            ..NodeSystemInfo::default()
        }),
        images: Some(images.to_vec()).filter(|images| !images.is_empty()),
        // An API server passes streams over WebSocket on to this server instead of translating.
        declared_features: Some(vec!["ExtendWebSocketsToKubelet".to_owned()]),
        ..NodeStatus::default()
    }
}

fn conditions(
    pressure: Pressure,
    last: Option<&NodeStatus>,
    now: SystemTime,
) -> Vec<NodeCondition> {
    let rows = [
        (
            "MemoryPressure",
            pressure.memory,
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        (
            "DiskPressure",
            pressure.disk,
            "KubeletHasDiskPressure",
            "kubelet has disk pressure",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        (
            "PIDPressure",
            pressure.pids,
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        (
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status",
            "",
            "",
        ),
    ];
    rows.into_iter()
        .map(|(kind, holds, yes, yes_text, no, no_text)| {
            let status = if holds { "True" } else { "False" };
            let since = last
                .and_then(|last| {
                    last.conditions
                        .as_ref()?
                        .iter()
                        .find(|condition| condition.type_ == kind)
                })
                .filter(|condition| condition.status == status)
                .and_then(|condition| condition.last_transition_time.clone());
            NodeCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(if holds { yes } else { no }.to_owned()),
                message: Some(if holds { yes_text } else { no_text }.to_owned()),
                last_heartbeat_time: Some(pod::time(now)),
                last_transition_time: since.or_else(|| Some(pod::time(now))),
            }
        })
        .collect()
}

/// Renews the node's lease until shutdown.
pub(crate) async fn keep_lease(node: Arc<Node>, owner: ApiNode) {
    let mut held: Option<Lease> = None;
    loop {
        match renew(&node, &owner, held.take()).await {
            Ok(lease) => held = Some(lease),
            Err(error) => tracing::warn!(%error, "the node's lease was not renewed"),
        }
        // A failed renewal is tried again sooner than a good one is repeated.
        let pause = if held.is_some() {
            LEASE_PERIOD
        } else {
            LEASE_PERIOD / 5
        };
        node.clock.sleep(pause).await;
    }
}

async fn renew(node: &Node, owner: &ApiNode, held: Option<Lease>) -> keelson_client::Result<Lease> {
    let name = &node.config.node_name;
    let now = MicroTime(Timestamp::try_from(node.clock.now()).unwrap_or_else(|_| Timestamp::now()));
    let held = match held {
        Some(lease) => Some(lease),
        None => node.client.try_get::<Lease>(LEASE_NAMESPACE, name).await?,
    };
    if let Some(mut lease) = held {
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(name.clone());
        spec.lease_duration_seconds = Some(LEASE_DURATION_S);
        spec.renew_time = Some(now);
        return node.client.update(&lease).await;
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: name.clone(),
                uid: owner.metadata.uid.clone().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_DURATION_S),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    node.client.create(&lease).await
}
