//! How keys and values look in etcd.
//!
//! **Keys.** The store's `/registry/<rest>` is `<prefix>/<rest>`. Every other key `<k>`, which
//! begins with a slash too, is `<prefix>.keelson<k>`: beside the objects, never among them. The
//! order of keys is kept within each of the two, so a range or a watch lies in one of them.
//!
//! **Values.** Sixteen bytes, then the value without its revision, which nobody knows before the
//! write: the bytes `KL1` and a zero; the offset where readers see the revision inserted, big
//! endian, `ffffffff` for none; eight bytes that no other write has, by which a writer that got
//! no answer recognises its own write. A value without the mark was put there by somebody else
//! and is handed out as it is.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

use super::messages;
use crate::{Error, KeyValue, Result, Revision, Value, stamped};

const MARK: &[u8; 4] = b"KL1\0";
const HEADER: usize = 16;
const NO_STAMP: u32 = u32::MAX;
const OBJECTS: &str = "/registry/";
const OBJECTS_END: &str = "/registry0";
const OTHERS: &str = ".keelson";

#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// With a leading and without a trailing slash.
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: format!("/{}", prefix.trim_matches('/')),
        }
    }

    /// A key, or a bound of a range, in etcd.
    pub(crate) fn etcd_key(&self, key: &str) -> Bytes {
        let prefix = &self.prefix;
        if key == OBJECTS_END {
            return format!("{prefix}0").into();
        }
        match key.strip_prefix(OBJECTS) {
            Some(rest) => format!("{prefix}/{rest}").into(),
            None => format!("{prefix}{OTHERS}{key}").into(),
        }
    }

    /// Nothing for a key that is not ours.
    pub(crate) fn read_key(&self, key: &[u8]) -> Option<Arc<str>> {
        let key = std::str::from_utf8(key).ok()?;
        // Progress marks have a zero byte; no key of the store does.
        let rest = key
            .strip_prefix(self.prefix.as_str())
            .filter(|rest| !rest.contains('\0'))?;
        if let Some(other) = rest.strip_prefix(OTHERS) {
            return other.starts_with('/').then(|| other.into());
        }
        let rest = rest.strip_prefix('/')?;
        Some(format!("{OBJECTS}{rest}").into())
    }

    pub(crate) fn kv(&self, kv: &messages::KeyValue) -> Option<KeyValue> {
        let mod_revision = revision(kv.mod_revision);
        Some(KeyValue {
            key: self.read_key(&kv.key)?,
            value: decode(&kv.value, mod_revision),
            create_revision: revision(kv.create_revision),
            mod_revision,
        })
    }
}

/// The first key after all that begin with this one.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end.into();
        }
    }
    // etcd's way to say "to the end".
    Bytes::from_static(b"\0")
}

/// etcd's revisions are signed and never negative.
pub(crate) fn revision(signed: i64) -> Revision {
    Revision::try_from(signed).unwrap_or(0)
}

pub(crate) fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

pub(crate) fn encode(value: &Value) -> Result<Bytes> {
    let stamp = match value.stamp_at {
        None => NO_STAMP,
        Some(at) if (at as usize) <= value.bytes.len() => at,
        Some(at) => {
            return Err(Error::Io(format!(
                "stamp at {at} of a value of {} bytes",
                value.bytes.len()
            )));
        }
    };
    let mut out = BytesMut::with_capacity(HEADER + value.bytes.len());
    out.put_slice(MARK);
    out.put_u32(stamp);
    out.put_u64(unique());
    out.put_slice(&value.bytes);
    Ok(out.freeze())
}

/// The value as readers see it. Copied, so that one value does not keep a whole answer in memory.
pub(crate) fn decode(stored: &[u8], revision: Revision) -> Bytes {
    let Some((header, value)) = stored
        .split_at_checked(HEADER)
        .filter(|(header, _)| header.starts_with(MARK))
    else {
        return Bytes::copy_from_slice(stored);
    };
    let at = header[4..8]
        .iter()
        .fold(0u32, |at, byte| at << 8 | u32::from(*byte));
    if at == NO_STAMP || at as usize > value.len() {
        return Bytes::copy_from_slice(value);
    }
    stamped(value, at as usize, revision)
}

/// A number that no other write of any server carries, as far as 64 random bits go.
fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Each state is keyed at random.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(NEXT.fetch_add(1, Ordering::Relaxed));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_and_stay_in_order() {
        for prefix in ["/registry", "registry/", "/one/two"] {
            let keys = Keys::new(prefix);
            for key in ["/registry/core/pods/a/b", "/registry/x", "/pki", "/a/b"] {
                let stored = keys.etcd_key(key);
                assert_eq!(keys.read_key(&stored).as_deref(), Some(key));
            }
            assert!(keys.etcd_key("/registry/") < keys.etcd_key("/registry/zzz"));
            assert!(keys.etcd_key("/registry/zzz") < keys.etcd_key("/registry0"));
            assert!(keys.etcd_key("/") < keys.etcd_key("/pki"));
            assert!(keys.etcd_key("/pki") < keys.etcd_key("0"));
        }
        let keys = Keys::new("/registry");
        assert_eq!(keys.etcd_key("/registry/x"), "/registry/x");
        assert_eq!(keys.etcd_key("/pki"), "/registry.keelson/pki");
        for foreign in ["/registry0", "/other/x", "compact_rev_key"] {
            assert_eq!(keys.read_key(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn values_are_stamped_when_they_are_read() {
        let value = |stamp_at| Value {
            bytes: Bytes::from_static(br#"{"v":""}"#),
            stamp_at,
        };
        let stored = encode(&value(Some(6))).expect("in range");
        assert_eq!(decode(&stored, 42), r#"{"v":"42"}"#);
        assert_ne!(stored, encode(&value(Some(6))).expect("in range"));
        let plain = encode(&value(None)).expect("no stamp");
        assert_eq!(decode(&plain, 42), r#"{"v":""}"#);
        assert!(encode(&value(Some(9))).is_err());
        assert_eq!(decode(b"somebody else's", 42), "somebody else's");
    }

    #[test]
    fn a_prefix_ends_before_its_successor() {
        assert_eq!(prefix_end(b"/registry/"), "/registry0");
        assert_eq!(prefix_end(&[b'a', 0xff]), "b");
        assert_eq!(prefix_end(&[0xff]), "\0");
    }
}
