//! The work queue: a key stands in it once, is worked on by one worker at a time, and comes back
//! after a delay that doubles with every failure.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// Cheap to clone; clones are the same queue.
pub struct Queue<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or to be put there when its worker is done.
    dirty: HashSet<T>,
    working: HashSet<T>,
    delayed: BTreeSet<(Instant, T)>,
    failures: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash + Ord> Default for Queue<T> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            delayed: BTreeSet::new(),
            failures: HashMap::new(),
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
                changed: Notify::new(),
            }),
        }
    }
}

impl<T: Clone + Eq + Hash + Ord> Queue<T> {
    pub fn add(&self, key: T) {
        if self.lock().add(key) {
            self.inner.changed.notify_one();
        }
    }

    /// Adds the key when `delay` has passed. An earlier addition does not cancel it.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.lock().delayed.insert((Instant::now() + delay, key));
        self.inner.changed.notify_one();
    }

    /// Adds the key after a delay that doubles with each call until [`Queue::forget`].
    pub fn add_rate_limited(&self, key: T) -> Duration {
        let delay = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let delay = FIRST_RETRY
                .saturating_mul(1_u32.checked_shl(*failures).unwrap_or(u32::MAX))
                .min(LAST_RETRY);
            *failures = failures.saturating_add(1).min(31);
            delay
        };
        self.add_after(key, delay);
        delay
    }

    /// The key succeeded: its next failure is retried soon again.
    pub fn forget(&self, key: &T) {
        self.lock().failures.remove(key);
    }

    /// Waits for a key; give it back with [`Queue::done`].
    pub async fn get(&self) -> T {
        loop {
            let changed = self.inner.changed.notified();
            let next = {
                let mut state = self.lock();
                state.release(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.inner.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            match next {
                Some(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    pub fn done(&self, key: &T) {
        let again = {
            let mut state = self.lock();
            state.working.remove(key);
            let again = state.dirty.contains(key);
            if again {
                state.ready.push_back(key.clone());
            }
            again
        };
        if again {
            self.inner.changed.notify_one();
        }
    }

    /// Keys that wait to be worked on, delayed ones not counted.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    fn add(&mut self, key: T) -> bool {
        if !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn release(&mut self, now: Instant) {
        while self.delayed.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.delayed.pop_first() {
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_stands_once_and_is_worked_on_by_one() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.get().await, "a");
        queue.add("a");
        assert!(
            tokio::time::timeout(Duration::from_secs(1), queue.get())
                .await
                .is_err()
        );
        queue.done(&"a");
        assert_eq!(queue.get().await, "a");
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_double_the_delay_until_forgotten() {
        let queue = Queue::default();
        let delays: Vec<_> = (0..3)
            .map(|_| queue.add_rate_limited("a").as_millis())
            .collect();
        assert_eq!(delays, [5, 10, 20]);
        queue.forget(&"a");
        assert_eq!(queue.add_rate_limited("a").as_millis(), 5);
        for _ in 0..64 {
            assert!(queue.add_rate_limited("a") <= LAST_RETRY);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_keys_come_in_order() {
        let queue = Queue::default();
        queue.add_after("late", Duration::from_secs(2));
        queue.add_after("soon", Duration::from_secs(1));
        let start = Instant::now();
        assert_eq!(queue.get().await, "soon");
        assert_eq!(queue.get().await, "late");
        assert_eq!(start.elapsed().as_secs(), 2);
    }
}
