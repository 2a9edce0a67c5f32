//! What is in the store: one JSON file, replaced atomically, shared by every process that has the
//! directory open. Writers hold a file lock; readers notice a new file by its identity.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::{Error, Result};

/// A directory that nobody knows of is a crashed unpack's only after this time: a pull in another
/// process may be about to publish it.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// `registry/repository:tag`.
    #[serde(default)]
    pub(super) tags: BTreeSet<String>,
    /// `registry/repository@sha256:…`.
    #[serde(default)]
    pub(super) digests: BTreeSet<String>,
    /// Diff ids, lowest first.
    pub(super) layers: Vec<String>,
    pub(super) size_bytes: u64,
    #[serde(default)]
    pub(super) pinned: bool,
    pub(super) created_at: Option<SystemTime>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) size_bytes: u64,
    pub(super) inodes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Index {
    /// By image id (`sha256:…` of the configuration).
    #[serde(default)]
    pub(super) images: BTreeMap<String, ImageRecord>,
    /// Removed images whose layers a container still runs on.
    #[serde(default)]
    pub(super) removed: BTreeMap<String, ImageRecord>,
    /// By diff id.
    #[serde(default)]
    pub(super) layers: BTreeMap<String, LayerRecord>,
}

impl Index {
    pub(super) fn record(&self, id: &str) -> Option<&ImageRecord> {
        self.images.get(id).or_else(|| self.removed.get(id))
    }

    /// Gives `reference` to `id` alone.
    pub(super) fn set_tag(&mut self, reference: &str, id: &str) {
        for record in self.images.values_mut() {
            record.tags.remove(reference);
        }
        if let Some(record) = self.images.get_mut(id) {
            record.tags.insert(reference.to_owned());
        }
    }

    /// Layers that no image, nor a removed image in use, needs any more.
    fn unreferenced(&self) -> Vec<String> {
        let needed: BTreeSet<&String> = self
            .images
            .values()
            .chain(self.removed.values())
            .flat_map(|r| &r.layers)
            .collect();
        self.layers
            .keys()
            .filter(|l| !needed.contains(l))
            .cloned()
            .collect()
    }
}

/// When a file was replaced, at least one of these differs.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Stamp(u64, u64, i64, i64);

pub(super) struct IndexFile {
    root: PathBuf,
    cached: Mutex<(Stamp, Arc<Index>)>,
}

impl IndexFile {
    pub(super) fn open(root: &Path) -> Result<Self> {
        for dir in ["", "layers", "configs", "holds", "tmp", "used"] {
            let path = root.join(dir);
            fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        // Layers hold programs with set-user-id bits and device nodes: no path from outside leads there.
        rustix::fs::chmod(root, Mode::from_raw_mode(0o700))
            .map_err(|e| Error::io("set the mode of", root)(e.into()))?;
        let file = IndexFile {
            root: root.to_owned(),
            cached: Mutex::new((Stamp::default(), Arc::default())),
        };
        file.read()?;
        file.sweep_leftovers();
        Ok(file)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn layer_dir(&self, diff_id: &str) -> PathBuf {
        self.root.join("layers").join(digest_file_name(diff_id))
    }

    pub(super) fn config_path(&self, id: &str) -> PathBuf {
        self.root.join("configs").join(digest_file_name(id))
    }

    pub(super) fn tmp_path(&self) -> PathBuf {
        self.root
            .join("tmp")
            .join(uuid::Uuid::new_v4().simple().to_string())
    }

    /// The current index; the file is parsed again only when it was replaced.
    pub(super) fn read(&self) -> Result<Arc<Index>> {
        let path = self.root.join("index.json");
        let stamp = match fs::metadata(&path) {
            Ok(m) => Stamp(m.ino(), m.size(), m.mtime(), m.mtime_nsec()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Arc::default()),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.0 != stamp {
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            let index =
                serde_json::from_slice(&bytes).map_err(Error::json(path.display().to_string()))?;
            *cached = (stamp, Arc::new(index));
        }
        Ok(Arc::clone(&cached.1))
    }

    /// Changes the index under the lock and deletes the layers that fell out of use.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let _lock = self.lock()?;
        let before = self.read()?;
        let mut index = (*before).clone();
        let result = change(&mut index)?;
        let held: BTreeSet<String> = self.holds()?.into_values().collect();
        index.removed.retain(|id, _| held.contains(id));
        let gone = index.unreferenced();
        for layer in &gone {
            index.layers.remove(layer);
        }
        if index == *before {
            return Ok(result);
        }
        let bytes = serde_json::to_vec(&index).map_err(Error::json("the image index"))?;
        write_atomically(&self.root.join("index.json"), &bytes)?;
        for id in before.images.keys().chain(before.removed.keys()) {
            if index.record(id).is_none() {
                let _ = fs::remove_file(self.config_path(id));
                let _ = fs::remove_file(self.used_path(id));
            }
        }
        for layer in gone {
            self.delete_tree(&self.layer_dir(&layer));
        }
        Ok(result)
    }

    /// Moves a tree out of sight first, so that a crash never leaves half a layer in place.
    fn delete_tree(&self, path: &Path) {
        let hidden = self.tmp_path();
        if fs::rename(path, &hidden).is_ok() {
            std::thread::spawn(move || {
                if let Err(error) = fs::remove_dir_all(&hidden) {
                    tracing::warn!(path = %hidden.display(), %error, "cannot delete an unused layer");
                }
            });
        }
    }

    /// Which image each container stands on.
    pub(super) fn holds(&self) -> Result<BTreeMap<String, String>> {
        let dir = self.root.join("holds");
        let mut holds = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
            let entry = entry.map_err(Error::io("list", &dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match fs::read_to_string(entry.path()) {
                Ok(id) if !name.starts_with('.') => drop(holds.insert(name, id)),
                _ => {}
            }
        }
        Ok(holds)
    }

    pub(super) fn hold(&self, container: &str, id: &str) -> Result<Arc<Index>> {
        let _lock = self.lock()?;
        let index = self.read()?;
        if index.record(id).is_none() {
            return Err(Error::NotFound(id.to_owned()));
        }
        let path = self.hold_path(container)?;
        write_atomically(&path, id.as_bytes())?;
        Ok(index)
    }

    pub(super) fn release(&self, container: &str) -> Result<()> {
        let path = self.hold_path(container)?;
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io("remove", &path)(e)),
        }
        if self.read()?.removed.is_empty() {
            Ok(())
        } else {
            self.update(|_| Ok(()))
        }
    }

    fn hold_path(&self, container: &str) -> Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if container.is_empty() || container.starts_with('.') || !container.chars().all(plain) {
            return Err(Error::Invalid(format!(
                "{container:?} cannot name a container"
            )));
        }
        Ok(self.root.join("holds").join(container))
    }

    /// The file whose time stamp says when an image was last used.
    pub(super) fn used_path(&self, id: &str) -> PathBuf {
        self.root.join("used").join(digest_file_name(id))
    }

    pub(super) fn lock(&self) -> Result<OwnedFd> {
        let path = self.root.join("lock");
        let open = || -> io::Result<OwnedFd> {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))?;
            rustix::fs::flock(&fd, FlockOperation::LockExclusive)?;
            Ok(fd)
        };
        open().map_err(Error::io("lock", &path))
    }

    /// Deletes what a crash left behind: half-made trees, and layers that were never published.
    fn sweep_leftovers(&self) {
        let Ok(index) = self.read() else { return };
        let known: BTreeSet<String> = index.layers.keys().map(|l| digest_file_name(l)).collect();
        for dir in ["tmp", "layers"] {
            let Ok(entries) = fs::read_dir(self.root.join(dir)) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let old = entry.metadata().is_ok_and(|m| {
                    let changed = SystemTime::UNIX_EPOCH
                        + Duration::from_secs(u64::try_from(m.ctime()).unwrap_or(0));
                    changed.elapsed().is_ok_and(|age| age > ORPHAN_AGE)
                });
                if old && !(dir == "layers" && known.contains(&name)) {
                    self.delete_tree(&entry.path());
                }
            }
        }
    }
}

/// `sha256:abc` is kept as `sha256-abc`: a colon would split an overlay's `lowerdir` option.
pub(super) fn digest_file_name(digest: &str) -> String {
    digest.replace([':', '/'], "-")
}

pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let tmp = path.with_file_name(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
    let write = || -> io::Result<()> {
        let mut file = fs::File::create_new(&tmp)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&tmp, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&tmp);
        Error::io("write", path)(e)
    })
}
