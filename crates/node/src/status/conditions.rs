//! The pod conditions that the node owns.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};

use super::StatusInput;
use crate::pod;

/// Conditions that the node writes; all others belong to somebody else.
pub(super) const OWNED: &[&str] = &[
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "DisruptionTarget",
];

struct Finding {
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

pub(super) fn compute(
    input: &StatusInput<'_>,
    old: &PodStatus,
    new: &PodStatus,
) -> Vec<PodCondition> {
    let phase = new.phase.as_deref().unwrap_or_default();
    let containers_ready = containers_ready(input.pod, new, phase);
    let ready = ready(input.pod, old, &containers_ready);
    let mut findings = vec![
        Finding {
            kind: "PodReadyToStartContainers",
            status: input.runtime.ready_sandbox().is_some() && !input.stopped,
            reason: "",
            message: String::new(),
        },
        initialized(input.pod, new, phase),
        ready,
        containers_ready,
        Finding {
            kind: "PodScheduled",
            status: true,
            reason: "",
            message: String::new(),
        },
    ];
    if let Some(verdict) = input.verdict.filter(|verdict| verdict.disruption) {
        findings.push(Finding {
            kind: "DisruptionTarget",
            status: true,
            reason: "TerminationByKubelet",
            message: verdict.message.clone(),
        });
    }
    let now = pod::time(input.now);
    let mut conditions: Vec<PodCondition> = findings
        .into_iter()
        .map(|finding| {
            let status = if finding.status { "True" } else { "False" };
            let existing = old
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == finding.kind);
            let since = existing
                .filter(|condition| condition.status == status)
                .and_then(|condition| condition.last_transition_time.clone());
            PodCondition {
                type_: finding.kind.to_owned(),
                status: status.to_owned(),
                reason: (!finding.reason.is_empty()).then(|| finding.reason.to_owned()),
                message: (!finding.message.is_empty()).then_some(finding.message),
                last_probe_time: None,
                last_transition_time: since.or_else(|| Some(now.clone())),
                observed_generation: input.pod.metadata.generation,
            }
        })
        .collect();
    let others: Vec<PodCondition> = old
        .conditions
        .iter()
        .flatten()
        .filter(|condition| !conditions.iter().any(|own| own.type_ == condition.type_))
        .cloned()
        .collect();
    conditions.extend(others);
    conditions
}

/// Go prints a list of words as `[a b]`.
fn words(names: &[String]) -> String {
    format!("[{}]", names.join(" "))
}

fn status_of<'a>(
    list: &'a Option<Vec<ContainerStatus>>,
    name: &str,
) -> Option<&'a ContainerStatus> {
    list.iter().flatten().find(|status| status.name == name)
}

fn is_unknown(status: Option<&ContainerStatus>) -> bool {
    status.is_none()
}

fn containers_ready(pod: &Pod, new: &PodStatus, phase: &str) -> Finding {
    let kind = "ContainersReady";
    match phase {
        "Succeeded" => {
            return Finding {
                kind,
                status: false,
                reason: "PodCompleted",
                message: String::new(),
            };
        }
        "Failed" => {
            return Finding {
                kind,
                status: false,
                reason: "PodFailed",
                message: String::new(),
            };
        }
        _ => {}
    }
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    let sidecars = pod::init_containers(pod)
        .iter()
        .filter(|c| pod::is_sidecar(c))
        .map(|c| (c, &new.init_container_statuses));
    let regular = pod::regular_containers(pod)
        .iter()
        .map(|c| (c, &new.container_statuses));
    for (container, list) in sidecars.chain(regular) {
        let status = status_of(list, &container.name);
        if is_unknown(status) {
            unknown.push(container.name.clone());
        } else if !status.is_some_and(|status| status.ready) {
            unready.push(container.name.clone());
        }
    }
    finding(
        kind,
        "ContainersNotReady",
        "containers with unready status: ",
        &unknown,
        &unready,
    )
}

fn finding(
    kind: &'static str,
    reason: &'static str,
    prefix: &str,
    unknown: &[String],
    bad: &[String],
) -> Finding {
    let mut messages = Vec::new();
    if !unknown.is_empty() {
        messages.push(format!(
            "containers with unknown status: {}",
            words(unknown)
        ));
    }
    if !bad.is_empty() {
        messages.push(format!("{prefix}{}", words(bad)));
    }
    let status = messages.is_empty();
    Finding {
        kind,
        status,
        reason: if status { "" } else { reason },
        message: messages.join(", "),
    }
}

fn ready(pod: &Pod, old: &PodStatus, containers: &Finding) -> Finding {
    if !containers.status {
        return Finding {
            kind: "Ready",
            status: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let mut messages = Vec::new();
    for gate in pod::spec(pod)
        .readiness_gates
        .as_deref()
        .unwrap_or_default()
    {
        let kind = &gate.condition_type;
        match old
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == *kind)
        {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate \"{kind}\" does not exist."
            )),
            Some(condition) if condition.status != "True" => messages.push(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    let status = messages.is_empty();
    Finding {
        kind: "Ready",
        status,
        reason: if status { "" } else { "ReadinessGatesNotReady" },
        message: messages.join(", "),
    }
}

fn initialized(pod: &Pod, new: &PodStatus, phase: &str) -> Finding {
    let kind = "Initialized";
    if phase == "Succeeded" {
        return Finding {
            kind,
            status: true,
            reason: "PodCompleted",
            message: String::new(),
        };
    }
    // Once a regular container has run, the pod counts as initialised for good.
    let main_began = new.container_statuses.iter().flatten().any(|status| {
        status
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            || status
                .last_state
                .as_ref()
                .is_some_and(|state| state.terminated.is_some())
    });
    if main_began {
        return Finding {
            kind,
            status: true,
            reason: "",
            message: String::new(),
        };
    }
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in pod::init_containers(pod) {
        let status = status_of(&new.init_container_statuses, &container.name);
        if is_unknown(status) {
            unknown.push(container.name.clone());
            continue;
        }
        let done = if pod::is_sidecar(container) {
            status.is_some_and(|status| status.started == Some(true))
        } else {
            status.is_some_and(|status| status.ready)
        };
        if !done {
            incomplete.push(container.name.clone());
        }
    }
    finding(
        kind,
        "ContainersNotInitialized",
        "containers with incomplete status: ",
        &unknown,
        &incomplete,
    )
}
