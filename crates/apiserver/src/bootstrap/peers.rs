//! The servers that share a store, as each of them sees it: every server renews an entry of its
//! own, and one that is not renewed in time is taken out, whoever notices first.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use keelson_store::{Error, Expect, Revision, SharedStore, Value};

/// Upstream's intervals: an entry lives for fifteen seconds and is renewed every ten.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);
const STALE: Duration = Duration::from_secs(15);

const START: &str = "/servers/";
const END: &str = "/servers0";

pub(crate) struct Peers {
    store: SharedStore,
    /// When each entry was seen to change, by the clock of this server.
    seen: HashMap<SocketAddr, (Revision, Instant)>,
}

impl Peers {
    pub(crate) fn new(store: SharedStore) -> Self {
        Self {
            store,
            seen: HashMap::new(),
        }
    }

    /// Renews the entry of this server.
    pub(crate) async fn announce(&self, own: SocketAddr) -> Result<(), Error> {
        let value = Value {
            bytes: own.to_string().into(),
            stamp_at: None,
        };
        self.store
            .put(&key(own), value, Expect::Any)
            .await
            .map(drop)
    }

    pub(crate) async fn retire(&self, own: SocketAddr) -> Result<(), Error> {
        match self.store.delete(&key(own), Expect::Any).await {
            Ok(_) | Err(Error::Conflict(None)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The servers that live, in order; entries of others are removed.
    pub(crate) async fn live(&mut self, now: Instant) -> Result<Vec<SocketAddr>, Error> {
        let entries = self.store.range(START, END, 0, 0).await?;
        let mut live = Vec::new();
        for kv in &entries.items {
            let Some(address) = kv.key.strip_prefix(START).and_then(|a| a.parse().ok()) else {
                continue;
            };
            let seen = self.seen.entry(address).or_insert((kv.mod_revision, now));
            if seen.0 != kv.mod_revision {
                *seen = (kv.mod_revision, now);
            }
            if now.duration_since(seen.1) < STALE {
                live.push(address);
                continue;
            }
            tracing::warn!(%address, "a server of this cluster is gone");
            // It may have come back in this moment, and is then seen in the next round.
            let _ = self
                .store
                .delete(&kv.key, Expect::Revision(kv.mod_revision))
                .await;
        }
        self.seen.retain(|address, _| live.contains(address));
        live.sort_unstable();
        Ok(live)
    }
}

fn key(address: SocketAddr) -> String {
    format!("{START}{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_is_not_renewed_is_taken_out() {
        let store = keelson_store::embedded::memory();
        let mut peers = Peers::new(store.clone());
        let (one, two) = (
            "192.0.2.1:6443".parse().unwrap(),
            "192.0.2.2:6443".parse().unwrap(),
        );
        let start = Instant::now();
        peers.announce(one).await.unwrap();
        peers.announce(two).await.unwrap();
        assert_eq!(peers.live(start).await.unwrap(), [one, two]);
        peers.announce(one).await.unwrap();
        let later = start + INTERVAL;
        assert_eq!(peers.live(later).await.unwrap(), [one, two]);
        peers.announce(one).await.unwrap();
        assert_eq!(peers.live(later + INTERVAL).await.unwrap(), [one]);
        peers.announce(two).await.unwrap();
        assert_eq!(
            peers.live(later + INTERVAL).await.unwrap(),
            [one, two],
            "it came back"
        );
        peers.retire(two).await.unwrap();
        peers.retire(two).await.unwrap();
        assert_eq!(peers.live(later + INTERVAL).await.unwrap(), [one]);
    }
}
