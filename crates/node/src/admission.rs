//! What the node refuses although the API assigned it: pods that do not fit here. Assignments are
//! made from a picture of the node that may be old, or by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as ApiNode, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use keelson_semantics::{node_selector, taint};

use crate::machine::Allocatable;
use crate::pod::{self, resources};
use crate::status::Verdict;
use crate::sysctls::{self, UnsafeSysctls};

/// What a decision needs to know.
pub(crate) struct Situation<'a> {
    /// The Node object as other parties see it; absent until it has been read once.
    pub(crate) node: Option<&'a ApiNode>,
    pub(crate) allocatable: Allocatable,
    pub(crate) max_pods: usize,
    pub(crate) allowed_unsafe_sysctls: &'a UnsafeSysctls,
    /// Pods that hold resources of this node.
    pub(crate) active: &'a [Arc<Pod>],
}

/// Why the pod cannot run here, if so.
pub(crate) fn refuse(pod: &Pod, situation: &Situation<'_>) -> Option<Verdict> {
    if let Some(reason) = sysctls::forbidden(pod, situation.allowed_unsafe_sysctls) {
        return Some(verdict("SysctlForbidden", &reason));
    }
    let system = pod::spec(pod).os.as_ref().map(|os| os.name.as_str());
    if system.is_some_and(|name| name != "linux") {
        return Some(verdict(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ));
    }
    if let Some((resource, shortage)) = shortage(pod, situation) {
        return Some(verdict(&format!("OutOf{resource}"), &shortage));
    }
    if let Some(node) = situation.node
        && !node_selector::admits(pod::spec(pod), node.into())
    {
        return Some(verdict(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ));
    }
    if situation.active.iter().any(|other| ports_clash(pod, other)) {
        return Some(verdict(
            "NodePorts",
            "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
        ));
    }
    let taints = situation
        .node
        .and_then(|node| node.spec.as_ref()?.taints.as_deref())
        .unwrap_or_default();
    let tolerations = pod::spec(pod).tolerations.as_deref().unwrap_or_default();
    taint::untolerated(tolerations, taints, &["NoExecute"]).map(|_| {
        verdict(
            "TaintToleration",
            "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
        )
    })
}

fn verdict(reason: &str, message: &str) -> Verdict {
    Verdict {
        reason: reason.to_owned(),
        message: format!("Pod was rejected: {message}"),
        disruption: false,
    }
}

/// The first resource that is not enough, with what to say about it.
fn shortage(pod: &Pod, situation: &Situation<'_>) -> Option<(String, String)> {
    let explain = |resource: &str, requested: i64, used: i64, capacity: i64| {
        let text = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        (resource.to_owned(), text)
    };
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let active = situation.active.len();
    if active >= situation.max_pods {
        return Some(explain("pods", 1, count(active), count(situation.max_pods)));
    }
    capacities(situation)
        .into_iter()
        .find_map(|(resource, capacity)| {
            let requested = requested(pod, &resource);
            let used = situation.active.iter().fold(0_i64, |sum, other| {
                sum.saturating_add(self::requested(other, &resource))
            });
            (requested > 0 && requested.saturating_add(used) > capacity)
                .then(|| explain(&resource, requested, used, capacity))
        })
}

/// What the node has: its own, and what others announced on the Node object.
fn capacities(situation: &Situation<'_>) -> BTreeMap<String, i64> {
    let announced = situation
        .node
        .and_then(|node| node.status.as_ref()?.allocatable.as_ref());
    let mut capacities: BTreeMap<String, i64> = announced
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.contains('/') || name.starts_with("hugepages-"))
        .filter_map(|(name, quantity)| Some((name.clone(), resources::value(quantity)?)))
        .collect();
    let own = situation.allocatable;
    capacities.extend([
        ("cpu".to_owned(), own.cpu_milli),
        ("memory".to_owned(), own.memory_bytes),
        ("ephemeral-storage".to_owned(), own.storage_bytes),
    ]);
    capacities
}

/// What the pod asks for at its peak: CPU in thousandths, everything else in units.
fn requested(pod: &Pod, resource: &str) -> i64 {
    let read = |quantity: &Quantity| {
        let number = if resource == "cpu" {
            resources::milli_value(quantity)
        } else {
            resources::value(quantity)
        };
        number.unwrap_or(0)
    };
    let whole = pod::spec(pod)
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref()?.get(resource));
    let sum = match whole {
        Some(quantity) => read(quantity),
        None => resources::pod_sum(pod, |container| {
            resources::request(container, resource).map_or(0, read)
        }),
    };
    let overhead = pod::spec(pod)
        .overhead
        .as_ref()
        .and_then(|overhead| overhead.get(resource))
        .map_or(0, read);
    sum.saturating_add(overhead)
}

/// Protocol, port and address of each port that the pod takes on the node.
fn host_ports(pod: &Pod) -> Vec<(&str, i32, &str)> {
    let sidecars = pod::init_containers(pod)
        .iter()
        .filter(|container| pod::is_sidecar(container));
    pod::regular_containers(pod)
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            Some((
                port.protocol.as_deref().unwrap_or("TCP"),
                number,
                port.host_ip.as_deref().unwrap_or_default(),
            ))
        })
        .collect()
}

fn ports_clash(pod: &Pod, other: &Pod) -> bool {
    let is_any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
    let taken = host_ports(other);
    host_ports(pod).iter().any(|(protocol, port, ip)| {
        taken.iter().any(|(other_protocol, other_port, other_ip)| {
            protocol == other_protocol
                && port == other_port
                && (ip == other_ip || is_any(ip) || is_any(other_ip))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap())
    }

    fn asks(cpu: &str) -> Arc<Pod> {
        pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]}))
    }

    fn reason(subject: &Pod, active: &[Arc<Pod>]) -> Option<String> {
        let node: ApiNode = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"zone": "a", "size": "5"}},
            "spec": {"taints": [{"key": "out", "effect": "NoExecute"}]}}))
        .unwrap();
        refuse(
            subject,
            &Situation {
                node: Some(&node),
                allocatable: Allocatable {
                    cpu_milli: 2000,
                    memory_bytes: 1 << 30,
                    storage_bytes: 1 << 30,
                },
                max_pods: 2,
                allowed_unsafe_sysctls: &UnsafeSysctls::default(),
                active,
            },
        )
        .map(|verdict| verdict.reason)
    }

    fn tolerant(mut spec: Value) -> Arc<Pod> {
        spec["tolerations"] = json!([{"operator": "Exists"}]);
        spec["containers"] = json!([{"name": "a"}]);
        pod(spec)
    }

    #[test]
    fn what_others_use_is_not_free() {
        assert_eq!(reason(&asks("3"), &[]).unwrap(), "OutOfcpu");
        assert_eq!(reason(&asks("1500m"), &[asks("600m")]).unwrap(), "OutOfcpu");
        let two = [asks("0"), asks("0")];
        assert_eq!(reason(&asks("0"), &two).unwrap(), "OutOfpods");
        assert_eq!(reason(&asks("1"), &[asks("1")]).unwrap(), "TaintToleration");
        assert_eq!(reason(&tolerant(json!({})), &[]), None);
    }

    #[test]
    fn selectors_and_affinity_are_held_against_the_labels() {
        let wrong = tolerant(json!({"nodeSelector": {"zone": "b"}}));
        assert_eq!(reason(&wrong, &[]).unwrap(), "NodeAffinity");
        let with = |requirement: Value| {
            let terms = json!([{"matchExpressions": [requirement]}]);
            let affinity = json!({"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
            reason(&tolerant(json!({"affinity": affinity})), &[])
        };
        let larger = json!({"key": "size", "operator": "Gt", "values": ["4"]});
        assert_eq!(with(larger), None);
        let smaller = json!({"key": "size", "operator": "Lt", "values": ["4"]});
        assert_eq!(with(smaller).unwrap(), "NodeAffinity");
        let absent = json!({"key": "size", "operator": "DoesNotExist"});
        assert_eq!(with(absent).unwrap(), "NodeAffinity");
    }

    #[test]
    fn a_port_of_the_node_has_one_owner() {
        let at = |ip: &str, protocol: &str| {
            pod(json!({"tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "a", "ports": [
                    {"containerPort": 1, "hostPort": 80, "hostIP": ip, "protocol": protocol}]}]}))
        };
        let taken = [at("127.0.0.1", "TCP")];
        assert_eq!(reason(&at("", "TCP"), &taken).unwrap(), "NodePorts");
        assert_eq!(reason(&at("127.0.0.2", "TCP"), &taken), None);
        assert_eq!(reason(&at("", "UDP"), &taken), None);
    }
}
