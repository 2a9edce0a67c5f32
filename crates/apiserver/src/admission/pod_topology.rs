//! PodTopologyLabels: a pod learns the zone and region of its node from its own labels.

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;

use super::{AdmissionPlugin, Attributes, Cluster, Operation};

pub(super) struct PodTopologyLabels;

const LABELS: [&str; 2] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

#[async_trait]
impl AdmissionPlugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    /// The labels of a binding become the pod's.
    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is_any("", "pods") {
            return Ok(());
        }
        let Some(object) = attrs.object.as_mut() else {
            return Ok(());
        };
        let node = match attrs.subresource.as_str() {
            "" => object["spec"]["nodeName"].as_str(),
            "binding" if object["target"]["kind"] == "Node" => object["target"]["name"].as_str(),
            _ => None,
        };
        let node = node
            .filter(|name| !name.is_empty())
            .and_then(|name| cluster.objects.get("", "nodes", "", name));
        let Some(node) = node else {
            return Ok(());
        };
        for label in LABELS {
            if let Some(value) = meta::label(&node, label) {
                meta::set_label(object, label, value);
            }
        }
        Ok(())
    }
}
