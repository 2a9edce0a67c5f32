//! Fields behind feature gates that v1.36 keeps off: a write loses them, unless the object has
//! them already.

use serde_json::Value;

use super::default::CONTAINER_LISTS;
use crate::tree::{Tree, TreeMut};

/// Sources of projected volumes whose gates are off.
const PROJECTIONS: &[&str] = &["clusterTrustBundle", "podCertificate"];

/// Removes them from a pod spec; `old` is the spec before an update, null on a create.
pub(crate) fn drop(spec: &mut Value, old: &Value) {
    if !spec.is_object() {
        return;
    }
    if !old.has("schedulingGroup") {
        spec.remove("schedulingGroup");
    }
    for projection in PROJECTIONS.iter().filter(|p| !projects(old, p)) {
        for volume in spec.list_mut("volumes") {
            for source in volume.list_mut("projected.sources") {
                source.remove(projection);
            }
        }
    }
    if !containers(old).any(|c| c.has("lifecycle.stopSignal")) {
        for list in CONTAINER_LISTS {
            spec.list_mut(list).iter_mut().for_each(stop_signal);
        }
    }
}

fn stop_signal(container: &mut Value) {
    if container.has("lifecycle.stopSignal") {
        container.remove("lifecycle.stopSignal");
        if container.map("lifecycle").is_empty() {
            container.remove("lifecycle");
        }
    }
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    CONTAINER_LISTS.iter().flat_map(|list| spec.list(list))
}

fn projects(spec: &Value, projection: &str) -> bool {
    let volumes = spec.list("volumes").iter();
    volumes
        .flat_map(|v| v.list("projected.sources"))
        .any(|s| s.has(projection))
}
