//! One object at one revision, as stored: canonical JSON, decoded only where somebody looks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use keelson_store::{KeyValue, Revision};
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

pub(crate) type Labels = BTreeMap<String, String>;

/// Shared by the cache, its ring of events and every response that sends it.
#[derive(Debug)]
pub(crate) struct Object {
    key: Arc<str>,
    /// Length of `/registry/<group>/<resource>/`.
    prefix_length: usize,
    bytes: Bytes,
    pub(crate) revision: Revision,
    pub(crate) create_revision: Revision,
    labels: OnceLock<Labels>,
    /// Values of the selectable fields, in the kind's order of names.
    selectable: OnceLock<Vec<(String, String)>>,
    value: OnceLock<Arc<Value>>,
}

impl Object {
    pub(crate) fn new(kv: KeyValue, prefix_length: usize) -> Self {
        Self {
            key: kv.key,
            prefix_length,
            bytes: kv.value,
            revision: kv.mod_revision,
            create_revision: kv.create_revision,
            labels: OnceLock::new(),
            selectable: OnceLock::new(),
            value: OnceLock::new(),
        }
    }

    /// The object as deleted at `revision`: what watchers are sent has that resourceVersion.
    pub(crate) fn deleted_at(&self, revision: Revision) -> Self {
        let mut value = (*self.decode()).clone();
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.insert("resourceVersion".into(), revision.to_string().into());
        }
        Self {
            key: Arc::clone(&self.key),
            prefix_length: self.prefix_length,
            bytes: serde_json::to_vec(&value).map_or_else(|_| self.bytes.clone(), Bytes::from),
            revision,
            create_revision: self.create_revision,
            labels: self.labels.clone(),
            selectable: self.selectable.clone(),
            value: OnceLock::new(),
        }
    }

    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// `namespace/name`, or the name alone: the part of the key that orders a list.
    pub(crate) fn path(&self) -> &str {
        &self.key[self.prefix_length..]
    }

    pub(crate) fn namespace(&self) -> &str {
        self.path()
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    pub(crate) fn name(&self) -> &str {
        let path = self.path();
        path.split_once('/').map_or(path, |(_, name)| name)
    }

    /// Canonical JSON in the storage version, resourceVersion in place.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Decodes without keeping the tree, which is several times larger than the bytes.
    pub(crate) fn decode(&self) -> Arc<Value> {
        if let Some(value) = self.value.get() {
            return Arc::clone(value);
        }
        Arc::new(parse(&self.key, &self.bytes))
    }

    /// Decodes once and keeps the tree, for the few kinds the server itself reads all the time.
    pub(crate) fn decode_kept(&self) -> Arc<Value> {
        Arc::clone(
            self.value
                .get_or_init(|| Arc::new(parse(&self.key, &self.bytes))),
        )
    }

    pub(crate) fn labels(&self) -> &Labels {
        self.labels.get_or_init(|| labels_of(&self.bytes))
    }

    pub(crate) fn selectable(
        &self,
        read: impl FnOnce(&Value) -> Vec<(String, String)>,
    ) -> &[(String, String)] {
        self.selectable.get_or_init(|| read(&self.decode()))
    }
}

fn parse(key: &str, bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|err| {
        tracing::error!(key, %err, "a stored object cannot be decoded");
        Value::Null
    })
}

/// Reads the labels alone, and no further than to their end: what else is before them is skipped
/// without being built.
fn labels_of(bytes: &[u8]) -> Labels {
    let mut labels = Labels::new();
    let mut text = serde_json::Deserializer::from_slice(bytes);
    // Ends in an error when the labels were found, or when this is no object; it makes no odds.
    let _ = text.deserialize_map(Way {
        names: &["metadata", "labels"],
        labels: &mut labels,
    });
    labels
}

/// Descends into the first of the names, and takes what is at the end of them.
struct Way<'a> {
    names: &'a [&'a str],
    labels: &'a mut Labels,
}

impl<'de> Visitor<'de> for Way<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((name, below)) = self.names.split_first() else {
            while let Some((key, value)) = map.next_entry()? {
                self.labels.insert(key, value);
            }
            return Ok(());
        };
        while let Some(found) = map.next_key_seed(Is(name))? {
            if found {
                map.next_value_seed(Way {
                    names: below,
                    labels: self.labels,
                })?;
                return Err(A::Error::custom("found"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Way<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, text: D) -> Result<(), D::Error> {
        text.deserialize_map(self)
    }
}

/// Whether a key is this one.
struct Is<'a>(&'a str);

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, text: D) -> Result<bool, D::Error> {
        text.deserialize_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_without_the_rest() {
        let of = |text: &str| labels_of(text.as_bytes());
        let wanted = Labels::from([("a".to_owned(), "\u{e9}".to_owned())]);
        assert_eq!(
            of(
                r#"{"kind":"X","metadata":{"annotations":{"labels":"x"},"labels":{"a":"\u00e9"},"name":"n"},"spec":{"labels":{"b":"c"}}}"#
            ),
            wanted
        );
        assert_eq!(
            of(r#"{"metadata":{"labels":{"a":"\u00e9"}} and no more"#),
            wanted
        );
        for none in [
            r#"{"metadata":{"labels":null}}"#,
            r#"{"metadata":{"name":"n"},"spec":{"labels":{"b":"c"}}}"#,
            r#"{"spec":{}}"#,
            "[]",
            "",
        ] {
            assert!(of(none).is_empty(), "{none}");
        }
    }
}
