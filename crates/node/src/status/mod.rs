//! A pod's status: a pure function of its specification, what runs and what probes say.

mod conditions;
mod containers;
mod patch;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodIP, PodStatus};

use crate::plan::{ProbeState, RuntimePod, StartError, should_restart};
use crate::pod::{self, ContainerKind};

pub(crate) use patch::patch;

/// The scheme of container ids in statuses.
pub(crate) const ID_PREFIX: &str = "keelson://";

/// A phase that the node forces, with its reason: eviction, deadline, admission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Adds the `DisruptionTarget` condition.
    pub(crate) disruption: bool,
}

pub(crate) struct StatusInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) runtime: &'a RuntimePod,
    pub(crate) probes: &'a BTreeMap<String, ProbeState>,
    pub(crate) start_errors: &'a BTreeMap<String, StartError>,
    pub(crate) backing_off: &'a BTreeMap<String, Duration>,
    /// Containers whose start (with its hook) is under way.
    pub(crate) starting: &'a dyn Fn(&str) -> bool,
    /// Repository digests by image id.
    pub(crate) digests: &'a BTreeMap<String, String>,
    pub(crate) host_ips: &'a [String],
    pub(crate) verdict: Option<&'a Verdict>,
    /// The pod will not run (again): what is dead stays dead.
    pub(crate) stopping: bool,
    /// Nothing of it runs any more.
    pub(crate) stopped: bool,
    pub(crate) now: SystemTime,
}

/// The restart count that the API server already knows, for a container that this machine has no
/// record of any more.
pub(crate) fn recorded_restarts(pod: &Pod, name: &str) -> u32 {
    recorded(pod, name).map_or(0, |status| {
        let known = u32::try_from(status.restart_count).unwrap_or(0);
        // It ran before, so starting it now is a restart.
        let ran = status
            .container_id
            .as_deref()
            .is_some_and(|id| !id.is_empty());
        known + u32::from(ran)
    })
}

/// What the API server has about a container.
pub(crate) fn recorded<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .find(|container| container.name == name)
}

pub(crate) fn compute(input: &StatusInput<'_>) -> PodStatus {
    let old = input.pod.status.clone().unwrap_or_default();
    let statuses = containers::compute(input);
    let mut phase = phase(input, &statuses).to_owned();
    // A phase that says the pod ended is final.
    if matches!(old.phase.as_deref(), Some("Succeeded" | "Failed")) {
        phase = old.phase.clone().unwrap_or_default();
    }
    let (mut reason, mut message) = (None, None);
    if let Some(verdict) = input.verdict {
        phase = "Failed".to_owned();
        reason = Some(verdict.reason.clone());
        message = Some(verdict.message.clone());
    } else if phase == "Failed" {
        reason = old.reason.clone();
        message = old.message.clone();
    }
    let pod_ips = pod_ips(input, &old);
    let mut status = PodStatus {
        phase: Some(phase),
        reason,
        message,
        host_ip: input.host_ips.first().cloned(),
        host_ips: Some(
            input
                .host_ips
                .iter()
                .map(|ip| HostIP { ip: ip.clone() })
                .collect(),
        ),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty())
            .then(|| pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: old
            .start_time
            .clone()
            .or_else(|| Some(pod::time(input.now))),
        qos_class: old
            .qos_class
            .clone()
            .or_else(|| Some(pod::qos::class(input.pod).as_str().to_owned())),
        observed_generation: input.pod.metadata.generation,
        init_container_statuses: statuses.init,
        container_statuses: statuses.regular,
        ephemeral_container_statuses: statuses.ephemeral,
        nominated_node_name: old.nominated_node_name.clone(),
        resize: old.resize.clone(),
        resource_claim_statuses: old.resource_claim_statuses.clone(),
        ..PodStatus::default()
    };
    status.conditions = Some(conditions::compute(input, &old, &status));
    status
}

fn pod_ips(input: &StatusInput<'_>, old: &PodStatus) -> Vec<String> {
    if pod::is_host_network(input.pod) {
        return input.host_ips.to_vec();
    }
    let current: Vec<String> = input
        .runtime
        .sandboxes
        .first()
        .map(|sandbox| sandbox.ips.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    if !current.is_empty() {
        return current;
    }
    // The address stays on record after the sandbox is gone.
    if input.runtime.sandboxes.is_empty() && !input.stopping {
        return Vec::new();
    }
    old.pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.clone())
        .collect()
}

/// Counts behind the phase.
#[derive(Default)]
struct Counts {
    pending_init: usize,
    failed_init_for_good: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    stopped_for_good: usize,
    succeeded: usize,
}

fn phase(input: &StatusInput<'_>, statuses: &containers::Statuses) -> &'static str {
    let mut counts = Counts::default();
    let find = |list: &Option<Vec<ContainerStatus>>, name: &str| -> Option<ContainerStatus> {
        list.iter()
            .flatten()
            .find(|status| status.name == name)
            .cloned()
    };
    for container in pod::init_containers(input.pod) {
        let status = find(&statuses.init, &container.name);
        let end = status.as_ref().and_then(end_code);
        let runs = status.as_ref().is_some_and(is_running);
        match (pod::init_kind(container), end) {
            (ContainerKind::Sidecar, _) => {
                counts.running += usize::from(runs);
                let started = status.as_ref().and_then(|s| s.started).unwrap_or(false);
                if (runs && !started) || (!runs && end.is_none()) {
                    counts.pending_init += 1;
                }
            }
            (_, None) => counts.pending_init += 1,
            (_, Some(_)) if runs => counts.pending_init += 1,
            (kind, Some(code)) => {
                if code != 0 && !should_restart(input.pod, container, kind, code) {
                    counts.failed_init_for_good += 1;
                } else if code != 0 {
                    counts.pending_init += 1;
                }
            }
        }
    }
    for container in pod::regular_containers(input.pod) {
        let status = find(&statuses.regular, &container.name);
        match status.as_ref() {
            Some(status) if is_running(status) => counts.running += 1,
            Some(status) => match end_code(status) {
                Some(code) => {
                    counts.stopped += 1;
                    counts.succeeded += usize::from(code == 0);
                    let restarts = input.runtime.is_replaced(&container.name)
                        || should_restart(input.pod, container, ContainerKind::Regular, code);
                    counts.stopped_for_good += usize::from(!restarts);
                }
                None => counts.waiting += 1,
            },
            None => counts.waiting += 1,
        }
    }
    decide_phase(input, &counts)
}

fn decide_phase(input: &StatusInput<'_>, counts: &Counts) -> &'static str {
    let main_began = counts.stopped > 0
        || pod::regular_containers(input.pod)
            .iter()
            .any(|c| input.runtime.latest(&c.name).is_some());
    if input.stopped {
        return if counts.failed_init_for_good == 0
            && counts.stopped > 0
            && counts.stopped == counts.succeeded
            && counts.waiting == 0
        {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if counts.failed_init_for_good > 0 {
        return "Failed";
    }
    if counts.pending_init > 0 && !main_began {
        return "Pending";
    }
    if counts.waiting > 0 {
        return "Pending";
    }
    let regular_running = pod::regular_containers(input.pod).len() > counts.stopped;
    if regular_running {
        return "Running";
    }
    if counts.stopped == 0 {
        return "Pending";
    }
    // Sidecars still end after the last regular container has.
    if counts.stopped_for_good == counts.stopped && counts.running == 0 {
        return if counts.stopped == counts.succeeded {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    "Running"
}

fn is_running(status: &ContainerStatus) -> bool {
    status
        .state
        .as_ref()
        .is_some_and(|state| state.running.is_some())
}

/// The exit code of a container that is not running: now, or the last time.
fn end_code(status: &ContainerStatus) -> Option<i32> {
    let state = status.state.as_ref()?;
    if let Some(terminated) = state.terminated.as_ref() {
        return Some(terminated.exit_code);
    }
    status
        .last_state
        .as_ref()?
        .terminated
        .as_ref()
        .map(|terminated| terminated.exit_code)
}

#[cfg(test)]
mod tests;
