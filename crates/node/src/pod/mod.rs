//! Reading a pod's specification: pure functions that every other module decides with.

pub(crate) mod container;
pub(crate) mod dns;
pub(crate) mod env;
pub(crate) mod expansion;
pub(crate) mod fields;
pub(crate) mod hosts;
pub(crate) mod qos;
pub(crate) mod resources;
pub(crate) mod security;

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// Which list of the specification a container stands in, and how it behaves there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ContainerKind {
    /// Runs to completion before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order and stays.
    Sidecar,
    Regular,
    /// Added to a running pod for debugging; never restarted.
    Ephemeral,
}

impl ContainerKind {
    /// Metrics know three kinds.
    pub(crate) fn metric_label(self) -> &'static str {
        match self {
            ContainerKind::Init | ContainerKind::Sidecar => "init_container",
            ContainerKind::Regular => "container",
            ContainerKind::Ephemeral => "ephemeral_container",
        }
    }
}

/// The default of `terminationGracePeriodSeconds`.
pub(crate) const DEFAULT_GRACE_S: i64 = 30;

static EMPTY_SPEC: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);

pub(crate) fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap_or(&EMPTY_SPEC)
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub(crate) fn is_host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// `Always`, `OnFailure` or `Never`.
pub(crate) fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub(crate) fn init_kind(container: &Container) -> ContainerKind {
    if is_sidecar(container) {
        ContainerKind::Sidecar
    } else {
        ContainerKind::Init
    }
}

pub(crate) fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub(crate) fn regular_containers(pod: &Pod) -> &[Container] {
    &spec(pod).containers
}

/// Ephemeral containers carry a container's fields plus a target; this gives the container part.
pub(crate) fn ephemeral_containers(pod: &Pod) -> Vec<(Container, Option<String>)> {
    let Some(list) = spec(pod).ephemeral_containers.as_deref() else {
        return Vec::new();
    };
    list.iter()
        .filter_map(|ephemeral| {
            let value = serde_json::to_value(ephemeral).ok()?;
            let container = serde_json::from_value(value).ok()?;
            Some((container, ephemeral.target_container_name.clone()))
        })
        .collect()
}

/// Every container with its kind, in the order init, regular, ephemeral.
pub(crate) fn all_containers(pod: &Pod) -> Vec<(ContainerKind, Cow<'_, Container>)> {
    let mut all: Vec<(ContainerKind, Cow<'_, Container>)> = Vec::new();
    all.extend(
        init_containers(pod)
            .iter()
            .map(|c| (init_kind(c), Cow::Borrowed(c))),
    );
    all.extend(
        regular_containers(pod)
            .iter()
            .map(|c| (ContainerKind::Regular, Cow::Borrowed(c))),
    );
    all.extend(
        ephemeral_containers(pod)
            .into_iter()
            .map(|(c, _)| (ContainerKind::Ephemeral, Cow::Owned(c))),
    );
    all
}

pub(crate) fn find_container<'a>(
    pod: &'a Pod,
    name: &str,
) -> Option<(ContainerKind, Cow<'a, Container>)> {
    all_containers(pod)
        .into_iter()
        .find(|(_, container)| container.name == name)
}

/// The field path that events about a container carry, such as `spec.containers{web}`.
pub(crate) fn event_field_path(kind: ContainerKind, name: &str) -> String {
    let list = match kind {
        ContainerKind::Init | ContainerKind::Sidecar => "initContainers",
        ContainerKind::Regular => "containers",
        ContainerKind::Ephemeral => "ephemeralContainers",
    };
    format!("spec.{list}{{{name}}}")
}

pub(crate) fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub(crate) fn is_phase_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Grace for stopping this pod: what its deletion asked for, else what its specification says.
pub(crate) fn grace_period(pod: &Pod) -> Duration {
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE_S);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

pub(crate) fn host_aliases(pod: &Pod) -> Vec<(String, Vec<String>)> {
    spec(pod)
        .host_aliases
        .as_deref()
        .unwrap_or_default()
        .iter()
        .map(|alias| {
            (
                alias.ip.clone(),
                alias.hostnames.clone().unwrap_or_default(),
            )
        })
        .collect()
}

/// Kubernetes' `Time` has whole seconds.
pub(crate) fn time(at: SystemTime) -> Time {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .map(|d| d.as_secs())
        .unwrap_or(0);
    Time(
        Timestamp::from_second(i64::try_from(seconds).unwrap_or(0))
            .unwrap_or(Timestamp::UNIX_EPOCH),
    )
}

pub(crate) fn system_time(time: &Time) -> SystemTime {
    SystemTime::from(time.0)
}
