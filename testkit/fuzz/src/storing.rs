//! A store run by a program of bytes, beside a map that keeps every version.

use std::collections::BTreeMap;

use bytes::Bytes;
use keelson_store::embedded::{self, Retention};
use keelson_store::{Error, Expect, SharedStore, Value};

pub(crate) const PROGRAMS: &[&[u8]] = &[
    &[0, 1, 0, 2, 8, 1, 16, 1, 3, 0, 24, 2, 0, 1, 9, 9],
    &[1, 0, 1, 1, 1, 2, 17, 0, 25, 0, 2, 1, 4, 4, 11, 7, 5, 0],
];
/// Steps of one program; more bytes say nothing new.
const STEPS: usize = 200;

type State = BTreeMap<String, (u8, u64)>;

pub(crate) fn store(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    // Without a runtime there is nothing to test.
    if let Ok(runtime) = runtime {
        runtime.block_on(program(data));
    }
}

async fn program(data: &[u8]) {
    let store = embedded::memory_with(Retention {
        events: 16,
        ..Retention::default()
    });
    let Ok(mut revision) = store.current_revision().await else {
        return;
    };
    let mut now = State::new();
    let mut past = BTreeMap::from([(revision, now.clone())]);
    for step in data.chunks_exact(2).take(STEPS) {
        let (code, key) = (step[0], format!("/k{}", step[1] % 8));
        let known = now.get(&key).copied();
        let expect = match code >> 3 & 3 {
            0 => Expect::Any,
            1 => Expect::Absent,
            2 => Expect::Revision(known.map_or(u64::from(code), |(_, at)| at)),
            _ => Expect::Revision(u64::from(step[1])),
        };
        let holds = match expect {
            Expect::Any => true,
            Expect::Absent => known.is_none(),
            Expect::Revision(at) => known.is_some_and(|(_, known)| known == at),
        };
        match code & 7 {
            0..=2 => {
                let value = Value {
                    bytes: Bytes::copy_from_slice(&[code]),
                    stamp_at: None,
                };
                let put = store.put(&key, value, expect).await;
                assert_eq!(put.is_ok(), holds, "{put:?}");
                if let Ok(kv) = put {
                    revision += 1;
                    assert_eq!(kv.mod_revision, revision);
                    now.insert(key, (code, revision));
                    past.insert(revision, now.clone());
                }
            }
            3 => {
                let deleted = store.delete(&key, expect).await;
                assert_eq!(deleted.is_ok(), holds && known.is_some(), "{deleted:?}");
                if deleted.is_ok() {
                    revision += 1;
                    now.remove(&key);
                    past.insert(revision, now.clone());
                }
            }
            4 => {
                // A refusal is as good: the revision may be past what is kept, or to come.
                let _ = store.compact(u64::from(step[1])).await;
            }
            _ => read(&store, &past, u64::from(step[1] % 64), &key).await,
        }
    }
    let stats = store.stats().await;
    assert!(stats.is_ok_and(|stats| stats.keys == now.len() as u64));
}

async fn read(store: &SharedStore, past: &BTreeMap<u64, State>, at: u64, key: &str) {
    let newest = past.keys().next_back().copied().unwrap_or_default();
    let state = past.get(if at == 0 { &newest } else { &at });
    match (store.range("/", "0", 0, at).await, state) {
        (Ok(range), Some(state)) => {
            assert_eq!(range.items.len(), state.len());
            for kv in &range.items {
                let known = state.get(&*kv.key);
                assert_eq!(known, Some(&(kv.value[0], kv.mod_revision)), "{}", kv.key);
            }
            let one = store.get(key, at).await;
            assert!(one.is_ok_and(|one| one.is_some() == state.contains_key(key)));
        }
        (Ok(_), None) => panic!("revision {at} was never there"),
        (Err(Error::Compacted { .. }), _) => assert!(at < newest),
        (Err(Error::FutureRevision { .. }), _) => assert!(at > newest),
        (Err(other), _) => panic!("{other}"),
    }
}
