//! When something last happened on a connection, so that one on which nothing happens can end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long kubelets and API servers keep a connection on which nothing moves.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);

/// Shared by everybody who reads from or writes to one connection.
#[derive(Debug, Clone)]
pub struct Activity {
    start: Instant,
    /// In milliseconds since the start.
    last_ms: Arc<AtomicU64>,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last_ms: Arc::default(),
        }
    }
}

impl Activity {
    /// Something was read or written.
    pub fn note(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Resolves when nothing has been noted for that long.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let deadline = self.start + last + limit;
            if Instant::now() >= deadline {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_happens_puts_the_end_off() {
        let activity = Activity::default();
        let limit = Duration::from_secs(60);
        let begin = Instant::now();
        let noting = activity.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(50)).await;
            noting.note();
        });
        activity.idle(limit).await;
        assert_eq!(begin.elapsed().as_secs(), 110);
    }
}
