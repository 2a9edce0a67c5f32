//! Stopping one container: `preStop`, the stop signal, the kill.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;

use crate::hooks;
use crate::node::Node;
use crate::plan::{FailedProbe, KillReason};
use crate::pod;

/// A process always gets this much time between signal and kill.
const MIN_GRACE: Duration = Duration::from_secs(1);
/// What is left for the process when its hook has used up all of the grace period.
const MIN_GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);

pub(crate) struct StopRequest {
    pub(crate) pod: Arc<Pod>,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) reason: KillReason,
    pub(crate) deadline: SystemTime,
    /// The deadline of a stop under way moved; its hook has run or is running.
    pub(crate) again: bool,
}

/// Returns when the container is dead or cannot be killed.
pub(crate) async fn stop(node: &Node, request: &StopRequest) {
    let remaining = || {
        request
            .deadline
            .duration_since(node.clock.now())
            .unwrap_or_default()
    };
    let found = pod::find_container(&request.pod, &request.name);
    let mut grace_min = MIN_GRACE;
    if !request.again {
        if let Some((kind, _)) = &found {
            let message = message(&request.name, &request.reason);
            node.events.container(
                &request.pod,
                *kind,
                &request.name,
                "Normal",
                "Killing",
                message,
            );
        }
        let hook = found
            .as_ref()
            .and_then(|(_, container)| container.lifecycle.as_ref()?.pre_stop.clone());
        if let (Some(hook), Some((kind, container))) = (hook, &found)
            && remaining() > Duration::ZERO
        {
            grace_min = MIN_GRACE_AFTER_HOOK;
            let ip = request
                .pod
                .status
                .as_ref()
                .and_then(|status| status.pod_ip.clone())
                .unwrap_or_default();
            let timeout = remaining();
            let ran = tokio::time::timeout(
                timeout,
                hooks::run(node, &request.id, container, &ip, &hook, timeout),
            )
            .await;
            if let Ok(Err(error)) = ran {
                tracing::debug!(container = request.name, error, "a preStop hook failed");
                node.events.container(
                    &request.pod,
                    *kind,
                    &request.name,
                    "Warning",
                    "FailedPreStopHook",
                    "PreStopHook failed",
                );
            }
        }
    }
    if let Err(error) = node
        .runtime
        .stop_container(&request.id, remaining().max(grace_min))
        .await
        && !error.is_not_found()
    {
        tracing::warn!(container = request.name, id = request.id, %error, "stopping a container failed");
        let message = format!("error killing pod: {error}");
        node.events
            .pod(&request.pod, "Warning", "FailedKillPod", message);
    }
    node.state.refresh_container(&request.id).await;
}

fn message(name: &str, reason: &KillReason) -> String {
    match reason {
        KillReason::PodStops => format!("Stopping container {name}"),
        KillReason::Probe(FailedProbe::Liveness) => {
            format!("Container {name} failed liveness probe, will be restarted")
        }
        KillReason::Probe(FailedProbe::Startup) => {
            format!("Container {name} failed startup probe, will be restarted")
        }
        KillReason::Changed => format!("Container {name} definition changed, will be restarted"),
        KillReason::Resized => format!("Container {name} resize requires restart"),
    }
}
