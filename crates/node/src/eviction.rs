//! Eviction: when the machine runs short, the pod that costs most beyond what it asked for goes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use crate::agent::Agent;
use crate::images::gc::{self, GcPolicy};
use crate::machine;
use crate::node_status::Pressure;
use crate::pod::qos::QosClass;
use crate::pod::{self, qos, resources};
use crate::status::Verdict;

/// How often the machine's reserves are read: three small files and one system call.
const PERIOD: Duration = Duration::from_secs(10);
/// Image garbage is looked for at this multiple of the period (five minutes), and under pressure.
const IMAGE_GC_ROUNDS: u32 = 30;
/// A pressure condition stays at least this many rounds (five minutes), so that it does not flap.
const HOLD_ROUNDS: u32 = 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Memory,
    Disk,
}

/// One pod as eviction sees it.
pub(crate) struct Candidate {
    pub(crate) pod: Arc<Pod>,
    pub(crate) usage_bytes: u64,
}

/// The pod to evict: those beyond their request first, then low priority, then most beyond it.
pub(crate) fn choose(signal: Signal, candidates: &[Candidate]) -> Option<&Candidate> {
    let request = |candidate: &Candidate| match signal {
        Signal::Memory => u64::try_from(resources::pod_sum(
            &candidate.pod,
            resources::memory_request_bytes,
        ))
        .unwrap_or(0),
        Signal::Disk => 0,
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

async fn evict(agent: &Agent, signal: Signal) {
    let node = &agent.node;
    let mut candidates = Vec::new();
    for pod in node.pods.list() {
        if pod::is_deleted(&pod) || pod::is_phase_terminal(&pod) {
            continue;
        }
        let usage_bytes = match signal {
            Signal::Memory => node
                .cgroups
                .stats(&qos::cgroup_path(&pod))
                .await
                .map_or(0, |stats| stats.memory_working_set_bytes),
            Signal::Disk => disk_usage(agent, pod::uid(&pod)).await,
        };
        candidates.push(Candidate { pod, usage_bytes });
    }
    let (resource, grace) = match signal {
        Signal::Memory => ("memory", Duration::from_secs(1)),
        Signal::Disk => ("ephemeral-storage", Duration::from_secs(1)),
    };
    node.events.node(
        "Warning",
        "EvictionThresholdMet",
        format!("Attempting to reclaim {resource}"),
    );
    let Some(chosen) = choose(signal, &candidates) else {
        return;
    };
    let message = format!(
        "The node was low on resource: {resource}. Pod {} was using {}Ki, class {}. ",
        pod::name(&chosen.pod),
        chosen.usage_bytes / 1024,
        match qos::class(&chosen.pod) {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    );
    node.events
        .pod(&chosen.pod, "Warning", "Evicted", message.clone());
    let verdict = Verdict {
        reason: "Evicted".to_owned(),
        message,
        disruption: true,
    };
    agent.condemn(pod::uid(&chosen.pod), verdict, grace);
}

async fn disk_usage(agent: &Agent, uid: &str) -> u64 {
    let runtime = agent.node.state.pod(uid);
    let mut bytes = 0_u64;
    for container in &runtime.containers {
        if let Ok(stats) = agent.node.runtime.container_stats(&container.id).await {
            bytes = bytes.saturating_add(stats.writable_layer_bytes);
        }
    }
    bytes
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
        }
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
