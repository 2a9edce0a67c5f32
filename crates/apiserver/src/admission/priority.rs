//! Priority: a pod's class becomes its number; there is one default class at most.

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::{AdmissionPlugin, Attributes, Cluster, Operation};

pub(super) struct Priority;

const GROUP: &str = "scheduling.k8s.io";

#[async_trait]
impl AdmissionPlugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is("", "pods") {
            return Ok(());
        }
        let Some(pod) = attrs.object.as_ref() else {
            return Ok(());
        };
        if attrs.operation == Operation::Update {
            keep(attrs);
            return Ok(());
        }
        let name = pod["spec"]["priorityClassName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let class = if name.is_empty() {
            default_class(cluster)
        } else {
            let found = match cluster.objects.get(GROUP, "priorityclasses", "", &name) {
                Some(class) => Some((*class).clone()),
                None => {
                    cluster
                        .objects
                        .read(GROUP, "priorityclasses", "", &name)
                        .await?
                }
            };
            Some(found.ok_or_else(|| {
                attrs.forbidden(format!("no PriorityClass with name {name} was found"))
            })?)
        };
        let priority = class
            .as_ref()
            .and_then(|c| c["value"].as_i64())
            .unwrap_or(0);
        let policy = class
            .as_ref()
            .and_then(|c| c["preemptionPolicy"].as_str())
            .unwrap_or("PreemptLowerPriority");
        if let Some(given) = pod["spec"]["priority"].as_i64()
            && given != priority
        {
            return Err(attrs.forbidden(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
            )));
        }
        if let Some(given) = pod["spec"]["preemptionPolicy"].as_str()
            && given != policy
        {
            return Err(attrs.forbidden(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            )));
        }
        let (class_name, policy) = (
            class.as_ref().map(|c| meta::name(c).to_owned()),
            policy.to_owned(),
        );
        if let Some(pod) = attrs.object.as_mut() {
            if let Some(class_name) = class_name {
                pod["spec"]["priorityClassName"] = json!(class_name);
            }
            pod["spec"]["priority"] = json!(priority);
            if pod["spec"]["preemptionPolicy"].is_null() {
                pod["spec"]["preemptionPolicy"] = json!(policy);
            }
        }
        Ok(())
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        let Some(class) = attrs
            .object
            .as_ref()
            .filter(|_| attrs.is(GROUP, "priorityclasses"))
        else {
            return Ok(());
        };
        if class["globalDefault"] != true {
            return Ok(());
        }
        match default_class(cluster) {
            Some(other) if meta::name(&other) != meta::name(class) => {
                Err(attrs.forbidden(format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    meta::name(&other)
                )))
            }
            _ => Ok(()),
        }
    }
}

/// An update that leaves the priority out means the one the pod has.
fn keep(attrs: &mut Attributes) {
    let Some(old) = attrs.old_object.clone() else {
        return;
    };
    let Some(pod) = attrs.object.as_mut() else {
        return;
    };
    for key in ["priority", "preemptionPolicy"] {
        if pod["spec"][key].is_null() && !old["spec"][key].is_null() {
            pod["spec"][key] = old["spec"][key].clone();
        }
    }
}

fn default_class(cluster: &Cluster) -> Option<Value> {
    cluster
        .objects
        .list(GROUP, "priorityclasses", "")
        .into_iter()
        .filter(|class| class["globalDefault"] == true)
        .min_by_key(|class| class["value"].as_i64())
        .map(|class| (*class).clone())
}
