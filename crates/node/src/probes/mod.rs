//! Probes: one task per probe of a running container; results go to the pod's worker.

mod grpc;
mod http;
mod run;
mod tcp;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_ports::{Clock, Runtime};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::events::Events;
use crate::plan::{FailedProbe, ProbeState};
use crate::pod::ContainerKind;

pub(crate) use http::{get as http_get, target as http_target};
pub(crate) use run::Outcome;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// Told to the worker whenever a probe's verdict changes.
#[derive(Debug, Clone)]
pub(crate) struct ProbeReport {
    pub(crate) container: String,
    pub(crate) id: String,
    pub(crate) kind: ProbeKind,
    pub(crate) healthy: bool,
    pub(crate) grace_s: Option<u64>,
}

/// What a probe needs to reach the container.
#[derive(Clone)]
pub(crate) struct ProbeTarget {
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Arc<Container>,
    pub(crate) kind: ContainerKind,
    pub(crate) id: String,
    pub(crate) ip: String,
    pub(crate) started_at: SystemTime,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: Events,
}

/// The probes of one running container; dropping it ends them.
pub(crate) struct ContainerProbes {
    pub(crate) state: ProbeState,
    started: watch::Sender<bool>,
    stop: CancellationToken,
}

impl Drop for ContainerProbes {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ContainerProbes {
    /// Starts the container's probes. `started` and `ready` are what is true of a container found
    /// running by a restarted agent: it is not unready until its probes say so.
    pub(crate) fn start(
        target: &ProbeTarget,
        was_started: bool,
        was_ready: bool,
        reports: &mpsc::Sender<ProbeReport>,
    ) -> Self {
        let container = &target.container;
        let has_startup = container.startup_probe.is_some();
        let has_readiness = container.readiness_probe.is_some();
        let state = ProbeState {
            id: target.id.clone(),
            started: !has_startup || was_started,
            ready: !has_readiness || was_ready,
            failed: None,
        };
        let (started, _) = watch::channel(state.started);
        let stop = CancellationToken::new();
        let probes = [
            (
                ProbeKind::Startup,
                container.startup_probe.as_ref().filter(|_| !state.started),
            ),
            (ProbeKind::Liveness, container.liveness_probe.as_ref()),
            (ProbeKind::Readiness, container.readiness_probe.as_ref()),
        ];
        for (kind, probe) in probes {
            let Some(probe) = probe.cloned() else {
                continue;
            };
            let task = run::watch_probe(
                target.clone(),
                kind,
                probe,
                started.subscribe(),
                reports.clone(),
            );
            tokio::spawn(stop.clone().run_until_cancelled_owned(task));
        }
        Self {
            state,
            started,
            stop,
        }
    }

    /// Takes a report in; true when something changed.
    pub(crate) fn report(&mut self, report: &ProbeReport) -> bool {
        if report.id != self.state.id {
            return false;
        }
        let before = self.state.clone();
        match (report.kind, report.healthy) {
            (ProbeKind::Startup, true) => {
                self.state.started = true;
                self.started.send_replace(true);
            }
            (ProbeKind::Startup, false) => {
                self.state.failed = Some((FailedProbe::Startup, report.grace_s))
            }
            (ProbeKind::Liveness, false) => {
                self.state.failed = Some((FailedProbe::Liveness, report.grace_s))
            }
            (ProbeKind::Liveness, true) => {}
            (ProbeKind::Readiness, healthy) => self.state.ready = healthy,
        }
        self.state != before
    }
}

/// A port by number, or by the name that the container gave it.
pub(crate) fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|candidate| candidate.name.as_deref() == Some(name))
            .and_then(|candidate| u16::try_from(candidate.container_port).ok())
            .or_else(|| name.parse().ok()),
    };
    number
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("invalid port number: {port:?}"))
}

pub(crate) fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value
            .and_then(|v| u64::try_from(v).ok())
            .filter(|v| *v > 0)
            .unwrap_or(default),
    )
}

pub(crate) fn timeout(probe: &Probe) -> Duration {
    seconds(probe.timeout_seconds, 1)
}
