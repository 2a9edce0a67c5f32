//! Aggregation: APIServices for the groups served here are kept, those of other servers are
//! watched over and their requests passed on.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use keelson_machinery::{meta, time};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use crate::discovery::version_priority;
use crate::objects::Objects;
use crate::server::Server;
use crate::streaming::{ServiceAddress, resolve_service, unverified_tls, verified_tls};

const GROUP: &str = "apiregistration.k8s.io";
const RESOURCE: &str = "apiservices";
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Another server going away is no event here, so remote ones are asked again now and then.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);
/// Bound of a discovery document of another server.
const DISCOVERY_BYTES: usize = 4 << 20;

pub(crate) struct Aggregation {
    /// By group and version; swapped whole when APIServices change.
    remotes: RwLock<Arc<BTreeMap<(String, String), Remote>>>,
    /// What each group version said it serves when it was last asked, in the form of aggregated
    /// discovery.
    resources: RwLock<BTreeMap<(String, String), Value>>,
    objects: Arc<dyn Objects>,
}

/// A group version that another server serves.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Remote {
    api_service: String,
    group: String,
    version: String,
    namespace: String,
    service: String,
    port: u16,
    ca_bundle: String,
    insecure: bool,
    group_priority: i64,
    version_priority: i64,
}

impl Remote {
    fn of(api_service: &Value) -> Option<Self> {
        let spec = &api_service["spec"];
        let service = spec["service"].as_object()?;
        let text =
            |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self {
            api_service: meta::name(api_service).to_owned(),
            group: text(spec.get("group")),
            version: text(spec.get("version")),
            namespace: text(service.get("namespace")),
            service: text(service.get("name")),
            port: service
                .get("port")
                .and_then(Value::as_u64)
                .and_then(|p| u16::try_from(p).ok())
                .unwrap_or(443),
            ca_bundle: text(spec.get("caBundle")),
            insecure: spec["insecureSkipTLSVerify"] == true,
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
        })
    }

    pub(crate) fn service_name(&self) -> String {
        format!("{}/{}", self.namespace, self.service)
    }

    /// The name its certificate must bear.
    pub(crate) fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    pub(crate) fn address(&self, objects: &Arc<dyn Objects>) -> Result<ServiceAddress, String> {
        resolve_service(
            objects,
            &self.namespace,
            &self.service,
            &self.port.to_string(),
        )
        .map_err(|s| s.message)
    }

    pub(crate) fn tls(&self, server: &Server) -> Result<Arc<ClientConfig>, String> {
        let identity = Some(&server.pki.front_proxy_client);
        if self.insecure {
            return unverified_tls(identity).map_err(|e| e.to_string());
        }
        let pem = STANDARD
            .decode(&self.ca_bundle)
            .map_err(|e| format!("caBundle: {e}"))?;
        let authorities = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("caBundle: {e}"))?;
        verified_tls(&authorities, identity).map_err(|e| e.to_string())
    }
}

impl Aggregation {
    pub(crate) fn new(objects: Arc<dyn Objects>) -> Self {
        Self {
            remotes: RwLock::default(),
            resources: RwLock::default(),
            objects,
        }
    }

    fn current(&self) -> Arc<BTreeMap<(String, String), Remote>> {
        Arc::clone(&self.remotes.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// The other server of a group version, if another one serves it.
    pub(crate) fn remote(&self, group: &str, version: &str) -> Option<Remote> {
        if group.is_empty() {
            return None;
        }
        let remotes = self.current();
        if remotes.is_empty() {
            return None;
        }
        remotes
            .get(&(group.to_owned(), version.to_owned()))
            .cloned()
    }

    /// Groups of available other servers, as `/apis` lists them.
    pub(crate) fn groups(&self) -> Vec<Value> {
        let mut groups: BTreeMap<String, Vec<Remote>> = BTreeMap::new();
        for remote in self.current().values() {
            let available = self
                .objects
                .get(GROUP, RESOURCE, "", &remote.api_service)
                .is_some_and(|service| condition(&service).is_some_and(|c| c["status"] == "True"));
            if available {
                groups
                    .entry(remote.group.clone())
                    .or_default()
                    .push(remote.clone());
            }
        }
        let mut groups: Vec<(String, Vec<Remote>)> = groups.into_iter().collect();
        groups.sort_by_key(|(name, remotes)| {
            (
                std::cmp::Reverse(remotes.iter().map(|r| r.group_priority).max()),
                name.clone(),
            )
        });
        groups
            .into_iter()
            .map(|(name, mut remotes)| {
                remotes.sort_by_key(|r| std::cmp::Reverse((r.version_priority, version_priority(&r.version))));
                let versions: Vec<Value> = remotes
                    .iter()
                    .map(|r| json!({"groupVersion": format!("{name}/{}", r.version), "version": r.version}))
                    .collect();
                json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
            })
            .collect()
    }

    /// The same for aggregated discovery. What a server has not said yet is marked stale.
    pub(crate) fn aggregated_groups(&self) -> Vec<Value> {
        let known = self.resources.read().unwrap_or_else(|e| e.into_inner());
        let version = |group: &Value, version: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            match known.get(&(text(group), text(version))) {
                Some(resources) => {
                    json!({"version": version, "freshness": "Current", "resources": resources})
                }
                None => json!({"version": version, "freshness": "Stale", "resources": []}),
            }
        };
        let aggregated = |group: Value| {
            let listed = group["versions"].as_array().into_iter().flatten();
            let versions: Vec<Value> = listed
                .map(|v| version(&group["name"], &v["version"]))
                .collect();
            json!({"metadata": {"name": group["name"], "creationTimestamp": null}, "versions": versions})
        };
        self.groups().into_iter().map(aggregated).collect()
    }

    fn learn(&self, remote: &Remote, resources: Value) {
        self.resources
            .write()
            .unwrap_or_else(|e| e.into_inner())
            .insert((remote.group.clone(), remote.version.clone()), resources);
    }

    fn refresh(&self) {
        let remotes: BTreeMap<(String, String), Remote> = self
            .objects
            .list(GROUP, RESOURCE, "")
            .iter()
            .filter_map(|object| Remote::of(object))
            .map(|remote| ((remote.group.clone(), remote.version.clone()), remote))
            .collect();
        self.resources
            .write()
            .unwrap_or_else(|e| e.into_inner())
            .retain(|served, _| remotes.contains_key(served));
        *self.remotes.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(remotes);
    }
}

/// Follows APIServices, services and endpoints until the server stops.
pub(crate) async fn run(server: Arc<Server>) {
    let objects = Arc::clone(&server.objects);
    let mut api_services = objects.changes(GROUP, RESOURCE);
    let mut slices = objects.changes("discovery.k8s.io", "endpointslices");
    let mut served = server.resources.changes();
    loop {
        api_services.mark_unchanged();
        slices.mark_unchanged();
        served.mark_unchanged();
        server.aggregation.refresh();
        register_local(&server).await;
        let remotes = server.aggregation.current();
        for remote in remotes.values() {
            judge(&server, remote).await;
        }
        let idle = remotes.is_empty();
        tokio::select! {
            () = server.stop.cancelled() => return,
            changed = api_services.changed() => if changed.is_err() { return },
            changed = served.changed() => if changed.is_err() { return },
            changed = slices.changed(), if !idle => if changed.is_err() { return },
            () = tokio::time::sleep(PROBE_INTERVAL), if !idle => {}
        }
    }
}

/// Keeps an automanaged APIService for every group version served here.
async fn register_local(server: &Arc<Server>) {
    let snapshot = server.discovery.current(server);
    let objects = &server.objects;
    let mut wanted = BTreeMap::new();
    for (rank, group) in snapshot.groups.iter().enumerate() {
        for version in &group.versions {
            let custom = version.resources.iter().all(|r| r.custom);
            let (group_priority, version_priority) = if custom {
                (1000, 100)
            } else {
                (
                    18_000 - 10 * rank as i64,
                    if version.version.contains("alpha") {
                        1
                    } else if version.version.contains("beta") {
                        9
                    } else {
                        15
                    },
                )
            };
            let name = format!("{}.{}", version.version, group.name);
            let spec = json!({
                "group": group.name, "version": version.version,
                "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
            });
            wanted.insert(name, spec);
        }
    }
    for object in objects.list(GROUP, RESOURCE, "") {
        let name = meta::name(&object);
        let automanaged = meta::label(&object, AUTOMANAGED).is_some();
        if wanted.remove(name).is_none() && automanaged && object["spec"]["service"].is_null() {
            report(
                objects
                    .delete(GROUP, RESOURCE, "", name)
                    .await
                    .map(|()| Value::Null),
                name,
            );
        }
    }
    let creations = wanted.into_iter().map(|(name, spec)| async move {
        let object = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": name, "labels": {AUTOMANAGED: "onstart"}},
            "spec": spec,
        });
        let created = objects.create(GROUP, RESOURCE, "", object).await;
        let outcome = match created {
            Ok(mut created) => {
                let condition = available(
                    "True",
                    "Local",
                    "Local APIServices are always available",
                    &time::now(),
                );
                created["status"] = json!({"conditions": [condition]});
                objects.update(GROUP, RESOURCE, "", created).await
            }
            failed => failed,
        };
        report(outcome, &name);
    });
    futures::future::join_all(creations).await;
}

fn report(outcome: Result<Value, keelson_machinery::status::Status>, name: &str) {
    if let Err(status) = outcome
        && !status.is_conflict()
        && !status.is_already_exists()
        && !status.is_not_found()
    {
        tracing::warn!(name, %status, "keeping an APIService");
    }
}

fn available(status: &str, reason: &str, message: &str, now: &str) -> Value {
    json!({"type": "Available", "status": status, "reason": reason, "message": message, "lastTransitionTime": now})
}

fn condition(object: &Value) -> Option<&Value> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == "Available")
}

/// Sets the Available condition of another server's APIService by asking it for discovery.
async fn judge(server: &Arc<Server>, remote: &Remote) {
    let (status, reason, message) = match probe(server, remote).await {
        Ok(resources) => {
            // Known before the condition says that it is there to be asked for.
            server.aggregation.learn(remote, resources);
            ("True", "Passed", "all checks passed".to_owned())
        }
        Err((reason, message)) => ("False", reason, message),
    };
    let Some(object) = server.objects.get(GROUP, RESOURCE, "", &remote.api_service) else {
        return;
    };
    let before = condition(&object);
    if before
        .is_some_and(|c| c["status"] == status && c["reason"] == reason && c["message"] == message)
    {
        return;
    }
    let since = before
        .filter(|c| c["status"] == status)
        .and_then(|c| c["lastTransitionTime"].as_str())
        .map_or_else(time::now, ToOwned::to_owned);
    let mut updated = Value::clone(&object);
    updated["status"] = json!({"conditions": [available(status, reason, &message, &since)]});
    report(
        server.objects.update(GROUP, RESOURCE, "", updated).await,
        &remote.api_service,
    );
}

/// Asks another server what it serves; the resources, as aggregated discovery lists them.
async fn probe(server: &Arc<Server>, remote: &Remote) -> Result<Value, (&'static str, String)> {
    let objects = &server.objects;
    if objects
        .get("", "services", &remote.namespace, &remote.service)
        .is_none()
    {
        let message = format!(
            "service/{} in {:?} is not present",
            remote.service, remote.namespace
        );
        return Err(("ServiceNotFound", message));
    }
    let address = remote
        .address(objects)
        .map_err(|reason| ("MissingEndpoints", reason))?;
    let failed = |reason: String| ("FailedDiscoveryCheck", reason);
    let tls = remote.tls(server).map_err(failed)?;
    let path = format!("/apis/{}/{}", remote.group, remote.version);
    let ask = async {
        let stream = crate::streaming::dial_tls(&address.to_string(), &remote.host(), tls).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        let request = Request::get(&path)
            .header("host", remote.host())
            .header("accept", "application/json")
            .header("x-remote-user", "system:kube-aggregator")
            .header("x-remote-group", "system:masters")
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        if !response.status().is_success() {
            return Err(format!(
                "bad status from https://{address}{path}: {}",
                response.status().as_u16()
            ));
        }
        let body = Limited::new(response.into_body(), DISCOVERY_BYTES);
        let bytes = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        let list: Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        Ok(aggregated_resources(&list))
    };
    let outcome = tokio::time::timeout(PROBE_TIMEOUT, ask)
        .await
        .unwrap_or_else(|_| Err("timed out".to_owned()));
    outcome.map_err(|reason| {
        failed(format!(
            "failing or missing response from https://{address}{path}: {reason}"
        ))
    })
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
    fn only_api_services_with_a_service_are_remote() {
        let local =
            json!({"metadata": {"name": "v1.apps"}, "spec": {"group": "apps", "version": "v1"}});
        assert_eq!(Remote::of(&local), None);
        let remote = json!({"metadata": {"name": "v1.x"}, "spec": {
            "group": "x", "version": "v1", "service": {"name": "s", "namespace": "n"}, "insecureSkipTLSVerify": true}});
        let remote = Remote::of(&remote).unwrap();
        assert_eq!(
            (remote.host().as_str(), remote.port, remote.insecure),
            ("s.n.svc", 443, true)
        );
    }

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
