//! Watches: no gap, no duplicate, in order, whatever writers do meanwhile.

use std::time::Duration;

use keelson_store::embedded::{self, Retention};
use keelson_store::{Error, Event, Expect, SharedStore, WatchMessage};
use tokio::sync::mpsc;

use crate::value;

async fn revisions(watch: &mut mpsc::Receiver<WatchMessage>, until: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.last() != Some(&until) {
        let next = tokio::time::timeout(Duration::from_secs(20), watch.recv())
            .await
            .expect("in time");
        match next.expect("the watch goes on") {
            WatchMessage::Event(Event::Put { kv, .. }) => seen.push(kv.mod_revision),
            WatchMessage::Event(Event::Delete { revision, .. }) => seen.push(revision),
            WatchMessage::Progress(_) => {}
        }
    }
    seen
}

on_both_engines!(
    watches_that_start_amid_writes_miss_nothing,
    a_watch_sees_its_prefix_only,
    a_watcher_that_sleeps_is_cut_off,
    a_watch_from_the_future_waits_for_it,
    forgotten_history_is_refused,
    a_last_state_and_its_deletion_are_both_seen,
);

async fn a_last_state_and_its_deletion_are_both_seen(store: SharedStore) {
    let first = store.put("/a", value("1"), Expect::Absent).await.unwrap();
    let mut watch = store.watch("/", first.mod_revision + 1).await.unwrap();
    let wrong = Expect::Revision(first.mod_revision + 7);
    let refused = store.put_and_delete("/a", value("2"), wrong).await;
    assert!(
        matches!(refused, Err(Error::Conflict(Some(_)))),
        "{refused:?}"
    );
    let right = Expect::Revision(first.mod_revision);
    let (revision, last) = store.put_and_delete("/a", value("2"), right).await.unwrap();
    assert_eq!(last.value, "2");
    assert_eq!(
        revisions(&mut watch, revision).await,
        [last.mod_revision, revision]
    );
    assert!(store.get("/a", 0).await.unwrap().is_none());
    let before = store.get("/a", last.mod_revision).await.unwrap();
    assert_eq!(before.unwrap().value, "2");
    assert_eq!(store.current_revision().await.unwrap(), revision);
}

async fn watches_that_start_amid_writes_miss_nothing(store: SharedStore) {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 100;
    let start = store.current_revision().await.unwrap();
    let last = start + WRITERS * WRITES;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..WRITES {
                    store
                        .put(
                            &format!("/w{writer}/{}", i % 7),
                            value(&i.to_string()),
                            Expect::Any,
                        )
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    let mut watchers = Vec::new();
    for _ in 0..20 {
        let from = store.current_revision().await.unwrap() + 1;
        let mut watch = store.watch("/", from).await.unwrap();
        watchers.push(tokio::spawn(async move {
            if from > last {
                return;
            }
            let seen = revisions(&mut watch, last).await;
            assert_eq!(seen, (from..=last).collect::<Vec<_>>());
        }));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for task in writers.into_iter().chain(watchers) {
        task.await.unwrap();
    }
    let mut replay = store.watch("/", start + 1).await.unwrap();
    assert_eq!(
        revisions(&mut replay, last).await.len() as u64,
        WRITERS * WRITES
    );
}

async fn a_watch_sees_its_prefix_only(store: SharedStore) {
    let mut watch = store.watch("/a/", 0).await.unwrap();
    store.put("/b/1", value("x"), Expect::Any).await.unwrap();
    store.put("/a/1", value("x"), Expect::Any).await.unwrap();
    let (revision, previous) = store.delete("/a/1", Expect::Any).await.unwrap();
    assert_eq!(
        revisions(&mut watch, revision).await,
        [previous.mod_revision, revision]
    );
    store.put("/b/2", value("x"), Expect::Any).await.unwrap();
    store.request_progress("/a/").await.unwrap();
    let now = store.current_revision().await.unwrap();
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), watch.recv()).await;
        let Ok(Some(WatchMessage::Progress(reached))) = message else {
            panic!("{message:?}")
        };
        if reached >= now {
            break;
        }
    }
}

#[tokio::test]
async fn history_is_bounded() {
    let retention = Retention {
        events: 10,
        ..Retention::default()
    };
    let store = embedded::memory_with(retention);
    let first = store.put("/a", value("0"), Expect::Any).await.unwrap();
    for i in 0..40 {
        store
            .put("/a", value(&i.to_string()), Expect::Any)
            .await
            .unwrap();
    }
    assert!(matches!(
        store.watch("/", first.mod_revision).await,
        Err(Error::Compacted { .. })
    ));
    let now = store.current_revision().await.unwrap();
    let mut recent = store.watch("/", now - 9).await.unwrap();
    assert_eq!(revisions(&mut recent, now).await.len(), 10);
    assert!(matches!(
        store.range("/", "0", 0, now + 5).await,
        Err(Error::FutureRevision { .. })
    ));
}

#[tokio::test]
async fn history_ends_without_a_write() {
    let store = embedded::memory_with(Retention {
        age: Duration::from_millis(20),
        ..Retention::default()
    });
    let first = store.put("/a", value("1"), Expect::Any).await.unwrap();
    let last = store.put("/a", value("2"), Expect::Any).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(matches!(
        store.range("/", "0", 0, first.mod_revision).await,
        Err(Error::Compacted { .. })
    ));
    let now = store.range("/", "0", 0, last.mod_revision).await.unwrap();
    assert_eq!(now.items[0].value, last.value);
}

async fn a_watcher_that_sleeps_is_cut_off(store: SharedStore) {
    let mut watch = store.watch("/", 0).await.unwrap();
    let writes = (0..5000).map(|i| {
        let store = store.clone();
        async move { store.put("/a", value(&format!("{i}")), Expect::Any).await }
    });
    for result in futures::future::join_all(writes).await {
        result.unwrap();
    }
    // An engine may hold its source back for a moment first.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut last = 0;
    while let Some(message) = watch.recv().await {
        if let WatchMessage::Event(Event::Put { kv, .. }) = message {
            assert!(
                last == 0 || kv.mod_revision == last + 1,
                "no gap before the end"
            );
            last = kv.mod_revision;
        }
    }
    let mut resumed = store.watch("/", last + 1).await.unwrap();
    let now = store.current_revision().await.unwrap();
    assert_eq!(
        revisions(&mut resumed, now).await.first(),
        Some(&(last + 1))
    );
}

async fn a_watch_from_the_future_waits_for_it(store: SharedStore) {
    let now = store.current_revision().await.unwrap();
    let mut watch = store.watch("/", now + 3).await.unwrap();
    for text in ["1", "2", "3"] {
        store.put("/a", value(text), Expect::Any).await.unwrap();
    }
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), watch.recv()).await;
        match message.unwrap().unwrap() {
            WatchMessage::Event(Event::Put { kv, previous }) => {
                assert_eq!((&kv.value[..], kv.mod_revision), (&b"3"[..], now + 3));
                assert_eq!(previous.unwrap().value, "2");
                return;
            }
            WatchMessage::Event(other) => panic!("{other:?}"),
            WatchMessage::Progress(_) => {}
        }
    }
}

async fn forgotten_history_is_refused(store: SharedStore) {
    store.put("/a", value("1"), Expect::Any).await.unwrap();
    let (deleted, _) = store.delete("/a", Expect::Any).await.unwrap();
    let kept = store.put("/b", value("2"), Expect::Any).await.unwrap();
    store.compact(deleted).await.unwrap();
    for gone in [deleted - 1, deleted] {
        let watch = store.watch("/", gone).await;
        let Err(Error::Compacted { requested, oldest }) = watch else {
            panic!("{watch:?}")
        };
        assert_eq!(requested, gone);
        assert!(oldest > gone);
    }
    let read = store.range("/", "0", 0, deleted - 1).await;
    assert!(matches!(read, Err(Error::Compacted { .. })), "{read:?}");
    assert!(
        store
            .range("/", "0", 0, deleted)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let mut watch = store.watch("/", deleted + 1).await.unwrap();
    assert_eq!(
        revisions(&mut watch, kept.mod_revision).await,
        [kept.mod_revision]
    );
    let future = store.range("/", "0", 0, kept.mod_revision + 9).await;
    let Err(Error::FutureRevision { requested, current }) = future else {
        panic!("{future:?}")
    };
    assert_eq!(
        (requested, current),
        (kept.mod_revision + 9, kept.mod_revision)
    );
}
