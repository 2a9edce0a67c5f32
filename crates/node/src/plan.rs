//! What to do next for one pod: a pure function of what is wanted and what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_ports::{ContainerState, ContainerStatus, PodSandboxStatus, SandboxState};

use crate::pod::{self, ContainerKind};

pub(crate) const BACKOFF_FIRST: Duration = Duration::from_secs(10);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// For how long the end of a container that is being replaced is kept to ourselves. Replacing is
/// one step for whoever watches the pod, unless it takes longer than upstream's node agent would
/// need to notice.
const REPLACEMENT: Duration = Duration::from_secs(1);

/// What the runtime has of one pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct RuntimePod {
    /// Newest first.
    pub(crate) sandboxes: Vec<PodSandboxStatus>,
    pub(crate) containers: Vec<ContainerStatus>,
    /// Ids of containers that were stopped because their definition changed: they are started anew
    /// whatever the restart policy says.
    pub(crate) replaced: BTreeSet<String>,
}

impl RuntimePod {
    /// Whether a container that ended is started again.
    pub(crate) fn restarts(
        &self,
        pod: &Pod,
        container: &Container,
        kind: ContainerKind,
        ended: &ContainerStatus,
    ) -> bool {
        self.replaced.contains(&ended.id) || should_restart(pod, container, kind, exit_code(ended))
    }

    /// Whether the newest container of that name ended to make room for another.
    pub(crate) fn is_replaced(&self, name: &str) -> bool {
        self.latest(name)
            .is_some_and(|status| self.replaced.contains(&status.id))
    }

    pub(crate) fn ready_sandbox(&self) -> Option<&PodSandboxStatus> {
        self.sandboxes
            .first()
            .filter(|sandbox| sandbox.state == SandboxState::Ready)
    }

    /// The newest container of that name, whatever sandbox it was in.
    pub(crate) fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers
            .iter()
            .filter(|c| c.name == name)
            .max_by_key(|c| (c.attempt, c.created_at))
    }

    /// The newest container of that name in one sandbox.
    pub(crate) fn latest_in(&self, sandbox: &str, name: &str) -> Option<&ContainerStatus> {
        self.latest(name)
            .filter(|container| container.sandbox == sandbox)
    }

    /// The one before the newest: what `lastState` and `logs --previous` are about.
    pub(crate) fn previous(&self, name: &str) -> Option<&ContainerStatus> {
        let latest = self.latest(name)?;
        self.containers
            .iter()
            .filter(|c| c.name == name && c.id != latest.id)
            .max_by_key(|c| (c.attempt, c.created_at))
    }

    pub(crate) fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers
            .iter()
            .filter(|c| c.state == ContainerState::Running)
    }
}

/// What probes found out about a container; an absent entry has no probes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProbeState {
    /// The container that was probed; results for an earlier one do not count.
    pub(crate) id: String,
    pub(crate) started: bool,
    pub(crate) ready: bool,
    /// The probe that asks for a restart, with its own grace period.
    pub(crate) failed: Option<(FailedProbe, Option<u64>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailedProbe {
    Liveness,
    Startup,
}

/// Restart back-off of one container: doubles while it keeps failing, forgotten after quiet time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) delay: Duration,
    pub(crate) updated_at: SystemTime,
}

impl Backoff {
    /// The state after one more restart at `now`.
    pub(crate) fn next(previous: Option<Backoff>, now: SystemTime) -> Backoff {
        match previous.filter(|backoff| !backoff.is_forgotten(now)) {
            Some(backoff) => Backoff {
                delay: (backoff.delay * 2).min(BACKOFF_MAX),
                updated_at: now,
            },
            None => Backoff {
                delay: BACKOFF_FIRST,
                updated_at: now,
            },
        }
    }

    pub(crate) fn is_forgotten(&self, now: SystemTime) -> bool {
        now.duration_since(self.updated_at).unwrap_or_default() > BACKOFF_MAX * 2
    }
}

/// An attempt to start that failed before the container ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartError {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) retry_at: SystemTime,
}

/// An operation under way; the plan does not ask for it again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Busy {
    Volumes,
    Sandbox,
    StopSandbox,
    Cleanup,
    /// By container name.
    Start(String),
    /// By container id.
    Kill(String),
    Remove(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Goal {
    Run,
    /// Everything must be dead at the deadline.
    Stop {
        deadline: SystemTime,
    },
}

pub(crate) struct Observed<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) runtime: &'a RuntimePod,
    pub(crate) goal: Goal,
    pub(crate) busy: &'a BTreeSet<Busy>,
    /// Deadlines of kills under way, by container id.
    pub(crate) kill_deadlines: &'a BTreeMap<String, SystemTime>,
    pub(crate) probes: &'a BTreeMap<String, ProbeState>,
    pub(crate) backoff: &'a BTreeMap<String, Backoff>,
    pub(crate) start_errors: &'a BTreeMap<String, StartError>,
    pub(crate) volumes_ready: bool,
    /// Next try of a failed preparation (volumes, sandbox).
    pub(crate) retry_at: Option<SystemTime>,
    pub(crate) now: SystemTime,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// The pod is going.
    PodStops,
    Probe(FailedProbe),
    /// Its resources changed and its resize policy wants a restart.
    Resized,
    /// Its image was changed in place.
    Changed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    PrepareVolumes,
    CreateSandbox {
        attempt: u32,
    },
    StartContainer {
        name: String,
        kind: ContainerKind,
        attempt: u32,
        restart: bool,
    },
    KillContainer {
        id: String,
        name: String,
        reason: KillReason,
        deadline: SystemTime,
    },
    StopSandbox {
        id: String,
    },
    /// A dead container that nobody needs any more.
    RemoveContainer {
        id: String,
    },
    /// Everything is dead: release volumes and cgroups.
    Cleanup,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    /// When time alone changes the plan.
    pub(crate) wake_at: Option<SystemTime>,
    /// Containers that wait out their back-off: the current delay by name.
    pub(crate) backing_off: BTreeMap<String, Duration>,
    /// Nothing is left of the pod on this machine but files and dead containers.
    pub(crate) stopped: bool,
    /// A container is being replaced: until then the status tells nothing of it.
    pub(crate) settles_at: Option<SystemTime>,
}

impl Plan {
    fn wake(&mut self, at: SystemTime) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

pub(crate) fn plan(observed: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    match observed.goal {
        Goal::Run => {
            run(observed, &mut plan);
            plan.settles_at = settles_at(observed);
        }
        Goal::Stop { deadline } => stop(observed, deadline, &mut plan),
    }
    prune(observed, &mut plan);
    plan
}

/// Whether a container that ended with `exit_code` is started again.
pub(crate) fn should_restart(
    pod: &Pod,
    container: &Container,
    kind: ContainerKind,
    exit_code: i32,
) -> bool {
    match kind {
        ContainerKind::Ephemeral => return false,
        ContainerKind::Sidecar => return true,
        ContainerKind::Init | ContainerKind::Regular => {}
    }
    for rule in container
        .restart_policy_rules
        .as_deref()
        .unwrap_or_default()
    {
        let Some(codes) = rule.exit_codes.as_ref() else {
            continue;
        };
        let listed = codes
            .values
            .as_deref()
            .unwrap_or_default()
            .contains(&exit_code);
        let matches = if codes.operator == "NotIn" {
            !listed
        } else {
            listed
        };
        if matches && rule.action == "Restart" {
            return true;
        }
    }
    let policy = container
        .restart_policy
        .as_deref()
        .unwrap_or_else(|| pod::restart_policy(pod));
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        // An init container that succeeded is done, whatever the pod's policy says.
        _ => kind == ContainerKind::Regular || exit_code != 0,
    }
}

pub(crate) fn exit_code(status: &ContainerStatus) -> i32 {
    status.exit_code.unwrap_or(137)
}

fn is_dead(status: &ContainerStatus) -> bool {
    matches!(
        status.state,
        ContainerState::Exited | ContainerState::Unknown
    )
}

/// Whether the pod has ended by itself: every regular container is finished for good, or an init
/// container failed for good.
pub(crate) fn is_finished(pod: &Pod, runtime: &RuntimePod) -> bool {
    let over = |container: &Container, kind: ContainerKind| {
        runtime.latest(&container.name).is_some_and(|status| {
            is_dead(status) && !runtime.restarts(pod, container, kind, status)
        })
    };
    let init_failed = pod::init_containers(pod).iter().any(|container| {
        let kind = pod::init_kind(container);
        kind == ContainerKind::Init
            && over(container, kind)
            && runtime
                .latest(&container.name)
                .is_some_and(|status| exit_code(status) != 0)
    });
    let regular = pod::regular_containers(pod);
    init_failed
        || (!regular.is_empty()
            && regular
                .iter()
                .all(|container| over(container, ContainerKind::Regular)))
}

fn run(observed: &Observed<'_>, plan: &mut Plan) {
    let waiting_to_retry = observed.retry_at.is_some_and(|at| at > observed.now);
    if let Some(at) = observed.retry_at.filter(|at| *at > observed.now) {
        plan.wake(at);
    }
    if !observed.volumes_ready {
        if !waiting_to_retry && !observed.busy.contains(&Busy::Volumes) {
            plan.actions.push(Action::PrepareVolumes);
        }
        // What already runs (the node agent was restarted) is watched, but nothing new starts.
        kill_failing(observed, plan);
        return;
    }
    let Some(sandbox) = observed.runtime.ready_sandbox() else {
        replace_sandbox(observed, plan, waiting_to_retry);
        return;
    };
    kill_failing(observed, plan);
    for (container, _) in pod::ephemeral_containers(observed.pod) {
        if observed.runtime.latest(&container.name).is_none() {
            start(
                observed,
                plan,
                &container,
                ContainerKind::Ephemeral,
                &sandbox.id,
            );
        }
    }
    let main_began = pod::regular_containers(observed.pod)
        .iter()
        .any(|container| {
            observed
                .runtime
                .latest_in(&sandbox.id, &container.name)
                .is_some()
        });
    if init(observed, plan, &sandbox.id, main_began) || main_began {
        for container in pod::regular_containers(observed.pod) {
            start(
                observed,
                plan,
                container,
                ContainerKind::Regular,
                &sandbox.id,
            );
        }
    }
}

/// Advances the init containers; true when the regular ones may start.
fn init(observed: &Observed<'_>, plan: &mut Plan, sandbox: &str, main_began: bool) -> bool {
    for container in pod::init_containers(observed.pod) {
        let kind = pod::init_kind(container);
        let status = observed.runtime.latest_in(sandbox, &container.name);
        match kind {
            // Init containers that were removed after the pod initialised are not run again.
            ContainerKind::Init if main_began => continue,
            ContainerKind::Init => {
                let succeeded =
                    status.is_some_and(|s| s.state == ContainerState::Exited && exit_code(s) == 0);
                if succeeded {
                    continue;
                }
                start(observed, plan, container, kind, sandbox);
                return false;
            }
            _ => {
                start(observed, plan, container, kind, sandbox);
                let started = status.is_some_and(|s| {
                    s.state == ContainerState::Running
                        && !observed.busy.contains(&Busy::Start(container.name.clone()))
                        && observed
                            .probes
                            .get(&container.name)
                            .is_none_or(|probe| probe.id == s.id && probe.started)
                });
                // Once the pod has initialised, a sidecar's trouble does not hold up the others.
                if !started && !main_began {
                    return false;
                }
            }
        }
    }
    true
}

/// Starts the container if it does not run and may run now.
fn start(
    observed: &Observed<'_>,
    plan: &mut Plan,
    container: &Container,
    kind: ContainerKind,
    sandbox: &str,
) {
    let name = &container.name;
    if observed.busy.contains(&Busy::Start(name.clone())) {
        return;
    }
    let newest = observed.runtime.latest(name);
    let attempt = newest.map_or_else(
        || crate::status::recorded_restarts(observed.pod, name),
        |status| status.attempt.saturating_add(1),
    );
    let status = newest.filter(|status| status.sandbox == sandbox);
    if let Some(status) = status {
        match status.state {
            ContainerState::Running => return,
            // Left behind by an agent that stopped between creating and starting.
            ContainerState::Created => {
                if !observed.busy.contains(&Busy::Remove(status.id.clone())) {
                    plan.actions.push(Action::RemoveContainer {
                        id: status.id.clone(),
                    });
                }
                return;
            }
            ContainerState::Exited | ContainerState::Unknown => {
                if !observed
                    .runtime
                    .restarts(observed.pod, container, kind, status)
                {
                    return;
                }
                let finished = status.finished_at.unwrap_or(status.created_at);
                if let Some(backoff) = observed.backoff.get(name)
                    && !backoff.is_forgotten(observed.now)
                    && finished + backoff.delay > observed.now
                {
                    plan.backing_off.insert(name.clone(), backoff.delay);
                    plan.wake(finished + backoff.delay);
                    return;
                }
            }
        }
    }
    if let Some(error) = observed.start_errors.get(name)
        && error.retry_at > observed.now
    {
        plan.wake(error.retry_at);
        return;
    }
    plan.actions.push(Action::StartContainer {
        name: name.clone(),
        kind,
        attempt,
        restart: status.is_some_and(|status| !observed.runtime.replaced.contains(&status.id)),
    });
}

fn kill_failing(observed: &Observed<'_>, plan: &mut Plan) {
    for status in observed.runtime.running() {
        if observed.busy.contains(&Busy::Kill(status.id.clone())) {
            continue;
        }
        if is_changed(observed.pod, status) {
            plan.actions.push(Action::KillContainer {
                id: status.id.clone(),
                name: status.name.clone(),
                reason: KillReason::Changed,
                deadline: observed.now + pod::grace_period(observed.pod),
            });
            continue;
        }
        let Some(probe) = observed
            .probes
            .get(&status.name)
            .filter(|probe| probe.id == status.id)
        else {
            continue;
        };
        let Some((failed, grace_s)) = probe.failed else {
            continue;
        };
        let grace = grace_s.map_or_else(|| pod::grace_period(observed.pod), Duration::from_secs);
        plan.actions.push(Action::KillContainer {
            id: status.id.clone(),
            name: status.name.clone(),
            reason: KillReason::Probe(failed),
            deadline: observed.now + grace,
        });
    }
}

/// Until when the status waits for the successors of containers that were just stopped for them.
fn settles_at(observed: &Observed<'_>) -> Option<SystemTime> {
    let replaced = observed.runtime.containers.iter().filter(|status| {
        is_dead(status)
            && observed.runtime.is_replaced(&status.name)
            && !observed.start_errors.contains_key(&status.name)
    });
    replaced
        .map(|status| status.finished_at.unwrap_or(status.created_at) + REPLACEMENT)
        .max()
        .filter(|at| *at > observed.now)
}

/// Whether a running container was made of another image than the specification names now.
fn is_changed(pod: &Pod, status: &ContainerStatus) -> bool {
    let Some(made_of) = status.annotations.get(pod::container::ANNOTATION_IMAGE) else {
        return false;
    };
    pod::find_container(pod, &status.name).is_some_and(|(_, container)| {
        container
            .image
            .as_ref()
            .is_some_and(|image| image != made_of)
    })
}

/// There is no usable sandbox: clear the old one away, then make another if anything is to run.
fn replace_sandbox(observed: &Observed<'_>, plan: &mut Plan, waiting_to_retry: bool) {
    for sandbox in &observed.runtime.sandboxes {
        let alive = observed
            .runtime
            .running()
            .any(|container| container.sandbox == sandbox.id);
        if alive || sandbox.state == SandboxState::Ready {
            if !observed.busy.contains(&Busy::StopSandbox) {
                plan.actions.push(Action::StopSandbox {
                    id: sandbox.id.clone(),
                });
            }
            return;
        }
    }
    if waiting_to_retry
        || observed.busy.contains(&Busy::Sandbox)
        || observed.busy.contains(&Busy::StopSandbox)
    {
        return;
    }
    let first = observed.runtime.sandboxes.is_empty();
    if !first && is_finished(observed.pod, observed.runtime) {
        return;
    }
    let attempt = observed
        .runtime
        .sandboxes
        .iter()
        .map(|sandbox| sandbox.attempt.saturating_add(1))
        .max()
        .unwrap_or(0);
    plan.actions.push(Action::CreateSandbox { attempt });
}

fn stop(observed: &Observed<'_>, deadline: SystemTime, plan: &mut Plan) {
    let sidecars: Vec<&str> = pod::init_containers(observed.pod)
        .iter()
        .filter(|container| pod::is_sidecar(container))
        .map(|container| container.name.as_str())
        .collect();
    let running: Vec<&ContainerStatus> = observed.runtime.running().collect();
    let (side, others): (Vec<_>, Vec<_>) = running
        .into_iter()
        .partition(|container| sidecars.contains(&container.name.as_str()));
    // A start under way may still bring up a container; it is killed when it shows.
    let starting = observed
        .busy
        .iter()
        .any(|busy| matches!(busy, Busy::Start(_) | Busy::Sandbox | Busy::Volumes));
    let targets: Vec<&ContainerStatus> = if !others.is_empty() {
        others
    } else {
        // Sidecars serve the others to their end, then go in reverse order, one after another.
        side.into_iter()
            .max_by_key(|c| sidecars.iter().position(|name| *name == c.name))
            .into_iter()
            .collect()
    };
    let any_alive = !targets.is_empty();
    for target in targets {
        let under_way = observed.busy.contains(&Busy::Kill(target.id.clone()));
        let sooner = observed
            .kill_deadlines
            .get(&target.id)
            .is_none_or(|planned| deadline < *planned);
        if !under_way || sooner {
            plan.actions.push(Action::KillContainer {
                id: target.id.clone(),
                name: target.name.clone(),
                reason: KillReason::PodStops,
                deadline,
            });
        }
    }
    if any_alive || starting {
        return;
    }
    let kills = observed
        .busy
        .iter()
        .any(|busy| matches!(busy, Busy::Kill(_) | Busy::StopSandbox));
    if kills {
        return;
    }
    if let Some(sandbox) = observed
        .runtime
        .sandboxes
        .iter()
        .find(|sandbox| sandbox.state == SandboxState::Ready)
    {
        plan.actions.push(Action::StopSandbox {
            id: sandbox.id.clone(),
        });
        return;
    }
    plan.stopped = true;
    if !observed.busy.contains(&Busy::Cleanup) {
        plan.actions.push(Action::Cleanup);
    }
}

/// Keeps the newest container of each name and the one before it; older ones go.
fn prune(observed: &Observed<'_>, plan: &mut Plan) {
    for status in &observed.runtime.containers {
        if status.state != ContainerState::Exited {
            continue;
        }
        let keep = [
            observed.runtime.latest(&status.name),
            observed.runtime.previous(&status.name),
        ]
        .into_iter()
        .flatten()
        .any(|kept| kept.id == status.id);
        if !keep && !observed.busy.contains(&Busy::Remove(status.id.clone())) {
            plan.actions.push(Action::RemoveContainer {
                id: status.id.clone(),
            });
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
pub(crate) mod tests;
