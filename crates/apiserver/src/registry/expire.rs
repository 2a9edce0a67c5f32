//! Removes objects of kinds with a time to live (Events) once their time is over.

use std::sync::Arc;
use std::time::Duration;

use keelson_machinery::{meta, time};
use keelson_store::{Expect, SharedStore};
use serde_json::Value;

use super::resources::Resources;
use crate::cache::Caches;

/// A minute late is early enough for something that lives for an hour; a timer is cheaper here
/// than a lease per object.
const INTERVAL: Duration = Duration::from_secs(60);

pub(crate) async fn run(store: SharedStore, caches: Arc<Caches>, resources: Arc<Resources>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        for entry in resources
            .all()
            .into_iter()
            .filter(|entry| entry.is_stored_form())
        {
            let Some(ttl) = entry.rules.time_to_live_s() else {
                continue;
            };
            let Some(cache) = caches.get(&entry.storage_group, &entry.resource) else {
                continue;
            };
            let oldest = time::now_unix().saturating_sub(i64::try_from(ttl).unwrap_or(i64::MAX));
            for object in cache.list("") {
                if last_touched(&object.decode()).is_none_or(|at| at > oldest) {
                    continue;
                }
                // Written again in the meantime: it lives on.
                let _ = store
                    .delete(object.key(), Expect::Revision(object.revision))
                    .await;
            }
        }
    }
}

/// Every write of an object gives it its full time again; the newest time it carries stands for
/// that.
fn last_touched(object: &Value) -> Option<i64> {
    let managed = meta::managed_fields(object)
        .iter()
        .filter_map(|entry| entry.get("time")?.as_str());
    let named = ["lastTimestamp", "eventTime"]
        .iter()
        .filter_map(|field| object.get(*field)?.as_str());
    let series = object
        .pointer("/series/lastObservedTime")
        .and_then(Value::as_str);
    meta::creation_timestamp(object)
        .into_iter()
        .chain(managed)
        .chain(named)
        .chain(series)
        .filter_map(time::parse_unix)
        .max()
}
