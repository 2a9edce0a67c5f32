//! The `kube-dns` Service, and the EndpointSlice that says where the resolver listens.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use keelson_client::{Client, Patch};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const MANAGER: &str = "keelson-dns";
const SERVICES: &str = "/api/v1/namespaces/kube-system/services/kube-dns";
const SLICES: &str =
    "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns-keelson";

/// Applies both objects, again and again until the API server takes them.
pub(crate) async fn publish(
    client: &Client,
    service_ip: IpAddr,
    listen: SocketAddr,
    shutdown: &CancellationToken,
) {
    loop {
        match apply(client, service_ip, listen).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(%error, "the cluster DNS service could not be published; trying again")
            }
        }
        if shutdown
            .run_until_cancelled(tokio::time::sleep(Duration::from_secs(1)))
            .await
            .is_none()
        {
            return;
        }
    }
}

async fn apply(
    client: &Client,
    service_ip: IpAddr,
    listen: SocketAddr,
) -> Result<(), keelson_client::Error> {
    for (path, value) in [(SERVICES, service(service_ip)), (SLICES, slice(listen))] {
        let path = format!("{path}?fieldManager={MANAGER}&force=true");
        client
            .patch_path(
                &path,
                &Patch::Apply {
                    manager: MANAGER.to_owned(),
                    force: true,
                    value,
                },
            )
            .await?;
    }
    Ok(())
}

fn service(ip: IpAddr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "clusterIP": ip.to_string(),
            "clusterIPs": [ip.to_string()],
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    })
}

fn slice(listen: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns-keelson",
            "namespace": "kube-system",
            "labels": {
                "kubernetes.io/service-name": "kube-dns",
                "endpointslice.kubernetes.io/managed-by": "keelson-dns",
            },
        },
        "addressType": if listen.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [listen.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [
            {"name": "dns", "port": listen.port(), "protocol": "UDP"},
            {"name": "dns-tcp", "port": listen.port(), "protocol": "TCP"},
        ],
    })
}
