//! Recording Events: what a component wants a user to know about an object. Repeats are counted
//! on the first event instead of filling the store; recording never blocks the caller.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc;

use crate::{Client, Object, Patch, Result};

/// Events waiting to be sent; beyond it they are dropped, as upstream drops them.
const QUEUE: usize = 1000;
/// Distinct events whose repeats are counted.
const REMEMBERED: usize = 4096;
/// The longest message the API accepts, in bytes.
const MAX_MESSAGE: usize = 1024;

/// Cheap to clone; clones share the queue.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Occurrence>,
    component: Arc<str>,
    host: Arc<str>,
}

struct Occurrence {
    regarding: ObjectReference,
    kind: &'static str,
    reason: String,
    message: String,
    source: EventSource,
}

impl EventRecorder {
    /// Must be called within a tokio runtime. `host` is the node's name, or empty.
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let (queue, occurrences) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(client, occurrences));
        Self {
            queue,
            component: component.into(),
            host: host.into(),
        }
    }

    pub fn normal<K: Object>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.record(reference(object), "Normal", reason, message);
    }

    pub fn warning<K: Object>(&self, object: &K, reason: &str, message: impl Into<String>) {
        self.record(reference(object), "Warning", reason, message);
    }

    /// `kind` is `Normal` or `Warning`.
    pub fn record(
        &self,
        regarding: ObjectReference,
        kind: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE)
                .rev()
                .find(|end| message.is_char_boundary(*end))
                .unwrap_or(0);
            message.truncate(end);
        }
        let source = EventSource {
            component: Some(self.component.to_string()),
            host: Some(self.host.to_string()).filter(|host| !host.is_empty()),
        };
        let occurrence = Occurrence {
            regarding,
            kind,
            reason: reason.to_owned(),
            message,
            source,
        };
        if self.queue.try_send(occurrence).is_err() {
            tracing::debug!(reason, "the event queue is full; an event was dropped");
        }
    }
}

/// A reference to a typed object, as events and owner lookups use it.
fn reference<K: Object>(object: &K) -> ObjectReference {
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

#[derive(Default)]
struct Memory {
    sent: HashMap<String, (String, String, i32)>,
    order: VecDeque<String>,
}

async fn send_all(client: Client, mut occurrences: mpsc::Receiver<Occurrence>) {
    let mut memory = Memory::default();
    while let Some(occurrence) = occurrences.recv().await {
        let reason = occurrence.reason.clone();
        if let Err(error) = send(&client, &mut memory, occurrence).await {
            tracing::debug!(reason, %error, "an event was not recorded");
        }
    }
}

async fn send(client: &Client, memory: &mut Memory, occurrence: Occurrence) -> Result<()> {
    let Occurrence {
        regarding,
        kind,
        reason,
        message,
        source,
    } = occurrence;
    let identity = format!(
        "{}/{}/{}/{}/{kind}/{reason}/{message}",
        regarding.namespace.as_deref().unwrap_or_default(),
        regarding.uid.as_deref().unwrap_or_default(),
        regarding.name.as_deref().unwrap_or_default(),
        regarding.field_path.as_deref().unwrap_or_default(),
    );
    let now = Timestamp::now();
    if let Some((namespace, name, count)) = memory.sent.get_mut(&identity) {
        *count += 1;
        let patch = Patch::Merge(json!({"count": *count, "lastTimestamp": Time(now)}));
        match client.patch::<Event>(namespace, name, &patch, None).await {
            // The event expired: it starts anew below.
            Err(error) if error.is_not_found() => {}
            other => return other.map(drop),
        }
    }
    let namespace = regarding
        .namespace
        .clone()
        .filter(|ns| !ns.is_empty())
        .unwrap_or_else(|| "default".to_owned());
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}.{nanos:x}",
                regarding.name.as_deref().unwrap_or_default()
            )),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        involved_object: regarding,
        reason: Some(reason),
        message: Some(message),
        type_: Some(kind.to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(source),
        ..Event::default()
    };
    let created = client.create(&event).await?;
    memory.order.push_back(identity.clone());
    memory.sent.insert(
        identity,
        (namespace, created.metadata.name.unwrap_or_default(), 1),
    );
    if memory.order.len() > REMEMBERED
        && let Some(oldest) = memory.order.pop_front()
    {
        memory.sent.remove(&oldest);
    }
    Ok(())
}
