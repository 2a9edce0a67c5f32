//! The node's image store: content-addressed layers, unpacked once, shared by every container.
//!
//! ```text
//! images/index.json        what is here (see `index`)
//! images/configs/<digest>  the OCI configuration of each image
//! images/layers/<diff-id>/ the root of each layer, ready to be an overlay's lower directory
//! images/holds/<container> the image a container stands on, which keeps its layers
//! ```
//!
//! Several processes may use one store at once; compressed blobs are not kept.

mod archive;
mod config;
mod index;
mod reference;
mod registry;
mod unpack;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use keelson_ports as ports;
use keelson_ports::{ImageFsUsage, ImageInfo, Images, PullProgress, RegistryAuth};
use thiserror::Error;

pub use config::ImageConfig;
pub(crate) use config::host_architecture;
pub use reference::Reference;
pub use registry::{RegistryConfig, RegistryMirror};
pub(crate) use unpack::sha256 as content_digest;

use config::ConfigFile;
use index::{ImageRecord, Index, IndexFile, LayerRecord};

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, Error)]
pub enum Error {
    #[error("cannot {operation} {path}: {source}")]
    Io {
        operation: &'static str,
        path: String,
        source: Arc<io::Error>,
    },
    #[error("image {0:?} not found")]
    NotFound(String),
    #[error("{0}")]
    Invalid(String),
    #[error("cannot read {what}: {source}")]
    Json {
        what: String,
        source: Arc<serde_json::Error>,
    },
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Timeout(String),
    #[error("{0}")]
    Registry(String),
}

impl Error {
    fn io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Error::Io {
            operation,
            path: path.display().to_string(),
            source: Arc::new(source),
        }
    }

    fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let what = what.into();
        move |source| Error::Json {
            what,
            source: Arc::new(source),
        }
    }
}

impl From<Error> for ports::Error {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NotFound(_) => ports::Error::NotFound(text),
            Error::Invalid(_) => ports::Error::Invalid(text),
            Error::Unauthorized(_) => ports::Error::Unauthorized(text),
            Error::Timeout(_) => ports::Error::Timeout(text),
            Error::Io { .. } | Error::Json { .. } | Error::Registry(_) => {
                ports::Error::Failed(text)
            }
        }
    }
}

/// What a container's root file system is made of.
#[derive(Debug, Clone)]
pub struct ImageRootfs {
    /// `sha256:…` of the configuration.
    pub id: String,
    /// Directories with the layers' trees, **lowest first**; whiteouts are overlayfs'.
    pub layers: Vec<PathBuf>,
    pub config: ImageConfig,
}

type PullResult = Result<String>;
type SharedPull = Shared<BoxFuture<'static, PullResult>>;

struct Inner {
    index: IndexFile,
    registries: RegistryConfig,
    /// Pulls under way, by normalised reference and credentials.
    pulls: tokio::sync::Mutex<HashMap<String, SharedPull>>,
    configs: Mutex<HashMap<String, Arc<ConfigFile>>>,
}

/// A handle on the store under a data directory; clones share it.
#[derive(Clone)]
pub struct ImageStore(Arc<Inner>);

/// A layer that lies in a temporary directory until the image it belongs to is published.
struct UnpackedLayer {
    diff_id: String,
    dir: PathBuf,
    record: LayerRecord,
    /// Directories that the layer never described: their modes come from the layers below.
    implicit_dirs: Vec<PathBuf>,
}

impl ImageStore {
    /// Opens (and makes, where absent) the store under `<data_dir>/images`.
    pub fn open(data_dir: &Path, registries: RegistryConfig) -> Result<Self> {
        let index = IndexFile::open(&data_dir.join("images"))?;
        let inner = Inner {
            index,
            registries,
            pulls: Default::default(),
            configs: Default::default(),
        };
        Ok(ImageStore(Arc::new(inner)))
    }

    /// The layers and configuration of an image, by its id.
    pub fn rootfs(&self, image_id: &str) -> Result<ImageRootfs> {
        let index = self.0.index.read()?;
        self.rootfs_of(&index, image_id)
    }

    /// As [`Self::rootfs`], and keeps the layers in place, even when the image is removed, until
    /// [`Self::release`] of the same container. Survives restarts.
    pub fn hold(&self, container: &str, image_id: &str) -> Result<ImageRootfs> {
        let index = self.0.index.hold(container, image_id)?;
        self.touch(image_id);
        self.rootfs_of(&index, image_id)
    }

    /// Ends a hold. Idempotent.
    pub fn release(&self, container: &str) -> Result<()> {
        self.0.index.release(container)
    }

    /// Releases every container that is not in `live`.
    pub fn retain_holds(&self, live: &[String]) -> Result<()> {
        for container in self
            .0
            .index
            .holds()?
            .into_keys()
            .filter(|c| !live.contains(c))
        {
            self.release(&container)?;
        }
        Ok(())
    }

    /// Finds an image by id (or a unique prefix of at least 12 digits), digest reference or tag.
    pub fn find(&self, reference: &str) -> Result<Option<ImageInfo>> {
        let index = self.0.index.read()?;
        find_id(&index, reference)
            .map(|id| self.info(&index, &id))
            .transpose()
    }

    fn rootfs_of(&self, index: &Index, id: &str) -> Result<ImageRootfs> {
        let record = index
            .record(id)
            .ok_or_else(|| Error::NotFound(id.to_owned()))?;
        let config = self.config(id)?.config.clone();
        let layers = record
            .layers
            .iter()
            .map(|l| self.0.index.layer_dir(l))
            .collect();
        Ok(ImageRootfs {
            id: id.to_owned(),
            layers,
            config,
        })
    }

    fn config(&self, id: &str) -> Result<Arc<ConfigFile>> {
        let mut configs = self
            .0
            .configs
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(id) {
            return Ok(Arc::clone(config));
        }
        let path = self.0.index.config_path(id);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let config = Arc::new(ConfigFile::parse(&bytes, id)?);
        if configs.len() > 1024 {
            configs.clear();
        }
        configs.insert(id.to_owned(), Arc::clone(&config));
        Ok(config)
    }

    fn touch(&self, id: &str) {
        // Losing a time stamp costs nothing but a less fitting choice when disk runs short.
        let _ = fs::write(self.0.index.used_path(id), b"");
    }

    fn info(&self, index: &Index, id: &str) -> Result<ImageInfo> {
        let record = index
            .images
            .get(id)
            .ok_or_else(|| Error::NotFound(id.to_owned()))?;
        let config = self.config(id)?;
        let image = &config.config;
        let used = fs::metadata(self.0.index.used_path(id))
            .and_then(|m| m.modified())
            .ok();
        Ok(ImageInfo {
            id: id.to_owned(),
            repo_tags: record.tags.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size_bytes: record.size_bytes,
            user: image.image_user(),
            entrypoint: image.entrypoint.clone(),
            cmd: image.cmd.clone(),
            env: image.env.clone(),
            working_dir: image.working_dir.clone(),
            stop_signal: Some(image.stop_signal.clone()).filter(|s| !s.is_empty()),
            pinned: record.pinned,
            last_used_at: used.or(record.created_at),
        })
    }

    /// Adds an image made on this machine, from directories that are moved into the store.
    /// `layers` are (diff id, directory) pairs, lowest first.
    pub fn add_local(
        &self,
        reference: &str,
        config: &serde_json::Value,
        layers: Vec<(String, PathBuf)>,
        pinned: bool,
    ) -> Result<ImageInfo> {
        let reference = Reference::parse(reference)?;
        let bytes = serde_json::to_vec(config).map_err(Error::json("the image's configuration"))?;
        let id = unpack::sha256(&bytes);
        let mut unpacked = Vec::new();
        for (diff_id, dir) in &layers {
            let record = measure(dir).map_err(Error::io("measure", dir))?;
            let (diff_id, dir) = (diff_id.clone(), dir.clone());
            unpacked.push(UnpackedLayer {
                diff_id,
                dir,
                record,
                implicit_dirs: Vec::new(),
            });
        }
        let order: Vec<String> = layers.into_iter().map(|(diff_id, _)| diff_id).collect();
        self.publish(&id, &bytes, &order, unpacked, |index| {
            if let Some(tag) = reference.tagged() {
                index.set_tag(&tag, &id);
            }
            if let Some(record) = index.images.get_mut(&id) {
                record.pinned = pinned;
            }
        })?;
        self.find(&id)?.ok_or_else(|| Error::NotFound(id.clone()))
    }

    /// A fresh directory on the store's file system, for [`Self::add_local`].
    pub fn scratch_dir(&self) -> Result<PathBuf> {
        let path = self.0.index.tmp_path();
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    /// Diff ids among `wanted` that lie unpacked in the store.
    fn present_layers(&self, wanted: &[String]) -> Result<Vec<String>> {
        let index = self.0.index.read()?;
        let present =
            |l: &&String| index.layers.contains_key(*l) && self.0.index.layer_dir(l).is_dir();
        Ok(wanted.iter().filter(present).cloned().collect())
    }

    /// Moves the layers into place and enters the image, in one step under the lock.
    fn publish(
        &self,
        id: &str,
        config: &[u8],
        order: &[String],
        unpacked: Vec<UnpackedLayer>,
        name: impl FnOnce(&mut Index),
    ) -> Result<()> {
        let files = &self.0.index;
        self.inherit_implicit_dirs(order, &unpacked);
        files.update(|index| {
            let mut fresh = BTreeMap::new();
            for layer in unpacked {
                let target = files.layer_dir(&layer.diff_id);
                if !(index.layers.contains_key(&layer.diff_id) && target.is_dir()) {
                    if target.exists() {
                        let _ = fs::remove_dir_all(&target);
                    }
                    fs::rename(&layer.dir, &target)
                        .map_err(Error::io("move a layer to", &target))?;
                } else {
                    let _ = fs::remove_dir_all(&layer.dir);
                }
                fresh.insert(layer.diff_id.clone(), layer.record);
            }
            for layer in order {
                if let Some(record) = fresh.get(layer) {
                    index.layers.insert(layer.clone(), *record);
                } else if !index.layers.contains_key(layer) {
                    // Removed by somebody between our look and the lock.
                    return Err(Error::Registry(format!(
                        "layer {layer} of {id} was removed meanwhile"
                    )));
                }
            }
            index::write_atomically(&files.config_path(id), config)?;
            let size = order
                .iter()
                .filter_map(|l| index.layers.get(l))
                .map(|l| l.size_bytes)
                .sum();
            index.removed.remove(id);
            index
                .images
                .entry(id.to_owned())
                .or_insert_with(|| ImageRecord {
                    layers: order.to_vec(),
                    size_bytes: size,
                    created_at: Some(SystemTime::now()),
                    ..ImageRecord::default()
                });
            name(index);
            Ok(())
        })
    }

    /// A layer may hold `tmp/file` without an entry for `tmp`; the directory then looks as the
    /// layers below have it, or an overlay would show the made-up mode.
    fn inherit_implicit_dirs(&self, order: &[String], unpacked: &[UnpackedLayer]) {
        let dir_of = |diff_id: &String| {
            unpacked
                .iter()
                .find(|u| u.diff_id == *diff_id)
                .map_or_else(|| self.0.index.layer_dir(diff_id), |u| u.dir.clone())
        };
        for (position, diff_id) in order.iter().enumerate() {
            let Some(layer) = unpacked.iter().find(|u| u.diff_id == *diff_id) else {
                continue;
            };
            for dir in &layer.implicit_dirs {
                let below = order[..position].iter().rev().map(|l| dir_of(l).join(dir));
                let Some(meta) = below
                    .filter_map(|p| fs::symlink_metadata(p).ok())
                    .find(|m| m.is_dir())
                else {
                    continue;
                };
                let target = layer.dir.join(dir);
                let _ = std::os::unix::fs::lchown(&target, Some(meta.uid()), Some(meta.gid()));
                let _ = fs::set_permissions(&target, meta.permissions());
            }
        }
    }

    /// Removes a reference, or with an id the whole image. Idempotent.
    pub fn remove_reference(&self, reference: &str) -> Result<()> {
        let in_use: Vec<String> = self.0.index.holds()?.into_values().collect();
        self.0.index.update(|index| {
            let Some(id) = find_id(index, reference) else {
                return Ok(());
            };
            let Some(record) = index.images.get_mut(&id) else {
                return Ok(());
            };
            let by_name = Reference::parse(reference)
                .ok()
                .filter(|_| !is_id(reference));
            match by_name {
                Some(name) if !reference.contains(&id) => {
                    match (name.tagged(), &name.digest) {
                        (Some(tag), _) => record.tags.remove(&tag),
                        (None, Some(digest)) => record.digests.remove(&name.with_digest(digest)),
                        (None, None) => false,
                    };
                    // The digest was only ever known through this repository's tags.
                    let repository = format!("{}:", name.name());
                    if !record.tags.iter().any(|t| t.starts_with(&repository)) {
                        let prefix = format!("{}@", name.name());
                        record.digests.retain(|d| !d.starts_with(&prefix));
                    }
                }
                _ => {
                    record.tags.clear();
                    record.digests.clear();
                }
            }
            if record.tags.is_empty()
                && record.digests.is_empty()
                && let Some(record) = index.images.remove(&id)
                && in_use.contains(&id)
            {
                index.removed.insert(id.clone(), record);
            }
            Ok(())
        })
    }

    /// Every image in the store, by id.
    pub fn list_images(&self) -> Result<Vec<ImageInfo>> {
        let index = self.0.index.read()?;
        index
            .images
            .keys()
            .map(|id| self.info(&index, id))
            .collect()
    }
}

fn is_id(reference: &str) -> bool {
    config::check_digest(reference).is_ok()
        || (reference.len() >= 12
            && reference.len() <= 64
            && reference.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn find_id(index: &Index, reference: &str) -> Option<String> {
    if is_id(reference) {
        let full = if reference.starts_with("sha256:") {
            reference.to_owned()
        } else {
            format!("sha256:{reference}")
        };
        let mut fitting = index.images.keys().filter(|id| id.starts_with(&full));
        if let (Some(id), None) = (fitting.next(), fitting.next()) {
            return Some(id.clone());
        }
    }
    let name = Reference::parse(reference).ok()?;
    let by = |wanted: String, of: fn(&ImageRecord) -> &std::collections::BTreeSet<String>| {
        index
            .images
            .iter()
            .find(|(_, r)| of(r).contains(&wanted))
            .map(|(id, _)| id.clone())
    };
    match (&name.digest, name.tagged()) {
        // `name@<image id>` is what a container status shows for an image that has no digest.
        (Some(digest), _) => by(name.with_digest(digest), |r| &r.digests)
            .or_else(|| index.images.contains_key(digest).then(|| digest.clone())),
        (None, Some(tag)) => by(tag, |r| &r.tags),
        (None, None) => None,
    }
}

/// Size and number of files of a tree, hard links counted once.
fn measure(dir: &Path) -> io::Result<LayerRecord> {
    let mut total = LayerRecord::default();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let meta = entry
                .as_ref()
                .map_err(|e| io::Error::from(e.kind()))?
                .metadata()?;
            total.inodes += 1;
            total.size_bytes += if meta.is_file() { meta.len() } else { 0 };
            if meta.is_dir() {
                todo.push(entry?.path());
            }
        }
    }
    Ok(total)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => Err(Error::Registry(format!(
            "the image store's worker failed: {e}"
        ))),
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn resolve(&self, reference: &str) -> ports::Result<Option<ImageInfo>> {
        Ok(self.find(reference)?)
    }

    async fn pull(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        progress: Option<Arc<dyn PullProgress>>,
    ) -> ports::Result<ImageInfo> {
        let name = Reference::parse(reference)?;
        let key = registry::pull_key(&name, auth);
        let pull = {
            let mut pulls = self.0.pulls.lock().await;
            pulls.retain(|_, pull| pull.peek().is_none());
            pulls
                .entry(key)
                .or_insert_with(|| {
                    let (store, auth) = (self.clone(), auth.to_vec());
                    // A task of its own: a caller that gives up does not stop the others' pull.
                    let task = tokio::spawn(async move {
                        registry::pull(&store, &name, &auth, progress).await
                    });
                    let result = async move {
                        task.await.unwrap_or_else(|e| {
                            Err(Error::Registry(format!("the pull failed: {e}")))
                        })
                    };
                    result.boxed().shared()
                })
                .clone()
        };
        let id = pull.await?;
        self.find(&id)?.ok_or_else(|| {
            ports::Error::Failed(format!("image {reference} was removed while it was pulled"))
        })
    }

    async fn import(&self, archive: &Path) -> ports::Result<Vec<ImageInfo>> {
        let (store, path) = (self.clone(), archive.to_owned());
        Ok(blocking(move || archive::import(&store, &path)).await?)
    }

    async fn list(&self) -> ports::Result<Vec<ImageInfo>> {
        let store = self.clone();
        Ok(blocking(move || store.list_images()).await?)
    }

    async fn remove(&self, reference: &str) -> ports::Result<()> {
        let (store, reference) = (self.clone(), reference.to_owned());
        Ok(blocking(move || store.remove_reference(&reference)).await?)
    }

    async fn fs_usage(&self) -> ports::Result<ImageFsUsage> {
        let index = self.0.index.read()?;
        let root = self.0.index.root();
        let stat = rustix::fs::statvfs(root).map_err(|e| Error::io("measure", root)(e.into()))?;
        Ok(ImageFsUsage {
            used_bytes: index.layers.values().map(|l| l.size_bytes).sum(),
            used_inodes: index.layers.values().map(|l| l.inodes).sum(),
            // Reserved blocks are no capacity, as elsewhere.
            capacity_bytes: (stat.f_blocks.saturating_sub(stat.f_bfree) + stat.f_bavail)
                * stat.f_frsize,
            available_bytes: stat.f_bavail * stat.f_frsize,
        })
    }
}

#[cfg(test)]
mod tests;
