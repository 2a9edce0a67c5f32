//! What a user does with a cluster. Each scenario has a Kubernetes namespace of its own.

mod api;
mod cis;
mod closed;
mod network;
mod pods;
mod registry;
mod streams;
mod workloads;

use serde_json::{Value, json};

use crate::lab::Namespace;

type Scenario = fn(&Namespace<'_>);

pub(crate) static SCENARIOS: &[(&str, Scenario)] = &[
    (
        "rolling update without a failed request",
        workloads::rolling_update,
    ),
    ("services by name address and node port", network::services),
    ("exec attach logs cp port-forward", streams::streams),
    (
        "configuration in environment and volumes",
        pods::configuration,
    ),
    ("probes restart and gate", pods::probes),
    ("init containers and sidecars", pods::init_containers),
    ("limits are enforced", pods::limits),
    ("limits of local storage evict", pods::local_storage),
    ("logs are bounded", pods::logs),
    ("security context", pods::security_context),
    ("the node refuses what it cannot give", pods::refused),
    ("self healing", workloads::self_healing),
    ("jobs", workloads::jobs),
    ("pending pods say why", workloads::pending),
    ("patches and apply", api::patches),
    ("bad input", api::bad_input),
    ("nodes cordon drain taint", api::nodes),
    ("reads and discovery", api::reads),
    ("images from a registry with a password", registry::pull),
    ("other users of the machine find nothing", closed::files),
    ("imported images have every name and stay", registry::import),
    ("the CIS benchmark finds what its page says", cis::benchmark),
];

/// Rolls over without losing a request: ready before it is called, called before it ends.
pub(crate) fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 10,
                    "containers": [{
                        "name": "hello", "image": "localhost/keelson/hello",
                        "ports": [{"containerPort": 8080}],
                        "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1},
                        // Endpoints go before the process does.
                        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                    }],
                },
            },
        },
    })
}
