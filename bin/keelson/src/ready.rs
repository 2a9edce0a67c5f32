//! What `up` waits for, seen as a client sees it.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use crate::components::Cluster;

/// The node's `Ready` condition is true.
pub(crate) async fn node(cluster: &Cluster, name: &str) {
    let nodes = cluster.informers().informer::<Node>();
    let (sender, mut receiver) = tokio::sync::watch::channel(false);
    let name = name.to_owned();
    nodes.subscribe(move |change| {
        let node = change.object();
        if node.metadata.name.as_deref() == Some(&name)
            && condition(node).is_some_and(|(status, _)| status == "True")
        {
            sender.send_replace(true);
        }
    });
    // The sender lives in the informer, which outlives this wait.
    let _ = receiver.wait_for(|ready| *ready).await;
}

pub(crate) async fn why_not(cluster: &Cluster, name: &str) -> String {
    match cluster.informers().informer::<Node>().get("", name) {
        None => "the node has not registered itself; see --log-level info".to_owned(),
        Some(node) => match condition(&node) {
            Some(("True", _)) => "DNS does not answer; see --log-level info".to_owned(),
            Some((_, message)) => message.to_owned(),
            None => "the node reports no condition yet; see --log-level info".to_owned(),
        },
    }
}

fn condition(node: &Node) -> Option<(&str, &str)> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")?;
    Some((&ready.status, ready.message.as_deref().unwrap_or_default()))
}

/// The cluster's resolver answers for the API server's own Service, over the service address as a
/// pod would ask it.
pub(crate) async fn dns(cluster: &Cluster) {
    let server = SocketAddr::new(cluster.dns_ip(), 53);
    let query = query(&format!(
        "kubernetes.default.svc.{}",
        cluster.cluster_domain()
    ));
    loop {
        if ask(server, &query).await.unwrap_or(false) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ask(server: SocketAddr, query: &[u8]) -> std::io::Result<bool> {
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut reply = [0_u8; 512];
    let length =
        tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut reply)).await??;
    // Same id, an answer, no error.
    Ok(length > 12 && reply[..2] == query[..2] && reply[3] & 0x0f == 0 && reply[7] > 0)
}

/// One question for an A record, by RFC 1035 section 4.1.
fn query(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x4b, 0x4c, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}
