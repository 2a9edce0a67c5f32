//! ResourceQuota: what a write would use is charged to the namespace's quotas before it happens;
//! what does not fit is refused.

use std::collections::BTreeMap;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::{AdmissionPlugin, Attributes, Cluster, Operation, pod_amounts, quantity_of};

pub(super) struct ResourceQuota;

type Usage = BTreeMap<String, Quantity>;

/// Writers that charge one quota at once conflict; each tries again this often.
const ATTEMPTS: usize = 10;

#[async_trait]
impl AdmissionPlugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        let resized = attrs.is_any("", "pods") && attrs.subresource == "resize";
        if attrs.namespace.is_empty()
            || (!attrs.subresource.is_empty() && !resized)
            || attrs.is_any("", "namespaces")
        {
            return Ok(());
        }
        let Some(object) = attrs.object.as_ref() else {
            return Ok(());
        };
        let quotas = cluster.objects.list("", "resourcequotas", &attrs.namespace);
        if quotas.is_empty() {
            return Ok(());
        }
        let mut change = usage(&attrs.group, &attrs.resource, object);
        if attrs.operation == Operation::Update {
            let Some(old) = attrs.old_object.as_deref() else {
                return Ok(());
            };
            for (name, amount) in usage(&attrs.group, &attrs.resource, old) {
                let now = change
                    .remove(&name)
                    .unwrap_or_else(|| Quantity::from_value(0));
                if now > amount {
                    change.insert(name, now - amount);
                }
            }
            change.retain(|_, amount| !amount.is_zero());
        }
        if change.is_empty() {
            return Ok(());
        }
        for quota in quotas {
            charge(attrs, cluster, meta::name(&quota), object, &change).await?;
        }
        Ok(())
    }
}

/// Checks one quota and writes the charge; a conflict means that somebody else charged it.
async fn charge(
    attrs: &Attributes,
    cluster: &Cluster,
    name: &str,
    object: &Value,
    change: &Usage,
) -> Result<(), Status> {
    for _ in 0..ATTEMPTS {
        let found = cluster
            .objects
            .read("", "resourcequotas", &attrs.namespace, name)
            .await?;
        let Some(mut quota) = found else {
            return Ok(());
        };
        let used = match plan(attrs, &quota, object, change)? {
            Some(used) if !attrs.dry_run => used,
            _ => return Ok(()),
        };
        quota["status"]["used"] = used;
        match cluster
            .objects
            .update("", "resourcequotas", &attrs.namespace, quota)
            .await
        {
            Ok(_) => return Ok(()),
            Err(status) if status.is_conflict() => {}
            Err(status) if status.is_not_found() => return Ok(()),
            Err(status) => return Err(status),
        }
    }
    Err(Status::server_timeout("", "resourcequotas", "update", 1))
}

/// The quota's new `used`, nothing when it does not concern the object, or why it does not fit.
fn plan(
    attrs: &Attributes,
    quota: &Value,
    object: &Value,
    change: &Usage,
) -> Result<Option<Value>, Status> {
    let is_pod = attrs.group.is_empty() && attrs.resource == "pods";
    if !matches_scopes(quota, object, is_pod) {
        return Ok(None);
    }
    let name = meta::name(quota);
    let hard = amounts(&quota["spec"]["hard"]);
    if is_pod && attrs.operation == Operation::Create {
        let missing = unspecified(object, &hard);
        if !missing.is_empty() {
            return Err(attrs.forbidden(format!(
                "failed quota: {name}: must specify {}",
                missing.join("; ")
            )));
        }
    }
    let concerned: Usage = change
        .iter()
        .filter(|(r, _)| hard.contains_key(*r))
        .map(|(r, q)| (r.clone(), *q))
        .collect();
    if concerned.is_empty() {
        return Ok(None);
    }
    let (limits, mut used) = (
        amounts(&quota["status"]["hard"]),
        amounts(&quota["status"]["used"]),
    );
    let unknown: Vec<&str> = concerned
        .keys()
        .filter(|r| !limits.contains_key(*r) || !used.contains_key(*r))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        return Err(attrs.forbidden(format!(
            "status unknown for quota: {name}, resources: {}",
            unknown.join(",")
        )));
    }
    let mut exceeded = Vec::new();
    let before = used.clone();
    for (resource, amount) in &concerned {
        let total = before[resource] + *amount;
        if total > limits[resource] {
            exceeded.push(resource.clone());
        }
        used.insert(resource.clone(), total);
    }
    if exceeded.is_empty() {
        let all: serde_json::Map<String, Value> = used
            .iter()
            .map(|(r, q)| (r.clone(), json!(q.to_string())))
            .collect();
        return Ok(Some(Value::Object(all)));
    }
    let show = |from: &Usage| {
        exceeded
            .iter()
            .filter_map(|r| from.get(r).map(|q| format!("{r}={q}")))
            .collect::<Vec<_>>()
            .join(",")
    };
    Err(attrs.forbidden(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        show(&concerned),
        show(&before),
        show(&limits)
    )))
}

fn amounts(value: &Value) -> Usage {
    value
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, q)| Some((name.clone(), quantity_of(q)?)))
        .collect()
}

/// What an object counts for.
fn usage(group: &str, resource: &str, object: &Value) -> Usage {
    let mut out = Usage::new();
    let one = || Quantity::from_value(1);
    let counted = if group.is_empty() {
        format!("count/{resource}")
    } else {
        format!("count/{resource}.{group}")
    };
    let ended = matches!(
        object["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    );
    if group.is_empty() && resource == "pods" {
        out.insert(counted, one());
        if ended {
            return out;
        }
        out.insert("pods".to_owned(), one());
        for (name, amount) in pod_amounts(object, "requests") {
            if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || name.starts_with("hugepages-")
            {
                out.insert(name.clone(), amount);
            }
            out.insert(format!("requests.{name}"), amount);
        }
        for (name, amount) in pod_amounts(object, "limits") {
            if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                out.insert(format!("limits.{name}"), amount);
            }
        }
        return out;
    }
    out.insert(counted, one());
    if !group.is_empty() {
        return out;
    }
    match resource {
        "services" => {
            out.insert("services".to_owned(), one());
            let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len) as i64;
            let kind = object["spec"]["type"].as_str().unwrap_or_default();
            if kind == "LoadBalancer" {
                out.insert("services.loadbalancers".to_owned(), one());
            }
            if kind == "NodePort"
                || (kind == "LoadBalancer"
                    && object["spec"]["allocateLoadBalancerNodePorts"] != false)
            {
                out.insert("services.nodeports".to_owned(), Quantity::from_value(ports));
            }
        }
        "persistentvolumeclaims" => {
            out.insert("persistentvolumeclaims".to_owned(), one());
            let class = object["spec"]["storageClassName"]
                .as_str()
                .or_else(|| meta::annotation(object, "volume.beta.kubernetes.io/storage-class"))
                .unwrap_or_default();
            let storage = quantity_of(&object["spec"]["resources"]["requests"]["storage"]);
            if let Some(storage) = storage {
                out.insert("requests.storage".to_owned(), storage);
            }
            if !class.is_empty() {
                let prefix = format!("{class}.storageclass.storage.k8s.io");
                out.insert(format!("{prefix}/persistentvolumeclaims"), one());
                if let Some(storage) = storage {
                    out.insert(format!("{prefix}/requests.storage"), storage);
                }
            }
        }
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => {
            out.insert(resource.to_owned(), one());
        }
        _ => {}
    }
    out
}

/// Compute resources that the quota bounds and a container says nothing about.
fn unspecified(pod: &Value, hard: &Usage) -> Vec<String> {
    let mut out = Vec::new();
    for resource in hard.keys() {
        let (list, name) = match resource.as_str() {
            "cpu" | "memory" => ("requests", resource.as_str()),
            "requests.cpu" | "requests.memory" => ("requests", &resource["requests.".len()..]),
            "limits.cpu" | "limits.memory" => ("limits", &resource["limits.".len()..]),
            _ => continue,
        };
        if pod["spec"]["resources"][list].get(name).is_some() {
            continue;
        }
        let mut lacking: Vec<&str> = ["containers", "initContainers"]
            .iter()
            .flat_map(|key| pod["spec"][*key].as_array().into_iter().flatten())
            .filter(|c| c["resources"][list].get(name).is_none())
            .filter_map(|c| c["name"].as_str())
            .collect();
        lacking.sort_unstable();
        if !lacking.is_empty() {
            out.push(format!("{resource} for: {}", lacking.join(",")));
        }
    }
    out
}

fn matches_scopes(quota: &Value, object: &Value, is_pod: bool) -> bool {
    let plain = quota["spec"]["scopes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let plain_hold = plain
        .into_iter()
        .all(|scope| is_pod && in_scope(scope, "Exists", &Value::Null, object));
    let selectors = quota["spec"]["scopeSelector"]["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten();
    plain_hold
        && selectors.into_iter().all(|e| {
            let scope = e["scopeName"].as_str().unwrap_or_default();
            let operator = e["operator"].as_str().unwrap_or_default();
            is_pod && in_scope(scope, operator, &e["values"], object)
        })
}

fn in_scope(scope: &str, operator: &str, values: &Value, pod: &Value) -> bool {
    let spec = &pod["spec"];
    let limited = spec["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => limited,
        "NotTerminating" => !limited,
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        "PriorityClass" => {
            let class = spec["priorityClassName"].as_str().unwrap_or_default();
            let listed = values
                .as_array()
                .is_some_and(|all| all.iter().any(|v| v == class));
            match operator {
                "Exists" => !class.is_empty(),
                "DoesNotExist" => class.is_empty(),
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        }
        _ => false,
    }
}

fn is_best_effort(spec: &Value) -> bool {
    let nothing = |resources: &Value| {
        ["requests", "limits"].iter().all(|key| {
            !resources[*key]
                .as_object()
                .into_iter()
                .flatten()
                .any(|(name, amount)| {
                    matches!(name.as_str(), "cpu" | "memory")
                        && quantity_of(amount).is_some_and(|q| !q.is_zero())
                })
        })
    };
    nothing(&spec["resources"])
        && ["containers", "initContainers"]
            .iter()
            .flat_map(|key| spec[*key].as_array().into_iter().flatten())
            .all(|container| nothing(&container["resources"]))
}

fn crosses_namespaces(spec: &Value) -> bool {
    let crosses = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|n| !n.is_empty())
            || !term["namespaceSelector"].is_null()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &spec["affinity"][*kind];
        affinity["requiredDuringSchedulingIgnoredDuringExecution"]
            .as_array()
            .into_iter()
            .flatten()
            .any(crosses)
            || affinity["preferredDuringSchedulingIgnoredDuringExecution"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|weighted| crosses(&weighted["podAffinityTerm"]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(object: Value) -> Attributes {
        Attributes {
            operation: Operation::Create,
            group: String::new(),
            version: "v1".to_owned(),
            resource: "pods".to_owned(),
            subresource: String::new(),
            kind: "Pod".to_owned(),
            namespace: "ns".to_owned(),
            name: "p".to_owned(),
            object: Some(object),
            old_object: None,
            user: std::sync::Arc::default(),
            dry_run: false,
            options: Value::Null,
            warnings: crate::request::Warnings::default(),
            rounds: Default::default(),
            annotations: crate::request::Annotations::default(),
        }
    }

    #[test]
    fn what_fits_is_charged_and_what_does_not_is_refused() {
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]}});
        let quota = |used: &str| {
            json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2", "requests.cpu": "1"}},
                "status": {"hard": {"pods": "2", "requests.cpu": "1"}, "used": {"pods": used, "requests.cpu": "0"}}})
        };
        let attrs = attributes(pod.clone());
        let change = usage("", "pods", &pod);
        let used = plan(&attrs, &quota("1"), &pod, &change).unwrap().unwrap();
        assert_eq!(used, json!({"pods": "2", "requests.cpu": "500m"}));
        let refused = plan(&attrs, &quota("2"), &pod, &change).unwrap_err();
        assert_eq!(
            refused.message,
            "pods \"p\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
        );
    }

    #[test]
    fn a_bounded_resource_must_be_named() {
        let pod = json!({"spec": {"containers": [{"name": "c"}]}});
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"limits.cpu": "1", "memory": "1Gi"}}});
        let refused = plan(
            &attributes(pod.clone()),
            &quota,
            &pod,
            &usage("", "pods", &pod),
        )
        .unwrap_err();
        assert!(
            refused
                .message
                .ends_with("failed quota: q: must specify limits.cpu for: c; memory for: c"),
            "{refused}"
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let quota = json!({"spec": {"scopes": ["BestEffort", "NotTerminating"]}});
        assert!(matches_scopes(
            &quota,
            &json!({"spec": {"containers": [{}]}}),
            true
        ));
        assert!(!matches_scopes(
            &quota,
            &json!({"spec": {"activeDeadlineSeconds": 1, "containers": [{}]}}),
            true
        ));
        assert!(!matches_scopes(&quota, &json!({}), false));
    }
}
