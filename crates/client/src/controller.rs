//! The driver that every controller runs on: it turns changes into keys and keys into calls of
//! [`Controller::reconcile`], with back-off, read-your-writes and panic containment.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use thiserror::Error;

use crate::ledger::Ledger;
use crate::{Change, Client, EventRecorder, Informer, Informers, Meta, Object, Queue};

/// Namespace and name of what is reconciled; the namespace is empty for cluster-scoped objects.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::object_key(&self.namespace, &self.name))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Something is due at a known time (a deadline, a back-off), without an event to tell.
    RequeueAfter(Duration),
}

#[derive(Debug, Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Client(#[from] crate::Error),
    #[error("{0}")]
    Other(String),
}

/// One controller: takes a key, is idempotent, and finds everything it needs in informers.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Declares which changes put which keys into the queue.
    fn watch(&self, watches: &mut Watches);

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError>;

    /// Keys reconciled at the same time.
    fn workers(&self) -> usize {
        2
    }
}

/// What a controller is built from.
#[derive(Clone)]
pub struct ControllerContext {
    pub name: &'static str,
    /// Writes through this client are waited for before the next reconcile.
    pub client: Client,
    pub informers: Informers,
    pub events: EventRecorder,
    ledger: Arc<Ledger>,
}

impl ControllerContext {
    /// `client` carries the controller's own identity; informers are shared by all.
    pub fn new(name: &'static str, client: Client, informers: Informers) -> Self {
        let ledger = Arc::new(Ledger::new(informers.clone()));
        let client = client.with_user_agent(name);
        let events = EventRecorder::new(client.clone(), name, "");
        Self {
            name,
            client: client.with_ledger(ledger.clone()),
            informers,
            events,
            ledger,
        }
    }

    pub fn informer<K: Object>(&self) -> Informer<K> {
        self.informers.informer()
    }
}

/// Collects a controller's watches.
pub struct Watches {
    queue: Queue<Key>,
    synced: Vec<futures::future::BoxFuture<'static, ()>>,
}

impl Watches {
    /// Changes of an object enqueue its own key.
    pub fn primary<K: Meta>(&mut self, informer: &Informer<K>) {
        self.mapped(informer, |change| vec![Key::of(change.object().meta())]);
    }

    /// Changes of an object enqueue its controlling owner of this kind.
    pub fn owned<K: Meta>(&mut self, informer: &Informer<K>, owner_kind: &'static str) {
        self.mapped(informer, move |change| {
            [Some(change.object()), change.old()]
                .into_iter()
                .flatten()
                .filter_map(|object| controller_of(object.meta(), owner_kind))
                .collect()
        });
    }

    /// Changes of an object enqueue what `keys` makes of them.
    pub fn mapped<K: Meta>(
        &mut self,
        informer: &Informer<K>,
        keys: impl Fn(&Change<K>) -> Vec<Key> + Send + Sync + 'static,
    ) {
        let queue = self.queue.clone();
        informer.subscribe(move |change| {
            for key in keys(change) {
                queue.add(key);
            }
        });
        self.needs(informer);
    }

    /// No change of this informer enqueues anything, but nothing runs before it has synced.
    pub fn needs<K: Meta>(&mut self, informer: &Informer<K>) {
        let informer = informer.clone();
        self.synced
            .push(async move { informer.synced().await }.boxed());
    }

    /// The queue itself, for keys that no informer tells.
    pub fn queue(&self) -> Queue<Key> {
        self.queue.clone()
    }
}

fn controller_of(meta: &ObjectMeta, kind: &str) -> Option<Key> {
    let owner = meta
        .owner_references
        .as_ref()?
        .iter()
        .find(|owner| owner.controller == Some(true))?;
    (owner.kind == kind).then(|| {
        Key::new(
            meta.namespace.clone().unwrap_or_default(),
            owner.name.clone(),
        )
    })
}

/// Runs a controller until the informers are shut down.
pub async fn run(controller: Arc<dyn Controller>, context: ControllerContext) {
    let mut watches = Watches {
        queue: Queue::default(),
        synced: Vec::new(),
    };
    controller.watch(&mut watches);
    let shutdown = context.informers.shutdown().clone();
    let queue = watches.queue.clone();
    let workers = controller.workers().max(1);
    let work = async {
        futures::future::join_all(watches.synced).await;
        futures::future::join_all((0..workers).map(|_| work(&controller, &context, &queue))).await;
    };
    shutdown.run_until_cancelled(work).await;
}

async fn work(controller: &Arc<dyn Controller>, context: &ControllerContext, queue: &Queue<Key>) {
    loop {
        let key = queue.get().await;
        context.ledger.settle().await;
        let outcome = AssertUnwindSafe(controller.reconcile(&key))
            .catch_unwind()
            .await;
        match outcome {
            Ok(Ok(outcome)) => {
                queue.forget(&key);
                if let Outcome::RequeueAfter(delay) = outcome {
                    queue.add_after(key.clone(), delay);
                }
            }
            Ok(Err(error)) => {
                let delay = queue.add_rate_limited(key.clone());
                // A conflict only means that the cache was older than the server.
                if matches!(&error, ReconcileError::Client(error) if error.is_conflict()) {
                    tracing::debug!(controller = controller.name(), %key, %error, "again after {delay:?}");
                } else {
                    tracing::warn!(controller = controller.name(), %key, %error, "failed, again after {delay:?}");
                }
            }
            Err(_) => {
                let delay = queue.add_rate_limited(key.clone());
                tracing::error!(controller = controller.name(), %key, "panicked, again after {delay:?}");
            }
        }
        queue.done(&key);
    }
}
