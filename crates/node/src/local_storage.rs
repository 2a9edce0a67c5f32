//! Local storage of pods: what each takes on the node's disk (writable layers, logs, emptyDirs), and
//! the limits beyond which it is evicted. Specified by the kubelet's local storage eviction.

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use keelson_machinery::go;
use keelson_machinery::quantity::Quantity;

use crate::node::Node;
use crate::pod::{self, resources};

pub(crate) const RESOURCE: &str = "ephemeral-storage";

/// What a pod takes on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodUsage {
    pub(crate) containers: Vec<ContainerUsage>,
    /// By volume, those whose files lie on the node's disk.
    pub(crate) volumes: Vec<(String, u64)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ContainerUsage {
    pub(crate) name: String,
    pub(crate) writable_layer_bytes: u64,
    pub(crate) log_bytes: u64,
}

impl ContainerUsage {
    pub(crate) fn total_bytes(&self) -> u64 {
        self.writable_layer_bytes.saturating_add(self.log_bytes)
    }
}

impl PodUsage {
    pub(crate) fn total_bytes(&self) -> u64 {
        let containers = self.containers.iter().map(ContainerUsage::total_bytes);
        let volumes = self.volumes.iter().map(|(_, bytes)| *bytes);
        containers.chain(volumes).fold(0, u64::saturating_add)
    }
}

/// Whether the pod sets a limit of local storage, so that it has to be measured.
pub(crate) fn is_limited(pod: &Pod) -> bool {
    pod_limit(pod).is_some() || volumes(pod).any(|volume| size_limit(volume).is_some())
}

/// Why the pod has to go, in upstream's words: the first of its limits that it is beyond.
pub(crate) fn exceeded(pod: &Pod, usage: &PodUsage) -> Option<String> {
    let beyond_volume = volumes(pod).find_map(|volume| {
        let (limit, text) = size_limit(volume)?;
        let used = usage
            .volumes
            .iter()
            .find(|(name, _)| *name == volume.name)?;
        (used.1 > limit).then(|| {
            format!(
                "Usage of EmptyDir volume {} exceeds the limit {}. ",
                go::quote(&volume.name),
                go::quote(&text)
            )
        })
    });
    let beyond_pod = || {
        let limit = pod_limit(pod)?;
        (usage.total_bytes() > limit).then(|| {
            format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
                binary(limit)
            )
        })
    };
    let beyond_container = || {
        usage.containers.iter().find_map(|used| {
            let mut containers = pod::regular_containers(pod).iter();
            let container = containers.find(|container| container.name == used.name)?;
            let (limit, text) = amount(resources::limit(container, RESOURCE)?)?;
            (used.total_bytes() > limit).then(|| {
                format!(
                    "Container {} exceeded its local ephemeral storage limit {}. ",
                    used.name,
                    go::quote(&text)
                )
            })
        })
    };
    beyond_volume.or_else(beyond_pod).or_else(beyond_container)
}

/// A positive amount, and how it is written.
fn amount(quantity: &ApiQuantity) -> Option<(u64, String)> {
    let bytes = resources::value(quantity).and_then(|bytes| u64::try_from(bytes).ok());
    let bytes = bytes.filter(|bytes| *bytes > 0)?;
    Some((bytes, Quantity::canonical(&quantity.0).ok()?))
}

/// The limits of all containers together, as the scheduler sums them.
fn pod_limit(pod: &Pod) -> Option<u64> {
    let bytes = |container: &Container| {
        resources::limit(container, RESOURCE)
            .and_then(resources::value)
            .unwrap_or(0)
    };
    let sum = u64::try_from(resources::pod_sum(pod, bytes)).ok()?;
    (sum > 0).then_some(sum)
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod::spec(pod).volumes.iter().flatten().filter(|volume| {
        let source = volume.empty_dir.as_ref();
        source.is_some_and(|source| source.medium.as_deref().unwrap_or_default().is_empty())
    })
}

fn size_limit(volume: &Volume) -> Option<(u64, String)> {
    amount(volume.empty_dir.as_ref()?.size_limit.as_ref()?)
}

/// Bytes in the largest power of 1,024 that leaves no fraction, as upstream writes sizes.
pub(crate) fn binary(bytes: u64) -> String {
    let (mut number, mut unit) = (bytes, 0);
    const UNITS: [&str; 6] = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    while number != 0 && number.is_multiple_of(1024) && unit + 1 < UNITS.len() {
        (number, unit) = (number / 1024, unit + 1);
    }
    format!("{number}{}", UNITS[unit])
}

/// Walks what the pod has on disk.
pub(crate) async fn measure(node: &Node, pod: &Pod) -> PodUsage {
    let uid = pod::uid(pod);
    let config = &node.config;
    let logs = config.pod_log_dir(pod::namespace(pod), pod::name(pod), uid);
    let mut usage = PodUsage::default();
    let all = pod::init_containers(pod)
        .iter()
        .chain(pod::regular_containers(pod));
    let runtime = node.state.pod(uid);
    for container in all {
        let mut own = ContainerUsage {
            name: container.name.clone(),
            log_bytes: tree_bytes(node, &logs.join(&container.name)).await,
            ..ContainerUsage::default()
        };
        // Ended attempts keep their layers until they are removed.
        for status in runtime
            .containers
            .iter()
            .filter(|c| c.name == container.name)
        {
            if let Ok(stats) = node.runtime.container_stats(&status.id).await {
                own.writable_layer_bytes += stats.writable_layer_bytes;
            }
        }
        usage.containers.push(own);
    }
    for volume in volumes(pod) {
        let dir = crate::volumes::empty_dir_path(&config.pod_dir(uid), &volume.name);
        usage
            .volumes
            .push((volume.name.clone(), tree_bytes(node, &dir).await));
    }
    usage
}

async fn tree_bytes(node: &Node, dir: &std::path::Path) -> u64 {
    let usage = node.mounts.tree_usage(dir).await;
    usage.map_or(0, |usage| usage.bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        let container = |name: &str, limits: serde_json::Value| json!({"name": name, "resources": {"limits": limits}});
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "volumes": [
                {"name": "small", "emptyDir": {"sizeLimit": "5Mi"}},
                {"name": "free", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "containers": [
                container("a", json!({"ephemeral-storage": "5120Ki"})),
                container("b", json!({"ephemeral-storage": "10Mi"}))]}}))
        .unwrap()
    }

    fn usage(a: (u64, u64), b: (u64, u64), volumes: &[(&str, u64)]) -> PodUsage {
        let container = |name: &str, (layer, log): (u64, u64)| ContainerUsage {
            name: name.to_owned(),
            writable_layer_bytes: layer << 20,
            log_bytes: log << 20,
        };
        let volume = |(name, mib): &(&str, u64)| ((*name).to_owned(), mib << 20);
        PodUsage {
            containers: vec![container("a", a), container("b", b)],
            volumes: volumes.iter().map(volume).collect(),
        }
    }

    #[test]
    fn the_first_limit_that_is_passed_is_told() {
        for (usage, expected) in [
            (usage((1, 1), (2, 2), &[("small", 5), ("free", 4)]), None),
            (
                usage((1, 1), (2, 2), &[("small", 6)]),
                Some("Usage of EmptyDir volume \"small\" exceeds the limit \"5Mi\". "),
            ),
            // Logs count as the writable layer does.
            (
                usage((3, 3), (0, 0), &[]),
                Some("Container a exceeded its local ephemeral storage limit \"5Mi\". "),
            ),
            (
                usage((3, 3), (5, 2), &[("free", 3)]),
                Some(
                    "Pod ephemeral local storage usage exceeds the total limit of containers 15Mi. ",
                ),
            ),
        ] {
            assert_eq!(exceeded(&pod(), &usage).as_deref(), expected);
        }
    }

    #[test]
    fn only_pods_with_a_limit_are_measured() {
        let without: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "volumes": [{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "containers": [{"name": "a", "resources": {"limits": {"memory": "1Mi"}}}]}}))
        .unwrap();
        assert!(is_limited(&pod()) && !is_limited(&without));
    }

    #[test]
    fn sizes_are_written_without_a_fraction() {
        let written: Vec<String> = [0, 1000, 28 << 10, 5 << 20, (5 << 20) + 1]
            .map(binary)
            .into();
        assert_eq!(written, ["0", "1000", "28Ki", "5Mi", "5242881"]);
    }
}
