//! Tells the node's pod network which ranges are its own and where the other nodes' pods live.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use keelson_client::Informers;
use keelson_ports::PodNetwork;
use tokio::sync::watch;

const RETRY: Duration = Duration::from_secs(1);

/// What the pod network must be told. Compared, so that heartbeats of nodes touch nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Plan {
    own: Vec<IpNet>,
    routes: Vec<(IpNet, IpAddr)>,
}

/// Runs until the informers are shut down. `cluster_cidrs` is what pods reach without masquerading.
pub async fn run_pod_network(
    informers: Informers,
    network: Arc<dyn PodNetwork>,
    node_name: String,
    cluster_cidrs: Vec<IpNet>,
) {
    let nodes = informers.informer::<Node>();
    let (changes, mut changed) = watch::channel(());
    nodes.subscribe(move |_| {
        changes.send_replace(());
    });
    nodes.synced().await;
    let work = async {
        let mut applied = Plan::default();
        loop {
            changed.mark_unchanged();
            let wanted = plan(&nodes.list(), &node_name);
            if wanted != applied {
                match apply(&*network, &applied, &wanted, &cluster_cidrs).await {
                    Ok(()) => applied = wanted,
                    Err(error) => {
                        tracing::warn!(%error, "the pod network was not set up; trying again");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    };
    informers.shutdown().run_until_cancelled(work).await;
}

async fn apply(
    network: &dyn PodNetwork,
    applied: &Plan,
    wanted: &Plan,
    cluster: &[IpNet],
) -> keelson_ports::Result<()> {
    if applied.own != wanted.own {
        network.setup_node(&wanted.own, cluster).await?;
    }
    if applied.routes != wanted.routes {
        network.set_routes(&wanted.routes).await?;
    }
    Ok(())
}

fn plan(nodes: &[Arc<Node>], own_name: &str) -> Plan {
    let mut plan = Plan::default();
    for node in nodes {
        let ranges = pod_ranges(node);
        if node.metadata.name.as_deref() == Some(own_name) {
            plan.own = ranges;
            continue;
        }
        for range in ranges {
            let reachable = internal_ips(node)
                .into_iter()
                .find(|ip| ip.is_ipv4() == matches!(range, IpNet::V4(_)));
            plan.routes.extend(reachable.map(|ip| (range, ip)));
        }
    }
    plan.routes.sort();
    plan
}

fn pod_ranges(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let several = spec.pod_cidrs.iter().flatten();
    let single = spec.pod_cidr.iter().filter(|_| spec.pod_cidrs.is_none());
    several
        .chain(single)
        .filter_map(|range| range.parse().ok())
        .collect()
}

fn internal_ips(node: &Node) -> Vec<IpAddr> {
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_ref());
    addresses
        .into_iter()
        .flatten()
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, range: &str, ip: &str) -> Arc<Node> {
        let node = serde_json::json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]},
        });
        Arc::new(serde_json::from_value(node).unwrap_or_default())
    }

    #[test]
    fn routes_lead_to_the_other_nodes() {
        let nodes = [
            node("a", "10.244.0.0/24", "192.0.2.1"),
            node("b", "10.244.1.0/24", "192.0.2.2"),
        ];
        let plan = plan(&nodes, "a");
        assert_eq!(
            plan.own,
            ["10.244.0.0/24".parse::<IpNet>()]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        );
        assert_eq!(plan.routes.len(), 1);
        assert_eq!(plan.routes[0].1.to_string(), "192.0.2.2");
    }
}
