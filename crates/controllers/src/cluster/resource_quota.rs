//! Recounts what a ResourceQuota limits. Admission charges creations at once; this controller
//! gives back what deletions free and repairs any drift.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus,
    ResourceRequirements, ScopedResourceSelectorRequirement, Service, ServicePort,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use keelson_client::{
    Change, Client, Controller, ControllerContext, Informer, Informers, Key, Meta, Outcome, Queue,
    ReconcileError, ResourceType, Watches,
};
use keelson_machinery::quantity::Quantity;

use crate::{discovery, pod};

type Amounts = BTreeMap<String, i128>;

/// A charge whose object then failed to be written is found this late.
const RECOUNT: Duration = Duration::from_secs(300);

pub(crate) struct ResourceQuotaController {
    client: Client,
    informers: Informers,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    resource_claims: Informer<ResourceClaim>,
    /// Resources that some quota counts, whose changes are followed since.
    counted: Mutex<HashSet<ResourceType>>,
    queue: OnceLock<Queue<Key>>,
}

impl ResourceQuotaController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            informers: context.informers.clone(),
            quotas: context.informer(),
            pods: context.informer(),
            services: context.informer(),
            claims: context.informer(),
            resource_claims: context.informer(),
            counted: Mutex::default(),
            queue: OnceLock::new(),
        }
    }

    /// How many objects of a resource (`configmaps`, `deployments.apps`) the namespace has.
    async fn count(&self, namespace: &str, name: &str) -> Result<Option<i128>, ReconcileError> {
        // Another informer of the same kind may not have seen yet the quota that is being counted.
        if name == "resourcequotas" {
            return Ok(i128::try_from(self.quotas.list_in(namespace).len()).ok());
        }
        let (resource, group) = name.split_once('.').unwrap_or((name, ""));
        let known = {
            let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            counted
                .iter()
                .find(|r| r.resource == resource && r.group == group)
                .cloned()
        };
        let found = match known {
            Some(known) => known,
            None => {
                let served = discovery::discover(&self.client).await?.served;
                let found = served
                    .into_iter()
                    .map(|s| s.resource)
                    .find(|r| r.resource == resource && r.group == group);
                let Some(found) = found.filter(|r| r.namespaced) else {
                    return Ok(None);
                };
                found
            }
        };
        let informer = self.informers.metadata(&found);
        let new = self
            .counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(found);
        if new && let Some(queue) = self.queue.get().cloned() {
            let quotas = self.quotas.clone();
            informer.subscribe(move |change| {
                // Creations were charged by admission.
                if !matches!(change, Change::Deleted(_)) {
                    return;
                }
                for quota in quotas.list_in(pod::namespace(change.object().meta())) {
                    queue.add(Key::of(&quota.metadata));
                }
            });
        }
        informer.synced().await;
        Ok(i128::try_from(informer.list_in(namespace).len()).ok())
    }

    async fn usage(
        &self,
        quota: &ResourceQuota,
        namespace: &str,
    ) -> Result<Amounts, ReconcileError> {
        let hard = quota
            .spec
            .as_ref()
            .and_then(|s| s.hard.clone())
            .unwrap_or_default();
        let pods: Vec<Arc<Pod>> = self
            .pods
            .list_in(namespace)
            .into_iter()
            .filter(|p| in_scope(quota, |scope| scope_matches(scope, p)))
            .collect();
        let claims: Vec<Arc<PersistentVolumeClaim>> = self
            .claims
            .list_in(namespace)
            .into_iter()
            .filter(|c| in_scope(quota, |scope| claim_matches(scope, c)))
            .collect();
        let pod_amounts = sum_pods(&pods);
        let service_amounts = sum_services(&self.services.list_in(namespace));
        let claim_amounts = sum_claims(&claims);
        let device_amounts = sum_devices(&self.resource_claims.list_in(namespace));
        let mut used = Amounts::new();
        for key in hard.keys() {
            let direct = pod_amounts
                .get(key)
                .or(service_amounts.get(key))
                .or(claim_amounts.get(key))
                .or(device_amounts.get(key))
                .copied();
            let amount = match (direct, object_count(key)) {
                (Some(amount), _) => Some(amount),
                (None, Some(resource)) => self.count(namespace, resource).await?.map(|n| n * 1000),
                (None, None) => Some(0),
            };
            if let Some(amount) = amount {
                used.insert(key.clone(), amount);
            }
        }
        Ok(used)
    }
}

/// The resource that a quota key counts objects of.
fn object_count(key: &str) -> Option<&str> {
    match key {
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => Some(key),
        _ => key.strip_prefix("count/"),
    }
}

fn milli(quantity: &ApiQuantity) -> i128 {
    Quantity::parse(&quantity.0).map_or(0, |q| match i64::MAX / 1000 {
        // Memory in thousandths may pass an i64; whole units are exact enough there.
        limit if q.value() > limit => i128::from(q.value()) * 1000,
        _ => i128::from(q.milli_value()),
    })
}

/// Requests or limits.
type Part = fn(&ResourceRequirements) -> Option<&BTreeMap<String, ApiQuantity>>;

/// The sum over containers, or the largest init container where that is more; what the pod says
/// for all of them instead; and the overhead.
fn pod_resources(pod: &Pod, part: Part) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::new();
    };
    let amounts = |c: &Container| -> Amounts {
        c.resources
            .as_ref()
            .and_then(part)
            .into_iter()
            .flatten()
            .map(|(k, q)| (k.clone(), milli(q)))
            .collect()
    };
    let mut sum = Amounts::new();
    for container in &spec.containers {
        for (key, amount) in amounts(container) {
            *sum.entry(key).or_default() += amount;
        }
    }
    let mut sidecars = Amounts::new();
    let mut peak = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let own = amounts(container);
        if container.restart_policy.as_deref() == Some("Always") {
            for (key, amount) in own {
                *sidecars.entry(key.clone()).or_default() += amount;
                *sum.entry(key).or_default() += amount;
            }
        } else {
            for (key, amount) in own {
                let with = amount + sidecars.get(&key).copied().unwrap_or(0);
                let entry = peak.entry(key).or_default();
                *entry = (*entry).max(with);
            }
        }
    }
    for (key, amount) in peak {
        let entry = sum.entry(key).or_default();
        *entry = (*entry).max(amount);
    }
    let own = spec.resources.as_ref().and_then(part);
    sum.extend(
        own.into_iter()
            .flatten()
            .map(|(k, q)| (k.clone(), milli(q))),
    );
    for (key, quantity) in spec.overhead.iter().flatten() {
        if let Some(entry) = sum.get_mut(key) {
            *entry += milli(quantity);
        }
    }
    sum
}

fn sum_pods(pods: &[Arc<Pod>]) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), 0), ("count/pods".to_owned(), 0)]);
    for pod in pods {
        *used.entry("count/pods".into()).or_default() += 1000;
        if pod::is_terminal(pod) {
            continue;
        }
        *used.entry("pods".into()).or_default() += 1000;
        for (key, amount) in pod_resources(pod, |r| r.requests.as_ref()) {
            *used.entry(format!("requests.{key}")).or_default() += amount;
            if matches!(key.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || key.starts_with("hugepages-")
            {
                *used.entry(key).or_default() += amount;
            }
        }
        for (key, amount) in pod_resources(pod, |r| r.limits.as_ref()) {
            *used.entry(format!("limits.{key}")).or_default() += amount;
        }
    }
    used
}

fn sum_services(services: &[Arc<Service>]) -> Amounts {
    let mut used = Amounts::from([
        ("services".to_owned(), 0),
        ("services.nodeports".to_owned(), 0),
        ("services.loadbalancers".to_owned(), 0),
    ]);
    let mut add = |key: &str, count: usize| {
        *used.entry(key.to_owned()).or_default() += i128::try_from(count).unwrap_or(0) * 1000;
    };
    for service in services {
        add("services", 1);
        let Some(spec) = &service.spec else { continue };
        let ports = || spec.ports.iter().flatten();
        match spec.type_.as_deref() {
            Some("NodePort") => add("services.nodeports", ports().count()),
            Some("LoadBalancer") => {
                add("services.loadbalancers", 1);
                let drawn = spec.allocate_load_balancer_node_ports != Some(false);
                let given = |p: &&_| has_node_port(p) || drawn;
                add("services.nodeports", ports().filter(given).count());
            }
            _ => {}
        }
    }
    used
}

fn sum_claims(claims: &[Arc<PersistentVolumeClaim>]) -> Amounts {
    let mut used = Amounts::from([
        ("persistentvolumeclaims".to_owned(), 0),
        ("requests.storage".to_owned(), 0),
    ]);
    for claim in claims {
        let spec = claim.spec.clone().unwrap_or_default();
        let storage = spec
            .resources
            .and_then(|r| r.requests)
            .and_then(|r| r.get("storage").map(milli))
            .unwrap_or(0);
        let mut add = |key: String, amount: i128| *used.entry(key).or_default() += amount;
        add("persistentvolumeclaims".into(), 1000);
        add("requests.storage".into(), storage);
        let annotations = claim.metadata.annotations.as_ref();
        let old = annotations.and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
        let class = old.cloned().or(spec.storage_class_name);
        if let Some(class) = class.filter(|c| !c.is_empty()) {
            add(
                format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"),
                1000,
            );
            add(
                format!("{class}.storageclass.storage.k8s.io/requests.storage"),
                storage,
            );
        }
    }
    used
}

fn has_node_port(port: &ServicePort) -> bool {
    port.node_port.is_some_and(|number| number != 0)
}

/// How many devices of each class claims may get at most. A request for all of them counts for as
/// many as a claim can get.
fn sum_devices(claims: &[Arc<ResourceClaim>]) -> Amounts {
    const MOST_DEVICES: i64 = 32;
    let count = |mode: Option<&str>, count: Option<i64>| match mode {
        None | Some("ExactCount") => count.unwrap_or(1),
        Some("All") => MOST_DEVICES,
        Some(_) => 0,
    };
    let mut used = Amounts::new();
    let devices = claims
        .iter()
        .filter_map(|claim| claim.spec.devices.as_ref());
    for request in devices.flat_map(|devices| devices.requests.iter().flatten()) {
        // Of alternatives the greediest counts, for each class.
        let mut most = BTreeMap::<&str, i64>::new();
        for other in request.first_available.iter().flatten() {
            let devices = count(other.allocation_mode.as_deref(), other.count);
            let known = most.entry(&other.device_class_name).or_default();
            *known = devices.max(*known);
        }
        if let Some(exactly) = &request.exactly {
            let devices = count(exactly.allocation_mode.as_deref(), exactly.count);
            most.insert(&exactly.device_class_name, devices);
        }
        for (class, devices) in most {
            let key = format!("{class}.deviceclass.resource.k8s.io/devices");
            *used.entry(key).or_default() += i128::from(devices) * 1000;
        }
    }
    used
}

/// Whether every scope of the quota selects an object.
fn in_scope(
    quota: &ResourceQuota,
    selects: impl Fn(&ScopedResourceSelectorRequirement) -> bool,
) -> bool {
    let Some(spec) = &quota.spec else { return true };
    let plain = spec.scopes.iter().flatten().all(|scope| {
        selects(&ScopedResourceSelectorRequirement {
            scope_name: scope.clone(),
            operator: "Exists".into(),
            values: None,
        })
    });
    let expressions = spec
        .scope_selector
        .as_ref()
        .and_then(|s| s.match_expressions.as_ref());
    plain && expressions.into_iter().flatten().all(selects)
}

fn claim_matches(
    requirement: &ScopedResourceSelectorRequirement,
    claim: &PersistentVolumeClaim,
) -> bool {
    if requirement.scope_name != "VolumeAttributesClass" {
        return false;
    }
    let status = claim.status.as_ref();
    let moving = status.and_then(|s| s.modify_volume_status.as_ref());
    let classes: Vec<&String> = [
        claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_attributes_class_name.as_ref()),
        status.and_then(|s| s.current_volume_attributes_class_name.as_ref()),
        moving.and_then(|m| m.target_volume_attributes_class_name.as_ref()),
    ]
    .into_iter()
    .flatten()
    .filter(|class| !class.is_empty())
    .collect();
    let listed = |class: &&&String| requirement.values.iter().flatten().any(|v| v == **class);
    match requirement.operator.as_str() {
        "In" => classes.iter().any(|class| listed(&class)),
        "NotIn" => classes.is_empty() || classes.iter().any(|class| !listed(&class)),
        "Exists" => !classes.is_empty(),
        "DoesNotExist" => classes.is_empty(),
        _ => false,
    }
}

fn scope_matches(requirement: &ScopedResourceSelectorRequirement, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let nothing = |part: Part| {
        let mut all = pod_resources(pod, part).into_iter();
        all.all(|(key, n)| n == 0 || !matches!(key.as_str(), "cpu" | "memory"))
    };
    let best_effort = nothing(|r| r.requests.as_ref()) && nothing(|r| r.limits.as_ref());
    match requirement.scope_name.as_str() {
        "Terminating" => spec.active_deadline_seconds.is_some(),
        "NotTerminating" => spec.active_deadline_seconds.is_none(),
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => {
            let class = spec
                .priority_class_name
                .as_deref()
                .filter(|c| !c.is_empty());
            let listed = class.is_some_and(|c| requirement.values.iter().flatten().any(|v| v == c));
            match requirement.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => class.is_some(),
                "DoesNotExist" => class.is_none(),
                _ => false,
            }
        }
        "CrossNamespacePodAffinity" => {
            let affinity = spec.affinity.as_ref();
            serde_json::to_string(&affinity).is_ok_and(|text| {
                text.contains("\"namespaces\":[\"") || text.contains("\"namespaceSelector\":")
            })
        }
        _ => false,
    }
}

/// The amount in the notation of the limit it is compared with.
fn write_amount(key: &str, amount: i128, hard: &ApiQuantity) -> ApiQuantity {
    let text = if amount % 1000 == 0 {
        (amount / 1000).to_string()
    } else {
        format!("{amount}m")
    };
    let bytes = key.contains("memory") || key.contains("storage") || key.contains("hugepages");
    if bytes && hard.0.ends_with('i') && amount % 1000 == 0 {
        let whole = amount / 1000;
        for (unit, shift) in [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
            if whole != 0 && whole % (1 << shift) == 0 {
                return ApiQuantity(format!("{}{unit}", whole >> shift));
            }
        }
    }
    ApiQuantity(Quantity::canonical(&text).unwrap_or(text))
}

#[async_trait]
impl Controller for ResourceQuotaController {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        // The driver watches once; a second call would find the same queue.
        let _ = self.queue.set(watches.queue());
        let quotas = self.quotas.clone();
        watches.mapped(&self.quotas, move |change| match change {
            // The others may count it.
            Change::Deleted(gone) => quotas
                .list_in(pod::namespace(&gone.metadata))
                .iter()
                .map(|quota| Key::of(&quota.metadata))
                .collect(),
            // Admission's charges must not be recounted before the charged object is seen here.
            Change::Updated { old, new } if old.spec == new.spec && is_current(new) => Vec::new(),
            change => vec![Key::of(&change.object().metadata)],
        });
        follow(watches, &self.quotas, &self.pods, |p| {
            (
                sum_pods(std::slice::from_ref(p)),
                p.spec.as_ref().and_then(|s| s.active_deadline_seconds),
            )
        });
        follow(watches, &self.quotas, &self.services, |s| {
            sum_services(std::slice::from_ref(s))
        });
        follow(watches, &self.quotas, &self.claims, |c| {
            let spec = c.spec.as_ref();
            let class = spec.and_then(|s| s.volume_attributes_class_name.clone());
            (sum_claims(std::slice::from_ref(c)), class)
        });
        follow(watches, &self.quotas, &self.resource_claims, |c| {
            sum_devices(std::slice::from_ref(c))
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(quota) = self.quotas.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let hard = quota
            .spec
            .as_ref()
            .and_then(|s| s.hard.clone())
            .unwrap_or_default();
        let usage = self.usage(&quota, &key.namespace).await?;
        let used: BTreeMap<String, ApiQuantity> = usage
            .iter()
            .filter_map(|(k, amount)| Some((k.clone(), write_amount(k, *amount, hard.get(k)?))))
            .collect();
        let known = quota.status.clone().unwrap_or_default();
        let equal = |a: &BTreeMap<String, ApiQuantity>, b: &BTreeMap<String, ApiQuantity>| {
            a.len() == b.len()
                && a.iter()
                    .all(|(k, q)| b.get(k).is_some_and(|o| milli(o) == milli(q)))
        };
        if equal(&known.hard.clone().unwrap_or_default(), &hard)
            && equal(&known.used.clone().unwrap_or_default(), &used)
        {
            return Ok(Outcome::RequeueAfter(RECOUNT));
        }
        let status = ResourceQuotaStatus {
            hard: Some(hard),
            used: Some(used),
        };
        let next = ResourceQuota {
            status: Some(status),
            ..ResourceQuota::clone(&quota)
        };
        match self.client.update_status(&next).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::RequeueAfter(RECOUNT)),
        }
    }
}

/// Whether the status speaks of the limits that the spec sets.
fn is_current(quota: &ResourceQuota) -> bool {
    let spec = quota.spec.as_ref().and_then(|s| s.hard.as_ref());
    let status = quota.status.as_ref().and_then(|s| s.hard.as_ref());
    let amounts = |hard: Option<&BTreeMap<String, ApiQuantity>>| -> Amounts {
        hard.into_iter()
            .flatten()
            .map(|(k, q)| (k.clone(), milli(q)))
            .collect()
    };
    status.is_some() && amounts(spec) == amounts(status)
}

/// Whether the namespace's quotas may count something else after this change. A creation was
/// charged by admission: to recount then, maybe before the object is seen here, would take the
/// charge back and let the next creation pass the limit.
fn frees<K, A: PartialEq>(change: &Change<K>, amounts: impl Fn(&Arc<K>) -> A) -> bool {
    match change {
        Change::Added(_) => false,
        Change::Updated { old, new } => amounts(old) != amounts(new),
        Change::Deleted(_) => true,
    }
}

/// Changes of counted objects recount the quotas of their namespace.
fn follow<K: Meta, A: PartialEq>(
    watches: &mut Watches,
    quotas: &Informer<ResourceQuota>,
    informer: &Informer<K>,
    amounts: impl Fn(&Arc<K>) -> A + Send + Sync + 'static,
) {
    let quotas = quotas.clone();
    watches.mapped(informer, move |change| {
        if !frees(change, &amounts) {
            return Vec::new();
        }
        quotas
            .list_in(pod::namespace(change.object().meta()))
            .iter()
            .map(|q| Key::of(&q.metadata))
            .collect()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn init_containers_count_only_above_the_sum() {
        let p = pod(json!({"spec": {
        "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "500m", "memory": "1Mi"}}}],
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}},
            {"name": "b", "resources": {"requests": {"cpu": "100m", "memory": "1Mi"}}},
        ]}}));
        let used = sum_pods(&[p]);
        assert_eq!(used["requests.cpu"], 500);
        assert_eq!(used["cpu"], 500);
        assert_eq!(used["requests.memory"], 2 * 1024 * 1024 * 1000);
        assert_eq!(used["pods"], 1000);
    }

    #[test]
    fn only_what_frees_a_share_recounts() {
        let amounts = |p: &Arc<Pod>| sum_pods(std::slice::from_ref(p));
        let running = pod(json!({"spec": {"containers": []}, "status": {"phase": "Running"}}));
        let ended = pod(json!({"spec": {"containers": []}, "status": {"phase": "Failed"}}));
        let update = |old: &Arc<Pod>, new: &Arc<Pod>| Change::Updated {
            old: old.clone(),
            new: new.clone(),
        };
        assert!(!frees(&Change::Added(running.clone()), amounts));
        assert!(!frees(&update(&running, &running), amounts));
        assert!(frees(&update(&running, &ended), amounts));
        assert!(frees(&Change::Deleted(running), amounts));
    }

    #[test]
    fn finished_pods_free_their_share() {
        let used = sum_pods(&[pod(
            json!({"spec": {"containers": []}, "status": {"phase": "Succeeded"}}),
        )]);
        assert_eq!((used["pods"], used["count/pods"]), (0, 1000));
    }

    #[test]
    fn amounts_are_written_in_the_limits_notation() {
        let q = |s: &str| ApiQuantity(s.into());
        assert_eq!(write_amount("requests.cpu", 1500, &q("2")).0, "1500m");
        assert_eq!(write_amount("pods", 3000, &q("10")).0, "3");
        assert_eq!(
            write_amount("requests.memory", 256 * 1024 * 1024 * 1000, &q("1Gi")).0,
            "256Mi"
        );
    }
}
