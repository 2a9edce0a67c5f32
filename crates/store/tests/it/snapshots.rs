//! A snapshot holds everything, says when it is damaged, and becomes a store again.

use keelson_store::{Error, Expect, SharedStore, embedded, snapshot};

use crate::{Directory, value};

on_both_engines!(a_restored_store_is_the_one_that_was_saved);

async fn save(store: &SharedStore, file: &std::path::Path) {
    let pieces: Vec<u8> = snapshot::take(store).await.unwrap().flatten().collect();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, pieces).unwrap();
}

async fn a_restored_store_is_the_one_that_was_saved(store: SharedStore) {
    let engine = if store.is_shared() {
        "etcd"
    } else {
        "embedded"
    };
    for i in 0..30 {
        let key = format!("/registry/core/configmaps/default/m{i}");
        store
            .put(&key, value(&format!("{i}")), Expect::Any)
            .await
            .unwrap();
    }
    let changed = "/registry/core/configmaps/default/m3";
    store
        .put(changed, value("again"), Expect::Any)
        .await
        .unwrap();
    store
        .delete("/registry/core/configmaps/default/m4", Expect::Any)
        .await
        .unwrap();
    store.put("/pki", value("keys"), Expect::Any).await.unwrap();
    store
        .put("/servers/192.0.2.1:6443", value("x"), Expect::Any)
        .await
        .unwrap();
    let dir = Directory::new(&format!("snapshot-{engine}"));
    let (file, again) = (dir.0.join("file"), dir.0.join("again"));
    save(&store, &file).await;
    save(&store, &again).await;
    let summary = snapshot::verify(&file).unwrap();
    assert_eq!(summary, snapshot::verify(&again).unwrap());
    assert_eq!((summary.keys, summary.hash.len()), (30, 64));
    assert_eq!(summary.revision, store.current_revision().await.unwrap());

    let restored_dir = dir.0.join("store");
    snapshot::restore(&file, &restored_dir, 1000).unwrap();
    let restored = embedded::open(&restored_dir).unwrap();
    assert_eq!(
        restored.current_revision().await.unwrap(),
        summary.revision + 1000
    );
    let wanted = store.range("/registry/", "/registry0", 0, 0).await.unwrap();
    let found = restored
        .range("/registry/", "/registry0", 0, 0)
        .await
        .unwrap();
    assert_eq!(wanted.items.len(), found.items.len());
    for (wanted, found) in wanted.items.iter().zip(&found.items) {
        assert_eq!((&wanted.key, &wanted.value), (&found.key, &found.value));
        assert_eq!(wanted.mod_revision, found.mod_revision);
        assert_eq!(wanted.create_revision, found.create_revision);
    }
    assert_eq!(
        restored.get("/pki", 0).await.unwrap().unwrap().value,
        "keys"
    );
    assert!(
        restored
            .get("/servers/192.0.2.1:6443", 0)
            .await
            .unwrap()
            .is_none()
    );
    let next = restored
        .put(changed, value("on"), Expect::Any)
        .await
        .unwrap();
    assert_eq!(next.mod_revision, summary.revision + 1001);
    drop(restored);
    let Err(Error::Open { reason, .. }) = snapshot::restore(&file, &restored_dir, 0) else {
        panic!("a store was overwritten")
    };
    assert!(reason.contains("already"), "{reason}");
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_whole() {
    let store = embedded::memory();
    for i in 0..5 {
        store
            .put(&format!("/k{i}"), value("text"), Expect::Any)
            .await
            .unwrap();
    }
    let dir = Directory::new("snapshot-damage");
    let file = dir.0.join("file");
    save(&store, &file).await;
    let whole = std::fs::read(&file).unwrap();
    let check = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        snapshot::verify(&file)
    };
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        let checked = check(&flipped);
        assert!(
            matches!(checked, Err(Error::Damaged(_))),
            "{at}: {checked:?}"
        );
        let checked = check(&whole[..at]);
        assert!(
            matches!(checked, Err(Error::Damaged(_))),
            "{at}: {checked:?}"
        );
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert!(check(&longer).is_err());
    std::fs::write(&file, &longer).unwrap();
    let target = dir.0.join("store");
    assert!(snapshot::restore(&file, &target, 0).is_err());
    assert!(!target.exists(), "nothing is begun");
    assert!(check(&whole).is_ok());
}
