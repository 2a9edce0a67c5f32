//! LimitRanger: a namespace's LimitRanges give containers their defaults and bound what pods,
//! containers and claims ask for.

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::{AdmissionPlugin, Attributes, Cluster, Operation};

pub(super) struct LimitRanger;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

#[async_trait]
impl AdmissionPlugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        if attrs.operation != Operation::Create || !attrs.is("", "pods") {
            return Ok(());
        }
        for range in cluster.objects.list("", "limitranges", &attrs.namespace) {
            if let Some(pod) = attrs.object.as_mut() {
                default_pod(pod, &range);
            }
        }
        Ok(())
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        let pods = attrs.is("", "pods") && attrs.operation == Operation::Create
            || attrs.is_any("", "pods") && attrs.subresource == "resize";
        let claims = attrs.is("", "persistentvolumeclaims");
        let Some(object) = attrs.object.as_ref().filter(|_| pods || claims) else {
            return Ok(());
        };
        if meta::deletion_timestamp(object).is_some() {
            return Ok(());
        }
        for range in cluster.objects.list("", "limitranges", &attrs.namespace) {
            let errors = if pods {
                check_pod(object, &range)
            } else {
                check_claim(object, &range)
            };
            match errors.as_slice() {
                [] => {}
                [one] => return Err(attrs.forbidden(one)),
                several => return Err(attrs.forbidden(format!("[{}]", several.join(", ")))),
            }
        }
        Ok(())
    }
}

fn items<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
    range["spec"]["limits"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(move |limit| limit["type"] == kind)
}

fn default_pod(pod: &mut Value, range: &Value) {
    let mut notes = Vec::new();
    let (mut limits, mut requests) = (serde_json::Map::new(), serde_json::Map::new());
    for item in items(range, "Container") {
        limits.extend(item["default"].as_object().cloned().unwrap_or_default());
        requests.extend(
            item["defaultRequest"]
                .as_object()
                .cloned()
                .unwrap_or_default(),
        );
    }
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    for (list, label) in [
        ("containers", "container"),
        ("initContainers", "init container"),
    ] {
        for container in pod["spec"]
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            let set_requests = fill(container, "requests", &requests);
            let set_limits = fill(container, "limits", &limits);
            if !set_requests.is_empty() {
                notes.push(format!(
                    "{} request for {label} {name}",
                    set_requests.join(", ")
                ));
            }
            if !set_limits.is_empty() {
                notes.push(format!(
                    "{} limit for {label} {name}",
                    set_limits.join(", ")
                ));
            }
        }
    }
    if !notes.is_empty() {
        meta::set_annotation(
            pod,
            ANNOTATION,
            &format!("LimitRanger plugin set: {}", notes.join("; ")),
        );
    }
}

fn fill(
    container: &mut Value,
    key: &str,
    defaults: &serde_json::Map<String, Value>,
) -> Vec<String> {
    let mut set = Vec::new();
    for (resource, amount) in defaults {
        if container["resources"][key].get(resource).is_some() {
            continue;
        }
        if !container["resources"].is_object() {
            container["resources"] = json!({});
        }
        if !container["resources"][key].is_object() {
            container["resources"][key] = json!({});
        }
        container["resources"][key][resource] = amount.clone();
        set.push(resource.clone());
    }
    set
}

/// Amounts by resource.
type Amounts = std::collections::BTreeMap<String, Quantity>;

fn amounts(value: &Value) -> Amounts {
    value
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| Some((name.clone(), super::quantity_of(amount)?)))
        .collect()
}

fn check_pod(pod: &Value, range: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    for item in items(range, "Container") {
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                let (requests, limits) = (
                    amounts(&container["resources"]["requests"]),
                    amounts(&container["resources"]["limits"]),
                );
                check(item, "Container", &requests, &limits, &mut errors);
            }
        }
    }
    for item in items(range, "Pod") {
        let (requests, limits) = (
            super::pod_amounts(pod, "requests"),
            super::pod_amounts(pod, "limits"),
        );
        check(item, "Pod", &requests, &limits, &mut errors);
    }
    errors
}

fn check_claim(claim: &Value, range: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    for item in items(range, "PersistentVolumeClaim") {
        for (name, enforced) in amounts(&item["min"]) {
            minimum(
                "PersistentVolumeClaim",
                &name,
                &enforced,
                requests.get(&name),
                None,
                &mut errors,
            );
        }
        for (name, enforced) in amounts(&item["max"]) {
            let kind = "PersistentVolumeClaim";
            match requests.get(&name) {
                None => errors.push(format!(
                    "maximum {name} usage per {kind} is {enforced}.  No request is specified"
                )),
                Some(request) if *request > enforced => {
                    errors.push(format!(
                        "maximum {name} usage per {kind} is {enforced}, but request is {request}"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    errors
}

fn check(item: &Value, kind: &str, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    for (name, enforced) in amounts(&item["min"]) {
        minimum(
            kind,
            &name,
            &enforced,
            requests.get(&name),
            limits.get(&name),
            errors,
        );
    }
    for (name, enforced) in amounts(&item["max"]) {
        match (limits.get(&name), requests.get(&name)) {
            (None, _) => errors.push(format!(
                "maximum {name} usage per {kind} is {enforced}.  No limit is specified"
            )),
            (Some(limit), _) if *limit > enforced => {
                errors.push(format!(
                    "maximum {name} usage per {kind} is {enforced}, but limit is {limit}"
                ));
            }
            (_, Some(request)) if *request > enforced => {
                errors.push(format!(
                    "maximum {name} usage per {kind} is {enforced}, but request is {request}"
                ));
            }
            _ => {}
        }
    }
    for (name, enforced) in amounts(&item["maxLimitRequestRatio"]) {
        let start = format!("{name} max limit to request ratio per {kind} is {enforced}");
        match (
            requests.get(&name).filter(|q| !q.is_zero()),
            limits.get(&name).filter(|q| !q.is_zero()),
        ) {
            (None, _) => errors.push(format!(
                "{start}, but no request is specified or request is 0"
            )),
            (_, None) => errors.push(format!("{start}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let ratio = limit.as_f64() / request.as_f64();
                if ratio > enforced.as_f64() {
                    errors.push(format!("{start}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn minimum(
    kind: &str,
    name: &str,
    enforced: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    errors: &mut Vec<String>,
) {
    match (request, limit) {
        (None, _) => errors.push(format!(
            "minimum {name} usage per {kind} is {enforced}.  No request is specified"
        )),
        (Some(request), _) if request < enforced => {
            errors.push(format!(
                "minimum {name} usage per {kind} is {enforced}, but request is {request}"
            ));
        }
        (_, Some(limit)) if limit < enforced => {
            errors.push(format!(
                "minimum {name} usage per {kind} is {enforced}, but limit is {limit}"
            ));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_filled_and_noted_and_bounds_complained_about() {
        let range = json!({"spec": {"limits": [{
            "type": "Container", "default": {"cpu": "200m"}, "defaultRequest": {"cpu": "100m"},
            "min": {"cpu": "50m"}, "max": {"cpu": "500m"}, "maxLimitRequestRatio": {"cpu": "4"}}]}});
        let mut pod = json!({"spec": {"containers": [{"name": "c"}]}});
        default_pod(&mut pod, &range);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}})
        );
        assert_eq!(
            meta::annotation(&pod, ANNOTATION),
            Some("LimitRanger plugin set: cpu request for container c; cpu limit for container c")
        );
        assert!(check_pod(&pod, &range).is_empty());
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "1"}}}]}});
        assert_eq!(
            check_pod(&pod, &range),
            [
                "minimum cpu usage per Container is 50m, but request is 10m",
                "maximum cpu usage per Container is 500m, but limit is 1",
                "cpu max limit to request ratio per Container is 4, but provided ratio is 100.000000",
            ]
        );
    }
}
