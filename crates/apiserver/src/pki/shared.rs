//! The authorities and the service account key in the store, so that every server on one store
//! is the same cluster, and a snapshot holds all that a restored cluster needs.
//!
//! They are kept as they are, under a key outside of what the API serves. Sealing them would add
//! nothing without a secret that every server is given by other means: who can write to the store
//! can make himself an administrator there. An etcd cluster therefore has to be reachable for the
//! API servers alone, by client certificates.

use std::collections::BTreeMap;
use std::path::Path;

use keelson_store::{Error as StoreError, Expect, KeyValue, SharedStore, Value};

use super::{Error, Pki, read, write_private};

const KEY: &str = "/pki";
/// What servers share; certificates of a single server are issued by each for itself.
const FILES: &[&str] = &[
    "ca.crt",
    "ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "sa.key",
    "sa.pub",
];

type Bundle = BTreeMap<String, String>;

/// Loads what is there and makes what is missing. A shared store decides over the directory; in a
/// store of this server's own, which lies beside the directory, the files decide if there are any.
pub(crate) async fn load(dir: &Path, store: &SharedStore) -> Result<Pki, Error> {
    loop {
        let stored = store.get(KEY, 0).await.map_err(Error::Store)?;
        if let Some(stored) = &stored
            && (store.is_shared() || !dir.join("ca.key").exists())
        {
            unpack(dir, stored)?;
            return Pki::load_or_create(dir);
        }
        let pki = Pki::load_or_create(dir)?;
        let bytes = pack(dir)?;
        if stored.as_ref().is_some_and(|kv| kv.value == bytes) {
            return Ok(pki);
        }
        let expect = stored.map_or(Expect::Absent, |kv| Expect::Revision(kv.mod_revision));
        let value = Value {
            bytes: bytes.into(),
            stamp_at: None,
        };
        match store.put(KEY, value, expect).await {
            Ok(_) => return Ok(pki),
            // Another server was first, and this one joins it.
            Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(Error::Store(error)),
        }
    }
}

fn pack(dir: &Path) -> Result<Vec<u8>, Error> {
    let mut bundle = Bundle::new();
    for file in FILES {
        if let Some(text) = read(&dir.join(file))? {
            bundle.insert((*file).to_owned(), text);
        }
    }
    serde_json::to_vec(&bundle).map_err(|error| unusable(&error))
}

fn unpack(dir: &Path, stored: &KeyValue) -> Result<(), Error> {
    let bundle: Bundle = serde_json::from_slice(&stored.value).map_err(|error| unusable(&error))?;
    super::make_dir(dir)?;
    for file in FILES {
        let Some(wanted) = bundle.get(*file) else {
            return Err(unusable(&format!("{file} is missing")));
        };
        let path = dir.join(file);
        if read(&path)?.as_ref() != Some(wanted) {
            write_private(&path, wanted.as_bytes())?;
        }
    }
    Ok(())
}

fn unusable(reason: &dyn std::fmt::Display) -> Error {
    Error::Unusable {
        what: "the store's copy of the certificates".to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("keelson-pki-shared-{}", uuid::Uuid::new_v4()))
    }

    #[tokio::test]
    async fn a_fresh_directory_takes_over_what_the_store_has() {
        let store = keelson_store::embedded::memory();
        let (one, two) = (scratch(), scratch());
        let first = load(&one, &store).await.unwrap();
        let second = load(&two, &store).await.unwrap();
        assert_eq!(
            first.cluster_ca.certificate_pem,
            second.cluster_ca.certificate_pem
        );
        assert_eq!(first.service_account_key, second.service_account_key);
        let written = store.current_revision().await.unwrap();
        load(&one, &store).await.unwrap();
        assert_eq!(store.current_revision().await.unwrap(), written);
        for dir in [one, two] {
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}
