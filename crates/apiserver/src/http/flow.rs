//! API priority and fairness, the part that protects the server: requests are classified by the
//! stored FlowSchemas, and each priority level bounds how many run at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::objects::Objects;
use crate::request::{RequestContext, Response, UserInfo};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Requests of all limited levels together, shared out by their nominal shares.
const TOTAL_CONCURRENCY: usize = 600;
const QUEUE_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) struct FlowControl {
    objects: Arc<dyn Objects>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    changes: Vec<watch::Receiver<u64>>,
    plan: Arc<Plan>,
}

#[derive(Default)]
struct Plan {
    /// In matching order.
    schemas: Vec<Arc<Value>>,
    levels: HashMap<String, Arc<Level>>,
}

struct Level {
    uid: String,
    /// Absent for exempt levels.
    slots: Option<Arc<Semaphore>>,
    seats: usize,
}

/// A running request's place.
pub(super) struct Permit {
    schema_uid: String,
    level_uid: String,
    _slot: Option<OwnedSemaphorePermit>,
}

impl FlowControl {
    pub(crate) fn new(objects: Arc<dyn Objects>) -> Self {
        Self {
            objects,
            state: Mutex::default(),
        }
    }

    pub(super) async fn enter(&self, context: &RequestContext) -> Result<Permit, Status> {
        let plan = self.plan();
        let Some(schema) = plan
            .schemas
            .iter()
            .find(|schema| matches_schema(schema, context))
        else {
            return Ok(Permit {
                schema_uid: String::new(),
                level_uid: String::new(),
                _slot: None,
            });
        };
        let schema_uid = meta::uid(schema).to_owned();
        let level = schema["spec"]["priorityLevelConfiguration"]["name"]
            .as_str()
            .unwrap_or_default();
        let Some(level) = plan.levels.get(level) else {
            return Ok(Permit {
                schema_uid,
                level_uid: String::new(),
                _slot: None,
            });
        };
        let slot = match &level.slots {
            // Long-running requests take a seat only while they start, which is now over.
            Some(slots) if !context.info.is_long_running() => {
                match tokio::time::timeout(QUEUE_TIMEOUT, Arc::clone(slots).acquire_owned()).await {
                    Ok(slot) => slot.ok(),
                    Err(_) => {
                        return Err(Status::too_many_requests(
                            "too many requests, please try again later",
                            1,
                        ));
                    }
                }
            }
            _ => None,
        };
        Ok(Permit {
            schema_uid,
            level_uid: level.uid.clone(),
            _slot: slot,
        })
    }

    fn plan(&self) -> Arc<Plan> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.changes.is_empty() {
            state.changes = ["flowschemas", "prioritylevelconfigurations"]
                .iter()
                .map(|resource| self.objects.changes(GROUP, resource))
                .collect();
            state
                .changes
                .iter_mut()
                .for_each(watch::Receiver::mark_changed);
        }
        let changed = state.changes.iter_mut().fold(false, |any, receiver| {
            let changed = receiver.has_changed().unwrap_or(false);
            if changed {
                receiver.mark_unchanged();
            }
            any | changed
        });
        if changed {
            state.plan = Arc::new(build(&*self.objects, &state.plan));
        }
        Arc::clone(&state.plan)
    }
}

impl Permit {
    pub(super) fn mark(&self, response: &mut Response) {
        for (name, uid) in [
            ("x-kubernetes-pf-flowschema-uid", &self.schema_uid),
            ("x-kubernetes-pf-prioritylevel-uid", &self.level_uid),
        ] {
            if let Ok(value) = HeaderValue::from_str(uid)
                && !uid.is_empty()
            {
                response.headers_mut().insert(name, value);
            }
        }
    }
}

fn build(objects: &dyn Objects, before: &Plan) -> Plan {
    let mut schemas = objects.list(GROUP, "flowschemas", "");
    schemas.sort_by_key(|s| {
        (
            s["spec"]["matchingPrecedence"].as_i64().unwrap_or(1000),
            meta::name(s).to_owned(),
        )
    });
    let levels = objects.list(GROUP, "prioritylevelconfigurations", "");
    let shares = |level: &Value| {
        level["spec"]["limited"]["nominalConcurrencyShares"]
            .as_u64()
            .unwrap_or(30) as usize
    };
    let limited = |level: &Value| level["spec"]["type"] == "Limited";
    let total: usize = levels
        .iter()
        .filter(|l| limited(l))
        .map(|l| shares(l))
        .sum::<usize>()
        .max(1);
    let levels = levels
        .iter()
        .map(|level| {
            let name = meta::name(level).to_owned();
            let uid = meta::uid(level).to_owned();
            let seats = (TOTAL_CONCURRENCY * shares(level)).div_ceil(total).max(1);
            let kept = before
                .levels
                .get(&name)
                .filter(|old| old.uid == uid && old.seats == seats);
            let slots = limited(level).then(|| match kept.and_then(|old| old.slots.clone()) {
                Some(slots) => slots,
                None => Arc::new(Semaphore::new(seats)),
            });
            (name, Arc::new(Level { uid, slots, seats }))
        })
        .collect();
    Plan { schemas, levels }
}

fn matches_schema(schema: &Value, context: &RequestContext) -> bool {
    let rules = schema["spec"]["rules"].as_array().into_iter().flatten();
    rules.into_iter().any(|rule| {
        let subjects = rule["subjects"].as_array().into_iter().flatten();
        let about = if context.info.is_resource {
            "resourceRules"
        } else {
            "nonResourceRules"
        };
        subjects
            .into_iter()
            .any(|subject| matches_subject(subject, &context.user))
            && rule[about]
                .as_array()
                .into_iter()
                .flatten()
                .any(|rule| matches_rule(rule, context))
    })
}

fn matches_subject(subject: &Value, user: &UserInfo) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match subject["kind"].as_str() {
        Some("User") => {
            let name = text(&subject["user"]["name"]);
            name == "*" || name == user.username
        }
        Some("Group") => {
            let name = text(&subject["group"]["name"]);
            name == "*" || user.in_group(&name)
        }
        Some("ServiceAccount") => user.as_service_account().is_some_and(|(namespace, name)| {
            let wanted = text(&subject["serviceAccount"]["name"]);
            text(&subject["serviceAccount"]["namespace"]) == namespace
                && (wanted == "*" || wanted == name)
        }),
        _ => false,
    }
}

fn matches_rule(rule: &Value, context: &RequestContext) -> bool {
    let info = &context.info;
    let has = |key: &str, wanted: &str| {
        rule[key]
            .as_array()
            .into_iter()
            .flatten()
            .any(|v| v == "*" || v.as_str() == Some(wanted))
    };
    if !has("verbs", &info.verb) {
        return false;
    }
    if !info.is_resource {
        let urls = rule["nonResourceURLs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        return urls.into_iter().any(|url| {
            url == "*"
                || url == info.path
                || url
                    .strip_suffix('*')
                    .is_some_and(|prefix| info.path.starts_with(prefix))
        });
    }
    let resource = if info.subresource.is_empty() {
        info.resource.clone()
    } else {
        format!("{}/{}", info.resource, info.subresource)
    };
    let scope = if info.namespace.is_empty() {
        rule["clusterScope"] == true
    } else {
        has("namespaces", &info.namespace)
    };
    has("apiGroups", &info.group) && has("resources", &resource) && scope
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn subjects_match_by_kind() {
        let account = UserInfo::service_account("ns", "sa");
        let cases = [
            (json!({"kind": "User", "user": {"name": "*"}}), true),
            (
                json!({"kind": "Group", "group": {"name": "system:serviceaccounts"}}),
                true,
            ),
            (
                json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "ns", "name": "*"}}),
                true,
            ),
            (
                json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "other", "name": "sa"}}),
                false,
            ),
        ];
        for (subject, expected) in cases {
            assert_eq!(matches_subject(&subject, &account), expected, "{subject}");
        }
    }
}
