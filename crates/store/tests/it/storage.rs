//! Storage for the embedded engine that remembers what was done to it and fails when told to.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use keelson_store::embedded::{self, Opener, Retention};
use keelson_store::{Result, SharedStore};
use redb::StorageBackend;

use crate::model::Random;

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
    Sync,
}

/// What happens to the calls that change the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The next call fails, after half of what it wrote.
    Once(io::ErrorKind),
    /// Nothing that makes the storage larger than it is works, nor does any write.
    Full,
    /// The next fsync fails; what was written since the last may or may not be there.
    Sync,
}

#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) ops: Vec<Op>,
    pub(crate) fault: Option<Fault>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Storage(Arc<Mutex<Disk>>);

impl Storage {
    pub(crate) fn holding(bytes: Vec<u8>) -> Self {
        let disk = Disk {
            bytes,
            ..Disk::default()
        };
        Self(Arc::new(Mutex::new(disk)))
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Disk) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn open(&self) -> Result<SharedStore> {
        let storage = self.clone();
        let opener: Opener = Box::new(move || Ok(Box::new(storage.clone())));
        embedded::open_on(opener, Retention::default())
    }
}

impl Disk {
    fn apply(&mut self, op: &Op) {
        apply(&mut self.bytes, op);
    }
}

fn apply(bytes: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { offset, data } => {
            let end = offset + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(data);
        }
        Op::SetLen(len) => bytes.resize(*len, 0),
        Op::Sync => {}
    }
}

/// What may be found after the power went at `cut`: everything up to the last fsync before it, and
/// of what came after, some writes, some of them torn at a sector.
pub(crate) fn image(ops: &[Op], cut: usize, random: &mut Random) -> Vec<u8> {
    const SECTOR: usize = 512;
    let durable = ops[..cut]
        .iter()
        .rposition(|op| matches!(op, Op::Sync))
        .map_or(0, |sync| sync + 1);
    let mut bytes = Vec::new();
    for op in &ops[..durable] {
        apply(&mut bytes, op);
    }
    for op in &ops[durable..cut] {
        match (op, random.next(3)) {
            (Op::Write { .. }, 0) => {}
            (Op::Write { offset, data }, 1) => {
                let sectors = (data.len() / SECTOR) as u64;
                let kept = SECTOR * random.next(sectors + 1) as usize;
                let (start, data) = match random.next(2) {
                    0 => (*offset, &data[..kept]),
                    _ => (offset + data.len() - kept, &data[data.len() - kept..]),
                };
                let data = data.to_vec();
                apply(
                    &mut bytes,
                    &Op::Write {
                        offset: start,
                        data,
                    },
                );
            }
            (op, _) => apply(&mut bytes, op),
        }
    }
    bytes
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|disk| disk.bytes.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|disk| {
            let start = offset as usize;
            let bytes = disk.bytes.get(start..start + out.len());
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Op::SetLen(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(Op::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (offset, data) = (offset as usize, data.to_vec());
        self.change(Op::Write { offset, data })
    }
}

impl Storage {
    fn change(&self, op: Op) -> io::Result<()> {
        self.with(|disk| {
            match (disk.fault, &op) {
                (Some(Fault::Once(kind)), op) => {
                    disk.fault = None;
                    if let Op::Write { offset, data } = op {
                        let half = data[..data.len() / 2].to_vec();
                        disk.apply(&Op::Write {
                            offset: *offset,
                            data: half,
                        });
                    }
                    return Err(kind.into());
                }
                (Some(Fault::Full), Op::Write { .. }) => {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                (Some(Fault::Full), Op::SetLen(len)) if *len > disk.bytes.len() => {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                (Some(Fault::Sync), Op::Sync) => {
                    disk.fault = None;
                    return Err(io::Error::other("the device is gone"));
                }
                _ => {}
            }
            disk.apply(&op);
            disk.ops.push(op);
            Ok(())
        })
    }
}
