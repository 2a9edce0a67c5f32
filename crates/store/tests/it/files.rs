//! What is on disk, and who may open it.

use keelson_store::{Error, Event, Expect, SharedStore, Value, WatchMessage, embedded};

use crate::{Directory, value};

#[tokio::test]
async fn acknowledged_writes_survive_a_restart() {
    let dir = Directory::new("restart");
    let before = {
        let store = dir.open();
        store.put("/a", value("1"), Expect::Absent).await.unwrap();
        store.put("/b", value("2"), Expect::Any).await.unwrap();
        store.put("/a", value("3"), Expect::Any).await.unwrap();
        store.delete("/b", Expect::Any).await.unwrap();
        store.current_revision().await.unwrap()
    };
    let store = dir.open();
    assert_eq!(
        store.current_revision().await.unwrap(),
        before,
        "deletions count too"
    );
    let all = store.range("/", "0", 0, 0).await.unwrap();
    assert_eq!(
        (all.items.len(), &*all.items[0].key, &all.items[0].value[..]),
        (1, "/a", &b"3"[..])
    );
    let next = store.put("/c", value("4"), Expect::Any).await.unwrap();
    assert_eq!(
        next.mod_revision,
        before + 1,
        "a revision is never used twice"
    );
    let lost = store.watch("/", before).await.unwrap_err();
    assert!(
        matches!(lost, Error::Compacted { .. }),
        "history before the restart is gone, and says so"
    );
    let mut watch = store.watch("/", before + 1).await.unwrap();
    assert!(
        matches!(watch.recv().await, Some(WatchMessage::Event(Event::Put { kv, .. })) if &*kv.key == "/c")
    );
}

#[tokio::test]
async fn a_copy_taken_while_running_opens() {
    let dir = Directory::new("crash");
    let image = Directory::new("crash-image");
    let store = dir.open();
    for i in 0..50 {
        store
            .put(&format!("/k{i}"), value(&i.to_string()), Expect::Any)
            .await
            .unwrap();
    }
    // What a power cut leaves: the file as it is on disk, never closed.
    std::fs::create_dir_all(&image.0).unwrap();
    std::fs::copy(dir.0.join("store.redb"), image.0.join("store.redb")).unwrap();
    let recovered = image.open();
    let range = recovered.range("/", "0", 0, 0).await.unwrap();
    assert_eq!(range.items.len(), 50);
    assert_eq!(
        recovered.current_revision().await.unwrap(),
        store.current_revision().await.unwrap()
    );
}

#[tokio::test]
async fn a_file_that_was_not_finished_is_made_again() {
    let dir = Directory::new("unfinished");
    std::fs::create_dir_all(&dir.0).unwrap();
    std::fs::write(dir.0.join("store.redb.new"), vec![0; 4096]).unwrap();
    let store = dir.open();
    store.put("/a", value("1"), Expect::Absent).await.unwrap();
    assert!(!dir.0.join("store.redb.new").exists());
}

#[tokio::test]
async fn what_is_no_store_says_what_to_do() {
    let dir = Directory::new("foreign");
    std::fs::create_dir_all(&dir.0).unwrap();
    std::fs::write(dir.0.join("store.redb"), vec![7; 4096]).unwrap();
    let Err(Error::Open { reason, .. }) = embedded::open(&dir.0) else {
        panic!("opened")
    };
    assert!(reason.contains("store.redb is damaged"), "{reason}");
    assert!(reason.contains("keelson snapshot restore"), "{reason}");
}

#[tokio::test]
async fn a_directory_has_one_owner() {
    let dir = Directory::new("owner");
    let store = dir.open();
    let Err(Error::Open { reason, .. }) = embedded::open(&dir.0) else {
        panic!("opened twice")
    };
    assert_eq!(
        reason,
        format!("in use by another keelson (pid {})", std::process::id())
    );
    drop(store);
    dir.open();
}

#[test]
fn a_newer_format_is_refused() {
    let dir = Directory::new("newer");
    std::fs::create_dir_all(&dir.0).unwrap();
    {
        let database = redb::Database::create(dir.0.join("store.redb")).unwrap();
        let write = database.begin_write().unwrap();
        let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
        write
            .open_table(meta)
            .unwrap()
            .insert("format", 99)
            .unwrap();
        write.commit().unwrap();
    }
    let Err(Error::Open { reason, .. }) = embedded::open(&dir.0) else {
        panic!("opened")
    };
    assert!(reason.contains("newer version"), "{reason}");
}

on_both_engines!(
    values_are_stamped_with_their_revision,
    large_values_and_long_ranges_are_read_whole,
);

async fn values_are_stamped_with_their_revision(store: SharedStore) {
    let mut watch = store.watch("/", 0).await.unwrap();
    let text = r#"{"v":"","x":1}"#;
    let stamped = Value {
        bytes: text.as_bytes().to_vec().into(),
        stamp_at: Some(6),
    };
    let kv = store.put("/a", stamped, Expect::Any).await.unwrap();
    let seen = format!(r#"{{"v":"{}","x":1}}"#, kv.mod_revision);
    assert_eq!(kv.value, seen);
    assert_eq!(store.get("/a", 0).await.unwrap().unwrap().value, seen);
    assert_eq!(
        store.range("/", "0", 0, 0).await.unwrap().items[0].value,
        seen
    );
    let conflict = store.put("/a", value("x"), Expect::Absent).await;
    let Err(Error::Conflict(Some(found))) = conflict else {
        panic!("{conflict:?}")
    };
    assert_eq!(found.value, seen);
    loop {
        if let WatchMessage::Event(Event::Put { kv, .. }) = watch.recv().await.unwrap() {
            assert_eq!(kv.value, seen);
            break;
        }
    }
    let beyond = Value {
        bytes: "x".into(),
        stamp_at: Some(9),
    };
    assert!(store.put("/b", beyond, Expect::Any).await.is_err());
}

async fn large_values_and_long_ranges_are_read_whole(store: SharedStore) {
    // Pages and answers of etcd end in the middle of this, and a watch's answers are cut up.
    let start = store.current_revision().await.unwrap();
    let large = "x".repeat(1 << 20);
    for i in 0..12 {
        let key = format!("/large/{i:02}");
        store
            .put(&key, value(&large), Expect::Absent)
            .await
            .unwrap();
    }
    let small = futures::future::join_all((0..700).map(|i| {
        let store = store.clone();
        async move {
            let key = format!("/small/{i:03}");
            store.put(&key, value("s"), Expect::Absent).await.unwrap();
        }
    }));
    small.await;
    let all = store.range("/", "0", 0, 0).await.unwrap();
    assert_eq!((all.items.len(), all.count), (712, 712));
    assert!(all.items.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(all.revision, start + 712);
    let some = store.range("/large/03", "0", 5, 0).await.unwrap();
    assert_eq!((some.items.len(), some.count), (5, 709));
    assert_eq!(&*some.items[0].key, "/large/03");
    let mut watch = store.watch("/large/", start + 1).await.unwrap();
    for i in 0..12 {
        loop {
            let message = watch.recv().await.unwrap();
            if let WatchMessage::Event(Event::Put { kv, .. }) = message {
                assert_eq!(&*kv.key, &format!("/large/{i:02}"));
                assert_eq!(kv.value.len(), large.len());
                break;
            }
        }
    }
}
