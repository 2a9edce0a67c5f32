//! Events sent to a service, many at once. The queue is bounded: a service that is down or slow
//! loses events, not this server its memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{AuditOptions, Sink};
use crate::remote::Remote;

const QUEUED: usize = 10_000;
const MAX_SIZE: usize = 400;
const MAX_WAIT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 4;
const FIRST_BACKOFF: Duration = Duration::from_secs(1);

pub(super) struct Batches {
    queue: mpsc::Sender<Value>,
    lost: AtomicU64,
}

impl Batches {
    pub(super) fn start(remote: Remote, options: &AuditOptions) -> Self {
        let (queue, events) = mpsc::channel(QUEUED);
        let size = options.webhook_batch_max_size.unwrap_or(MAX_SIZE).max(1);
        let wait = options.webhook_batch_max_wait.unwrap_or(MAX_WAIT);
        tokio::spawn(run(remote, events, size, wait));
        Self {
            queue,
            lost: AtomicU64::new(0),
        }
    }
}

impl Sink for Batches {
    fn write(&self, event: &Value) {
        if self.queue.try_send(event.clone()).is_err() {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            // The first of a thousand, so that an outage does not fill the log either.
            if lost % 1000 == 1 {
                tracing::error!(lost, "the audit webhook's queue is full, events are lost");
            }
        }
    }
}

/// Ends when the sink is dropped and everything is sent.
async fn run(remote: Remote, mut events: mpsc::Receiver<Value>, size: usize, wait: Duration) {
    while let Some(first) = events.recv().await {
        let mut batch = vec![first];
        let deadline = tokio::time::Instant::now() + wait;
        while batch.len() < size {
            match tokio::time::timeout_at(deadline, events.recv()).await {
                Ok(Some(event)) => batch.push(event),
                Ok(None) | Err(_) => break,
            }
        }
        send(&remote, batch).await;
    }
}

async fn send(remote: &Remote, batch: Vec<Value>) {
    let count = batch.len();
    let list = json!({
        "kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": batch,
    });
    let mut backoff = FIRST_BACKOFF;
    for attempt in 1..=ATTEMPTS {
        match remote.post(&list, TIMEOUT).await {
            Ok(_) => return,
            Err(error) if attempt == ATTEMPTS => {
                tracing::error!(%error, count, "audit events could not be sent and are lost");
            }
            Err(_) => {
                tokio::time::sleep(backoff).await;
                backoff *= 2;
            }
        }
    }
}
