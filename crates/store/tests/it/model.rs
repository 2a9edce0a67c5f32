//! Random operations against a map that keeps every version.

use std::collections::BTreeMap;

use keelson_store::{Error, Expect, SharedStore, embedded};
use keelson_testkit_etcd::EtcdServer;

use crate::{Directory, value};

const KEYS: u64 = 12;

/// Reproducible randomness; the seed is in every failure's message.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Key → (value, create revision, revision).
type State = BTreeMap<String, (String, u64, u64)>;

#[derive(Default)]
struct Model {
    revision: u64,
    now: State,
    history: BTreeMap<u64, State>,
}

impl Model {
    fn holds(&self, key: &str, expect: Expect) -> bool {
        match expect {
            Expect::Any => true,
            Expect::Absent => !self.now.contains_key(key),
            Expect::Revision(revision) => self.now.get(key).is_some_and(|(_, _, r)| *r == revision),
        }
    }
}

async fn step(store: &SharedStore, model: &mut Model, random: &mut Random) {
    let key = format!("/k{:02}", random.next(KEYS));
    let expect = match random.next(4) {
        0 => Expect::Absent,
        1 => Expect::Revision(model.now.get(&key).map_or(7, |(_, _, r)| *r)),
        2 => Expect::Revision(random.next(model.revision + 2)),
        _ => Expect::Any,
    };
    if random.next(3) == 0 {
        let result = store.delete(&key, expect).await;
        if model.holds(&key, expect) && model.now.contains_key(&key) {
            let (revision, previous) = result.unwrap();
            model.revision += 1;
            assert_eq!(revision, model.revision);
            assert_eq!(previous.value, model.now.remove(&key).unwrap().0);
        } else {
            assert!(matches!(result, Err(Error::Conflict(_))));
            return;
        }
    } else {
        let text = random.next(1000).to_string();
        let result = store.put(&key, value(&text), expect).await;
        if model.holds(&key, expect) {
            model.revision += 1;
            let revision = model.revision;
            let created = model
                .now
                .get(&key)
                .map_or(revision, |(_, created, _)| *created);
            model.now.insert(key, (text, created, revision));
            let kv = result.unwrap();
            assert_eq!((kv.create_revision, kv.mod_revision), (created, revision));
        } else {
            assert!(matches!(result, Err(Error::Conflict(_))));
            return;
        }
    }
    model.history.insert(model.revision, model.now.clone());
}

async fn compare(store: &SharedStore, model: &Model, random: &mut Random) {
    let (low, high) = (random.next(KEYS), random.next(KEYS + 1));
    let (start, end) = (format!("/k{low:02}"), format!("/k{high:02}"));
    let limit = random.next(5) as usize;
    let oldest = *model.history.keys().next().unwrap_or(&model.revision);
    let revision = match random.next(2) {
        0 => 0,
        _ => oldest + random.next(model.revision - oldest + 1),
    };
    let state = if revision == 0 {
        &model.now
    } else {
        &model.history[&revision]
    };
    let expected: Vec<_> = if start < end {
        state.range(start.clone()..end.clone()).collect()
    } else {
        Vec::new()
    };
    let range = store.range(&start, &end, limit, revision).await.unwrap();
    assert_eq!(range.count, expected.len());
    let taken = if limit == 0 {
        expected.len()
    } else {
        limit.min(expected.len())
    };
    assert_eq!(range.items.len(), taken);
    for (kv, (key, (text, created, modified))) in range.items.iter().zip(expected) {
        assert_eq!((&*kv.key, &kv.value[..]), (key.as_str(), text.as_bytes()));
        assert_eq!((kv.create_revision, kv.mod_revision), (*created, *modified));
        let one = store.get(key, revision).await.unwrap().unwrap();
        assert_eq!((one.value, one.mod_revision), (kv.value.clone(), *modified));
    }
    let absent = format!("/k{:02}", random.next(KEYS));
    let found = store.get(&absent, revision).await.unwrap();
    assert_eq!(found.is_some(), state.contains_key(&absent));
}

async fn run(store: SharedStore, seed: u64, steps: usize) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut model = Model {
        revision: store.current_revision().await.unwrap(),
        ..Model::default()
    };
    model.history.insert(model.revision, State::new());
    for _ in 0..steps {
        step(&store, &mut model, &mut random).await;
        compare(&store, &model, &mut random).await;
        if random.next(50) == 0 {
            let at = model.revision
                - random.next(model.revision - model.history.keys().next().unwrap() + 1);
            store.compact(at).await.unwrap();
            model.history = model.history.split_off(&at);
            assert!(matches!(
                store.compact(model.revision + 1).await,
                Err(Error::FutureRevision { .. })
            ));
            if at > 1 {
                let gone = store.get("/k00", at - 1).await;
                assert!(matches!(gone, Err(Error::Compacted { .. })), "seed {seed}");
            }
        }
    }
    assert_eq!(store.stats().await.unwrap().keys as usize, model.now.len());
}

#[tokio::test]
async fn the_store_behaves_like_a_map_with_versions() {
    for seed in [1, 0xdead_beef, 0x9e37_79b9_7f4a_7c15] {
        run(embedded::memory(), seed, 1500).await;
    }
}

#[tokio::test]
async fn so_does_etcd() {
    if let Some(server) = EtcdServer::start() {
        run(crate::connect(&server).await, 0x5eed, 300).await;
    }
}

#[tokio::test]
async fn so_does_it_across_restarts() {
    let dir = Directory::new("model");
    let mut random = Random(42);
    let mut model = Model {
        revision: 1,
        ..Model::default()
    };
    for _ in 0..6 {
        let store = dir.open();
        assert_eq!(store.current_revision().await.unwrap(), model.revision);
        model.history.clear();
        model.history.insert(model.revision, model.now.clone());
        for _ in 0..40 {
            step(&store, &mut model, &mut random).await;
            compare(&store, &model, &mut random).await;
        }
    }
}
