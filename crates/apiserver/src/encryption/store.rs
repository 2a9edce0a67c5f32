//! The store with sealing in between.
//!
//! The engine stamps a revision into bytes it can read; into sealed ones it cannot. So a sealed
//! value carries the place of the stamp inside, and the stamp is put in when it is opened, where
//! the revision is known from the key.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use keelson_store::{
    Error, Event, Expect, KeyValue, RangeResult, Result, Revision, SharedStore, Stats, Store,
    Value, WatchMessage,
};
use tokio::sync::mpsc;

use super::Encryption;
use super::config::{Configuration, Provider, is_sealed};

/// Watch messages waiting for a receiver.
const WATCH_BUFFER: usize = 1024;
/// Bytes in front of the plain value: the place of the stamp, or this.
const NO_STAMP: u32 = u32::MAX;

pub(super) struct Sealed {
    inner: SharedStore,
    encryption: Arc<Encryption>,
}

impl Sealed {
    pub(super) fn new(inner: SharedStore, encryption: Arc<Encryption>) -> Self {
        Self { inner, encryption }
    }

    async fn open(&self, kv: KeyValue) -> Result<KeyValue> {
        let rules = self.encryption.rules();
        open(&rules, kv).await.map(|(kv, _)| kv)
    }

    async fn open_conflict(&self, error: Error) -> Error {
        match error {
            Error::Conflict(Some(kv)) => match self.open(kv).await {
                Ok(kv) => Error::Conflict(Some(kv)),
                Err(error) => error,
            },
            other => other,
        }
    }
}

/// The value as it is to be stored; nothing when it is stored as it is.
fn seal(rules: &Configuration, key: &str, value: &Value) -> Result<Option<Value>> {
    let provider = rules.providers(key).and_then(|all| all.first());
    let at = value.stamp_at.unwrap_or(NO_STAMP);
    let plain = || [&at.to_be_bytes()[..], &value.bytes].concat();
    let (prefix, sealed) = match provider {
        None | Some(Provider::Identity) => return Ok(None),
        Some(Provider::Sealing { prefix, cipher }) => (prefix.as_str(), cipher.seal(key, &plain())),
        Some(Provider::Kms(plugin)) => (plugin.prefix(), plugin.seal(key, &plain())),
    };
    let sealed = sealed.map_err(|reason| Error::Io(format!("{key}: {reason}")))?;
    Ok(Some(Value {
        bytes: [prefix.as_bytes(), &sealed].concat().into(),
        stamp_at: None,
    }))
}

/// The value as readers see it, and whether it is stored otherwise than it would be now.
async fn open(rules: &Configuration, mut kv: KeyValue) -> Result<(KeyValue, bool)> {
    let providers = rules.providers(&kv.key).unwrap_or_default();
    if !is_sealed(&kv.value) {
        let stale = providers
            .first()
            .is_some_and(|provider| !matches!(provider, Provider::Identity));
        return Ok((kv, stale));
    }
    let failed = |reason: &str| Error::Io(format!("{} cannot be decrypted: {reason}", kv.key));
    let found = providers.iter().enumerate().find_map(|(index, provider)| {
        let prefix = match provider {
            Provider::Sealing { prefix, .. } => prefix.as_str(),
            Provider::Kms(plugin) => plugin.prefix(),
            Provider::Identity => return None,
        };
        let sealed = kv.value.strip_prefix(prefix.as_bytes())?;
        Some((index, provider, sealed))
    });
    let (index, provider, sealed) =
        found.ok_or_else(|| failed("no configured provider has its prefix"))?;
    let opened = match provider {
        Provider::Identity => Ok((sealed.to_vec(), false)),
        Provider::Sealing { cipher, .. } => {
            cipher.open(&kv.key, sealed).map(|plain| (plain, false))
        }
        Provider::Kms(plugin) => plugin.open(&kv.key, sealed).await,
    };
    let (plain, stale) = opened.map_err(|reason| failed(&reason))?;
    let (at, bytes) = plain
        .split_first_chunk::<4>()
        .ok_or_else(|| failed("it is too short"))?;
    kv.value = match u32::from_be_bytes(*at) {
        NO_STAMP => Bytes::copy_from_slice(bytes),
        at if at as usize <= bytes.len() => stamped(bytes, at as usize, kv.mod_revision),
        _ => return Err(failed("its stamp is beyond its end")),
    };
    Ok((kv, stale || index > 0))
}

fn stamped(bytes: &[u8], at: usize, revision: Revision) -> Bytes {
    let (before, after) = bytes.split_at(at);
    [before, revision.to_string().as_bytes(), after]
        .concat()
        .into()
}

#[async_trait]
impl Store for Sealed {
    async fn current_revision(&self) -> Result<Revision> {
        self.inner.current_revision().await
    }

    async fn get(&self, key: &str, revision: Revision) -> Result<Option<KeyValue>> {
        let Some(kv) = self.inner.get(key, revision).await? else {
            return Ok(None);
        };
        let (mut kv, stale) = open(&self.encryption.rules(), kv).await?;
        if stale {
            // An update that changes nothing writes nothing, but a value under an old key is to be
            // written again by such an update. A space at its end, which means nothing to JSON,
            // makes it different from what the update would write.
            kv.value = [&kv.value[..], b" "].concat().into();
        }
        Ok(Some(kv))
    }

    async fn range(
        &self,
        start: &str,
        end: &str,
        limit: usize,
        revision: Revision,
    ) -> Result<RangeResult> {
        let mut range = self.inner.range(start, end, limit, revision).await?;
        let rules = self.encryption.rules();
        for item in &mut range.items {
            *item = open(&rules, item.clone()).await?.0;
        }
        Ok(range)
    }

    async fn put(&self, key: &str, value: Value, expect: Expect) -> Result<KeyValue> {
        let sealed = seal(&self.encryption.rules(), key, &value)?;
        let Some(sealed) = sealed else {
            return match self.inner.put(key, value, expect).await {
                Err(error) => Err(self.open_conflict(error).await),
                written => written,
            };
        };
        let mut kv = match self.inner.put(key, sealed, expect).await {
            Ok(kv) => kv,
            Err(error) => return Err(self.open_conflict(error).await),
        };
        kv.value = match value.stamp_at {
            Some(at) => stamped(&value.bytes, at as usize, kv.mod_revision),
            None => value.bytes,
        };
        Ok(kv)
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)> {
        match self.inner.delete(key, expect).await {
            Ok((revision, kv)) => Ok((revision, self.open(kv).await?)),
            Err(error) => Err(self.open_conflict(error).await),
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<mpsc::Receiver<WatchMessage>> {
        let mut sealed = self.inner.watch(prefix, from).await?;
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        let encryption = Arc::clone(&self.encryption);
        tokio::spawn(async move {
            while let Some(message) = sealed.recv().await {
                let opened = match message {
                    WatchMessage::Event(event) => {
                        let opened = open_event(&encryption.rules(), event).await;
                        opened.map(WatchMessage::Event)
                    }
                    progress @ WatchMessage::Progress(_) => Ok(progress),
                };
                match opened {
                    Ok(message) => {
                        if sender.send(message).await.is_err() {
                            return;
                        }
                    }
                    // The receiver sees the watch end and reads everything again.
                    Err(error) => {
                        tracing::error!(%error, "a change cannot be read");
                        return;
                    }
                }
            }
        });
        Ok(receiver)
    }

    async fn request_progress(&self, prefix: &str) -> Result<()> {
        self.inner.request_progress(prefix).await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.compact(revision).await
    }

    async fn stats(&self) -> Result<Stats> {
        self.inner.stats().await
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }
}

async fn open_event(rules: &Configuration, event: Event) -> Result<Event> {
    let opened = async |kv| open(rules, kv).await.map(|(kv, _)| kv);
    Ok(match event {
        Event::Put { kv, previous } => Event::Put {
            kv: opened(kv).await?,
            previous: match previous {
                Some(kv) => Some(opened(kv).await?),
                None => None,
            },
        },
        Event::Delete {
            key,
            revision,
            previous,
        } => Event::Delete {
            key,
            revision,
            previous: opened(previous).await?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const SECRET: &str = "/registry/core/secrets/ns/a";

    fn encryption(providers: &str) -> Arc<Encryption> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- {{resources: [secrets], providers: [{providers}]}}\n"
        );
        Encryption::with(Path::new("none"), Configuration::parse(&text).unwrap())
    }

    fn key(kind: &str, name: &str) -> String {
        let secret = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        format!("{{{kind}: {{keys: [{{name: {name}, secret: '{secret}'}}]}}}}")
    }

    fn value(text: &str) -> Value {
        Value {
            bytes: Bytes::copy_from_slice(format!("{{\"v\":\"\",\"t\":\"{text}\"}}").as_bytes()),
            stamp_at: Some(6),
        }
    }

    fn holds(directory: &Path, text: &str) -> bool {
        let mut found = false;
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            found |= match path.is_dir() {
                true => holds(&path, text),
                false => {
                    let bytes = std::fs::read(&path).unwrap();
                    bytes.windows(text.len()).any(|w| w == text.as_bytes())
                }
            };
        }
        found
    }

    #[tokio::test]
    async fn the_disk_never_sees_the_text_and_readers_do() {
        for kind in ["aesgcm", "aescbc", "secretbox"] {
            let directory =
                std::env::temp_dir().join(format!("keelson-sealed-{}", uuid::Uuid::new_v4()));
            let inner = keelson_store::embedded::open(&directory).unwrap();
            let store = encryption(&key(kind, "k")).over(inner);
            let mut watch = store.watch("/registry/", 0).await.unwrap();
            let written = store
                .put(SECRET, value("hidden-text"), Expect::Absent)
                .await
                .unwrap();
            let expected = format!(
                "{{\"v\":\"{}\",\"t\":\"hidden-text\"}}",
                written.mod_revision
            );
            store
                .put(
                    "/registry/core/configmaps/ns/a",
                    value("open-text"),
                    Expect::Absent,
                )
                .await
                .unwrap();
            assert_eq!(written.value, expected);
            assert_eq!(store.get(SECRET, 0).await.unwrap().unwrap().value, expected);
            let range = store.range("/registry/", "/registry0", 0, 0).await.unwrap();
            assert_eq!(range.items[1].value, expected);
            let seen = loop {
                if let WatchMessage::Event(event) = watch.recv().await.unwrap() {
                    break event;
                }
            };
            match seen {
                Event::Put { kv, previous: None } => assert_eq!(kv.value, expected),
                other => panic!("{other:?}"),
            }
            match store.put(SECRET, value("x"), Expect::Absent).await {
                Err(Error::Conflict(Some(kv))) => assert_eq!(kv.value, expected),
                other => panic!("{other:?}"),
            }
            assert!(
                holds(&directory, "open-text") && !holds(&directory, "hidden-text"),
                "{kind}"
            );
            let (_, last) = store.delete(SECRET, Expect::Any).await.unwrap();
            assert_eq!(last.value, expected);
            std::fs::remove_dir_all(directory).unwrap();
        }
    }

    #[tokio::test]
    async fn keys_rotate_and_a_lost_key_is_an_error() {
        let inner = keelson_store::embedded::memory();
        let plain = encryption("{identity: {}}").over(Arc::clone(&inner));
        plain.put(SECRET, value("t"), Expect::Absent).await.unwrap();
        let both = format!(
            "{}, {}, {{identity: {{}}}}",
            key("secretbox", "new"),
            key("aesgcm", "old")
        );
        let old = encryption(&format!("{}, {{identity: {{}}}}", key("aesgcm", "old")))
            .over(Arc::clone(&inner));
        let stale = old.get(SECRET, 0).await.unwrap().unwrap();
        assert!(
            stale.value.ends_with(b" "),
            "a plain value is to be written again"
        );
        old.put(SECRET, value("t"), Expect::Any).await.unwrap();
        assert!(
            old.get(SECRET, 0)
                .await
                .unwrap()
                .unwrap()
                .value
                .ends_with(b"}")
        );
        let rotating = encryption(&both).over(Arc::clone(&inner));
        assert!(
            rotating
                .get(SECRET, 0)
                .await
                .unwrap()
                .unwrap()
                .value
                .ends_with(b" ")
        );
        rotating.put(SECRET, value("t"), Expect::Any).await.unwrap();
        assert!(
            inner
                .get(SECRET, 0)
                .await
                .unwrap()
                .unwrap()
                .value
                .starts_with(b"k8s:enc:secretbox:v1:new:")
        );
        assert!(old.get(SECRET, 0).await.is_err());
    }
}
