//! Everything in a store at one revision, as a file that any engine can give and a new embedded
//! store can be made of.
//!
//! The file is the line `keelson snapshot 1`, the revision (8 bytes), the keys in order, an end
//! mark, and the SHA-256 of all that. A key is: its length (4 bytes), the revisions of its creation
//! and last write (8 bytes each), the length of its value (4 bytes), the key and the value as
//! readers see it. The end mark is a key's length of `ffffffff`. Numbers are big endian.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::embedded::Restore;
use crate::{Error, KeyValue, Result, Revision, SharedStore};

const TITLE: &[u8] = b"keelson snapshot 1\n";
const END: u32 = u32::MAX;
/// Far above what the API accepts; a damaged file must not ask for all memory.
const KEY_BYTES: u32 = 1 << 16;
const VALUE_BYTES: u32 = 1 << 28;
/// What servers keep for themselves while they run.
const FLEETING: &str = "/servers/";
/// Keys written in one transaction of a restore.
const CHUNK: usize = 1000;

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub revision: Revision,
    pub keys: u64,
    /// Of the file.
    pub size_bytes: u64,
    /// SHA-256 of the content, hexadecimal: equal for equal states.
    pub hash: String,
}

/// The pieces of the file, in order. They share the values' memory with the store.
pub async fn take(store: &SharedStore) -> Result<impl Iterator<Item = Bytes> + Send + use<>> {
    let objects = store.range("/registry/", "/registry0", 0, 0).await?;
    let revision = objects.revision;
    // An engine may keep the rest apart from the objects or among them.
    let rest = store.range("/", "0", 0, revision).await?;
    let mut items: Vec<KeyValue> = rest
        .items
        .into_iter()
        .filter(|kv| !kv.key.starts_with("/registry/") && !kv.key.starts_with(FLEETING))
        .chain(objects.items)
        .collect();
    items.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let mut title = BytesMut::from(TITLE);
    title.put_u64(revision);
    let mut end = BytesMut::new();
    end.put_u32(END);
    let pieces = std::iter::once(title.freeze())
        .chain(items.into_iter().flat_map(|kv| {
            let mut head = BytesMut::with_capacity(24 + kv.key.len());
            // The API's limits on names and objects are far below these types'.
            head.put_u32(u32::try_from(kv.key.len()).unwrap_or(KEY_BYTES));
            head.put_u64(kv.create_revision);
            head.put_u64(kv.mod_revision);
            head.put_u32(u32::try_from(kv.value.len()).unwrap_or(VALUE_BYTES));
            head.put_slice(kv.key.as_bytes());
            [head.freeze(), kv.value]
        }))
        .chain([end.freeze()]);
    let mut hash = Some(Sha256::new());
    let mut pieces = pieces.fuse();
    Ok(std::iter::from_fn(move || match pieces.next() {
        Some(piece) => {
            hash.as_mut()?.update(&piece);
            Some(piece)
        }
        None => Some(Bytes::copy_from_slice(&hash.take()?.finalize())),
    }))
}

/// Reads the whole file and checks it.
pub fn verify(file: &Path) -> Result<Summary> {
    let mut reader = Reader::open(file)?;
    let mut keys = 0;
    while reader.next()?.is_some() {
        keys += 1;
    }
    reader.finish(keys)
}

/// Makes the embedded store in `dir`, which must have none, of a snapshot that was checked as a
/// whole before anything is written. Its revision is raised by `bump`, so that clients that saw
/// later revisions of the lost store do not take new ones for old.
pub fn restore(file: &Path, dir: &Path, bump: Revision) -> Result<Summary> {
    let summary = verify(file)?;
    let mut reader = Reader::open(file)?;
    let mut restore = Restore::begin(dir)?;
    let mut chunk = Vec::with_capacity(CHUNK);
    while let Some(kv) = reader.next()? {
        chunk.push(kv);
        if chunk.len() == CHUNK {
            restore.add(&chunk)?;
            chunk.clear();
        }
    }
    restore.add(&chunk)?;
    restore.finish(summary.revision.saturating_add(bump))?;
    Ok(summary)
}

struct Reader {
    input: BufReader<File>,
    size_bytes: u64,
    hash: Sha256,
    revision: Revision,
    last_key: String,
}

impl Reader {
    fn open(path: &Path) -> Result<Self> {
        let failed = |err: std::io::Error| Error::Open {
            path: path.display().to_string(),
            reason: err.to_string(),
        };
        let file = File::open(path).map_err(failed)?;
        let size_bytes = file.metadata().map_err(failed)?.len();
        let mut reader = Self {
            input: BufReader::with_capacity(1 << 16, file),
            size_bytes,
            hash: Sha256::new(),
            revision: 0,
            last_key: String::new(),
        };
        if reader.take(TITLE.len())? != TITLE {
            return Err(damaged("it does not begin like a snapshot"));
        }
        reader.revision = reader.number()?;
        Ok(reader)
    }

    fn next(&mut self) -> Result<Option<KeyValue>> {
        let key_length = self.length()?;
        if key_length == END {
            return Ok(None);
        }
        let (create_revision, mod_revision) = (self.number()?, self.number()?);
        let value_length = self.length()?;
        if key_length > KEY_BYTES || value_length > VALUE_BYTES {
            return Err(damaged("a length is out of bounds"));
        }
        let key = String::from_utf8(self.take(key_length as usize)?)
            .map_err(|_| damaged("a key is no text"))?;
        let value = self.take(value_length as usize)?.into();
        if key <= self.last_key || mod_revision > self.revision || create_revision > mod_revision {
            return Err(damaged("a key is out of order"));
        }
        self.last_key.clone_from(&key);
        Ok(Some(KeyValue {
            key: key.into(),
            value,
            create_revision,
            mod_revision,
        }))
    }

    fn finish(mut self, keys: u64) -> Result<Summary> {
        let hash = self.hash.clone().finalize();
        let mut rest = Vec::new();
        self.input
            .by_ref()
            .take(hash.len() as u64 + 1)
            .read_to_end(&mut rest)
            .map_err(|err| damaged(&err.to_string()))?;
        if rest != hash[..] {
            return Err(damaged("its checksum does not hold"));
        }
        Ok(Summary {
            revision: self.revision,
            keys,
            size_bytes: self.size_bytes,
            hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    fn number(&mut self) -> Result<u64> {
        let bytes = self.take(8)?;
        Ok(bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn length(&mut self) -> Result<u32> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    /// Memory grows with what is there, not with what the file claims.
    fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self
            .input
            .by_ref()
            .take(length as u64)
            .read_to_end(&mut bytes)
            .map_err(|err| damaged(&err.to_string()))?;
        if read < length {
            return Err(damaged("it ends too early"));
        }
        self.hash.update(&bytes);
        Ok(bytes)
    }
}

fn damaged(reason: &str) -> Error {
    Error::Damaged(format!("the snapshot: {reason}"))
}
