//! The file: redb tables, the format's version, and the lock on the directory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::backends::InMemoryBackend;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::{Error, KeyValue, Result, Revision};

/// Raised when the tables change shape; a file with a higher number is refused.
const FORMAT_VERSION: u64 = 1;
/// Everything is read from memory, so redb needs room for the pages of a few commits only.
const CACHE_SIZE_BYTES: usize = 4 << 20;
/// Files smaller than this are not worth compacting.
const RECLAIM_FLOOR_BYTES: u64 = 64 << 20;
/// etcd's first revision is 1 as well; resourceVersion 0 has a meaning of its own.
const FIRST_REVISION: Revision = 1;

const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Value rows begin with the two revisions, big endian.
const ROW_HEADER: usize = 16;

pub(crate) struct Disk {
    database: Database,
    path: Option<PathBuf>,
    /// Held for its lock; released when the process ends, however it ends.
    _lock: Option<File>,
}

pub(crate) enum Change<'a> {
    Put(&'a KeyValue),
    Delete(&'a str),
}

impl Disk {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let fail = |reason: String| Error::Open {
            path: dir.display().to_string(),
            reason,
        };
        fs::create_dir_all(dir).map_err(|err| fail(err.to_string()))?;
        let lock = lock(&dir.join("store.lock")).map_err(fail)?;
        let path = dir.join("store.redb");
        let database = builder()
            .create(&path)
            .map_err(|err| fail(err.to_string()))?;
        let disk = Self {
            database,
            path: Some(path),
            _lock: Some(lock),
        };
        disk.check_format().map_err(|err| fail(err.to_string()))?;
        Ok(disk)
    }

    pub(crate) fn memory() -> Result<Self> {
        let database = builder()
            .create_with_backend(InMemoryBackend::new())
            .map_err(io)?;
        let disk = Self {
            database,
            path: None,
            _lock: None,
        };
        disk.check_format()?;
        Ok(disk)
    }

    fn check_format(&self) -> Result<()> {
        let transaction = self.database.begin_write().map_err(io)?;
        {
            let mut meta = transaction.open_table(META).map_err(io)?;
            let found = meta.get("format").map_err(io)?.map(|v| v.value());
            match found {
                Some(version) if version > FORMAT_VERSION => {
                    return Err(Error::Io(format!(
                        "the data directory is from a newer version (format {version}, this one knows {FORMAT_VERSION})"
                    )));
                }
                Some(_) => return Ok(()),
                None => {
                    meta.insert("format", FORMAT_VERSION).map_err(io)?;
                    meta.insert("revision", FIRST_REVISION).map_err(io)?;
                    transaction.open_table(KEYS).map_err(io)?;
                }
            }
        }
        transaction.commit().map_err(io)
    }

    pub(crate) fn load(&self) -> Result<(Revision, BTreeMap<Arc<str>, KeyValue>)> {
        let transaction = self.database.begin_read().map_err(io)?;
        let meta = transaction.open_table(META).map_err(io)?;
        let revision = meta
            .get("revision")
            .map_err(io)?
            .map_or(FIRST_REVISION, |v| v.value());
        let mut live = BTreeMap::new();
        for row in transaction
            .open_table(KEYS)
            .map_err(io)?
            .iter()
            .map_err(io)?
        {
            let (key, row) = row.map_err(io)?;
            let key: Arc<str> = key.value().into();
            let row = row.value();
            let Some((header, value)) = row.split_at_checked(ROW_HEADER) else {
                return Err(Error::Io(format!("the row of {key} is damaged")));
            };
            let (create, modified) = header.split_at(8);
            let kv = KeyValue {
                key: Arc::clone(&key),
                value: Bytes::copy_from_slice(value),
                create_revision: revision_of(create),
                mod_revision: revision_of(modified),
            };
            live.insert(key, kv);
        }
        Ok((revision, live))
    }

    /// One transaction, durable when this returns.
    pub(crate) fn write<'a>(
        &self,
        revision: Revision,
        changes: impl Iterator<Item = Change<'a>>,
    ) -> Result<()> {
        let mut transaction = self.database.begin_write().map_err(io)?;
        transaction.set_quick_repair(true);
        {
            let mut keys = transaction.open_table(KEYS).map_err(io)?;
            let mut row = Vec::new();
            for change in changes {
                match change {
                    Change::Put(kv) => {
                        row.clear();
                        row.extend_from_slice(&kv.create_revision.to_be_bytes());
                        row.extend_from_slice(&kv.mod_revision.to_be_bytes());
                        row.extend_from_slice(&kv.value);
                        keys.insert(&*kv.key, row.as_slice()).map_err(io)?;
                    }
                    Change::Delete(key) => {
                        keys.remove(key).map_err(io)?;
                    }
                }
            }
            transaction
                .open_table(META)
                .map_err(io)?
                .insert("revision", revision)
                .map_err(io)?;
        }
        transaction.commit().map_err(io)
    }

    /// Gives pages back to the file system when most of a large file is free.
    pub(crate) fn reclaim(&mut self) -> Result<()> {
        let size_bytes = self.size_bytes();
        if size_bytes < RECLAIM_FLOOR_BYTES {
            return Ok(());
        }
        let transaction = self.database.begin_write().map_err(io)?;
        let stored_bytes = transaction.stats().map_err(io)?.stored_bytes();
        transaction.abort().map_err(io)?;
        if stored_bytes * 3 < size_bytes {
            self.database.compact().map_err(io)?;
        }
        Ok(())
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.path
            .as_ref()
            .and_then(|path| fs::metadata(path).ok())
            .map_or(0, |m| m.len())
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_SIZE_BYTES);
    builder
}

fn lock(path: &Path) -> Result<File, String> {
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(path)
        .map_err(|err| err.to_string())?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The file is tiny; a missing number only makes the message shorter.
            let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut pid);
            return Err(match pid.trim() {
                "" => "in use by another keelson".to_owned(),
                pid => format!("in use by another keelson (pid {pid})"),
            });
        }
        Err(TryLockError::Error(err)) => return Err(err.to_string()),
    }
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|err| err.to_string())?;
    Ok(file)
}

fn revision_of(bytes: &[u8]) -> Revision {
    bytes
        .iter()
        .fold(0, |revision, byte| revision << 8 | u64::from(*byte))
}

fn io(err: impl std::fmt::Display) -> Error {
    Error::Io(err.to_string())
}
