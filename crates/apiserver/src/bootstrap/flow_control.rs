//! Keeps the configuration of flow control whole: the mandatory objects as they must be, the
//! suggested ones as they are suggested unless the administrator took them over, and every schema
//! saying whether its priority level exists.

use std::sync::Arc;

use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Wanted;
use super::objects::flow_control;
use crate::objects::Objects;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
const DANGLING: &str = "Dangling";

/// Works on every change of the configuration, until `stop`.
pub(crate) async fn maintain(objects: Arc<dyn Objects>, stop: CancellationToken) {
    let mut schemas = objects.changes(GROUP, SCHEMAS);
    let mut levels = objects.changes(GROUP, LEVELS);
    loop {
        for wanted in flow_control() {
            report(repair(&objects, wanted).await);
        }
        for schema in objects.list(GROUP, SCHEMAS, "") {
            report(mark(&objects, &schema).await);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = schemas.changed() => if changed.is_err() { return },
            changed = levels.changed() => if changed.is_err() { return },
        }
    }
}

/// A conflict means that the object changed, which starts another round.
fn report(outcome: Result<(), Status>) {
    if let Err(status) = outcome
        && !status.is_conflict()
        && !status.is_not_found()
        && !status.is_already_exists()
    {
        tracing::warn!(%status, "maintaining the configuration of flow control");
    }
}

fn is_mandatory(name: &str) -> bool {
    matches!(name, "exempt" | "catch-all")
}

async fn repair(objects: &Arc<dyn Objects>, wanted: Wanted) -> Result<(), Status> {
    let Wanted {
        group,
        resource,
        object,
    } = wanted;
    let name = meta::name(&object).to_owned();
    match objects.get(group, resource, "", &name) {
        Some(found) => match repaired(&found, &object) {
            Some(updated) => objects.update(group, resource, "", updated).await.map(drop),
            None => Ok(()),
        },
        None => objects.create(group, resource, "", object).await.map(drop),
    }
}

/// The object with what it must hold; nothing when it does, or when it is somebody else's.
fn repaired(found: &Value, wanted: &Value) -> Option<Value> {
    let automatic = match meta::annotation(found, AUTOUPDATE) {
        Some(value) => value == "true",
        // Nobody said anything: only what was never changed is this server's.
        None => meta::generation(found) <= 1,
    };
    if !is_mandatory(meta::name(found)) && !automatic {
        return None;
    }
    let mut updated = found.clone();
    overlay(&mut updated["spec"], &wanted["spec"]);
    (updated != *found).then_some(updated)
}

/// Puts what is wanted into what is there; what was defaulted besides it stays.
fn overlay(found: &mut Value, wanted: &Value) {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            for (key, value) in wanted {
                overlay(found.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(found), Value::Array(wanted)) if found.len() == wanted.len() => {
            for (found, wanted) in found.iter_mut().zip(wanted) {
                overlay(found, wanted);
            }
        }
        (found, wanted) => *found = wanted.clone(),
    }
}

async fn mark(objects: &Arc<dyn Objects>, schema: &Value) -> Result<(), Status> {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"]
        .as_str()
        .unwrap_or_default();
    let exists = objects.get(GROUP, LEVELS, "", level).is_some();
    match marked(schema, level, exists, &time::now()) {
        Some(updated) => objects.update(GROUP, SCHEMAS, "", updated).await.map(drop),
        None => Ok(()),
    }
}

/// The schema with its condition; nothing when it has it already.
fn marked(schema: &Value, level: &str, exists: bool, now: &str) -> Option<Value> {
    let start =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = if exists {
        ("False", "Found", format!("{start} and it exists"))
    } else {
        (
            "True",
            "NotFound",
            format!("{start} but there is no such object"),
        )
    };
    let mut conditions = schema["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let old = conditions.iter().position(|c| c["type"] == DANGLING);
    let same = |c: &Value| c["status"] == status && c["message"] == message;
    if old.is_some_and(|index| same(&conditions[index])) {
        return None;
    }
    let since = old
        .map(|index| &conditions[index])
        .filter(|c| c["status"] == status)
        .and_then(|c| c["lastTransitionTime"].as_str())
        .unwrap_or(now);
    let condition = json!({
        "type": DANGLING, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since,
    });
    match old {
        Some(index) => conditions[index] = condition,
        None => conditions.push(condition),
    }
    let mut updated = schema.clone();
    if !updated["status"].is_object() {
        updated["status"] = json!({});
    }
    updated["status"]["conditions"] = Value::Array(conditions);
    Some(updated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mandatory_objects_are_brought_back_and_owned_ones_left_alone() {
        let wanted =
            json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 5}}});
        let found = |name: &str, auto: Option<&str>| {
            let mut found = json!({"metadata": {"name": name, "generation": 3},
                "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 9, "lendablePercent": 0}}});
            if let Some(auto) = auto {
                meta::set_annotation(&mut found, AUTOUPDATE, auto);
            }
            found
        };
        let fixed = repaired(&found("catch-all", Some("false")), &wanted).unwrap();
        assert_eq!(
            fixed["spec"]["limited"],
            json!({"nominalConcurrencyShares": 5, "lendablePercent": 0})
        );
        assert!(repaired(&fixed, &wanted).is_none());
        assert!(repaired(&found("system", Some("true")), &wanted).is_some());
        assert!(repaired(&found("system", Some("false")), &wanted).is_none());
        assert!(repaired(&found("system", None), &wanted).is_none());
    }

    #[test]
    fn a_schema_says_whether_its_level_exists() {
        let schema = json!({"metadata": {"name": "s"}});
        let first = marked(&schema, "l", true, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(first["status"]["conditions"][0]["reason"], "Found");
        assert!(marked(&first, "l", true, "2026-01-02T00:00:00Z").is_none());
        let gone = marked(&first, "l", false, "2026-01-02T00:00:00Z").unwrap();
        let condition = &gone["status"]["conditions"][0];
        assert_eq!(
            (&condition["status"], &condition["lastTransitionTime"]),
            (&json!("True"), &json!("2026-01-02T00:00:00Z"))
        );
        assert_eq!(
            condition["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"l\" but there is no such object"
        );
    }
}
