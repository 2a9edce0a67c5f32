//! ResourceQuota: what a write would use is charged to the namespace's quotas before it happens;
//! what does not fit is refused.

mod evaluators;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::{AdmissionPlugin, Attributes, Cluster, Operation, quantity_of};
use evaluators::Evaluator;

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
        if attrs.namespace.is_empty() || attrs.is_any("", "namespaces") {
            return Ok(());
        }
        let quotas = cluster.objects.list("", "resourcequotas", &attrs.namespace);
        let Some(object) = attrs.object.as_ref().filter(|_| !quotas.is_empty()) else {
            return Ok(());
        };
        let evaluator = Evaluator::of(attrs, cluster);
        if !evaluator.handles(attrs) {
            return Ok(());
        }
        let demand = Demand::new(attrs, &evaluator, object);
        let names = quotas.iter().map(|quota| meta::name(quota).to_owned());
        charge(attrs, cluster, &demand, names.collect()).await
    }
}

/// What the write would use, and of what.
struct Demand<'a> {
    attrs: &'a Attributes,
    evaluator: &'a Evaluator<'a>,
    object: &'a Value,
    /// What a quota is charged that had nothing of the object before.
    whole: Usage,
    /// What a quota is charged that has its old state already.
    increase: Usage,
    old: Option<Arc<Value>>,
}

impl<'a> Demand<'a> {
    fn new(attrs: &'a Attributes, evaluator: &'a Evaluator<'a>, object: &'a Value) -> Self {
        let mut whole = evaluator.usage(object);
        let old = attrs.old_object.clone();
        let old = old.filter(|_| attrs.operation == Operation::Update);
        let before = old.as_deref().map(|old| evaluator.usage(old));
        let before = before.unwrap_or_default();
        let zero = Quantity::from_value(0);
        let mut increase: Usage = whole
            .iter()
            .map(|(name, amount)| (name.clone(), *amount - *before.get(name).unwrap_or(&zero)))
            .collect();
        whole.retain(|_, amount| !amount.is_zero());
        increase.retain(|_, amount| *amount > zero);
        Self {
            attrs,
            evaluator,
            object,
            whole,
            increase,
            old,
        }
    }
}

/// Checks all quotas before any of them is charged; a conflict means that somebody else charged
/// one, which is then looked at again.
async fn charge(
    attrs: &Attributes,
    cluster: &Cluster,
    demand: &Demand<'_>,
    mut names: Vec<String>,
) -> Result<(), Status> {
    for _ in 0..ATTEMPTS {
        let mut charged = Vec::new();
        for name in &names {
            let objects = &cluster.objects;
            let found = objects.read("", "resourcequotas", &attrs.namespace, name);
            let Some(mut quota) = found.await? else {
                continue;
            };
            if let Some(used) = plan(demand, &quota)? {
                quota["status"]["used"] = used;
                charged.push(quota);
            }
        }
        if attrs.dry_run {
            return Ok(());
        }
        names.clear();
        for quota in charged {
            let name = meta::name(&quota).to_owned();
            let objects = &cluster.objects;
            let update = objects.update("", "resourcequotas", &attrs.namespace, quota);
            match update.await {
                Ok(_) => {}
                Err(status) if status.is_conflict() => names.push(name),
                Err(status) if status.is_not_found() => {}
                Err(status) => return Err(status),
            }
        }
        if names.is_empty() {
            return Ok(());
        }
    }
    Err(Status::server_timeout("", "resourcequotas", "update", 1))
}

/// The quota's new `used`, nothing when it does not concern the object, or why it does not fit.
/// What counts is the quota's status: what its spec asks for is not measured yet.
fn plan(demand: &Demand<'_>, quota: &Value) -> Result<Option<Value>, Status> {
    let Demand {
        attrs, evaluator, ..
    } = demand;
    let limits = amounts(&quota["status"]["hard"]);
    let bounded = evaluator.bounded(limits.keys());
    if bounded.is_empty() || !evaluator.in_scope(quota, demand.object) {
        return Ok(None);
    }
    let name = meta::name(quota);
    let missing = evaluator.unspecified(demand.object, &bounded);
    if !missing.is_empty() {
        return Err(attrs.forbidden(format!(
            "failed quota: {name}: must specify {}",
            missing.join("; ")
        )));
    }
    let used = amounts(&quota["status"]["used"]);
    if bounded.iter().any(|resource| !used.contains_key(*resource)) {
        return Err(attrs.forbidden(format!(
            "status unknown for quota: {name}, resources: {}",
            bounded.join(",")
        )));
    }
    let had_it = |old: &Arc<Value>| evaluator.in_scope(quota, old);
    let change = match demand.old.as_ref().filter(|old| had_it(old)) {
        Some(_) => &demand.increase,
        None => &demand.whole,
    };
    let mut after = used.clone();
    let mut exceeded = Vec::new();
    for (resource, amount) in change {
        let Some(limit) = limits.get(resource) else {
            continue;
        };
        let total = match used.get(resource) {
            Some(used) => *used + *amount,
            None => *amount,
        };
        if total > *limit {
            exceeded.push(resource);
        }
        after.insert(resource.clone(), total);
    }
    // What has happened already is told by a status, and only noted.
    if exceeded.is_empty() || attrs.subresource == "status" {
        let shown = |all: &Usage| {
            let all = all.iter().map(|(r, q)| (r.clone(), json!(q.to_string())));
            Value::Object(all.collect())
        };
        return Ok((after != used).then(|| shown(&after)));
    }
    let show = |from: &Usage| {
        let shown = exceeded
            .iter()
            .filter_map(|r| from.get(*r).map(|q| format!("{r}={q}")));
        shown.collect::<Vec<_>>().join(",")
    };
    Err(attrs.forbidden(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        show(change),
        show(&used),
        show(&limits)
    )))
}

fn amounts(value: &Value) -> Usage {
    let list = value.as_object().into_iter().flatten();
    list.filter_map(|(name, q)| Some((name.clone(), quantity_of(q)?)))
        .collect()
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
            user: Arc::default(),
            dry_run: false,
            options: Value::Null,
            warnings: crate::request::Warnings::default(),
            rounds: Default::default(),
            annotations: crate::request::Annotations::default(),
        }
    }

    fn planned(pod: &Value, quota: &Value) -> Result<Option<Value>, Status> {
        let attrs = attributes(pod.clone());
        plan(&Demand::new(&attrs, &Evaluator::Pods, pod), quota)
    }

    #[test]
    fn what_fits_is_charged_and_what_does_not_is_refused() {
        let pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]}});
        let quota = |used: &str| {
            json!({"metadata": {"name": "q"},
                "status": {"hard": {"pods": "2", "requests.cpu": "1"}, "used": {"pods": used, "requests.cpu": "0"}}})
        };
        let used = planned(&pod, &quota("1")).unwrap().unwrap();
        assert_eq!(used, json!({"pods": "2", "requests.cpu": "500m"}));
        let refused = planned(&pod, &quota("2")).unwrap_err();
        assert_eq!(
            refused.message,
            "pods \"p\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
        );
    }

    #[test]
    fn a_bounded_resource_must_be_named_unless_the_pod_names_its_own() {
        let quota = json!({"metadata": {"name": "q"}, "status": {
            "hard": {"limits.cpu": "1", "memory": "1Gi"}, "used": {"limits.cpu": "0", "memory": "0"}}});
        let mut pod = json!({"spec": {"containers": [{"name": "c"}]}});
        let refused = planned(&pod, &quota).unwrap_err();
        assert!(
            refused
                .message
                .ends_with("failed quota: q: must specify limits.cpu for: c; memory for: c"),
            "{refused}"
        );
        pod["spec"]["resources"] = json!({"requests": {"cpu": "1m"}});
        assert_eq!(planned(&pod, &quota).unwrap(), None);
    }

    #[test]
    fn a_quota_that_has_measured_nothing_bounds_nothing() {
        let pod = json!({"spec": {"containers": [{"name": "c"}]}});
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}});
        assert_eq!(planned(&pod, &quota).unwrap(), None);
    }
}
