//! What an object counts for, by its kind, and which quotas look at it.

use keelson_machinery::meta;
use keelson_machinery::quantity::Quantity;
use serde_json::Value;

use super::Usage;
use crate::admission::{Attributes, Cluster, Operation, pod_amounts, quantity_of};

/// How objects of one resource are measured.
pub(super) enum Evaluator<'a> {
    Pods,
    Services,
    Claims,
    /// Of devices.
    ResourceClaims(&'a Cluster),
    /// Any other resource is counted, some by an older name as well.
    Count {
        name: String,
        alias: Option<&'static str>,
    },
}

const POD: &[&str] = &[
    "count/pods",
    "pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];
const SERVICE: &[&str] = &[
    "count/services",
    "services",
    "services.nodeports",
    "services.loadbalancers",
];
const CLAIM: &[&str] = &[
    "count/persistentvolumeclaims",
    "persistentvolumeclaims",
    "requests.storage",
];
const OF_STORAGE_CLASS: [&str; 2] = [
    ".storageclass.storage.k8s.io/persistentvolumeclaims",
    ".storageclass.storage.k8s.io/requests.storage",
];
const RESOURCE_CLAIMS: &str = "count/resourceclaims.resource.k8s.io";
const OF_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// Of a device class that pods ask for like for an extended resource.
const IMPLICIT: &str = "requests.deviceclass.resource.kubernetes.io/";
/// Counted by their own names before everything could be counted.
const ALIASES: [&str; 4] = [
    "configmaps",
    "secrets",
    "replicationcontrollers",
    "resourcequotas",
];
/// A request for all devices counts for as many as one claim can get.
const MOST_DEVICES: i64 = 32;

fn one() -> Quantity {
    Quantity::from_value(1)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

impl<'a> Evaluator<'a> {
    pub(super) fn of(attrs: &Attributes, cluster: &'a Cluster) -> Self {
        match (attrs.group.as_str(), attrs.resource.as_str()) {
            ("", "pods") => Self::Pods,
            ("", "services") => Self::Services,
            ("", "persistentvolumeclaims") => Self::Claims,
            ("resource.k8s.io", "resourceclaims") => Self::ResourceClaims(cluster),
            ("", resource) => Self::Count {
                name: format!("count/{resource}"),
                alias: ALIASES.into_iter().find(|alias| *alias == resource),
            },
            (group, resource) => Self::Count {
                name: format!("count/{resource}.{group}"),
                alias: None,
            },
        }
    }

    /// Whether the write can change what is used.
    pub(super) fn handles(&self, attrs: &Attributes) -> bool {
        let created = attrs.operation == Operation::Create;
        match (self, attrs.subresource.as_str()) {
            (Self::Pods, "") => created || changes_scope(attrs),
            (Self::Pods, "resize") | (Self::Claims, "status") => !created,
            (Self::Services | Self::Claims | Self::ResourceClaims(_), "") => true,
            (Self::Count { .. }, "") => created,
            _ => false,
        }
    }

    /// Those of the names, in order, that objects of the kind count for.
    pub(super) fn bounded<'n>(&self, names: impl Iterator<Item = &'n String>) -> Vec<&'n str> {
        let counts = |name: &&str| match self {
            Self::Pods => {
                POD.contains(name)
                    || name.starts_with("hugepages-")
                    || name.starts_with("requests.hugepages-")
                    || is_extended_request(name)
            }
            Self::Services => SERVICE.contains(name),
            Self::Claims => {
                CLAIM.contains(name) || OF_STORAGE_CLASS.iter().any(|end| name.ends_with(end))
            }
            Self::ResourceClaims(cluster) => {
                *name == RESOURCE_CLAIMS
                    || name.ends_with(OF_DEVICE_CLASS)
                    || device_class_of(cluster, name)
            }
            Self::Count { name: own, alias } => name == own || Some(*name) == *alias,
        };
        names.map(String::as_str).filter(counts).collect()
    }

    /// What an object counts for.
    pub(super) fn usage(&self, object: &Value) -> Usage {
        match self {
            Self::Pods => of_pod(object),
            Self::Services => of_service(&object["spec"]),
            Self::Claims => of_claim(object),
            Self::ResourceClaims(cluster) => of_resource_claim(cluster, object),
            Self::Count { name, alias } => {
                let alias = alias.map(|alias| (alias.to_owned(), one()));
                alias.into_iter().chain([(name.clone(), one())]).collect()
            }
        }
    }

    /// Whether all scopes of the quota hold for the object.
    pub(super) fn in_scope(&self, quota: &Value, object: &Value) -> bool {
        let holds = |scope: &str, operator: &str, values: &Value| match self {
            Self::Pods => pod_in_scope(scope, operator, values, object),
            Self::Claims => claim_in_scope(scope, operator, values, object),
            _ => false,
        };
        let spec = &quota["spec"];
        let mut plain = items(&spec["scopes"]).filter_map(Value::as_str);
        plain.all(|scope| holds(scope, "Exists", &Value::Null))
            && items(&spec["scopeSelector"]["matchExpressions"]).all(|e| {
                let text = |key: &str| e[key].as_str().unwrap_or_default();
                holds(text("scopeName"), text("operator"), &e["values"])
            })
    }

    /// Compute resources among the bounded ones that a container says nothing about. A pod that
    /// says something for all of its containers need not.
    pub(super) fn unspecified(&self, pod: &Value, bounded: &[&str]) -> Vec<String> {
        let Self::Pods = self else {
            return Vec::new();
        };
        let says = |list: &str| {
            let list = pod["spec"]["resources"][list].as_object();
            list.into_iter().flatten().any(|(name, _)| {
                matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-")
            })
        };
        if says("requests") || says("limits") {
            return Vec::new();
        }
        let lacking = |resource: &&str| {
            let (list, name) = match *resource {
                "cpu" | "memory" => ("requests", *resource),
                "requests.cpu" | "requests.memory" => ("requests", &resource["requests.".len()..]),
                "limits.cpu" | "limits.memory" => ("limits", &resource["limits.".len()..]),
                _ => return None,
            };
            let mut lacking: Vec<&str> = ["containers", "initContainers"]
                .iter()
                .flat_map(|key| items(&pod["spec"][*key]))
                .filter(|c| c["resources"][list].get(name).is_none())
                .filter_map(|c| c["name"].as_str())
                .collect();
            lacking.sort_unstable();
            (!lacking.is_empty()).then(|| format!("{resource} for: {}", lacking.join(",")))
        };
        bounded.iter().filter_map(lacking).collect()
    }
}

/// An update of a pod can bring it under another quota, by giving it a deadline.
fn changes_scope(attrs: &Attributes) -> bool {
    match (&attrs.object, &attrs.old_object) {
        (Some(object), Some(old)) => {
            is_terminating(&object["spec"]) != is_terminating(&old["spec"])
        }
        _ => false,
    }
}

fn is_extended_request(name: &str) -> bool {
    name.starts_with(IMPLICIT)
        || name.starts_with("requests.") && name.contains('/') && !name.contains("kubernetes.io/")
}

fn of_pod(pod: &Value) -> Usage {
    let mut out = Usage::from([("count/pods".to_owned(), one())]);
    let ended = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    );
    if ended || is_overdue(pod) {
        return out;
    }
    out.insert("pods".to_owned(), one());
    for (name, amount) in pod_amounts(pod, "requests") {
        let native = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if native || name.starts_with("hugepages-") {
            out.insert(name.clone(), amount);
        }
        out.insert(format!("requests.{name}"), amount);
    }
    for (name, amount) in pod_amounts(pod, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            out.insert(format!("limits.{name}"), amount);
        }
    }
    out
}

/// A pod that should have been gone by now, because its node is lost perhaps, is not charged.
fn is_overdue(pod: &Value) -> bool {
    let metadata = &pod["metadata"];
    let (Some(time), Some(grace)) = (
        meta::deletion_timestamp(pod),
        metadata["deletionGracePeriodSeconds"].as_i64(),
    ) else {
        return false;
    };
    let due = time.parse::<jiff::Timestamp>().ok();
    let due = due.and_then(|time| {
        time.checked_add(jiff::SignedDuration::from_secs(grace))
            .ok()
    });
    due.is_some_and(|due| jiff::Timestamp::now() > due)
}

fn of_service(spec: &Value) -> Usage {
    let number = |count: usize| Quantity::from_value(count as i64);
    let ports = || items(&spec["ports"]);
    let (node_ports, balancers) = match spec["type"].as_str() {
        Some("NodePort") => (ports().count(), 0),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => {
            let given = |port: &&Value| port["nodePort"].as_i64().is_some_and(|p| p != 0);
            (ports().filter(given).count(), 1)
        }
        Some("LoadBalancer") => (ports().count(), 1),
        _ => (0, 0),
    };
    Usage::from([
        ("count/services".to_owned(), one()),
        ("services".to_owned(), one()),
        ("services.nodeports".to_owned(), number(node_ports)),
        ("services.loadbalancers".to_owned(), number(balancers)),
    ])
}

fn of_claim(claim: &Value) -> Usage {
    let mut out = Usage::from([
        ("count/persistentvolumeclaims".to_owned(), one()),
        ("persistentvolumeclaims".to_owned(), one()),
    ]);
    let class = meta::annotation(claim, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| claim["spec"]["storageClassName"].as_str())
        .unwrap_or_default();
    let requested = quantity_of(&claim["spec"]["resources"]["requests"]["storage"]);
    // While a volume grows more may be taken than is asked for by now.
    let allocated = quantity_of(&claim["status"]["allocatedResources"]["storage"]);
    let storage = requested.map(|requested| allocated.map_or(requested, |a| a.max(requested)));
    if let Some(storage) = storage {
        out.insert("requests.storage".to_owned(), storage);
    }
    if !class.is_empty() {
        let [claims, requests] = OF_STORAGE_CLASS.map(|end| format!("{class}{end}"));
        out.insert(claims, one());
        if let Some(storage) = storage {
            out.insert(requests, storage);
        }
    }
    out
}

fn of_resource_claim(cluster: &Cluster, claim: &Value) -> Usage {
    let mut devices = std::collections::BTreeMap::<String, i64>::new();
    for request in items(&claim["spec"]["devices"]["requests"]) {
        let alternatives = items(&request["firstAvailable"]);
        // The first beta version has the fields of `exactly` in the request itself.
        let exactly = [&request["exactly"], request].into_iter();
        let exactly = exactly.filter(|r| r["deviceClassName"].is_string()).take(1);
        // Of alternatives the greediest counts, for each class.
        let mut most = std::collections::BTreeMap::<&str, i64>::new();
        for wanted in alternatives.chain(exactly) {
            let class = wanted["deviceClassName"].as_str().unwrap_or_default();
            let count = match wanted["allocationMode"].as_str() {
                Some("ExactCount") | None => wanted["count"].as_i64().unwrap_or(1),
                Some("All") => MOST_DEVICES,
                Some(_) => 0,
            };
            let known = most.entry(class).or_default();
            *known = count.max(*known);
        }
        for (class, count) in most {
            let known = devices.entry(class.to_owned()).or_default();
            *known = known.saturating_add(count);
        }
    }
    let mut out = Usage::from([(RESOURCE_CLAIMS.to_owned(), one())]);
    let of_pod = owner_usage(cluster, claim);
    for (class, count) in devices {
        let count = Quantity::from_value(count);
        out.insert(format!("{class}{OF_DEVICE_CLASS}"), count);
        let resource = extended_resource(cluster, &class).map(|name| format!("requests.{name}"));
        for name in [Some(format!("{IMPLICIT}{class}")), resource] {
            let Some(name) = name else { continue };
            let of_pod = of_pod.get(&name).copied();
            let rest = count - of_pod.unwrap_or_else(|| Quantity::from_value(0));
            if rest > Quantity::from_value(0) {
                out.insert(name, rest);
            }
        }
    }
    out
}

/// What the pod is charged already for which the scheduler made the claim.
fn owner_usage(cluster: &Cluster, claim: &Value) -> Usage {
    let made = meta::annotation(claim, "resource.kubernetes.io/extended-resource-claim");
    let owner = items(&claim["metadata"]["ownerReferences"]).find(|o| o["controller"] == true);
    let Some(owner) = owner.filter(|o| made == Some("true") && o["kind"] == "Pod") else {
        return Usage::new();
    };
    let name = owner["name"].as_str().unwrap_or_default();
    let pod = cluster
        .objects
        .get("", "pods", meta::namespace(claim), name);
    let Some(pod) = pod.filter(|pod| owner["uid"] == meta::uid(pod)) else {
        return Usage::new();
    };
    let noted = &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"];
    if noted.is_null() || *noted == meta::name(claim) {
        of_pod(&pod)
    } else {
        Usage::new()
    }
}

/// The name by which pods may ask for a device class.
fn extended_resource(cluster: &Cluster, class: &str) -> Option<String> {
    let class = cluster
        .objects
        .get("resource.k8s.io", "deviceclasses", "", class)?;
    class["spec"]["extendedResourceName"]
        .as_str()
        .map(str::to_owned)
}

/// Whether the quota's name is that of a device class that pods may ask for.
fn device_class_of(cluster: &Cluster, name: &str) -> bool {
    if let Some(class) = name.strip_prefix(IMPLICIT) {
        return extended_resource(cluster, class).is_some();
    }
    let Some(resource) = name.strip_prefix("requests.").filter(|n| n.contains('/')) else {
        return false;
    };
    let classes = cluster.objects.list("resource.k8s.io", "deviceclasses", "");
    classes
        .iter()
        .any(|class| class["spec"]["extendedResourceName"] == resource)
}

/// A selector of a scope over the names that the object has for it.
fn selects(operator: &str, values: &Value, names: &[&str]) -> bool {
    let listed = |name: &str| items(values).any(|value| value == name);
    match operator {
        "Exists" => !names.is_empty(),
        "DoesNotExist" => names.is_empty(),
        "In" => names.iter().any(|name| listed(name)),
        "NotIn" => names.is_empty() || names.iter().any(|name| !listed(name)),
        _ => false,
    }
}

fn claim_in_scope(scope: &str, operator: &str, values: &Value, claim: &Value) -> bool {
    let status = &claim["status"];
    let mut classes: Vec<&str> = [
        &claim["spec"]["volumeAttributesClassName"],
        &status["currentVolumeAttributesClassName"],
        &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ]
    .into_iter()
    .filter_map(Value::as_str)
    .collect();
    classes.retain(|class| !class.is_empty());
    scope == "VolumeAttributesClass" && selects(operator, values, &classes)
}

fn pod_in_scope(scope: &str, operator: &str, values: &Value, pod: &Value) -> bool {
    let spec = &pod["spec"];
    match scope {
        "Terminating" => is_terminating(spec),
        "NotTerminating" => !is_terminating(spec),
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        "PriorityClass" => {
            let class = spec["priorityClassName"].as_str();
            let class = class.filter(|class| !class.is_empty());
            selects(operator, values, class.as_slice())
        }
        _ => false,
    }
}

fn is_terminating(spec: &Value) -> bool {
    let deadline = spec["activeDeadlineSeconds"].as_i64();
    deadline.is_some_and(|seconds| seconds >= 0)
}

fn is_best_effort(spec: &Value) -> bool {
    let nothing = |resources: &Value| {
        ["requests", "limits"].iter().all(|key| {
            let list = resources[*key].as_object().into_iter().flatten();
            !list.into_iter().any(|(name, amount)| {
                matches!(name.as_str(), "cpu" | "memory")
                    && quantity_of(amount).is_some_and(|q| !q.is_zero())
            })
        })
    };
    nothing(&spec["resources"])
        && ["containers", "initContainers"]
            .iter()
            .flat_map(|key| items(&spec[*key]))
            .all(|container| nothing(&container["resources"]))
}

fn crosses_namespaces(spec: &Value) -> bool {
    let crosses = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|n| !n.is_empty())
            || !term["namespaceSelector"].is_null()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &spec["affinity"][*kind];
        items(&affinity["requiredDuringSchedulingIgnoredDuringExecution"]).any(crosses)
            || items(&affinity["preferredDuringSchedulingIgnoredDuringExecution"])
                .any(|weighted| crosses(&weighted["podAffinityTerm"]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scopes_choose_pods() {
        let quota = json!({"spec": {"scopes": ["BestEffort", "NotTerminating"]}});
        let pod = json!({"spec": {"containers": [{}]}});
        assert!(Evaluator::Pods.in_scope(&quota, &pod));
        let pod = json!({"spec": {"activeDeadlineSeconds": 1, "containers": [{}]}});
        assert!(!Evaluator::Pods.in_scope(&quota, &pod));
        assert!(!Evaluator::Services.in_scope(&quota, &json!({})));
    }

    #[test]
    fn scopes_choose_claims() {
        let quota = |operator: &str| {
            json!({"spec": {"scopeSelector": {"matchExpressions": [
                {"scopeName": "VolumeAttributesClass", "operator": operator, "values": ["fast"]}]}}})
        };
        let moving = json!({"spec": {"volumeAttributesClassName": "slow"}, "status": {"currentVolumeAttributesClassName": "fast"}});
        for (claim, within, without) in [
            (
                json!({"spec": {"volumeAttributesClassName": "fast"}}),
                true,
                false,
            ),
            (json!({"spec": {}}), false, true),
            (moving, true, true),
        ] {
            assert_eq!(Evaluator::Claims.in_scope(&quota("In"), &claim), within);
            assert_eq!(Evaluator::Claims.in_scope(&quota("NotIn"), &claim), without);
        }
    }
}
