//! Whether another server is there: its Service, the endpoints behind it, and what it answers when
//! it is asked what it serves. Reasons and messages are upstream's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use keelson_machinery::meta;
use serde_json::{Value, json};

use super::{Remote, tell};
use crate::server::Server;

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound of a discovery document of another server.
const DISCOVERY_BYTES: usize = 4 << 20;

/// Sets the Available condition of another server's APIService by asking it for discovery.
pub(super) async fn judge(server: &Arc<Server>, remote: &Remote) {
    let (status, reason, message) = match probe(server, remote).await {
        Ok(resources) => {
            // Known before the condition says that it is there to be asked for.
            server.aggregation.learn(remote, resources);
            ("True", "Passed", "all checks passed".to_owned())
        }
        Err((reason, message)) => ("False", reason, message),
    };
    tell(server, &remote.api_service, status, reason, &message).await;
    if status == "True" {
        server.aggregation.documents.read(server, remote).await;
    }
}

/// The resources that the other server serves, as aggregated discovery lists them.
async fn probe(server: &Arc<Server>, remote: &Remote) -> Result<Value, (&'static str, String)> {
    reachable(server, remote)?;
    let failed = |reason: String| ("FailedDiscoveryCheck", reason);
    let address = remote.address(&server.objects).map_err(failed)?;
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let url = format!("https://{address}{path}");
    let answer = ask(server, remote, &path, "application/json", DISCOVERY_BYTES).await;
    let missing = |reason| failed(format!("failing or missing response from {url}: {reason}"));
    let (status, _, bytes) = answer.map_err(|reason| match reason.as_str() {
        "" => failed(format!("timed out waiting for {url}")),
        _ => missing(format!("Get {url:?}: {reason}")),
    })?;
    if !(200..300).contains(&status) {
        return Err(missing(format!("bad status from {url}: {status}")));
    }
    // What cannot be read is nothing that could be listed, but the server is there.
    let list: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    Ok(aggregated_resources(&list))
}

/// Whether there is somebody to ask.
fn reachable(server: &Arc<Server>, remote: &Remote) -> Result<(), (&'static str, String)> {
    let objects = &server.objects;
    let (namespace, name) = (&remote.namespace, &remote.service);
    let what = format!("service/{name} in {namespace:?}");
    let Some(service) = objects.get("", "services", namespace, name) else {
        return Err(("ServiceNotFound", format!("{what} is not present")));
    };
    if service["spec"]["type"] != "ClusterIP" {
        return Ok(());
    }
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let port = ports.find(|port| port["port"].as_u64() == Some(u64::from(remote.port)));
    let Some(port) = port else {
        let message = format!("{what} is not listening on port {}", remote.port);
        return Err(("ServicePortError", message));
    };
    let port_name = port["name"].as_str().unwrap_or_default();
    let slices = objects.list("discovery.k8s.io", "endpointslices", namespace);
    let mut slices = slices
        .iter()
        .filter(|slice| meta::label(slice, "kubernetes.io/service-name") == Some(name))
        .peekable();
    if slices.peek().is_none() {
        let message = format!("cannot find endpointslices for {what}");
        return Err(("EndpointsNotFound", message));
    }
    let has = |slice: &Value, list: &str, test: &dyn Fn(&Value) -> bool| {
        slice[list].as_array().into_iter().flatten().any(test)
    };
    let serves = |slice: &Arc<Value>| {
        has(slice, "endpoints", &|e| e["conditions"]["ready"] != false)
            && has(slice, "ports", &|p| {
                p["name"].as_str().unwrap_or_default() == port_name && p["port"].is_number()
            })
    };
    if slices.any(serves) {
        return Ok(());
    }
    let message =
        format!("endpointslices for {what} have no addresses with port name {port_name:?}");
    Err(("MissingEndpoints", message))
}

/// Status, headers and body of what the other server answers to this one; an empty error when it
/// took too long.
pub(super) async fn ask(
    server: &Arc<Server>,
    remote: &Remote,
    path: &str,
    accept: &str,
    limit_bytes: usize,
) -> Result<(u16, HeaderMap, Bytes), String> {
    let address = remote.address(&server.objects)?;
    let tls = remote.tls(server)?;
    let ask = async {
        let stream = crate::streaming::dial_tls(&address.to_string(), &remote.host(), tls).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", remote.host())
            .header("accept", accept)
            .header("x-remote-user", "system:kube-aggregator")
            .header("x-remote-group", "system:masters")
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, limit_bytes).collect().await;
        let body = body.map_err(|e| e.to_string())?.to_bytes();
        Ok((parts.status.as_u16(), parts.headers, body))
    };
    tokio::time::timeout(PROBE_TIMEOUT, ask)
        .await
        .unwrap_or_else(|_| Err(String::new()))
}

/// The resources of an `APIResourceList` with their subresources under them.
fn aggregated_resources(list: &Value) -> Value {
    let text = |r: &Value, field: &str| r[field].as_str().unwrap_or_default().to_owned();
    let kind = |r: &Value| json!({"group": text(r, "group"), "version": text(r, "version"), "kind": text(r, "kind")});
    let mut resources: BTreeMap<String, Value> = BTreeMap::new();
    let listed = || list["resources"].as_array().into_iter().flatten();
    for r in listed().filter(|r| !text(r, "name").contains('/')) {
        let scope = if r["namespaced"] == true {
            "Namespaced"
        } else {
            "Cluster"
        };
        let mut out = json!({
            "resource": text(r, "name"),
            "responseKind": kind(r),
            "scope": scope,
            "singularResource": text(r, "singularName"),
            "verbs": r["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if r[field].is_array() {
                out[field] = r[field].clone();
            }
        }
        resources.insert(text(r, "name"), out);
    }
    for r in listed() {
        let name = text(r, "name");
        let parent = name.split_once('/');
        if let Some((parent, sub)) = parent
            && let Some(out) = resources.get_mut(parent)
        {
            let sub = json!({"subresource": sub, "responseKind": kind(r), "verbs": r["verbs"]});
            match out["subresources"].as_array_mut() {
                Some(subresources) => subresources.push(sub),
                None => out["subresources"] = json!([sub]),
            }
        }
    }
    Value::Array(resources.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subresources_stand_under_their_resource() {
        let list = json!({"kind": "APIResourceList", "resources": [
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
             "verbs": ["get", "list"], "shortNames": ["fl"]},
        ]});
        let own = json!({"group": "", "version": "", "kind": "Flunder"});
        assert_eq!(
            aggregated_resources(&list),
            json!([{
                "resource": "flunders", "singularResource": "flunder", "scope": "Namespaced",
                "responseKind": own, "verbs": ["get", "list"], "shortNames": ["fl"],
                "subresources": [{"subresource": "status", "responseKind": own, "verbs": ["get"]}],
            }])
        );
    }
}
