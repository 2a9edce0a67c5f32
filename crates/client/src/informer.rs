//! Shared informers: one watch per kind and process, decoded once per object and revision, handed
//! out as `Arc<K>`.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::reflector::Reflector;
use crate::{Client, Meta, Object, PartialObjectMetadata, ResourceType, object_key};

/// What an informer saw.
#[derive(Debug, Clone)]
pub enum Change<K> {
    Added(Arc<K>),
    Updated { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The newest form; for a deletion the last one.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Added(object) | Change::Deleted(object) => object,
            Change::Updated { new, .. } => new,
        }
    }

    /// The form before the change, if there was one.
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Change::Added(_) => None,
            Change::Updated { old, .. } | Change::Deleted(old) => Some(old),
        }
    }
}

/// Narrows what an informer watches; informers with equal options are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct InformerOptions {
    pub namespace: String,
    pub label_selector: String,
    pub field_selector: String,
}

/// Starts each informer at its first use and keeps it until shutdown.
#[derive(Clone)]
pub struct Informers {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    shutdown: CancellationToken,
    running: Mutex<HashMap<(ResourceType, InformerOptions, bool), Running>>,
}

struct Running {
    typed: Arc<dyn Any + Send + Sync>,
    erased: Arc<dyn AnyInformer>,
    stop: CancellationToken,
}

impl Informers {
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        Self {
            inner: Arc::new(Inner {
                client,
                shutdown,
                running: Mutex::default(),
            }),
        }
    }

    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    pub fn shutdown(&self) -> &CancellationToken {
        &self.inner.shutdown
    }

    pub fn informer<K: Object>(&self) -> Informer<K> {
        self.informer_with(InformerOptions::default())
    }

    pub fn informer_with<K: Object>(&self, options: InformerOptions) -> Informer<K> {
        self.start(ResourceType::of::<K>(), options, false)
    }

    /// The metadata of every object of a resource, whatever its kind.
    pub fn metadata(&self, resource: &ResourceType) -> Informer<PartialObjectMetadata> {
        self.start(resource.clone(), InformerOptions::default(), true)
    }

    /// Ends a metadata informer, when its resource is no longer served.
    pub fn stop_metadata(&self, resource: &ResourceType) {
        let running = self
            .lock()
            .remove(&(resource.clone(), InformerOptions::default(), true));
        if let Some(running) = running {
            running.stop.cancel();
        }
    }

    /// The informer that sees every object of a resource, if one runs.
    pub(crate) fn unfiltered(&self, resource: &ResourceType) -> Option<Arc<dyn AnyInformer>> {
        let running = self.lock();
        [false, true]
            .into_iter()
            .find_map(|metadata| {
                running.get(&(resource.clone(), InformerOptions::default(), metadata))
            })
            .map(|running| running.erased.clone())
    }

    fn lock(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<(ResourceType, InformerOptions, bool), Running>> {
        self.inner
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn start<K: Meta>(
        &self,
        resource: ResourceType,
        options: InformerOptions,
        metadata: bool,
    ) -> Informer<K> {
        let mut running = self.lock();
        if let Some(running) = running.get(&(resource.clone(), options.clone(), metadata))
            && let Ok(shared) = running.typed.clone().downcast::<Shared<K>>()
        {
            return Informer { shared };
        }
        let shared = Arc::new(Shared::<K>::new());
        let stop = self.inner.shutdown.child_token();
        let reflector = Reflector {
            client: self.inner.client.clone(),
            resource: resource.clone(),
            options: options.clone(),
            metadata,
            shared: shared.clone(),
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(reflector.run()));
        let entry = Running {
            typed: shared.clone(),
            erased: shared.clone(),
            stop,
        };
        running.insert((resource, options, metadata), entry);
        Informer { shared }
    }
}

/// A live, read-only copy of a collection. Cheap to clone.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<K: Meta> Informer<K> {
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared
            .read()
            .objects
            .get(&object_key(namespace, name))
            .cloned()
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.read().objects.values().cloned().collect()
    }

    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        if namespace.is_empty() {
            return self.list();
        }
        let prefix = format!("{namespace}/");
        let state = self.shared.read();
        state
            .objects
            .range(prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&prefix))
            .map(|(_, object)| object.clone())
            .collect()
    }

    pub fn len(&self) -> usize {
        self.shared.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps an index from now on; adding the same name again is a no-op.
    pub fn add_index(&self, name: &'static str, keys: fn(&K) -> Vec<String>) {
        let mut state = self
            .shared
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if state.indexes.iter().any(|index| index.name == name) {
            return;
        }
        let mut index = Index {
            name,
            keys,
            entries: HashMap::new(),
        };
        for (key, object) in &state.objects {
            index.insert(key, object);
        }
        state.indexes.push(index);
    }

    /// Objects that the index files under `key`; empty for an index that was never added.
    pub fn by_index(&self, name: &str, key: &str) -> Vec<Arc<K>> {
        let state = self.shared.read();
        let Some(index) = state.indexes.iter().find(|index| index.name == name) else {
            return Vec::new();
        };
        index
            .entries
            .get(key)
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Calls `handler` with an addition for everything that is there, then with every change, in
    /// order. Handlers must be quick and must not call back into `subscribe`.
    pub fn subscribe(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self
            .shared
            .handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for object in self.list() {
            handler(&Change::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// Returns when the first list has arrived.
    pub async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        // The sender lives as long as `self`.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// The newest revision this informer has seen; 0 before the first list.
    pub fn last_resource_version(&self) -> u64 {
        *self.shared.progress.borrow()
    }
}

/// What the ledger needs of an informer, whatever its type.
pub(crate) trait AnyInformer: Send + Sync {
    fn progress(&self) -> watch::Receiver<u64>;
    fn gone_or_terminating(&self, key: &str, uid: Option<&str>) -> bool;
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

pub(crate) struct Shared<K> {
    state: RwLock<State<K>>,
    /// Held while a change is applied and told, so that a new subscriber misses and repeats none.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
    progress: watch::Sender<u64>,
}

struct State<K> {
    objects: BTreeMap<String, Arc<K>>,
    indexes: Vec<Index<K>>,
}

struct Index<K> {
    name: &'static str,
    keys: fn(&K) -> Vec<String>,
    entries: HashMap<String, BTreeMap<String, Arc<K>>>,
}

impl<K> Index<K> {
    fn insert(&mut self, key: &str, object: &Arc<K>) {
        for entry in (self.keys)(object) {
            self.entries
                .entry(entry)
                .or_default()
                .insert(key.to_owned(), object.clone());
        }
    }

    fn remove(&mut self, key: &str, object: &K) {
        for entry in (self.keys)(object) {
            if let Some(objects) = self.entries.get_mut(&entry) {
                objects.remove(key);
                if objects.is_empty() {
                    self.entries.remove(&entry);
                }
            }
        }
    }
}

pub(crate) fn key_of(meta: &ObjectMeta) -> String {
    object_key(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

impl<K: Meta> Shared<K> {
    fn new() -> Self {
        Self {
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                indexes: Vec::new(),
            }),
            handlers: Mutex::default(),
            synced: watch::Sender::new(false),
            progress: watch::Sender::new(0),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces everything by the result of a list, telling only what differs.
    pub(crate) fn replace(&self, objects: Vec<K>, resource_version: u64) {
        let mut gone: Vec<String> = self.read().objects.keys().cloned().collect();
        for object in objects {
            let key = key_of(object.meta());
            if let Ok(index) = gone.binary_search(&key) {
                gone.remove(index);
            }
            self.upsert(object);
        }
        for key in gone {
            self.remove(&key);
        }
        self.advance(resource_version);
        self.synced.send_replace(true);
    }

    pub(crate) fn upsert(&self, object: K) {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let key = key_of(object.meta());
        let object = Arc::new(object);
        let old = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let state = &mut *state;
            let old = state.objects.insert(key.clone(), object.clone());
            for index in &mut state.indexes {
                if let Some(old) = &old {
                    index.remove(&key, old);
                }
                index.insert(&key, &object);
            }
            old
        };
        let same = old
            .as_ref()
            .is_some_and(|old| old.meta().resource_version == object.meta().resource_version);
        if same {
            return;
        }
        let change = match old {
            None => Change::Added(object),
            // A new uid under an old name: the deletion in between was missed.
            Some(old) if old.meta().uid != object.meta().uid => {
                tell(&handlers, &Change::Deleted(old));
                Change::Added(object)
            }
            Some(old) => Change::Updated { old, new: object },
        };
        tell(&handlers, &change);
    }

    pub(crate) fn remove(&self, key: &str) {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let old = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let state = &mut *state;
            let old = state.objects.remove(key);
            if let Some(old) = &old {
                for index in &mut state.indexes {
                    index.remove(key, old);
                }
            }
            old
        };
        if let Some(old) = old {
            tell(&handlers, &Change::Deleted(old));
        }
    }

    /// Everything up to this revision has been applied.
    pub(crate) fn advance(&self, resource_version: u64) {
        self.progress
            .send_modify(|progress| *progress = (*progress).max(resource_version));
    }

    pub(crate) fn resource_version(&self) -> u64 {
        *self.progress.borrow()
    }
}

fn tell<K>(handlers: &[Handler<K>], change: &Change<K>) {
    for handler in handlers {
        handler(change);
    }
}

impl<K: Meta> AnyInformer for Shared<K> {
    fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    fn gone_or_terminating(&self, key: &str, uid: Option<&str>) -> bool {
        let state = self.read();
        state.objects.get(key).is_none_or(|object| {
            let meta = object.meta();
            meta.deletion_timestamp.is_some()
                || uid.is_some_and(|uid| meta.uid.as_deref() != Some(uid))
        })
    }
}
