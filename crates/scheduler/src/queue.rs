//! Pods that wait for a node: ready ones by priority and age, rejected ones until something
//! changes that could help them, and then not before their back-off ends.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// A rejected pod is tried again after this long even if nothing that was noticed could help it.
const LAST_RESORT: Duration = Duration::from_secs(300);

#[derive(Default)]
pub(crate) struct Queue {
    pods: HashMap<String, Waiting>,
    /// Negated priority, age, uid: the first is the next.
    ready: BTreeSet<(i32, u64, String)>,
    /// When a rejected pod becomes ready.
    due: BTreeSet<(Instant, String)>,
    sequence: u64,
}

struct Waiting {
    pod: Arc<Pod>,
    order: (i32, u64),
    attempts: u32,
    place: Place,
}

enum Place {
    Ready,
    /// Taken for a cycle or a binding; `changed` says that something happened meanwhile.
    Taken {
        changed: bool,
    },
    Rejected {
        backoff_ends: Instant,
        due: Instant,
    },
}

impl Queue {
    /// A pod without a node appeared or changed.
    pub(crate) fn set(&mut self, pod: Arc<Pod>) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        if let Some(waiting) = self.pods.get_mut(&uid) {
            let spec_changed =
                waiting.pod.spec != pod.spec || waiting.pod.metadata.labels != pod.metadata.labels;
            waiting.pod = pod;
            if spec_changed {
                self.wake(&uid, Instant::now());
            }
            return;
        }
        self.sequence += 1;
        let priority = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.priority)
            .unwrap_or(0);
        let order = (priority.saturating_neg(), self.sequence);
        self.ready.insert((order.0, order.1, uid.clone()));
        self.pods.insert(
            uid,
            Waiting {
                pod,
                order,
                attempts: 0,
                place: Place::Ready,
            },
        );
    }

    /// The pod is bound, finished or gone.
    pub(crate) fn remove(&mut self, uid: &str) {
        let Some(waiting) = self.pods.remove(uid) else {
            return;
        };
        match waiting.place {
            Place::Ready => {
                self.ready
                    .remove(&(waiting.order.0, waiting.order.1, uid.to_owned()));
            }
            Place::Rejected { due, .. } => {
                self.due.remove(&(due, uid.to_owned()));
            }
            Place::Taken { .. } => {}
        }
    }

    /// The most urgent ready pod, or when the next one becomes ready.
    pub(crate) fn take(&mut self, now: Instant) -> Result<Arc<Pod>, Option<Instant>> {
        while let Some((due, uid)) = self.due.first().cloned() {
            if due > now {
                break;
            }
            self.due.remove(&(due, uid.clone()));
            self.make_ready(&uid);
        }
        let Some((_, _, uid)) = self.ready.pop_first() else {
            return Err(self.due.first().map(|(due, _)| *due));
        };
        let Some(waiting) = self.pods.get_mut(&uid) else {
            return Err(Some(now));
        };
        waiting.place = Place::Taken { changed: false };
        waiting.attempts = waiting.attempts.saturating_add(1);
        Ok(waiting.pod.clone())
    }

    /// The pod that was taken fits nowhere, or its binding failed.
    pub(crate) fn reject(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        let doublings = waiting.attempts.saturating_sub(1).min(10);
        let backoff = FIRST_BACKOFF
            .saturating_mul(1 << doublings)
            .min(LAST_BACKOFF);
        let changed = matches!(waiting.place, Place::Taken { changed: true });
        let backoff_ends = now + backoff;
        let due = if changed {
            backoff_ends
        } else {
            now + LAST_RESORT
        };
        waiting.place = Place::Rejected { backoff_ends, due };
        self.due.insert((due, uid.to_owned()));
    }

    /// Something changed that may help rejected pods: they are ready when their back-off ends.
    pub(crate) fn wake_all(&mut self, now: Instant) {
        let uids: Vec<String> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.wake(&uid, now);
        }
    }

    fn wake(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        match &mut waiting.place {
            Place::Ready => {}
            Place::Taken { changed } => *changed = true,
            Place::Rejected { backoff_ends, due } => {
                self.due.remove(&(*due, uid.to_owned()));
                *due = (*backoff_ends).max(now);
                self.due.insert((*due, uid.to_owned()));
            }
        }
    }

    fn make_ready(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.place = Place::Ready;
            self.ready
                .insert((waiting.order.0, waiting.order.1, uid.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn pod(uid: &str, priority: i32) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta {
                uid: Some(uid.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                priority: Some(priority),
                ..PodSpec::default()
            }),
            status: None,
        })
    }

    fn take(queue: &mut Queue, now: Instant) -> Option<String> {
        queue
            .take(now)
            .ok()
            .and_then(|pod| pod.metadata.uid.clone())
    }

    #[test]
    fn important_pods_come_first_then_old_ones() {
        let mut queue = Queue::default();
        for (uid, priority) in [("a", 0), ("b", 10), ("c", 0)] {
            queue.set(pod(uid, priority));
        }
        let now = Instant::now();
        let order: Vec<_> = (0..4).map(|_| take(&mut queue, now)).collect();
        assert_eq!(
            order,
            [
                Some("b".to_owned()),
                Some("a".to_owned()),
                Some("c".to_owned()),
                None
            ]
        );
    }

    #[test]
    fn a_rejected_pod_waits_for_a_change_and_its_backoff() {
        let mut queue = Queue::default();
        queue.set(pod("a", 0));
        let now = Instant::now();
        assert!(take(&mut queue, now).is_some());
        queue.reject("a", now);
        assert_eq!(
            queue.take(now + Duration::from_secs(2)).err(),
            Some(Some(now + LAST_RESORT))
        );
        queue.wake_all(now);
        assert!(take(&mut queue, now).is_none());
        assert!(take(&mut queue, now + FIRST_BACKOFF).is_some());
    }

    #[test]
    fn a_change_during_the_cycle_is_not_lost() {
        let mut queue = Queue::default();
        queue.set(pod("a", 0));
        let now = Instant::now();
        assert!(take(&mut queue, now).is_some());
        queue.wake_all(now);
        queue.reject("a", now);
        assert!(take(&mut queue, now + FIRST_BACKOFF).is_some());
        queue.remove("a");
        assert_eq!(queue.take(now + LAST_RESORT).err(), Some(None));
    }
}
