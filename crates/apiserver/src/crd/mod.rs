//! CustomResourceDefinitions: every accepted one becomes rows of the resource table, so that its
//! objects take the same path as built-in kinds.

mod convert;
mod entry;
mod json_path;
mod names;
mod remembered;
mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use serde_json::{Value, json};

use crate::registry::ResourceEntry;
use crate::server::Server;

pub(crate) const GROUP: &str = "apiextensions.k8s.io";
const RESOURCE: &str = "customresourcedefinitions";
const FINALIZER: &str = keelson_kinds::CUSTOM_RESOURCE_CLEANUP;
const IN_PROGRESS: &str = "InstanceDeletionInProgress";
/// How often a deleted definition looks again whether its objects are gone; their finalizers
/// belong to others.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(1);

/// What of a definition is installed: its spec, to see changes, and its versions.
struct Installed {
    spec: Value,
    terminating: bool,
    group: String,
    resource: String,
    versions: Vec<String>,
}

type Table = BTreeMap<String, Installed>;

/// Serves what was established before the server stopped, so that it is there from the first
/// request on.
pub(crate) async fn load(server: &Arc<Server>) -> Result<(), Status> {
    for definition in server.objects.list(GROUP, RESOURCE, "") {
        if is_established(&definition) {
            install(server, &mut Table::new(), &definition).await;
        }
    }
    Ok(())
}

/// Follows the definitions until the server stops.
pub(crate) async fn run(server: Arc<Server>) {
    let mut changes = server.objects.changes(GROUP, RESOURCE);
    changes.mark_changed();
    let mut table = Table::new();
    let mut cleaning = false;
    loop {
        tokio::select! {
            () = server.stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(CLEANUP_INTERVAL), if cleaning => {}
        }
        let definitions = server.objects.list(GROUP, RESOURCE, "");
        let gone: Vec<String> = table
            .keys()
            .filter(|name| !definitions.iter().any(|d| meta::name(d) == name.as_str()))
            .cloned()
            .collect();
        for name in gone {
            if let Some(installed) = table.remove(&name) {
                uninstall(&server, &installed, &[]);
            }
        }
        cleaning = false;
        for definition in &definitions {
            cleaning |= sync(&server, &mut table, definition, &definitions).await;
        }
    }
}

/// Brings one definition to what it should be; true while its deletion is not over.
async fn sync(
    server: &Arc<Server>,
    table: &mut Table,
    definition: &Arc<Value>,
    all: &[Arc<Value>],
) -> bool {
    if meta::deletion_timestamp(definition).is_some() {
        return finalize(server, table, definition).await;
    }
    let now = time::now();
    let mut updated = Value::clone(definition);
    names::settle(&mut updated, all, &now);
    if is_established(&updated) {
        install(server, table, &updated).await;
    }
    if updated != **definition {
        write(server, updated).await;
    }
    false
}

async fn write(server: &Arc<Server>, updated: Value) {
    let name = meta::name(&updated).to_owned();
    // A conflict means that the definition changed, and that change wakes this again.
    if let Err(status) = server.objects.update(GROUP, RESOURCE, "", updated).await
        && !status.is_conflict()
        && !status.is_not_found()
    {
        tracing::warn!(name, %status, "updating a CustomResourceDefinition");
    }
}

pub(crate) fn is_established(definition: &Value) -> bool {
    condition(definition, "Established").is_some_and(|c| c["status"] == "True")
}

fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    definition["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == kind)
}

/// Sets a condition; its transition time moves when its status does.
fn set_condition(
    definition: &mut Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &str,
) {
    let since = condition(definition, kind)
        .filter(|c| c["status"] == status)
        .and_then(|c| c["lastTransitionTime"].as_str())
        .unwrap_or(now)
        .to_owned();
    let new = json!({
        "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    });
    let mut conditions = definition["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(found) => *found = new,
        None => conditions.push(new),
    }
    if !definition["status"].is_object() {
        definition["status"] = json!({});
    }
    definition["status"]["conditions"] = Value::Array(conditions);
}

async fn install(server: &Arc<Server>, table: &mut Table, definition: &Value) {
    let name = meta::name(definition);
    let terminating = condition(definition, "Terminating").is_some_and(|c| c["status"] == "True");
    if table
        .get(name)
        .is_some_and(|i| i.spec == definition["spec"] && i.terminating == terminating)
    {
        return;
    }
    let entries = entry::entries(definition, &server.objects, terminating);
    let versions: Vec<String> = entries.iter().map(|e| e.version.clone()).collect();
    let installed = Installed {
        spec: definition["spec"].clone(),
        terminating,
        group: definition["spec"]["group"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        resource: definition["spec"]["names"]["plural"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        versions: versions.clone(),
    };
    let all: Vec<ResourceEntry> = entries;
    for entry in all {
        if let Err(status) = server.registry.install(entry).await {
            tracing::error!(name, %status, "serving a custom resource");
        }
    }
    if let Some(before) = table.insert(name.to_owned(), installed) {
        uninstall(server, &before, &versions);
    }
}

fn uninstall(server: &Arc<Server>, installed: &Installed, except: &[String]) {
    for version in installed.versions.iter().filter(|v| !except.contains(v)) {
        server
            .registry
            .uninstall(&installed.group, version, &installed.resource);
    }
}

/// Deletes the definition's objects, then lets it go.
async fn finalize(server: &Arc<Server>, table: &mut Table, definition: &Arc<Value>) -> bool {
    if !meta::finalizers(definition).contains(&FINALIZER) {
        // Others hold it, and until they let go it is served as before.
        if is_established(definition) {
            install(server, table, definition).await;
        }
        return false;
    }
    let now = time::now();
    let mut updated = Value::clone(definition);
    if condition(definition, "Terminating").is_none_or(|c| c["reason"] != IN_PROGRESS) {
        set_condition(
            &mut updated,
            "Terminating",
            "True",
            IN_PROGRESS,
            "CustomResource deletion is in progress",
            &now,
        );
        write(server, updated).await;
        return true;
    }
    if is_established(definition) {
        install(server, table, definition).await;
    }
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, resource) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    let objects = server.objects.list(&group, &resource, "");
    if !objects.is_empty() {
        for object in objects
            .iter()
            .filter(|o| meta::deletion_timestamp(o).is_none())
        {
            let deleted = server
                .objects
                .delete(
                    &group,
                    &resource,
                    meta::namespace(object),
                    meta::name(object),
                )
                .await;
            if let Err(status) = deleted
                && !status.is_not_found()
            {
                tracing::warn!(group, resource, %status, "deleting a custom object");
            }
        }
        return true;
    }
    set_condition(
        &mut updated,
        "Terminating",
        "False",
        "InstanceDeletionCompleted",
        "removed all instances",
        &now,
    );
    let kept: Vec<String> = meta::finalizers(&updated)
        .into_iter()
        .filter(|f| *f != FINALIZER)
        .map(ToOwned::to_owned)
        .collect();
    let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
    meta::set_finalizers(&mut updated, &kept);
    write(server, updated).await;
    false
}
