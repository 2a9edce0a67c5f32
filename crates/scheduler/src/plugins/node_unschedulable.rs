//! Cordoned nodes take only pods that tolerate the `unschedulable` taint.

use super::taint_toleration::tolerates;
use super::{Plugin, Rejection};
use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;
use k8s_openapi::api::core::v1::Taint;

pub(crate) struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _model: &Model) -> Result<(), Rejection> {
        let cordoned = node
            .node
            .as_ref()
            .and_then(|node| node.spec.as_ref())
            .is_some_and(|spec| spec.unschedulable == Some(true));
        if !cordoned {
            return Ok(());
        }
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if tolerates(pod, &taint) {
            Ok(())
        } else {
            Err(Rejection::lasting("node(s) were unschedulable"))
        }
    }
}
