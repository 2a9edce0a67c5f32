//! The file under redb, watched for the two failures that need an answer of their own: a full
//! disk, and an fsync that failed.

use std::fmt::Debug;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;

/// Opens the storage again and again: after a failed write, what redb holds in memory is of no
/// more use.
pub type Opener = Box<dyn Fn() -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

pub(crate) fn opener(path: &Path) -> Opener {
    let path = path.to_owned();
    Box::new(move || Ok(Box::new(PlainFile(private(&path)?))))
}

/// Opens or makes a file that its owner alone may read, for it holds every Secret; one that an
/// earlier version left open is closed.
pub(crate) fn private(path: &Path) -> io::Result<File> {
    const MODE: u32 = 0o600;
    let file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .mode(MODE)
        .open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    Ok(file)
}

/// The directory's lock keeps others away, so that the file itself needs none.
#[derive(Debug)]
struct PlainFile(File);

impl StorageBackend for PlainFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// What went wrong since the storage was opened first.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The kernel may have dropped what it could not write and says so once, so that nothing
    /// written before can be trusted, whatever a later fsync says.
    sync_failed: AtomicBool,
    /// The last write found no room.
    full: AtomicBool,
}

impl Faults {
    pub(crate) fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    pub(crate) fn take_full(&self) -> bool {
        self.full.swap(false, Ordering::AcqRel)
    }

    fn write<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && matches!(
                error.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            )
        {
            self.full.store(true, Ordering::Release);
        }
        result
    }
}

#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) inner: Box<dyn StorageBackend>,
    pub(crate) faults: Arc<Faults>,
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.faults.write(self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data().inspect_err(|_| {
            self.faults.sync_failed.store(true, Ordering::Release);
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.faults.write(self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}
