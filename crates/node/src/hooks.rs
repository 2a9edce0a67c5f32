//! Lifecycle hooks: `postStart` and `preStop`.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler};

use crate::node::Node;
use crate::probes;

/// For hooks that end only by themselves or with their container.
pub(crate) const NO_DEADLINE: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run(
    node: &Node,
    id: &str,
    container: &Container,
    ip: &str,
    hook: &LifecycleHandler,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(action) = &hook.exec {
        let command = action.command.clone().unwrap_or_default();
        return match node.runtime.exec_sync(id, command, timeout).await {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => Err(format!(
                "command exited with {}: {}",
                output.exit_code,
                String::from_utf8_lossy(&output.stderr).trim_end()
            )),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(action) = &hook.http_get {
        return http(node, ip, container, action, timeout).await;
    }
    if let Some(action) = &hook.sleep {
        let seconds = u64::try_from(action.seconds).unwrap_or(0);
        node.clock
            .sleep(Duration::from_secs(seconds).min(timeout))
            .await;
        return Ok(());
    }
    Err("invalid handler: none of exec, httpGet and sleep is set".to_owned())
}

async fn http(
    node: &Node,
    ip: &str,
    container: &Container,
    action: &HTTPGetAction,
    timeout: Duration,
) -> Result<(), String> {
    let ip = if ip.is_empty() {
        node.host_ips().first().cloned().unwrap_or_default()
    } else {
        ip.to_owned()
    };
    let target = probes::http_target(action, &ip, container)?;
    let (status, _, _) = tokio::time::timeout(timeout, probes::http_get(&target, timeout))
        .await
        .map_err(|_| "the hook did not answer in time".to_owned())??;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("the hook answered with status {status}"))
    }
}
