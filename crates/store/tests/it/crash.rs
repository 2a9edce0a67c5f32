//! The power goes, the disk is full, the device fails: what was acknowledged stays.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use keelson_store::{Error, Expect, SharedStore};

use crate::model::Random;
use crate::storage::{Fault, Storage, image};
use crate::value;

/// Key → value and revision.
type State = BTreeMap<String, (String, u64)>;

async fn state(store: &SharedStore) -> State {
    let all = store.range("/", "0", 0, 0).await.unwrap();
    all.items
        .iter()
        .map(|kv| {
            let text = String::from_utf8(kv.value.to_vec()).unwrap();
            (kv.key.to_string(), (text, kv.mod_revision))
        })
        .collect()
}

fn size(random: &mut Random) -> usize {
    // Most values share a page; some need pages of their own.
    match random.next(8) {
        0 => 9000,
        _ => random.next(200) as usize,
    }
}

/// One write, in the store and in the model; the error where the store refuses.
async fn write(store: &SharedStore, state: &mut State, random: &mut Random) -> Result<u64, Error> {
    let key = format!("/k{:02}", random.next(20));
    if state.contains_key(&key) && random.next(4) == 0 {
        let (revision, _) = store.delete(&key, Expect::Any).await?;
        state.remove(&key);
        return Ok(revision);
    }
    let text = "v".repeat(size(random));
    let kv = store.put(&key, value(&text), Expect::Any).await?;
    state.insert(key, (text, kv.mod_revision));
    Ok(kv.mod_revision)
}

#[tokio::test]
async fn after_a_power_cut_at_any_point_everything_acknowledged_is_there() {
    for seed in [0xc0ff_ee00_1234, 0x51ee_9e55, 0x7a11_b0a7] {
        cut_everywhere(seed).await;
    }
}

async fn cut_everywhere(seed: u64) {
    let mut random = Random(seed);
    let storage = Storage::default();
    let store = storage.open().unwrap();
    let mut now = State::new();
    // After how many operations on the disk which revision was acknowledged, and the state then.
    let first = store.current_revision().await.unwrap();
    let ready = storage.with(|disk| disk.ops.len());
    let mut acknowledged = vec![(ready, first)];
    let mut states = BTreeMap::from([(first, now.clone())]);
    for _ in 0..50 {
        let revision = write(&store, &mut now, &mut random).await.unwrap();
        acknowledged.push((storage.with(|disk| disk.ops.len()), revision));
        states.insert(revision, now.clone());
    }
    drop(store);
    let ops = storage.with(|disk| std::mem::take(&mut disk.ops));
    let mut found_unacknowledged = 0;
    for cut in ready..=ops.len() {
        let at = format!("seed {seed:#x}, cut at {cut}");
        let bytes = image(&ops, cut, &mut random);
        let recovered = Storage::holding(bytes).open();
        let recovered = recovered.unwrap_or_else(|error| panic!("{at}: {error}"));
        let revision = recovered.current_revision().await.unwrap();
        let (_, newest) = acknowledged
            .iter()
            .rfind(|(after, _)| *after <= cut)
            .unwrap();
        assert!(
            revision == *newest || revision == newest + 1,
            "{at}: at {revision}, acknowledged {newest}"
        );
        found_unacknowledged += u32::from(revision > *newest);
        assert_eq!(&state(&recovered).await, &states[&revision], "{at}");
    }
    assert!(
        found_unacknowledged > 0,
        "the images are taken in the middle of commits"
    );
}

#[tokio::test]
async fn failing_writes_change_nothing_and_the_store_goes_on() {
    for seed in [3, 0xfeed, 0x1234_5678_9abc] {
        let mut random = Random(seed);
        let storage = Storage::default();
        let store = storage.open().unwrap();
        let mut model = State::new();
        let (mut refused, mut full) = (0, 0);
        for step in 0..300 {
            let fault = match random.next(12) {
                0 => Some(Fault::Once(ErrorKind::Other)),
                1 => Some(Fault::Once(ErrorKind::StorageFull)),
                2 => Some(Fault::Full),
                _ => None,
            };
            storage.with(|disk| disk.fault = fault);
            let before = store.current_revision().await.unwrap();
            let mut changed = model.clone();
            match write(&store, &mut changed, &mut random).await {
                Ok(revision) => {
                    assert_eq!(revision, before + 1, "seed {seed}, step {step}");
                    model = changed;
                }
                Err(error) => {
                    assert!(fault.is_some(), "seed {seed}, step {step}: {error}");
                    refused += 1;
                    full += u32::from(matches!(error, Error::Full(_)));
                }
            }
            assert_eq!(state(&store).await, model, "seed {seed}, step {step}");
        }
        assert!(refused > 20 && full > 10, "{refused} refused, {full} full");
        storage.with(|disk| disk.fault = None);
        write(&store, &mut model, &mut random).await.unwrap();
        drop(store);
        let again = storage.open().unwrap();
        assert_eq!(state(&again).await, model, "seed {seed}");
    }
}

#[tokio::test]
async fn after_a_failed_fsync_nothing_more_is_acknowledged() {
    let storage = Storage::default();
    let store = storage.open().unwrap();
    store.put("/a", value("1"), Expect::Absent).await.unwrap();
    storage.with(|disk| disk.fault = Some(Fault::Sync));
    let lost = store.put("/b", value("2"), Expect::Absent).await;
    assert!(matches!(lost, Err(Error::Io(_))), "{lost:?}");
    // The device works again, and still nobody knows what it has.
    for _ in 0..2 {
        let refused = store.put("/c", value("3"), Expect::Absent).await;
        assert!(matches!(refused, Err(Error::Io(_))), "{refused:?}");
    }
    assert_eq!(store.get("/a", 0).await.unwrap().unwrap().value, "1");
    assert!(store.get("/b", 0).await.unwrap().is_none());
    drop(store);
    let again = storage.open().unwrap();
    assert_eq!(again.get("/a", 0).await.unwrap().unwrap().value, "1");
    assert!(again.get("/c", 0).await.unwrap().is_none());
    again.put("/d", value("4"), Expect::Absent).await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_not_served() {
    let storage = Storage::default();
    let store = storage.open().unwrap();
    let text = "unmistakable".repeat(40);
    for i in 0..50 {
        let key = format!("/k{i}");
        store.put(&key, value(&text), Expect::Absent).await.unwrap();
    }
    drop(store);
    let place = storage.with(|disk| {
        let mut places = disk.bytes.windows(12).enumerate();
        places
            .rfind(|(_, window)| *window == b"unmistakable")
            .unwrap()
            .0
    });
    let mut silent = 0;
    for offset in [place, place + 200] {
        let mut bytes = storage.with(|disk| disk.bytes.clone());
        bytes[offset] ^= 1;
        match Storage::holding(bytes).open() {
            Err(Error::Damaged(_)) => {}
            Err(other) => panic!("{other}"),
            // The flipped bit is in a page that no longer counts.
            Ok(store) => {
                let all = store.range("/", "0", 0, 0).await.unwrap();
                assert!(all.items.iter().all(|kv| kv.value == text));
                silent += 1;
            }
        }
    }
    assert!(silent < 2, "no flip hit a page in use");
}
