//! Aggregation: APIServices for the groups served here are kept, those of other servers are
//! watched over and their requests passed on.

mod local;
mod openapi;
mod probe;

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
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
/// Another server going away is no event here, so remote ones are asked again now and then.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

pub(crate) struct Aggregation {
    /// By group and version; swapped whole when APIServices change.
    remotes: RwLock<Arc<BTreeMap<(String, String), Remote>>>,
    /// What each group version said it serves when it was last asked, in the form of aggregated
    /// discovery.
    resources: RwLock<BTreeMap<(String, String), Value>>,
    pub(crate) documents: openapi::Documents,
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
    /// Whether the last look at it found it in order.
    pub(crate) available: bool,
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
            available: is_available(api_service),
        })
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
            documents: openapi::Documents::default(),
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

    /// Groups of other servers, available or not, as `/apis` lists them.
    pub(crate) fn groups(&self) -> Vec<Value> {
        let mut groups: BTreeMap<String, Vec<Remote>> = BTreeMap::new();
        for remote in self.current().values() {
            let versions = groups.entry(remote.group.clone()).or_default();
            versions.push(remote.clone());
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

    /// The same for aggregated discovery. What a server does not say now is marked stale.
    pub(crate) fn aggregated_groups(&self) -> Vec<Value> {
        let known = self.resources.read().unwrap_or_else(|e| e.into_inner());
        let remotes = self.current();
        let version = |group: &Value, version: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let served = (text(group), text(version));
            let available = remotes.get(&served).is_some_and(|remote| remote.available);
            match known.get(&served).filter(|_| available) {
                Some(resources) => {
                    json!({"version": version, "freshness": "Current", "resources": resources})
                }
                None => json!({"version": version, "freshness": "Stale"}),
            }
        };
        let aggregated = |group: Value| {
            let listed = group["versions"].as_array().into_iter().flatten();
            let versions: Vec<Value> = listed
                .map(|v| version(&group["name"], &v["version"]))
                .collect();
            json!({"metadata": {"name": group["name"]}, "versions": versions})
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
        self.documents.retain(|served| remotes.contains_key(served));
        *self.remotes.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(remotes);
    }
}

/// What has been done when APIServices were looked at once.
const FIRST_ROUND: [&str; 7] = [
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/apiservice-wait-for-first-sync",
    "poststarthook/apiservice-discovery-controller",
    "autoregister-completion",
    "poststarthook/apiservice-openapi-controller",
    "poststarthook/apiservice-openapiv3-controller",
];

/// Follows APIServices, services and endpoints until the server stops.
pub(crate) async fn run(server: Arc<Server>) {
    let objects = Arc::clone(&server.objects);
    let mut api_services = objects.changes(GROUP, RESOURCE);
    let mut slices = objects.changes("discovery.k8s.io", "endpointslices");
    let mut services = objects.changes("", "services");
    let mut served = server.resources.changes();
    let mut registration = local::Registration::new(&objects);
    server.health.done(&[
        "poststarthook/start-kube-aggregator-informers",
        "poststarthook/apiservice-registration-controller",
        "poststarthook/kube-apiserver-autoregistration",
    ]);
    loop {
        api_services.mark_unchanged();
        slices.mark_unchanged();
        services.mark_unchanged();
        served.mark_unchanged();
        server.aggregation.refresh();
        registration.keep(&server).await;
        let remotes = server.aggregation.current();
        for remote in remotes.values() {
            probe::judge(&server, remote).await;
        }
        server.health.done(&FIRST_ROUND);
        let idle = remotes.is_empty();
        tokio::select! {
            () = server.stop.cancelled() => return,
            changed = api_services.changed() => if changed.is_err() { return },
            changed = served.changed() => if changed.is_err() { return },
            changed = slices.changed(), if !idle => if changed.is_err() { return },
            changed = services.changed(), if !idle => if changed.is_err() { return },
            () = tokio::time::sleep(PROBE_INTERVAL), if !idle => {}
        }
    }
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

fn is_available(object: &Value) -> bool {
    condition(object).is_some_and(|condition| condition["status"] == "True")
}

/// Writes the condition when it says something else than before.
async fn tell(server: &Server, name: &str, status: &str, reason: &str, message: &str) {
    let Some(object) = server.objects.get(GROUP, RESOURCE, "", name) else {
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
    updated["status"] = json!({"conditions": [available(status, reason, message, &since)]});
    report(
        server.objects.update(GROUP, RESOURCE, "", updated).await,
        name,
    );
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
}
