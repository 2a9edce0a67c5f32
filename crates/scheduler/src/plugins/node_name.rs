//! `spec.nodeName` set before scheduling binds a pod to that node alone.

use super::{Plugin, Rejection};
use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;

pub(crate) struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn concerns(&self, pod: &PodInfo, _model: &Model) -> bool {
        wanted(pod).is_some()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _model: &Model) -> Result<(), Rejection> {
        match wanted(pod) {
            Some(name) if name != node.name => Err(Rejection::lasting(
                "node(s) didn't match the requested node name",
            )),
            _ => Ok(()),
        }
    }
}

fn wanted(pod: &PodInfo) -> Option<&str> {
    pod.spec()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}
