//! Eviction: when the machine runs short, the pod that costs most beyond what it asked for goes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;

use crate::agent::Agent;
use crate::images::gc::{self, GcPolicy};
use crate::local_storage::{self, binary};
use crate::machine;
use crate::node_status::Pressure;
use crate::pod::{self, qos, resources};
use crate::status::Verdict;

/// How often the machine's reserves are read: three small files and one system call.
const PERIOD: Duration = Duration::from_secs(10);
/// Image garbage is looked for at this multiple of the period (five minutes), and under pressure.
const IMAGE_GC_ROUNDS: u32 = 30;
/// A pressure condition stays at least this many rounds (five minutes), so that it does not flap.
const HOLD_ROUNDS: u32 = 30;
/// An evicted pod is ended at once, as one that threatens the node.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Memory,
    Disk,
}

/// One pod as eviction sees it.
pub(crate) struct Candidate {
    pub(crate) pod: Arc<Pod>,
    pub(crate) usage_bytes: u64,
    /// The same for each of its containers.
    pub(crate) containers: Vec<(String, u64)>,
}

impl Signal {
    fn resource(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::Disk => local_storage::RESOURCE,
        }
    }
}

/// The pod to evict: those beyond their request first, then low priority, then most beyond it.
pub(crate) fn choose(signal: Signal, candidates: &[Candidate]) -> Option<&Candidate> {
    let request = |candidate: &Candidate| match signal {
        Signal::Memory => u64::try_from(resources::pod_sum(
            &candidate.pod,
            resources::memory_request_bytes,
        ))
        .unwrap_or(0),
        Signal::Disk => {
            u64::try_from(resources::pod_sum(&candidate.pod, storage_request)).unwrap_or(0)
        }
    };
    candidates
        .iter()
        .filter(|candidate| !is_critical(&candidate.pod))
        .min_by_key(|candidate| {
            let beyond = candidate.usage_bytes.saturating_sub(request(candidate));
            let within = candidate.usage_bytes <= request(candidate);
            (
                within,
                pod::spec(&candidate.pod).priority.unwrap_or(0),
                std::cmp::Reverse(beyond),
            )
        })
}

fn storage_request(container: &Container) -> i64 {
    resources::request(container, local_storage::RESOURCE)
        .and_then(resources::value)
        .unwrap_or(0)
}

/// System pods and guaranteed pods at the highest priorities are not the node's to evict.
fn is_critical(pod: &Pod) -> bool {
    pod::spec(pod).priority.unwrap_or(0) >= 2_000_000_000
}

pub(crate) async fn watch(agent: Arc<Agent>, pressure: watch::Sender<Pressure>) {
    let mut round = 0_u32;
    let mut held = (0_u32, 0_u32, 0_u32);
    loop {
        let node = &agent.node;
        let memory = machine::available_memory_bytes()
            .is_some_and(|available| available < node.config.eviction_memory_available_bytes);
        let disk = disk_is_low(&agent).await;
        let pids = machine::pids()
            .is_some_and(|(running, max)| running.saturating_mul(100) > max.saturating_mul(95));
        let hold = |low: bool, left: u32| {
            if low {
                HOLD_ROUNDS
            } else {
                left.saturating_sub(1)
            }
        };
        held = (hold(memory, held.0), hold(disk, held.1), hold(pids, held.2));
        let current = Pressure {
            memory: held.0 > 0,
            disk: held.1 > 0,
            pids: held.2 > 0,
        };
        pressure.send_if_modified(|known| std::mem::replace(known, current) != current);
        if disk || round.is_multiple_of(IMAGE_GC_ROUNDS) {
            collect_images(&agent).await;
        }
        if memory {
            evict(&agent, Signal::Memory).await;
        } else if disk && disk_is_low(&agent).await {
            evict(&agent, Signal::Disk).await;
        }
        hold_to_limits(&agent).await;
        round = round.wrapping_add(1);
        node.clock.sleep(PERIOD).await;
    }
}

async fn disk_is_low(agent: &Agent) -> bool {
    let config = &agent.node.config;
    agent
        .node
        .mounts
        .fs_usage(&config.data_dir)
        .await
        .is_ok_and(|usage| {
            usage.capacity_bytes > 0
                && usage.available_bytes.saturating_mul(100)
                    < usage
                        .capacity_bytes
                        .saturating_mul(config.eviction_disk_available_percent)
        })
}

async fn collect_images(agent: &Agent) {
    let node = &agent.node;
    let in_use = node.state.images_in_use();
    match gc::collect(
        &*node.images,
        GcPolicy::default(),
        &in_use,
        node.clock.now(),
    )
    .await
    {
        Ok(0) => {}
        Ok(freed) => tracing::info!(freed, "unused images were removed"),
        Err(error) => node
            .events
            .node("Warning", "ImageGCFailed", error.to_string()),
    }
}

/// Pods that may run, and so be evicted.
fn candidates(agent: &Agent) -> impl Iterator<Item = Arc<Pod>> {
    let pods = agent.node.pods.list().into_iter();
    pods.filter(|pod| !pod::is_deleted(pod) && !pod::is_phase_terminal(pod))
}

/// Pods beyond a limit of local storage that they set themselves.
async fn hold_to_limits(agent: &Agent) {
    for pod in candidates(agent).filter(|pod| local_storage::is_limited(pod)) {
        let usage = local_storage::measure(&agent.node, &pod).await;
        if let Some(message) = local_storage::exceeded(&pod, &usage)
            && !is_critical(&pod)
        {
            // The pod alone is to blame: no disruption that its owner would make up for.
            condemn(agent, &pod, message, false);
        }
    }
}

async fn evict(agent: &Agent, signal: Signal) {
    let node = &agent.node;
    let mut all = Vec::new();
    for pod in candidates(agent) {
        let (usage_bytes, containers) = match signal {
            Signal::Memory => memory_usage(agent, &pod).await,
            Signal::Disk => {
                let usage = local_storage::measure(node, &pod).await;
                let containers = usage.containers.iter();
                let containers = containers.map(|c| (c.name.clone(), c.total_bytes()));
                (usage.total_bytes(), containers.collect())
            }
        };
        all.push(Candidate {
            pod,
            usage_bytes,
            containers,
        });
    }
    let resource = signal.resource();
    node.events.node(
        "Warning",
        "EvictionThresholdMet",
        format!("Attempting to reclaim {resource}"),
    );
    let Some(chosen) = choose(signal, &all) else {
        return;
    };
    let message = message(signal, chosen, threshold(agent, signal).await);
    condemn(agent, &chosen.pod, message, true);
}

fn condemn(agent: &Agent, pod: &Pod, message: String, disruption: bool) {
    agent
        .node
        .events
        .pod(pod, "Warning", "Evicted", message.clone());
    let verdict = Verdict {
        reason: "Evicted".to_owned(),
        message,
        disruption,
    };
    agent.condemn(pod::uid(pod), verdict, GRACE);
}

/// In upstream's words: what the node lacked, and the containers that took more than they asked for.
fn message(signal: Signal, chosen: &Candidate, threshold: Option<(u64, u64)>) -> String {
    let resource = signal.resource();
    let mut message = format!("The node was low on resource: {resource}. ");
    if let Some((wanted, available)) = threshold {
        let (wanted, available) = (binary(wanted), binary(available));
        message.push_str(&format!(
            "Threshold quantity: {wanted}, available: {available}. "
        ));
    }
    let all = pod::regular_containers(&chosen.pod)
        .iter()
        .chain(pod::init_containers(&chosen.pod));
    let all: Vec<&Container> = all.collect();
    for (name, used) in &chosen.containers {
        let Some(container) = all.iter().find(|container| container.name == *name) else {
            continue;
        };
        let request = resources::request(container, resource);
        let bytes = request.and_then(resources::value).unwrap_or(0);
        if *used > u64::try_from(bytes).unwrap_or(0) {
            let request = request.map_or("0", |quantity| quantity.0.as_str());
            message.push_str(&format!(
                "Container {name} was using {}, request is {request}, has larger consumption of {resource}. ",
                binary(*used)
            ));
        }
    }
    message
}

/// What must be available and what is.
async fn threshold(agent: &Agent, signal: Signal) -> Option<(u64, u64)> {
    let config = &agent.node.config;
    match signal {
        Signal::Memory => Some((
            config.eviction_memory_available_bytes,
            machine::available_memory_bytes()?,
        )),
        Signal::Disk => {
            let usage = agent.node.mounts.fs_usage(&config.data_dir).await.ok()?;
            let wanted = usage.capacity_bytes / 100 * config.eviction_disk_available_percent;
            Some((wanted, usage.available_bytes))
        }
    }
}

async fn memory_usage(agent: &Agent, pod: &Pod) -> (u64, Vec<(String, u64)>) {
    let node = &agent.node;
    let whole = node.cgroups.stats(&qos::cgroup_path(pod)).await;
    let mut containers = Vec::new();
    for status in node.state.pod(pod::uid(pod)).running() {
        if let Ok(stats) = node.runtime.container_stats(&status.id).await {
            containers.push((status.name.clone(), stats.cgroup.memory_working_set_bytes));
        }
    }
    let whole = whole.map_or(0, |stats| stats.memory_working_set_bytes);
    (whole, containers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn candidate(name: &str, request: &str, usage_mib: u64, priority: i32) -> Candidate {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"memory": request}}}]}}),
        )
        .unwrap();
        Candidate {
            pod: Arc::new(pod),
            usage_bytes: usage_mib << 20,
            containers: vec![("c".to_owned(), usage_mib << 20)],
        }
    }

    #[test]
    fn the_message_names_those_that_took_more_than_they_asked_for() {
        let beyond = candidate("beyond", "10Mi", 20, 0);
        assert_eq!(
            message(Signal::Memory, &beyond, Some((100 << 20, 95 << 20))),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 95Mi. \
             Container c was using 20Mi, request is 10Mi, has larger consumption of memory. "
        );
        assert_eq!(
            message(Signal::Disk, &candidate("p", "0", 3, 0), None),
            "The node was low on resource: ephemeral-storage. \
             Container c was using 3Mi, request is 0, has larger consumption of ephemeral-storage. "
        );
    }

    #[test]
    fn who_uses_more_than_it_asked_for_goes_first() {
        let chosen = |candidates: &[Candidate]| {
            choose(Signal::Memory, candidates).map(|c| pod::name(&c.pod).to_owned())
        };
        assert_eq!(
            chosen(&[
                candidate("within", "500Mi", 400, 0),
                candidate("beyond", "10Mi", 20, 0)
            ])
            .as_deref(),
            Some("beyond")
        );
        assert_eq!(
            chosen(&[
                candidate("low", "0", 20, 0),
                candidate("high", "0", 900, 10)
            ])
            .as_deref(),
            Some("low")
        );
        assert_eq!(
            chosen(&[candidate("small", "0", 20, 0), candidate("big", "0", 30, 0)]).as_deref(),
            Some("big")
        );
        assert_eq!(chosen(&[candidate("system", "0", 30, 2_000_001_000)]), None);
    }
}
