//! The file: redb tables, the format's version, and the lock on the directory.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::backends::InMemoryBackend;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::file::{self, Faults, Opener, Watched};
use crate::{Error, KeyValue, Result, Revision};

/// Raised when the tables change shape; a file with a higher number is refused.
const FORMAT_VERSION: u64 = 1;
/// Everything is read from memory, so redb needs room for the pages of a few commits only.
const CACHE_SIZE_BYTES: usize = 4 << 20;
/// Files smaller than this are not worth compacting.
const RECLAIM_FLOOR_BYTES: u64 = 64 << 20;
/// etcd's first revision is 1 as well; resourceVersion 0 has a meaning of its own.
const FIRST_REVISION: Revision = 1;

/// The database, in the store's directory.
pub(crate) const FILE: &str = "store.redb";

const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Value rows begin with the two revisions, big endian.
const ROW_HEADER: usize = 16;

pub(crate) struct Disk {
    opener: Opener,
    faults: Arc<Faults>,
    /// Absent after a failure, until the storage could be opened again.
    database: Option<Database>,
    path: Option<PathBuf>,
    reclaim_floor_bytes: u64,
    /// Held for its lock; released when the process ends, however it ends.
    _lock: Option<File>,
}

pub(crate) enum Change<'a> {
    Put(&'a KeyValue),
    Delete(&'a str),
}

/// What became of a transaction that failed.
pub(crate) enum Outcome {
    /// It was durable before the failure.
    Written,
    /// Nothing of it is there, and the next one may be tried.
    NotWritten(Error),
    /// Nobody can say. Nothing more may be acknowledged by this process.
    Unknown(Error),
}

impl Disk {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let fail = |reason: String| Error::Open {
            path: dir.display().to_string(),
            reason,
        };
        fs::create_dir_all(dir).map_err(|err| fail(err.to_string()))?;
        let lock = lock(&dir.join("store.lock")).map_err(fail)?;
        let path = dir.join(FILE);
        let opened = create(dir).and_then(|()| Self::open_on(file::opener(&path)));
        let mut disk = opened.map_err(|err| match err {
            Error::Damaged(reason) => fail(format!(
                "the file {FILE} is damaged ({reason}): restore a snapshot with `keelson snapshot \
                 restore`, or move the directory away to start with an empty store"
            )),
            err => fail(err.to_string()),
        })?;
        disk.path = Some(path);
        disk._lock = Some(lock);
        Ok(disk)
    }

    pub(crate) fn memory() -> Result<Self> {
        // It is opened once: memory does not fail.
        Self::open_on(Box::new(|| Ok(Box::new(InMemoryBackend::new()))))
    }

    /// Verifies every page's checksum before anything is read.
    pub(crate) fn open_on(opener: Opener) -> Result<Self> {
        let mut disk = Self {
            opener,
            faults: Arc::default(),
            database: None,
            path: None,
            reclaim_floor_bytes: RECLAIM_FLOOR_BYTES,
            _lock: None,
        };
        let mut database = disk.open_database()?;
        match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("the store's file was not closed in order and has been repaired");
            }
            Err(err) => return Err(Error::Damaged(err.to_string())),
        }
        disk.database = Some(database);
        disk.check_format()?;
        Ok(disk)
    }

    fn open_database(&self) -> Result<Database> {
        let inner = (self.opener)().map_err(io)?;
        let watched = Watched {
            inner,
            faults: Arc::clone(&self.faults),
        };
        builder()
            .create_with_backend(watched)
            .map_err(|err| match err {
                redb::DatabaseError::Storage(redb::StorageError::Io(err))
                    if err.kind() != std::io::ErrorKind::InvalidData =>
                {
                    io(err)
                }
                err => Error::Damaged(err.to_string()),
            })
    }

    fn database(&self) -> Result<&Database> {
        let closed = || Error::Io("the store's file could not be opened again".to_owned());
        self.database.as_ref().ok_or_else(closed)
    }

    fn check_format(&self) -> Result<()> {
        let transaction = self.database()?.begin_write().map_err(io)?;
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

    fn revision(&self) -> Result<Revision> {
        let transaction = self.database()?.begin_read().map_err(io)?;
        let meta = transaction.open_table(META).map_err(io)?;
        let revision = meta.get("revision").map_err(io)?;
        Ok(revision.map_or(FIRST_REVISION, |v| v.value()))
    }

    /// After a failed transaction from `before` to `after`: opens the storage again and looks.
    pub(crate) fn recover(&mut self, before: Revision, after: Revision, err: Error) -> Outcome {
        if self.faults.sync_failed() {
            return Outcome::Unknown(err);
        }
        let err = match self.faults.take_full() {
            true => Error::Full(err.to_string()),
            false => err,
        };
        self.database = None;
        match self.reopen() {
            Ok(revision) if revision == before => Outcome::NotWritten(err),
            Ok(revision) if revision == after => Outcome::Written,
            Ok(_) => Outcome::Unknown(err),
            // The next write tries again, and finds out.
            Err(reason) => {
                tracing::warn!(%reason, "the store's file cannot be opened again");
                Outcome::NotWritten(err)
            }
        }
    }

    fn reopen(&mut self) -> Result<Revision> {
        self.database = Some(self.open_database()?);
        self.revision()
    }

    pub(crate) fn load(&self) -> Result<(Revision, BTreeMap<Arc<str>, KeyValue>)> {
        let revision = self.revision()?;
        let transaction = self.database()?.begin_read().map_err(io)?;
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
                return Err(Error::Damaged(format!("the row of {key}")));
            };
            let (create, modified) = header.split_at(8);
            let kv = KeyValue {
                key: Arc::clone(&key),
                value: Bytes::copy_from_slice(value),
                create_revision: revision_of(create),
                mod_revision: revision_of(modified),
            };
            if kv.mod_revision > revision {
                return Err(Error::Damaged(format!("{key} is newer than the store")));
            }
            live.insert(key, kv);
        }
        Ok((revision, live))
    }

    /// One transaction from `before` to `revision`, durable when this returns.
    pub(crate) fn write<'a>(
        &mut self,
        before: Revision,
        revision: Revision,
        changes: impl Iterator<Item = Change<'a>>,
    ) -> Result<()> {
        if self.database.is_none() && self.reopen()? != before {
            return Err(Error::Damaged(
                "a write that was given up is there after all".to_owned(),
            ));
        }
        // One phase, one fsync. Quick repair would take a second phase and save the allocator's
        // state with every commit, to spare the next start a scan that it makes in any case.
        let transaction = self.database()?.begin_write().map_err(io)?;
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
        if size_bytes < self.reclaim_floor_bytes {
            return Ok(());
        }
        let Some(database) = &mut self.database else {
            return Ok(());
        };
        let transaction = database.begin_write().map_err(io)?;
        let stored_bytes = transaction.stats().map_err(io)?.stored_bytes();
        transaction.abort().map_err(io)?;
        if stored_bytes * 3 < size_bytes {
            // Pages freed by recent commits come free with the commits of the compaction itself.
            while database.compact().map_err(io)? {}
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

/// Makes the file under another name first: a power cut while redb lays it out would leave one
/// that neither opens nor says that it is empty.
fn create(dir: &Path) -> Result<()> {
    let path = dir.join(FILE);
    match fs::metadata(&path) {
        // A store gets its name when it is whole: an empty file is one that was lost.
        Ok(found) if found.len() == 0 => return Err(Error::Damaged("it is empty".to_owned())),
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let (disk, new) = unnamed(dir)?;
    drop(disk);
    publish(&new, &path)
}

/// A new store that is filled from outside. Nothing has its name before it is whole.
pub(crate) struct Restore {
    disk: Disk,
    new: PathBuf,
    path: PathBuf,
}

impl Restore {
    pub(crate) fn begin(dir: &Path) -> Result<Self> {
        let fail = |reason: String| Error::Open {
            path: dir.display().to_string(),
            reason,
        };
        fs::create_dir_all(dir).map_err(|err| fail(err.to_string()))?;
        let lock = lock(&dir.join("store.lock")).map_err(fail)?;
        let path = dir.join(FILE);
        if path.exists() {
            return Err(fail("there is a store already".to_owned()));
        }
        let (mut disk, new) = unnamed(dir)?;
        disk._lock = Some(lock);
        Ok(Self { disk, new, path })
    }

    pub(crate) fn add(&mut self, rows: &[KeyValue]) -> Result<()> {
        let rows = rows.iter().map(Change::Put);
        self.disk.write(FIRST_REVISION, FIRST_REVISION, rows)
    }

    pub(crate) fn finish(mut self, revision: Revision) -> Result<()> {
        self.disk
            .write(FIRST_REVISION, revision, std::iter::empty())?;
        // The lock is held until the file has its name.
        self.disk.database = None;
        publish(&self.new, &self.path)
    }
}

/// An empty database under another name, instead of one that was not finished.
fn unnamed(dir: &Path) -> Result<(Disk, PathBuf)> {
    let new = dir.join(format!("{FILE}.new"));
    match fs::remove_file(&new) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(io(err)),
        _ => {}
    }
    Ok((Disk::open_on(file::opener(&new))?, new))
}

/// Gives a finished file its name, durably.
fn publish(new: &Path, path: &Path) -> Result<()> {
    File::open(new)
        .and_then(|file| file.sync_all())
        .map_err(io)?;
    fs::rename(new, path).map_err(io)?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_SIZE_BYTES);
    builder
}

fn lock(path: &Path) -> Result<File, String> {
    let mut file = file::private(path).map_err(|err| err.to_string())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(i: u32, size: usize) -> KeyValue {
        KeyValue {
            key: format!("/k{i:04}").into(),
            value: vec![7; size].into(),
            create_revision: 2,
            mod_revision: 2,
        }
    }

    #[test]
    fn a_file_that_is_mostly_free_shrinks() {
        let dir = std::env::temp_dir().join(format!("keelson-reclaim-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let mut disk = Disk::open(&dir).expect("a new directory");
        disk.reclaim_floor_bytes = 1 << 20;
        let rows: Vec<KeyValue> = (0..64).map(|i| kv(i, 64 << 10)).collect();
        disk.write(1, 2, rows.iter().map(Change::Put))
            .expect("room");
        let kept = disk.size_bytes();
        let gone = rows[1..].iter().map(|kv| Change::Delete(&kv.key));
        disk.write(2, 3, gone).expect("room");
        disk.reclaim().expect("a compaction");
        assert!(
            disk.size_bytes() < kept / 3,
            "{} of {kept}",
            disk.size_bytes()
        );
        let (revision, live) = disk.load().expect("it is whole");
        assert_eq!((revision, live.len()), (3, 1));
        drop(disk);
        fs::remove_dir_all(dir).expect("it is ours");
    }
}
