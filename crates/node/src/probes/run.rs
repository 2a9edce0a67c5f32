//! One probe's life: delay, period, thresholds.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::sync::{mpsc, watch};

use super::{ProbeKind, ProbeReport, ProbeTarget, grpc, http, port, seconds, tcp, timeout};
use crate::pod;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    /// Succeeded, with something the user should know (a redirect to another host).
    Warning(String),
    Failure(String),
    /// The probe itself could not be carried out: counts as a failure.
    Errored(String),
}

/// Counts results in a row and says when the verdict turns.
#[derive(Debug)]
pub(super) struct Thresholds {
    success: u32,
    failure: u32,
    verdict: Option<bool>,
    last: bool,
    run: u32,
}

impl Thresholds {
    pub(super) fn new(kind: ProbeKind, probe: &Probe) -> Self {
        let count = |value: Option<i32>, default: u32| {
            value
                .and_then(|v| u32::try_from(v).ok())
                .filter(|v| *v > 0)
                .unwrap_or(default)
        };
        Self {
            success: count(probe.success_threshold, 1),
            failure: count(probe.failure_threshold, 3),
            // Liveness is assumed until it fails; the others must be earned.
            verdict: (kind == ProbeKind::Liveness).then_some(true),
            last: false,
            run: 0,
        }
    }

    /// The verdict, when this result changes it.
    pub(super) fn add(&mut self, healthy: bool) -> Option<bool> {
        if self.run > 0 && self.last == healthy {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = healthy;
            self.run = 1;
        }
        let needed = if healthy { self.success } else { self.failure };
        if self.run < needed || self.verdict == Some(healthy) {
            return None;
        }
        self.verdict = Some(healthy);
        Some(healthy)
    }
}

pub(super) async fn watch_probe(
    target: ProbeTarget,
    kind: ProbeKind,
    probe: Probe,
    mut started: watch::Receiver<bool>,
    reports: mpsc::Sender<ProbeReport>,
) {
    let delay = Duration::from_secs(
        probe
            .initial_delay_seconds
            .and_then(|s| u64::try_from(s).ok())
            .unwrap_or(0),
    );
    let age = target
        .clock
        .now()
        .duration_since(target.started_at)
        .unwrap_or_default();
    target.clock.sleep(delay.saturating_sub(age)).await;
    if kind != ProbeKind::Startup && started.wait_for(|started| *started).await.is_err() {
        return;
    }
    let period = seconds(probe.period_seconds, 10);
    let grace_s = probe
        .termination_grace_period_seconds
        .and_then(|s| u64::try_from(s).ok());
    let mut thresholds = Thresholds::new(kind, &probe);
    loop {
        let outcome = probe_once(&target, &probe).await;
        tell(&target, kind, &outcome);
        let healthy = matches!(outcome, Outcome::Success | Outcome::Warning(_));
        if let Some(healthy) = thresholds.add(healthy) {
            let report = ProbeReport {
                container: target.container.name.clone(),
                id: target.id.clone(),
                kind,
                healthy,
                grace_s,
            };
            if reports.send(report).await.is_err() {
                return;
            }
            // A startup probe has done its work either way, and so has a failed liveness probe.
            if kind == ProbeKind::Startup || (kind == ProbeKind::Liveness && !healthy) {
                return;
            }
        }
        target.clock.sleep(period).await;
    }
}

fn tell(target: &ProbeTarget, kind: ProbeKind, outcome: &Outcome) {
    let (reason, message) = match outcome {
        Outcome::Success => return,
        Outcome::Warning(text) => (
            "ProbeWarning",
            format!("{} probe warning: {text}", kind.as_str()),
        ),
        Outcome::Failure(text) => (
            "Unhealthy",
            format!("{} probe failed: {text}", kind.as_str()),
        ),
        Outcome::Errored(text) => (
            "Unhealthy",
            format!(
                "{} probe errored and resulted in unknown state: {text}",
                kind.as_str()
            ),
        ),
    };
    target.events.container(
        &target.pod,
        target.kind,
        &target.container.name,
        "Warning",
        reason,
        message,
    );
}

pub(crate) async fn probe_once(target: &ProbeTarget, probe: &Probe) -> Outcome {
    let timeout = timeout(probe);
    if let Some(action) = &probe.exec {
        return exec(target, action.command.clone().unwrap_or_default(), timeout).await;
    }
    if let Some(action) = &probe.http_get {
        return match http::target(action, &target.ip, &target.container) {
            Ok(request) => http::probe(&request, timeout).await,
            Err(error) => Outcome::Errored(error),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let host = action
            .host
            .as_deref()
            .filter(|host| !host.is_empty())
            .unwrap_or(&target.ip);
        return match port(&action.port, &target.container) {
            Ok(port) => tcp::probe(host, port, timeout).await,
            Err(error) => Outcome::Errored(error),
        };
    }
    if let Some(action) = &probe.grpc {
        let Ok(port) = u16::try_from(action.port) else {
            return Outcome::Errored(format!("invalid port {}", action.port));
        };
        return grpc::probe(
            &target.ip,
            port,
            action.service.as_deref().unwrap_or_default(),
            timeout,
        )
        .await;
    }
    Outcome::Errored(format!(
        "missing probe handler for {}:{}",
        pod::name(&target.pod),
        target.container.name
    ))
}

async fn exec(target: &ProbeTarget, command: Vec<String>, timeout: Duration) -> Outcome {
    match target
        .runtime
        .exec_sync(&target.id, command.clone(), timeout)
        .await
    {
        Ok(output) if output.exit_code == 0 => Outcome::Success,
        Ok(output) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            text.truncate(text.floor_char_boundary(10 << 10));
            Outcome::Failure(text)
        }
        Err(keelson_ports::Error::Timeout(_)) => Outcome::Failure(format!(
            "command timed out: \"{}\" timed out after {}s",
            command.join(" "),
            timeout.as_secs()
        )),
        Err(error) => Outcome::Errored(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thresholds(kind: ProbeKind, success: i32, failure: i32) -> Thresholds {
        let probe = Probe {
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            ..Probe::default()
        };
        Thresholds::new(kind, &probe)
    }

    #[test]
    fn readiness_turns_both_ways() {
        let mut t = thresholds(ProbeKind::Readiness, 2, 3);
        let verdicts: Vec<Option<bool>> = [
            true, true, true, false, false, true, false, false, false, true, true,
        ]
        .into_iter()
        .map(|r| t.add(r))
        .collect();
        assert_eq!(
            verdicts,
            [
                None,
                Some(true),
                None,
                None,
                None,
                None,
                None,
                None,
                Some(false),
                None,
                Some(true)
            ]
        );
    }

    #[test]
    fn liveness_is_silent_until_it_fails() {
        let mut t = thresholds(ProbeKind::Liveness, 1, 1);
        assert_eq!(t.add(true), None);
        assert_eq!(t.add(false), Some(false));
    }
}
