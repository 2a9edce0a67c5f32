//! The `kubernetes` Service of the default namespace: how pods reach this server.

use std::net::IpAddr;
use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::objects::Objects;

/// Where the server is reached.
#[derive(Debug, Clone)]
pub(crate) struct ServerAddress {
    /// The first address of the service range.
    pub(crate) service_ip: IpAddr,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// Without an address that pods can reach, as on a server bound to the loopback device, the Service
/// has no endpoints.
pub(super) async fn publish(
    objects: &Arc<dyn Objects>,
    server: &ServerAddress,
) -> Result<(), Status> {
    ensure(objects, "", "services", service(server), |found, wanted| {
        // The address range may have changed; ports follow the server's.
        found["spec"]["clusterIP"] == wanted["spec"]["clusterIP"]
            && found["spec"]["ports"][0]["targetPort"] == wanted["spec"]["ports"][0]["targetPort"]
    })
    .await?;
    let reachable = !server.address.is_loopback();
    let subsets = json!([{
        "addresses": [{"ip": server.address}],
        "ports": [{"name": "https", "port": server.port, "protocol": "TCP"}],
    }]);
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": if reachable { subsets } else { json!([]) },
    });
    ensure(objects, "", "endpoints", endpoints, |found, wanted| {
        same_list(&found["subsets"], &wanted["subsets"])
    })
    .await?;
    let ready = json!([{"addresses": [server.address], "conditions": {"ready": true}}]);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family(server.address),
        "endpoints": if reachable { ready } else { json!([]) },
        "ports": [{"name": "https", "port": server.port, "protocol": "TCP"}],
    });
    ensure(
        objects,
        "discovery.k8s.io",
        "endpointslices",
        slice,
        |found, wanted| {
            same_list(&found["endpoints"], &wanted["endpoints"])
                && found["ports"] == wanted["ports"]
        },
    )
    .await
}

/// An empty list may be stored as none.
fn same_list(found: &Value, wanted: &Value) -> bool {
    let is_empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    found == wanted || (is_empty(found) && is_empty(wanted))
}

/// An existing one is left alone: which ranges are in use is then for the administrator to say.
pub(super) async fn publish_cidr(
    objects: &Arc<dyn Objects>,
    cidr: ipnet::IpNet,
) -> Result<(), Status> {
    let (group, resource) = ("networking.k8s.io", "servicecidrs");
    if objects.get(group, resource, "", "kubernetes").is_some() {
        return Ok(());
    }
    let wanted = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [cidr.trunc().to_string()]},
    });
    let mut created = objects.create(group, resource, "", wanted).await?;
    created["status"] = json!({"conditions": [{
        "type": "Ready", "status": "True", "reason": "",
        "message": "Kubernetes default Service CIDR is ready",
        "lastTransitionTime": keelson_machinery::time::now(),
    }]});
    objects.update(group, resource, "", created).await.map(drop)
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn service(server: &ServerAddress) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": server.service_ip,
            "clusterIPs": [server.service_ip],
            "ipFamilies": [family(server.service_ip)],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": server.port}],
        },
    })
}

/// Creates the object, or replaces it with `wanted` when `same` does not hold.
async fn ensure(
    objects: &Arc<dyn Objects>,
    group: &str,
    resource: &str,
    wanted: Value,
    same: impl Fn(&Value, &Value) -> bool,
) -> Result<(), Status> {
    match objects
        .read(group, resource, "default", "kubernetes")
        .await?
    {
        Some(found) if same(&found, &wanted) => Ok(()),
        Some(mut found) => {
            for key in ["spec", "subsets", "endpoints", "ports", "addressType"] {
                if wanted.get(key).is_some() {
                    found[key] = wanted[key].clone();
                }
            }
            objects
                .update(group, resource, "default", found)
                .await
                .map(drop)
        }
        None => match objects.create(group, resource, "default", wanted).await {
            Err(status) if !status.is_already_exists() => Err(status),
            _ => Ok(()),
        },
    }
}
