//! Two pods cannot have one host port of a node.

use super::{Plugin, Rejection};
use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;

pub(crate) struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn concerns(&self, pod: &PodInfo, _model: &Model) -> bool {
        !pod.host_ports.is_empty()
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _model: &Model) -> Result<(), Rejection> {
        let taken = |wanted: &_| {
            node.pods
                .values()
                .flat_map(|other| &other.host_ports)
                .any(|used: &crate::pod_info::HostPort| used.conflicts_with(wanted))
        };
        if pod.host_ports.iter().any(taken) {
            return Err(Rejection::resolvable(vec![
                "node(s) didn't have free ports for the requested pod ports".to_owned(),
            ]));
        }
        Ok(())
    }
}
