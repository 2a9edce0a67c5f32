//! Applying plans to children: claiming, creating in growing batches, deleting side by side.

use std::future::Future;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    Change, Client, DeleteOptions, Error, EventRecorder, Informer, Key, Meta, Object, Patch,
    ReconcileError,
};

use crate::owner::{Claim, Owner, controller_of};
use crate::pod;

/// Requests in flight for one object's children.
const IN_FLIGHT: usize = 50;

/// The index of children by their controller's uid; orphans stand under [`orphans`].
const BY_CONTROLLER: &str = "controller";

fn controller_key(meta: &ObjectMeta) -> Vec<String> {
    vec![match controller_of(meta) {
        Some(owner) => owner.uid.clone(),
        None => orphans(pod::namespace(meta)),
    }]
}

fn orphans(namespace: &str) -> String {
    format!("orphans of {namespace}")
}

/// Makes [`children`] work on this informer.
pub(crate) fn index<K: Meta>(informer: &Informer<K>) {
    informer.add_index(BY_CONTROLLER, |object| controller_key(object.meta()));
}

/// What the owner controls by reference.
pub(crate) fn controlled<K: Meta>(informer: &Informer<K>, uid: &str) -> Vec<Arc<K>> {
    informer.by_index(BY_CONTROLLER, uid)
}

/// What the owner controls, and the orphans of its namespace.
pub(crate) fn candidates<K: Meta>(informer: &Informer<K>, owner: &Owner) -> Vec<Arc<K>> {
    let mut found = controlled(informer, &owner.uid);
    found.extend(informer.by_index(BY_CONTROLLER, &orphans(&owner.namespace)));
    found
}

/// For a change of an orphan: the keys of owners in its namespace that would adopt it, or that
/// have just lost it.
pub(crate) fn adopters<O: Object, K: Meta>(
    owners: &Informer<O>,
    change: &Change<K>,
    selects: impl Fn(&O, &ObjectMeta) -> bool,
) -> Vec<Key> {
    let meta = change.object().meta();
    if controller_of(meta).is_some() || meta.deletion_timestamp.is_some() {
        return Vec::new();
    }
    owners
        .list_in(pod::namespace(meta))
        .iter()
        .filter(|owner| selects(owner, meta))
        .map(|owner| Key::of(owner.metadata()))
        .collect()
}

/// Adopts and releases, and returns what belongs to the owner now.
pub(crate) async fn claim<O: Object, K: Object>(
    client: &Client,
    owner: &Owner,
    candidates: Vec<Arc<K>>,
    selected: impl Fn(&ObjectMeta) -> bool,
) -> Result<Vec<Arc<K>>, ReconcileError> {
    let mut ours = Vec::with_capacity(candidates.len());
    let mut checked = false;
    for child in candidates {
        let meta = child.metadata();
        match owner.claim(meta, selected(meta)) {
            Claim::Keep => ours.push(child),
            Claim::Ignore => {}
            Claim::Adopt => {
                if !checked {
                    // The cache may show an owner that is already being deleted, or a namesake.
                    let fresh = client.get::<O>(&owner.namespace, &owner.name).await?;
                    let meta = fresh.metadata();
                    if meta.uid.as_deref() != Some(&owner.uid) || meta.deletion_timestamp.is_some()
                    {
                        return Err(ReconcileError::Other(format!(
                            "original {} {}/{} is gone",
                            owner.kind, owner.namespace, owner.name
                        )));
                    }
                    checked = true;
                }
                let patch = Patch::Strategic(owner.adopt_patch(meta));
                match client
                    .patch::<K>(&owner.namespace, pod::name(meta), &patch, None)
                    .await
                {
                    Ok(adopted) => ours.push(Arc::new(adopted)),
                    Err(error) if error.is_not_found() || error.is_invalid() => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Claim::Release => {
                let patch = Patch::Strategic(owner.release_patch(meta));
                match client
                    .patch::<K>(&owner.namespace, pod::name(meta), &patch, None)
                    .await
                {
                    Ok(_) => {}
                    Err(error) if error.is_not_found() || error.is_invalid() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(ours)
}

/// Runs `count` operations in batches of 1, 2, 4 …: when every creation is refused (a quota, say)
/// only one request is wasted, not hundreds. Returns the first error.
pub(crate) async fn slow_start<F, Fut>(count: usize, operation: F) -> Option<Error>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    let mut next = 0;
    let mut batch = 1;
    while next < count {
        let size = batch.min(count - next);
        let mut results =
            stream::iter((next..next + size).map(&operation)).buffer_unordered(IN_FLIGHT);
        let mut failed = None;
        while let Some(result) = results.next().await {
            if let Err(error) = result {
                failed.get_or_insert(error);
            }
        }
        if failed.is_some() {
            return failed;
        }
        next += size;
        batch *= 2;
    }
    None
}

/// Creates a pod for `owner` and tells so with an event.
pub(crate) async fn create_pod<O: Object>(
    client: &Client,
    events: &EventRecorder,
    owner: &O,
    template: &Pod,
) -> Result<Pod, Error> {
    match client.create(template).await {
        Ok(created) => {
            events.normal(
                owner,
                "SuccessfulCreate",
                format!("Created pod: {}", pod::name(&created.metadata)),
            );
            Ok(created)
        }
        Err(error) => {
            // Nothing can be created in a namespace that goes away; that is not worth an event.
            if !error.is_namespace_terminating() {
                events.warning(owner, "FailedCreate", format!("Error creating: {error}"));
            }
            Err(error)
        }
    }
}

/// Deletes a pod of `owner`; one that is gone already is as good.
pub(crate) async fn delete_pod<O: Object>(
    client: &Client,
    events: &EventRecorder,
    owner: &O,
    victim: &Pod,
) -> Result<(), Error> {
    let meta = &victim.metadata;
    let name = pod::name(meta);
    let options = DeleteOptions::default().uid(pod::uid(meta));
    match client
        .delete::<Pod>(pod::namespace(meta), name, &options)
        .await
    {
        Ok(()) => {
            events.normal(owner, "SuccessfulDelete", format!("Deleted pod: {name}"));
            Ok(())
        }
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => {
            events.warning(owner, "FailedDelete", format!("Error deleting: {error}"));
            Err(error)
        }
    }
}

/// Deletes pods side by side; returns the first error.
pub(crate) async fn delete_pods<O: Object>(
    client: &Client,
    events: &EventRecorder,
    owner: &O,
    victims: &[Arc<Pod>],
) -> Option<Error> {
    stream::iter(
        victims
            .iter()
            .cloned()
            .map(|victim| async move { delete_pod(client, events, owner, &victim).await }),
    )
    .buffer_unordered(IN_FLIGHT)
    .filter_map(|result| std::future::ready(result.err()))
    .collect::<Vec<_>>()
    .await
    .into_iter()
    .next()
}

/// Runs operations side by side, bounded; returns the first error.
pub(crate) async fn side_by_side<Fut>(
    operations: impl IntoIterator<Item = Fut>,
) -> Result<(), Error>
where
    Fut: Future<Output = Result<(), Error>>,
{
    let results: Vec<_> = stream::iter(operations)
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    results.into_iter().collect()
}
