//! etcd that goes away and comes back, several servers on it, and compaction among them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use keelson_store::{Error, Event, Expect, WatchMessage, etcd};
use keelson_testkit_etcd::EtcdServer;

use crate::{connect, value};

/// Writers go on while etcd is killed and started again: whatever was acknowledged is there
/// afterwards, and a watch that was open all the time has seen every revision once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_load_loses_nothing_that_was_acknowledged() {
    let Some(mut server) = EtcdServer::start() else {
        return;
    };
    let store = connect(&server).await;
    let start = store.current_revision().await.unwrap();
    let mut watch = store.watch("/", start + 1).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (store, stop) = (store.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut acknowledged = BTreeMap::new();
                let mut i = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("/w{writer}/{}", i % 5);
                    let expect = acknowledged
                        .get(&key)
                        .map_or(Expect::Absent, |(revision, _)| Expect::Revision(*revision));
                    let text = format!("{writer}-{i}");
                    match store.put(&key, value(&text), expect).await {
                        Ok(kv) => acknowledged.insert(key, (kv.mod_revision, text)),
                        // A repeated write recognises itself, so that there is never a conflict.
                        Err(Error::Unavailable(_)) => break,
                        Err(other) => panic!("{key}: {other}"),
                    };
                    i += 1;
                }
                (i, acknowledged)
            })
        })
        .collect();
    let mut server = tokio::task::spawn_blocking(move || {
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(300));
            server.kill();
            std::thread::sleep(Duration::from_millis(200));
            server.restart();
        }
        std::thread::sleep(Duration::from_millis(500));
        server
    })
    .await
    .unwrap();
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeMap::new();
    for writer in writers {
        let (written, theirs) = writer.await.unwrap();
        assert!(written > 5, "the load was no load: {written}");
        acknowledged.extend(theirs);
    }
    for (key, (revision, text)) in &acknowledged {
        let found = store.get(key, 0).await.unwrap().unwrap();
        assert_eq!(
            (found.mod_revision, &found.value[..]),
            (*revision, text.as_bytes())
        );
    }
    let last = store.current_revision().await.unwrap();
    let mut next = start + 1;
    while next <= last {
        let message = tokio::time::timeout(Duration::from_secs(20), watch.recv()).await;
        if let WatchMessage::Event(Event::Put { kv, .. }) = message.unwrap().unwrap() {
            assert_eq!(kv.mod_revision, next, "no gap and no duplicate");
            next += 1;
        }
    }
    server.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_writes_the_other_sees() {
    let Some(server) = EtcdServer::start() else {
        return;
    };
    let (one, two) = (connect(&server).await, connect(&server).await);
    let mut watch = two.watch("/", 0).await.unwrap();
    let kv = one.put("/a", value("1"), Expect::Absent).await.unwrap();
    assert_eq!(two.get("/a", 0).await.unwrap().unwrap().value, "1");
    let taken = two.put("/a", value("2"), Expect::Absent).await;
    assert!(matches!(taken, Err(Error::Conflict(Some(_)))), "{taken:?}");
    let at = Expect::Revision(kv.mod_revision);
    let (first, second) = tokio::join!(
        one.put("/a", value("one"), at),
        two.put("/a", value("two"), at)
    );
    assert!(first.is_ok() != second.is_ok(), "one of them is late");
    let mut seen = 0;
    while seen < 2 {
        if let WatchMessage::Event(_) = watch.recv().await.unwrap() {
            seen += 1;
        }
    }
    // A write outside of what the other watches: progress tells that nothing is missing.
    let mut narrow = two.watch("/narrow/", 0).await.unwrap();
    let kv = one
        .put("/elsewhere", value("1"), Expect::Any)
        .await
        .unwrap();
    assert!(two.current_revision().await.unwrap() >= kv.mod_revision);
    two.request_progress("/narrow/").await.unwrap();
    let reached = tokio::time::timeout(Duration::from_secs(20), narrow.recv()).await;
    assert!(
        matches!(reached, Ok(Some(WatchMessage::Progress(at))) if at >= kv.mod_revision),
        "{reached:?}"
    );
    let left = two.range("/narrow", "/narrow~", 0, 0).await.unwrap();
    assert!(left.items.is_empty(), "marks are not keys of the store");
}

/// etcd does not answer a request for progress while it still brings the watch up to date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_asked_of_a_watch_that_begins_in_the_past_is_told() {
    let Some(server) = EtcdServer::start() else {
        return;
    };
    let store = connect(&server).await;
    for _ in 0..5 {
        let first = store.put("/past/a", value("1"), Expect::Any).await.unwrap();
        let newest = store.put("/other", value("1"), Expect::Any).await.unwrap();
        let mut watch = store.watch("/past/", first.mod_revision).await.unwrap();
        assert!(store.current_revision().await.unwrap() >= newest.mod_revision);
        store.request_progress("/past/").await.unwrap();
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), watch.recv()).await;
            match message.expect("progress is told").unwrap() {
                WatchMessage::Progress(at) if at >= newest.mod_revision => break,
                WatchMessage::Progress(_) | WatchMessage::Event(_) => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_compact_in_turn_and_prefixes_are_apart() {
    let Some(server) = EtcdServer::start() else {
        return;
    };
    let options = |prefix: &str| etcd::Options {
        compact_every: Some(Duration::from_millis(200)),
        prefix: prefix.to_owned(),
        ..etcd::Options::new(vec![server.url().to_owned()])
    };
    let one = etcd::connect(options("/registry")).await.unwrap();
    let two = etcd::connect(options("/registry")).await.unwrap();
    let other = etcd::connect(options("/another")).await.unwrap();
    let old = one
        .put("/registry/a", value("1"), Expect::Absent)
        .await
        .unwrap();
    assert!(other.get("/registry/a", 0).await.unwrap().is_none());
    one.put("/registry/a", value("2"), Expect::Any)
        .await
        .unwrap();
    for store in [&one, &two] {
        let gone = async {
            loop {
                let read = store.get("/registry/a", old.mod_revision).await;
                let stats = store.stats().await.unwrap();
                if matches!(read, Err(Error::Compacted { .. }))
                    && stats.compacted_revision >= old.mod_revision
                {
                    assert_eq!(stats.keys, 1);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone)
            .await
            .unwrap();
        let late = store.watch("/registry/", old.mod_revision).await;
        assert!(matches!(late, Err(Error::Compacted { .. })), "{late:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_passed_over() {
    let Some(server) = EtcdServer::start() else {
        return;
    };
    // A port that nobody listens on, as nobody can while this holds it.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let endpoints = vec![format!("http://{address}"), server.url().to_owned()];
    let store = etcd::connect(etcd::Options::new(endpoints)).await.unwrap();
    store.put("/a", value("1"), Expect::Absent).await.unwrap();
    let none = etcd::Options::new(vec![format!("http://{address}")]);
    let Err(Error::Open { reason, .. }) = etcd::connect(none).await else {
        panic!("connected to nothing")
    };
    assert!(reason.contains("refused"), "{reason}");
}
