//! Taints repel pods that do not tolerate them; `PreferNoSchedule` only lowers a node's score.

use k8s_openapi::api::core::v1::Taint;
use keelson_semantics::taint;

use super::{Plugin, Rejection, normalize_by_max};
use crate::model::{Model, NodeInfo};
use crate::pod_info::PodInfo;

pub(crate) struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter(&self, pod: &PodInfo, node: &NodeInfo, _model: &Model) -> Result<(), Rejection> {
        let untolerated = taints(node)
            .iter()
            .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
            .find(|taint| !tolerates(pod, taint));
        match untolerated {
            None => Ok(()),
            Some(taint) => {
                let value = taint.value.as_deref().unwrap_or_default();
                Err(Rejection::lasting(format!(
                    "node(s) had untolerated taint {{{}: {value}}}",
                    taint.key
                )))
            }
        }
    }

    fn weight(&self) -> i64 {
        3
    }

    fn scores(&self, pod: &PodInfo, nodes: &[&NodeInfo], _model: &Model) -> Option<Vec<i64>> {
        let intolerable = |node: &&NodeInfo| {
            let soft = taints(node)
                .iter()
                .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerates(pod, taint));
            i64::try_from(soft.count()).unwrap_or(i64::MAX)
        };
        Some(nodes.iter().map(intolerable).collect())
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize_by_max(scores, true);
    }
}

fn taints(node: &NodeInfo) -> &[Taint] {
    node.node
        .as_ref()
        .and_then(|node| node.spec.as_ref())
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
}

pub(crate) fn tolerates(pod: &PodInfo, taint: &Taint) -> bool {
    let tolerations = pod
        .spec()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default();
    taint::is_tolerated(tolerations, taint)
}
