//! The statuses of the single containers.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, LinuxContainerUser,
    ResourceRequirements, VolumeMountStatus,
};
use keelson_ports::{ContainerState, ContainerStatus as RuntimeStatus};

use super::{ID_PREFIX, StatusInput, recorded};
use crate::plan::exit_code;
use crate::pod::{self, ContainerKind};

pub(super) struct Statuses {
    pub(super) init: Option<Vec<ContainerStatus>>,
    pub(super) regular: Option<Vec<ContainerStatus>>,
    pub(super) ephemeral: Option<Vec<ContainerStatus>>,
}

pub(super) fn compute(input: &StatusInput<'_>) -> Statuses {
    let init: Vec<ContainerStatus> = pod::init_containers(input.pod)
        .iter()
        .map(|c| one(input, c, pod::init_kind(c)))
        .collect();
    let regular: Vec<ContainerStatus> = pod::regular_containers(input.pod)
        .iter()
        .map(|c| one(input, c, ContainerKind::Regular))
        .collect();
    let ephemeral: Vec<ContainerStatus> = pod::ephemeral_containers(input.pod)
        .iter()
        .map(|(c, _)| one(input, c, ContainerKind::Ephemeral))
        .collect();
    let list = |statuses: Vec<ContainerStatus>| (!statuses.is_empty()).then_some(statuses);
    Statuses {
        init: list(init),
        regular: list(regular),
        ephemeral: list(ephemeral),
    }
}

fn one(input: &StatusInput<'_>, container: &Container, kind: ContainerKind) -> ContainerStatus {
    let name = &container.name;
    let Some(runtime) = input.runtime.latest(name) else {
        return without_record(input, container, kind);
    };
    let starting = (input.starting)(name);
    let mut state = state_of(runtime);
    let mut last_state = input
        .runtime
        .previous(name)
        .map(state_of)
        .filter(|state| state.terminated.is_some());
    let dead = state.terminated.is_some();
    let restarts = || input.runtime.restarts(input.pod, container, kind, runtime);
    if dead && !input.stopping && restarts() {
        let waiting = if let Some(delay) = input.backing_off.get(name) {
            Some((
                "CrashLoopBackOff".to_owned(),
                crash_loop_message(input, name, *delay),
            ))
        } else {
            input
                .start_errors
                .get(name)
                .map(|error| (error.reason.clone(), error.message.clone()))
        };
        if let Some((reason, message)) = waiting {
            last_state = Some(state);
            state = waiting_state(&reason, Some(message));
        }
    } else if runtime.state == ContainerState::Created {
        state = waiting_to_begin(input);
    }
    let running = state.running.is_some();
    let probe = input.probes.get(name);
    let (started, ready) = match probe.filter(|probe| probe.id == runtime.id) {
        Some(probe) => (probe.started, probe.started && probe.ready),
        // Probes of this container have not begun: without any it is ready as soon as it runs.
        None => (
            !has_startup_probe(container),
            !has_readiness_probe(container) && !has_startup_probe(container),
        ),
    };
    let started = running && !starting && started;
    let ready = match kind {
        ContainerKind::Init => state.terminated.as_ref().is_some_and(|t| t.exit_code == 0),
        ContainerKind::Ephemeral => false,
        _ => started && ready,
    };
    let resources = container.resources.clone().unwrap_or_default();
    ContainerStatus {
        name: name.clone(),
        image: if runtime.image.is_empty() {
            container.image.clone().unwrap_or_default()
        } else {
            runtime.image.clone()
        },
        image_id: input
            .digests
            .get(&runtime.image_id)
            .cloned()
            .unwrap_or_else(|| runtime.image_id.clone()),
        container_id: Some(format!("{ID_PREFIX}{}", runtime.id)),
        restart_count: i32::try_from(runtime.attempt).unwrap_or(i32::MAX),
        last_state: Some(last_state.unwrap_or_default()),
        state: Some(state),
        ready,
        started: Some(started),
        allocated_resources: running.then(|| resources.requests.clone()).flatten(),
        resources: running.then(|| ResourceRequirements {
            requests: resources.requests.clone(),
            limits: resources.limits.clone(),
            claims: None,
        }),
        user: runtime
            .user
            .as_ref()
            .map(|(uid, gid, groups)| ContainerUser {
                linux: Some(LinuxContainerUser {
                    uid: i64::from(*uid),
                    gid: i64::from(*gid),
                    supplemental_groups: (!groups.is_empty())
                        .then(|| groups.iter().map(|g| i64::from(*g)).collect()),
                }),
            }),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    }
}

fn has_startup_probe(container: &Container) -> bool {
    container.startup_probe.is_some()
}

fn has_readiness_probe(container: &Container) -> bool {
    container.readiness_probe.is_some()
}

/// A container that this machine has no record of.
fn without_record(
    input: &StatusInput<'_>,
    container: &Container,
    kind: ContainerKind,
) -> ContainerStatus {
    let old = recorded(input.pod, &container.name);
    let waiting = || {
        if let Some(error) = input.start_errors.get(&container.name) {
            return waiting_state(&error.reason, Some(error.message.clone()));
        }
        waiting_to_begin(input)
    };
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        ready: false,
        started: Some(false),
        state: Some(waiting()),
        last_state: Some(ApiState::default()),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    };
    let Some(old) = old else { return status };
    let was_terminated = old
        .state
        .as_ref()
        .is_some_and(|state| state.terminated.is_some());
    let was_running = old
        .state
        .as_ref()
        .is_some_and(|state| state.running.is_some());
    if was_terminated {
        // Records go when a pod is cleaned up; what was said last stays true.
        return ContainerStatus {
            ready: kind == ContainerKind::Init && old.ready,
            ..old.clone()
        };
    }
    status.restart_count = old.restart_count;
    status.last_state = old.last_state.clone().or(status.last_state);
    if was_running {
        let lost = ApiState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some(if input.stopping {
                    "The container could not be located when the pod was terminated".to_owned()
                } else {
                    "The container could not be located when the pod was deleted.  The container used to be Running".to_owned()
                }),
                ..ContainerStateTerminated::default()
            }),
            ..ApiState::default()
        };
        status.image_id = old.image_id.clone();
        if input.stopping {
            status.container_id = old.container_id.clone();
            status.state = Some(lost);
        } else {
            status.last_state = Some(lost);
            status.restart_count = old.restart_count.saturating_add(1);
        }
    }
    status
}

/// The reason is the same for every container of a pod that has init containers.
fn waiting_to_begin(input: &StatusInput<'_>) -> ApiState {
    let reason = if pod::init_containers(input.pod).is_empty() {
        "ContainerCreating"
    } else {
        "PodInitializing"
    };
    waiting_state(reason, None)
}

fn waiting_state(reason: &str, message: Option<String>) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ApiState::default()
    }
}

fn state_of(runtime: &RuntimeStatus) -> ApiState {
    let started_at = runtime.started_at.map(pod::time);
    match runtime.state {
        ContainerState::Running => ApiState {
            running: Some(ContainerStateRunning { started_at }),
            ..ApiState::default()
        },
        ContainerState::Created => waiting_state("ContainerCreating", None),
        ContainerState::Exited | ContainerState::Unknown => {
            let reason = if runtime.oom_killed {
                "OOMKilled"
            } else {
                &runtime.reason
            };
            let reason = match (reason, exit_code(runtime)) {
                ("", 0) => "Completed",
                ("", _) if runtime.state == ContainerState::Unknown => "ContainerStatusUnknown",
                ("", _) => "Error",
                (given, _) => given,
            };
            ApiState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: exit_code(runtime),
                    // Signals are told through the exit code, as every runtime reports them.
                    signal: None,
                    reason: Some(reason.to_owned()),
                    message: Some(runtime.message.clone()).filter(|message| !message.is_empty()),
                    started_at,
                    finished_at: runtime.finished_at.map(pod::time),
                    container_id: Some(format!("{ID_PREFIX}{}", runtime.id)),
                }),
                ..ApiState::default()
            }
        }
    }
}

fn crash_loop_message(input: &StatusInput<'_>, name: &str, delay: Duration) -> String {
    format!(
        "back-off {} restarting failed container={name} pod={}_{}({})",
        go_duration(delay),
        pod::name(input.pod),
        pod::namespace(input.pod),
        pod::uid(input.pod)
    )
}

/// Whole seconds the way Go prints them: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container
        .volume_mounts
        .as_deref()
        .filter(|mounts| !mounts.is_empty())?;
    let statuses = mounts
        .iter()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|read_only| *read_only),
            recursive_read_only: mount.read_only.filter(|ro| *ro).map(|_| {
                match mount.recursive_read_only.as_deref() {
                    Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
                    _ => "Disabled".to_owned(),
                }
            }),
            ..VolumeMountStatus::default()
        })
        .collect();
    Some(statuses)
}
