//! Watches: no gap, no duplicate, in order, whatever writers do meanwhile.

use std::time::Duration;

use keelson_store::embedded::{self, Retention};
use keelson_store::{Error, Event, Expect, WatchMessage};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_start_amid_writes_miss_nothing() {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 100;
    let store = embedded::memory();
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

#[tokio::test]
async fn a_watch_sees_its_prefix_only() {
    let store = embedded::memory();
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
    let Some(WatchMessage::Progress(reached)) = watch.recv().await else {
        panic!("an event of another prefix")
    };
    assert_eq!(reached, store.current_revision().await.unwrap());
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
async fn a_watcher_that_sleeps_is_cut_off() {
    let store = embedded::memory();
    let mut watch = store.watch("/", 0).await.unwrap();
    let writes = (0..5000).map(|i| {
        let store = store.clone();
        async move { store.put("/a", value(&format!("{i}")), Expect::Any).await }
    });
    for result in futures::future::join_all(writes).await {
        result.unwrap();
    }
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
