//! PodResizeValidator: a running pod does not ask for more than its node has.

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::{AdmissionPlugin, Attributes, Cluster, Operation, pod_amounts, quantity_of};

pub(super) struct PodResizeValidator;

#[async_trait]
impl AdmissionPlugin for PodResizeValidator {
    fn name(&self) -> &'static str {
        "PodResizeValidator"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is_any("", "pods") || attrs.subresource != "resize" {
            return Ok(());
        }
        let (Some(pod), Some(old)) = (attrs.object.as_ref(), attrs.old_object.as_deref()) else {
            return Ok(());
        };
        let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if name.is_empty() || pod["spec"] == old["spec"] {
            return Ok(());
        }
        let Some(node) = cluster.objects.get("", "nodes", "", name) else {
            return Err(attrs.forbidden(format!("node {name:?} not found")));
        };
        match meta::label(&node, "kubernetes.io/os") {
            None | Some("linux") => {}
            Some(os) => {
                let message =
                    format!("pod resize is only supported on linux nodes, node {name:?} is {os:?}");
                let status = attrs.forbidden(message);
                return Err(status.with_cause("UnsupportedPlatform", "", ""));
            }
        }
        match excess(pod, &node["status"]["allocatable"]) {
            None => Ok(()),
            Some(message) => Err(attrs.forbidden(message).with_cause("NodeCapacity", "", "")),
        }
    }
}

/// What of the pod's requests is more than a node has in all.
fn excess(pod: &Value, allocatable: &Value) -> Option<String> {
    let requests = pod_amounts(pod, "requests");
    let shown = |name: &str, show: fn(&Quantity) -> i64| {
        let requested = requests.get(name)?;
        let allocatable =
            quantity_of(&allocatable[name]).unwrap_or_else(|| Quantity::from_value(0));
        (*requested > allocatable).then(|| {
            format!(
                "{name}, requested: {}, allocatable: {}",
                show(requested),
                show(&allocatable)
            )
        })
    };
    let all: Vec<String> = [
        shown("cpu", Quantity::milli_value),
        shown("memory", Quantity::value),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!all.is_empty()).then(|| {
        format!(
            "node didn't have enough allocatable resources: {}",
            all.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_beyond_the_node_are_told_in_upstreams_words() {
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "3", "memory": "1Gi"}}}]}});
        assert_eq!(
            excess(&pod, &json!({"cpu": "2", "memory": "2Gi"})).as_deref(),
            Some(
                "node didn't have enough allocatable resources: cpu, requested: 3000, allocatable: 2000"
            )
        );
        assert_eq!(excess(&pod, &json!({"cpu": "4", "memory": "2Gi"})), None);
    }
}
