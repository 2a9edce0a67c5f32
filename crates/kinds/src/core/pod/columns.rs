//! A pod as a row: what `kubectl get pods` shows.

use serde_json::Value;

use crate::cell::{self, NONE, or_none};
use crate::tree::Tree;

pub(super) fn cells(pod: &Value, now: i64) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts > 0 => {
            format!(
                "{} ({} ago)",
                summary.restarts,
                keelson_semantics::duration::human(now.saturating_sub(at))
            )
        }
        _ => summary.restarts.to_string(),
    };
    let ip = pod
        .list("status.podIPs")
        .first()
        .map_or("", |ip| ip.text("ip"));
    vec![
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        cell::age(pod, now),
        or_none(ip).into(),
        or_none(pod.text("spec.nodeName")).into(),
        or_none(pod.text("status.nominatedNodeName")).into(),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = pod.list("spec.readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let met = gates
        .iter()
        .filter(|g| condition(pod, g.text("conditionType")))
        .count();
    format!("{met}/{}", gates.len())
}

fn condition(pod: &Value, kind: &str) -> bool {
    pod.list("status.conditions")
        .iter()
        .find(|c| c.text("type") == kind)
        .is_some_and(|c| c.text("status") == "True")
}

#[derive(Default)]
struct Summary {
    reason: String,
    restarts: i64,
    last_restart: Option<i64>,
    ready: usize,
    total: usize,
    initializing: bool,
    sidecar_restarts: i64,
    sidecar_last_restart: Option<i64>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let mut s = Self {
            total: pod.list("spec.containers").len(),
            ..Self::default()
        };
        pod.text("status.phase").clone_into(&mut s.reason);
        if !pod.text("status.reason").is_empty() {
            pod.text("status.reason").clone_into(&mut s.reason);
        }
        let gated =
            |c: &Value| c.text("type") == "PodScheduled" && c.text("reason") == "SchedulingGated";
        if pod.list("status.conditions").iter().any(gated) {
            "SchedulingGated".clone_into(&mut s.reason);
        }
        s.total += pod
            .list("spec.initContainers")
            .iter()
            .filter(|c| c.text("restartPolicy") == "Always")
            .count();
        s.initialise(pod);
        if !s.initializing || condition(pod, "Initialized") {
            s.run(pod);
        }
        if pod.has("metadata.deletionTimestamp") {
            if pod.text("status.reason") == "NodeLost" {
                "Unknown".clone_into(&mut s.reason);
            } else if !matches!(pod.text("status.phase"), "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut s.reason);
            }
        }
        s
    }

    fn initialise(&mut self, pod: &Value) {
        let specs = pod.list("spec.initContainers");
        for (i, status) in pod.list("status.initContainerStatuses").iter().enumerate() {
            let name = status.text("name");
            let sidecar = specs
                .iter()
                .any(|c| c.text("name") == name && c.text("restartPolicy") == "Always");
            let last = last_end(status);
            self.restarts += status.num("restartCount");
            self.last_restart = self.last_restart.max(last);
            if sidecar {
                self.sidecar_restarts += status.num("restartCount");
                self.sidecar_last_restart = self.sidecar_last_restart.max(last);
            }
            let ended = status.at("state.terminated");
            let waiting = status.text("state.waiting.reason");
            if ended.is_object() && ended.num("exitCode") == 0 {
                continue;
            }
            if sidecar && status.flag("started") {
                self.ready += usize::from(status.flag("ready"));
                continue;
            }
            self.reason = if ended.is_object() {
                format!("Init:{}", ending(ended))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{i}/{}", specs.len())
            };
            self.initializing = true;
            break;
        }
    }

    fn run(&mut self, pod: &Value) {
        self.restarts = self.sidecar_restarts;
        self.last_restart = self.sidecar_last_restart;
        let (mut running, mut failure) = (false, String::new());
        for status in pod.list("status.containerStatuses").iter().rev() {
            self.restarts += status.num("restartCount");
            self.last_restart = self.last_restart.max(last_end(status));
            let ended = status.at("state.terminated");
            let waiting = status.text("state.waiting.reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if ended.is_object() {
                self.reason = ending(ended);
                if ended.num("exitCode") != 0 {
                    failure.clone_from(&self.reason);
                }
            } else if status.flag("ready") && status.has("state.running") {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" {
            if running && condition(pod, "Ready") {
                "Running".clone_into(&mut self.reason);
            } else if !failure.is_empty() {
                self.reason = failure;
            } else if running {
                "NotReady".clone_into(&mut self.reason);
            }
        }
    }
}

fn last_end(status: &Value) -> Option<i64> {
    cell::seconds(status.text("lastState.terminated.finishedAt"))
}

fn ending(ended: &Value) -> String {
    match (ended.text("reason"), ended.num("signal")) {
        ("", 0) => format!("ExitCode:{}", ended.num("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(status: Value) -> Vec<Value> {
        let pod = json!({
            "metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]},
            "status": status,
        });
        cells(&pod, 300)
    }

    #[test]
    fn statuses_read_as_upstream_words_them() {
        let running = json!({"phase": "Running", "conditions": [{"type": "Initialized", "status": "True"}],
            "containerStatuses": [{"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}},
                "lastState": {"terminated": {"finishedAt": "1970-01-01T00:04:00Z"}}}]});
        assert_eq!(
            row(running)[..4],
            [
                json!("1/1"),
                json!("Running"),
                json!("2 (60s ago)"),
                json!("5m")
            ]
        );
        let failing = json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        assert_eq!(row(failing)[1], "CrashLoopBackOff");
        let starting = json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]});
        assert_eq!(row(starting)[..2], [json!("0/1"), json!("Init:0/1")]);
        let oom = json!({"phase": "Failed", "containerStatuses": [
            {"name": "a", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]});
        assert_eq!(row(oom)[1], "OOMKilled");
    }
}
