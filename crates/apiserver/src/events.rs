//! Events of the server's own loops: what an administrator should know about an object.

use keelson_machinery::{meta, time};
use serde_json::{Value, json};

use crate::objects::Objects;

/// A warning of one loop.
pub(crate) struct Warning<'a> {
    /// The loop, by upstream's name.
    pub(crate) component: &'a str,
    pub(crate) reason: &'a str,
    /// What was done or tried; empty for the older form of events, which has none.
    pub(crate) action: &'a str,
    pub(crate) text: &'a str,
}

/// Records the event in the log too; one that cannot be written is not tried again.
pub(crate) async fn warn(objects: &dyn Objects, regarding: &Value, warning: &Warning<'_>) {
    let Warning {
        component,
        reason,
        action,
        text,
    } = warning;
    let (kind, name) = (meta::kind(regarding), meta::name(regarding));
    tracing::warn!(kind, name, reason, text);
    let namespace = match meta::namespace(regarding) {
        "" => "default",
        namespace => namespace,
    };
    let now = time::now();
    let mut event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {
            "name": format!("{name}.{:016x}", rand::random::<u64>()),
            "namespace": namespace,
        },
        "involvedObject": {
            "apiVersion": regarding["apiVersion"], "kind": kind, "name": name,
            "namespace": meta::namespace(regarding), "uid": meta::uid(regarding),
            "resourceVersion": meta::resource_version(regarding),
        },
        "type": "Warning", "reason": reason, "message": text,
        "reportingComponent": component,
    });
    if action.is_empty() {
        event["source"] = json!({"component": component});
        event["count"] = 1.into();
        event["firstTimestamp"] = now.clone().into();
        event["lastTimestamp"] = now.into();
    } else {
        event["action"] = (*action).into();
        event["reportingInstance"] = format!("{component}-{}", std::process::id()).into();
        event["eventTime"] = now.replace('Z', ".000000Z").into();
    }
    let outcome = objects.create("", "events", namespace, event).await;
    if let Err(error) = outcome {
        tracing::warn!(%error, "an event was not written");
    }
}
