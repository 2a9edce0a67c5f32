//! The garbage collector: what has lost all its owners is deleted; foreground deletion waits for
//! dependents, orphaning cuts them loose. It follows every resource that is served, live CRDs too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::{
    Change, Client, Controller, ControllerContext, DeleteOptions, Error, EventRecorder, Informer,
    Informers, Key, Outcome, PartialObjectMetadata, Patch, Propagation, Queue, ReconcileError,
    ResourceType, Watches,
};
use keelson_machinery::go;
use serde_json::{Value, json};

use super::graph::{FOREGROUND, Graph, Node, ORPHAN, Task};
use crate::discovery;

/// The work of the queue: keys are `(kind of work, uid)`.
const DELETE: &str = "delete";
const ORPHAN_DEPENDENTS: &str = "orphan";
const RESOURCES: &str = "resources";

/// How long to wait for the informers of new resources; one that cannot list (a broken aggregated
/// API) must not stop the collection of all others.
const SYNC_PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct GarbageCollector {
    client: Client,
    events: EventRecorder,
    informers: Informers,
    definitions: Informer<CustomResourceDefinition>,
    graph: Arc<Mutex<Graph>>,
    /// Resources whose informers run.
    followed: Mutex<HashMap<ResourceType, Informer<PartialObjectMetadata>>>,
    queue: OnceLock<Queue<Key>>,
}

impl GarbageCollector {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            informers: context.informers.clone(),
            definitions: context.informer(),
            graph: Arc::default(),
            followed: Mutex::default(),
            queue: OnceLock::new(),
        }
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        lock(&self.graph)
    }

    /// Follows what is served now and was not, and lets go of what is served no more.
    async fn follow(&self) -> Result<Outcome, ReconcileError> {
        let discovery = discovery::discover(&self.client).await?;
        let served: Vec<ResourceType> = discovery
            .served
            .into_iter()
            .filter(|s| s.allows("delete") && s.allows("list") && s.allows("watch"))
            .map(|s| s.resource)
            .filter(|r| r.resource != "events")
            .collect();
        let mut started = Vec::new();
        {
            let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
            let gone: Vec<ResourceType> = followed
                .keys()
                .filter(|r| !served.contains(r))
                .cloned()
                .collect();
            for resource in gone {
                // A group that does not answer right now is not gone.
                let version = resource.api_version();
                if discovery
                    .failures
                    .iter()
                    .any(|(group, _)| *group == version)
                {
                    continue;
                }
                followed.remove(&resource);
                self.informers.stop_metadata(&resource);
                let mut graph = self.graph();
                for uid in graph.of_resource(&resource) {
                    graph.remove(&uid);
                }
            }
            for resource in served {
                if !followed.contains_key(&resource) {
                    let informer = self.informers.metadata(&resource);
                    followed.insert(resource.clone(), informer.clone());
                    started.push((resource, informer));
                }
            }
        }
        for (resource, informer) in &started {
            self.subscribe(resource.clone(), informer);
        }
        let all = futures::future::join_all(started.iter().map(|(_, informer)| informer.synced()));
        if tokio::time::timeout(SYNC_PATIENCE, all).await.is_err() {
            tracing::warn!("some resources cannot be listed; collecting among the others");
        }
        let doubtful = self.graph().doubtful();
        if let Some(queue) = self.queue.get() {
            enqueue(queue, doubtful);
        }
        if discovery.failures.is_empty() {
            return Ok(Outcome::Done);
        }
        Ok(Outcome::RequeueAfter(Duration::from_secs(30)))
    }

    fn subscribe(&self, resource: ResourceType, informer: &Informer<PartialObjectMetadata>) {
        let (graph, queue) = (self.graph.clone(), self.queue.get().cloned());
        informer.subscribe(move |change| {
            let tasks = match change {
                Change::Deleted(object) => {
                    lock(&graph).remove(object.metadata.uid.as_deref().unwrap_or_default())
                }
                other => lock(&graph).upsert(Node::new(&resource, &other.object().metadata)),
            };
            if let Some(queue) = &queue {
                enqueue(queue, tasks);
            }
        });
    }

    fn is_settled(&self) -> bool {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        !followed.is_empty() && followed.values().all(Informer::has_synced)
    }

    /// The object's metadata as the server has it, `None` when it is gone or replaced.
    async fn live(&self, node: &Node) -> Result<Option<ObjectMeta>, Error> {
        let path = node.resource.path(&node.namespace, &node.name, "");
        let object = match self.client.request(Method::GET, &path, None).await {
            Ok(object) => object,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta: ObjectMeta =
            serde_json::from_value(object["metadata"].clone()).map_err(Error::Decode)?;
        Ok(Some(meta).filter(|m| m.uid.as_deref() == Some(&node.uid)))
    }

    async fn attempt_to_delete(&self, uid: &str) -> Result<Outcome, ReconcileError> {
        let Some(node) = self.graph().get(uid).cloned() else {
            return Ok(Outcome::Done);
        };
        if node.deleting && !node.foreground {
            return Ok(Outcome::Done);
        }
        let Some(live) = self.live(&node).await? else {
            return Ok(Outcome::Done);
        };
        if node.foreground {
            return self.advance_foreground(&node, &live).await;
        }
        let references = live.owner_references.clone().unwrap_or_default();
        if references.is_empty() || live.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let Some(owners) = self.classify(&node, &references).await? else {
            // An owner's kind is not served (yet): deleting on a guess would lose data.
            return Ok(Outcome::RequeueAfter(Duration::from_secs(30)));
        };
        if !owners.solid.is_empty() {
            if owners.dangling.is_empty() && owners.waiting.is_empty() {
                return Ok(Outcome::Done);
            }
            return self.keep_owners(&node, &live, &owners.solid).await;
        }
        let dependents = self.graph().dependents(uid);
        let policy = if !owners.waiting.is_empty() && !dependents.is_empty() {
            if dependents.iter().any(|d| d.foreground) {
                // A circle would wait for itself for ever: stop blocking the owners first.
                self.unblock_owners(&node, &live).await?;
            }
            Propagation::Foreground
        } else {
            policy_of(&live)
        };
        self.delete(&node, &live, policy).await
    }

    async fn delete(
        &self,
        node: &Node,
        live: &ObjectMeta,
        policy: Propagation,
    ) -> Result<Outcome, ReconcileError> {
        let options = DeleteOptions {
            propagation: Some(policy),
            uid: Some(node.uid.clone()),
            resource_version: live.resource_version.clone(),
            ..DeleteOptions::default()
        };
        match self
            .client
            .delete_resource(&node.resource, &node.namespace, &node.name, &options)
            .await
        {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }

    /// Deletes what blocks a foreground deletion; lets the owner go when nothing does.
    async fn advance_foreground(
        &self,
        node: &Node,
        live: &ObjectMeta,
    ) -> Result<Outcome, ReconcileError> {
        let blocking: Vec<Node> = self
            .graph()
            .dependents(&node.uid)
            .into_iter()
            .filter(|d| {
                d.owners
                    .iter()
                    .any(|o| o.uid == node.uid && o.block_owner_deletion == Some(true))
            })
            .collect();
        if blocking.is_empty() {
            return self.drop_finalizer(node, live, FOREGROUND).await;
        }
        if let Some(queue) = self.queue.get() {
            enqueue(
                queue,
                blocking
                    .into_iter()
                    .filter(|d| !d.foreground)
                    .map(|d| Task::Delete(d.uid)),
            );
        }
        Ok(Outcome::Done)
    }

    async fn drop_finalizer(
        &self,
        node: &Node,
        live: &ObjectMeta,
        finalizer: &str,
    ) -> Result<Outcome, ReconcileError> {
        let mut finalizers = live.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|f| f == finalizer) {
            return Ok(Outcome::Done);
        }
        finalizers.retain(|f| f != finalizer);
        self.patch_meta(node, live, json!({"finalizers": finalizers}))
            .await
    }

    async fn keep_owners(
        &self,
        node: &Node,
        live: &ObjectMeta,
        solid: &[OwnerReference],
    ) -> Result<Outcome, ReconcileError> {
        self.patch_meta(node, live, json!({"ownerReferences": solid}))
            .await
    }

    async fn unblock_owners(&self, node: &Node, live: &ObjectMeta) -> Result<(), ReconcileError> {
        let mut references = live.owner_references.clone().unwrap_or_default();
        for reference in &mut references {
            reference.block_owner_deletion = Some(false);
        }
        let path = node.resource.path(&node.namespace, &node.name, "");
        let patch =
            Patch::Merge(json!({"metadata": {"uid": node.uid, "ownerReferences": references}}));
        self.client.patch_path(&path, &patch).await?;
        Ok(())
    }

    /// A merge patch that only takes effect on the very revision that was judged.
    async fn patch_meta(
        &self,
        node: &Node,
        live: &ObjectMeta,
        mut meta: Value,
    ) -> Result<Outcome, ReconcileError> {
        meta["uid"] = json!(node.uid);
        meta["resourceVersion"] = json!(live.resource_version);
        let path = node.resource.path(&node.namespace, &node.name, "");
        match self
            .client
            .patch_path(&path, &Patch::Merge(json!({"metadata": meta})))
            .await
        {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }

    /// Sorts owners; `None` when one cannot be judged.
    async fn classify(
        &self,
        node: &Node,
        references: &[OwnerReference],
    ) -> Result<Option<Owners>, ReconcileError> {
        let mut owners = Owners::default();
        for reference in references {
            let known = {
                let graph = self.graph();
                if graph.is_absent(&node.namespace, &reference.uid)
                    && graph.get(&reference.uid).is_none()
                {
                    owners.dangling.push(reference.clone());
                    continue;
                }
                graph.owner(node, reference).map(|o| o.foreground)
            };
            let waiting = match known {
                Some(waiting) => waiting,
                None => match self.look_up(node, reference).await? {
                    Found::Here(meta) => {
                        let foreground = meta.finalizers.iter().flatten().any(|f| f == FOREGROUND);
                        meta.deletion_timestamp.is_some() && foreground
                    }
                    Found::Gone => {
                        self.graph()
                            .remember_absent(&node.namespace, &reference.uid);
                        owners.dangling.push(reference.clone());
                        continue;
                    }
                    Found::UnknownKind => return Ok(None),
                },
            };
            if waiting && reference.block_owner_deletion == Some(true) {
                owners.waiting.push(reference.clone());
            } else {
                owners.solid.push(reference.clone());
            }
        }
        Ok(Some(owners))
    }

    async fn look_up(
        &self,
        node: &Node,
        reference: &OwnerReference,
    ) -> Result<Found, ReconcileError> {
        let resource = {
            let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
            let group = reference
                .api_version
                .rsplit_once('/')
                .map_or("", |(group, _)| group);
            followed
                .keys()
                .find(|r| r.kind == reference.kind && r.group == group)
                .cloned()
        };
        let Some(resource) = resource else {
            return Ok(Found::UnknownKind);
        };
        let elsewhere = {
            let graph = self.graph();
            let owner = graph.get(&reference.uid);
            owner.is_some_and(|o| !o.namespace.is_empty() && o.namespace != node.namespace)
        };
        if elsewhere {
            self.tell_of_namespace(node, reference);
        }
        if resource.namespaced && node.namespace.is_empty() {
            // A cluster-scoped object cannot have a namespaced owner; upstream only warns.
            return Ok(Found::UnknownKind);
        }
        let owner = Node {
            namespace: if resource.namespaced {
                node.namespace.clone()
            } else {
                String::new()
            },
            name: reference.name.clone(),
            uid: reference.uid.clone(),
            owners: Vec::new(),
            deleting: false,
            foreground: false,
            orphan: false,
            resource,
        };
        Ok(self
            .live(&owner)
            .await?
            .map_or(Found::Gone, |meta| Found::Here(Box::new(meta))))
    }

    /// An owner in another namespace owns nothing here, and who wrote the reference should know why
    /// the dependent goes.
    fn tell_of_namespace(&self, node: &Node, reference: &OwnerReference) {
        let regarding = ObjectReference {
            api_version: Some(node.resource.api_version()),
            kind: Some(node.resource.kind.clone()),
            name: Some(node.name.clone()),
            namespace: Some(node.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            uid: Some(node.uid.clone()),
            ..ObjectReference::default()
        };
        let namespace = &node.namespace;
        let message = format!(
            "ownerRef [{}/{}, namespace: {namespace}, name: {}, uid: {}] does not exist in namespace {}",
            reference.api_version,
            reference.kind,
            reference.name,
            reference.uid,
            go::quote(namespace),
        );
        self.events
            .record(regarding, "Warning", "OwnerRefInvalidNamespace", message);
    }

    async fn attempt_to_orphan(&self, uid: &str) -> Result<Outcome, ReconcileError> {
        let (node, dependents) = {
            let graph = self.graph();
            let Some(node) = graph.get(uid).cloned() else {
                return Ok(Outcome::Done);
            };
            (node, graph.dependents(uid))
        };
        for dependent in dependents {
            let Some(live) = self.live(&dependent).await? else {
                continue;
            };
            let rest: Vec<OwnerReference> = live
                .owner_references
                .clone()
                .unwrap_or_default()
                .into_iter()
                .filter(|o| o.uid != uid)
                .collect();
            self.keep_owners(&dependent, &live, &rest).await?;
        }
        let Some(live) = self.live(&node).await? else {
            return Ok(Outcome::Done);
        };
        self.drop_finalizer(&node, &live, ORPHAN).await
    }
}

#[derive(Default)]
struct Owners {
    /// There, and staying.
    solid: Vec<OwnerReference>,
    /// Gone.
    dangling: Vec<OwnerReference>,
    /// Being deleted in the foreground, waiting for this dependent.
    waiting: Vec<OwnerReference>,
}

enum Found {
    Here(Box<ObjectMeta>),
    Gone,
    UnknownKind,
}

/// An object deleted for lack of owners keeps the policy that its finalizers ask for.
fn policy_of(meta: &ObjectMeta) -> Propagation {
    let has = |name: &str| meta.finalizers.iter().flatten().any(|f| f == name);
    if has(ORPHAN) {
        Propagation::Orphan
    } else if has(FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    }
}

fn lock(graph: &Mutex<Graph>) -> MutexGuard<'_, Graph> {
    graph.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enqueue(queue: &Queue<Key>, tasks: impl IntoIterator<Item = Task>) {
    for task in tasks {
        queue.add(match task {
            Task::Delete(uid) => Key::new(DELETE, uid),
            Task::Orphan(uid) => Key::new(ORPHAN_DEPENDENTS, uid),
        });
    }
}

#[async_trait]
impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "garbage-collector-controller"
    }

    fn workers(&self) -> usize {
        20
    }

    fn watch(&self, watches: &mut Watches) {
        let queue = watches.queue();
        queue.add(Key::new(RESOURCES, ""));
        // The driver watches once; a second call would find the same queue.
        let _ = self.queue.set(queue);
        watches.mapped(&self.definitions, |change| match change {
            Change::Updated { old, new }
                if old.metadata.generation == new.metadata.generation
                    && established(old) == established(new) =>
            {
                Vec::new()
            }
            _ => vec![Key::new(RESOURCES, "")],
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        if key.namespace == RESOURCES {
            return self.follow().await;
        }
        if !self.is_settled() {
            // Owners may not have arrived yet; asking the server for each would flood it.
            return Ok(Outcome::RequeueAfter(Duration::from_millis(200)));
        }
        if key.namespace == ORPHAN_DEPENDENTS {
            return self.attempt_to_orphan(&key.name).await;
        }
        self.attempt_to_delete(&key.name).await
    }
}

fn established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|c| {
        c.iter()
            .any(|c| c.type_ == "Established" && c.status == "True")
    })
}
