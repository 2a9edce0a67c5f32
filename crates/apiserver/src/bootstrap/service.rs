//! The `kubernetes` Service of the default namespace: how pods reach this server.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use keelson_machinery::meta;
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

impl ServerAddress {
    pub(crate) fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// Without an address that pods can reach, as on a server bound to the loopback device, the Service
/// has no endpoints.
pub(super) async fn publish(
    objects: &Arc<dyn Objects>,
    server: &ServerAddress,
    servers: &[SocketAddr],
) -> Result<(), Status> {
    ensure(objects, "", "services", service(server), |found, wanted| {
        // The address range may have changed; ports follow the server's.
        found["spec"]["clusterIP"] == wanted["spec"]["clusterIP"]
            && found["spec"]["ports"][0]["targetPort"] == wanted["spec"]["ports"][0]["targetPort"]
    })
    .await?;
    let reachable: Vec<SocketAddr> = servers
        .iter()
        .copied()
        .filter(|server| !server.ip().is_loopback())
        .collect();
    ensure(
        objects,
        "",
        "endpoints",
        endpoints(&reachable),
        |found, wanted| same_list(&found["subsets"], &wanted["subsets"]),
    )
    .await?;
    let slices = slices(server, &reachable);
    let names: Vec<String> = slices.iter().map(|s| meta::name(s).to_owned()).collect();
    for slice in slices {
        ensure(objects, SLICE_GROUP, SLICES, slice, |found, wanted| {
            same_list(&found["endpoints"], &wanted["endpoints"])
                && found["ports"] == wanted["ports"]
        })
        .await?;
    }
    for found in objects.list(SLICE_GROUP, SLICES, "default") {
        let name = meta::name(&found);
        if name.starts_with(SLICE_PREFIX) && !names.iter().any(|wanted| wanted == name) {
            objects
                .delete(SLICE_GROUP, SLICES, "default", name)
                .await
                .or_else(|status| {
                    if status.is_not_found() {
                        Ok(())
                    } else {
                        Err(status)
                    }
                })?;
        }
    }
    Ok(())
}

const SLICE_GROUP: &str = "discovery.k8s.io";
const SLICES: &str = "endpointslices";
/// Slices beyond the first, whose servers listen on another port or speak the other family.
const SLICE_PREFIX: &str = "kubernetes-servers-";

fn endpoints(servers: &[SocketAddr]) -> Value {
    let mut ports: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for server in servers {
        ports.entry(server.port()).or_default().push(server.ip());
    }
    let subsets: Vec<Value> = ports
        .iter()
        .map(|(port, addresses)| {
            let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            json!({
                "addresses": addresses,
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            })
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    })
}

/// One for each family and port, of which the first is always there.
fn slices(server: &ServerAddress, servers: &[SocketAddr]) -> Vec<Value> {
    let mut groups: BTreeMap<(&str, u16), Vec<IpAddr>> = BTreeMap::new();
    for server in servers {
        let group = (family(server.ip()), server.port());
        groups.entry(group).or_default().push(server.ip());
    }
    if groups.is_empty() {
        groups.insert((family(server.address), server.port), Vec::new());
    }
    groups
        .iter()
        .enumerate()
        .map(|(index, ((family, port), addresses))| {
            let name = match index {
                0 => "kubernetes".to_owned(),
                _ => format!("{SLICE_PREFIX}{}-{port}", family.to_lowercase()),
            };
            let endpoints: Vec<Value> = addresses
                .iter()
                .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
                .collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
                "addressType": family,
                "endpoints": endpoints,
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            })
        })
        .collect()
}

/// An empty list may be stored as none.
fn same_list(found: &Value, wanted: &Value) -> bool {
    let is_empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    found == wanted || (is_empty(found) && is_empty(wanted))
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
    let name = meta::name(&wanted);
    // Servers that share a store may write at the same time, to the same end.
    let mut attempts = 5;
    loop {
        attempts -= 1;
        let found = objects.read(group, resource, "default", name).await?;
        let written = match found {
            Some(found) if same(&found, &wanted) => return Ok(()),
            Some(mut found) => {
                for key in ["spec", "subsets", "endpoints", "ports", "addressType"] {
                    if wanted.get(key).is_some() {
                        found[key] = wanted[key].clone();
                    }
                }
                objects.update(group, resource, "default", found).await
            }
            None => {
                let wanted = wanted.clone();
                objects.create(group, resource, "default", wanted).await
            }
        };
        match written {
            Err(status) if attempts > 0 && (status.is_conflict() || status.is_already_exists()) => {
            }
            outcome => return outcome.map(drop),
        }
    }
}
