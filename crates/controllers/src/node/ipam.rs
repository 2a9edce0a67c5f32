//! Gives every node a range of pod addresses out of the cluster's.

use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use keelson_client::{
    Controller, ControllerContext, Informer, Key, Outcome, Patch, ReconcileError, Watches,
};
use serde_json::json;
use std::time::Duration;

use crate::{Config, pod};

pub(crate) struct NodeIpamController {
    context: ControllerContext,
    nodes: Informer<Node>,
    clusters: Vec<IpNet>,
    mask: (u8, u8),
}

impl NodeIpamController {
    pub(crate) fn new(context: &ControllerContext, config: &Config) -> Self {
        Self {
            context: context.clone(),
            nodes: context.informer(),
            clusters: config.cluster_cidrs.clone(),
            mask: config.node_mask,
        }
    }
}

/// The first range of a node's size that overlaps none in use. A cluster range that is already as
/// small as a node's is given to one node whole. Pure.
pub(crate) fn free_range(cluster: &IpNet, mask: (u8, u8), used: &[IpNet]) -> Option<IpNet> {
    let overlaps = |net: &IpNet| {
        used.iter()
            .any(|u| u.contains(&net.network()) || net.contains(&u.network()))
    };
    match cluster {
        IpNet::V4(cluster) => {
            let prefix = mask.0.clamp(cluster.prefix_len(), 32);
            let count = 1_u64 << (prefix - cluster.prefix_len()).min(16);
            let step = 1_u64 << (32 - prefix);
            let base = u64::from(u32::from(cluster.network()));
            (0..count)
                .filter_map(|n| u32::try_from(base + n * step).ok())
                .filter_map(|addr| Ipv4Net::new(addr.into(), prefix).ok().map(IpNet::V4))
                .find(|net| !overlaps(net))
        }
        IpNet::V6(cluster) => {
            let prefix = mask.1.clamp(cluster.prefix_len(), 128);
            let count = 1_u128 << (prefix - cluster.prefix_len()).min(16);
            let step = 1_u128.checked_shl(u32::from(128 - prefix)).unwrap_or(0);
            let base = u128::from(cluster.network());
            (0..count)
                .filter_map(|n| base.checked_add(n * step))
                .filter_map(|addr| Ipv6Net::new(addr.into(), prefix).ok().map(IpNet::V6))
                .find(|net| !overlaps(net))
        }
    }
}

fn ranges(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let many = spec.pod_cidrs.iter().flatten();
    many.chain(&spec.pod_cidr)
        .filter_map(|text| text.parse().ok())
        .collect()
}

#[async_trait]
impl Controller for NodeIpamController {
    fn name(&self) -> &'static str {
        "node-ipam-controller"
    }

    /// One, so that each assignment sees the one before.
    fn workers(&self) -> usize {
        1
    }

    fn watch(&self, watches: &mut Watches) {
        watches.mapped(&self.nodes, |change| {
            if ranges(change.object()).is_empty() {
                vec![Key::of(&change.object().metadata)]
            } else {
                Vec::new()
            }
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(node) = self.nodes.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        if !ranges(&node).is_empty() || self.clusters.is_empty() {
            return Ok(Outcome::Done);
        }
        let used: Vec<IpNet> = self.nodes.list().iter().flat_map(|n| ranges(n)).collect();
        let chosen: Option<Vec<IpNet>> = self
            .clusters
            .iter()
            .map(|cluster| free_range(cluster, self.mask, &used))
            .collect();
        let Some(chosen) = chosen else {
            let message = format!(
                "Node {} status is now: CIDRNotAvailable",
                pod::name(&node.metadata)
            );
            self.context
                .events
                .normal(&*node, "CIDRNotAvailable", message);
            // A range comes free when a node is deleted, which does not name this node.
            return Ok(Outcome::RequeueAfter(Duration::from_secs(60)));
        };
        let texts: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": texts[0], "podCIDRs": texts},
        }));
        match self
            .context
            .client
            .patch::<Node>("", &key.name, &patch, None)
            .await
        {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_free_range_is_taken() {
        let cluster = net("10.244.0.0/16");
        let mask = (24, 64);
        assert_eq!(free_range(&cluster, mask, &[]), Some(net("10.244.0.0/24")));
        let used = [net("10.244.0.0/24"), net("10.244.2.0/24")];
        assert_eq!(
            free_range(&cluster, mask, &used),
            Some(net("10.244.1.0/24"))
        );
        assert_eq!(free_range(&net("10.244.0.0/24"), mask, &used), None);
        assert_eq!(
            free_range(&net("10.0.0.0/26"), mask, &[]),
            Some(net("10.0.0.0/26"))
        );
        assert_eq!(
            free_range(&net("fd00::/48"), mask, &[net("fd00::/64")]),
            Some(net("fd00:0:0:1::/64"))
        );
    }
}
