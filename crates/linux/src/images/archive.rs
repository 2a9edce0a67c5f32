//! Images from files: OCI layouts and `docker save` archives, compressed or not.
//!
//! Both are tar files of blobs with a small directory. The blobs may stand in any order, so the
//! archive is first spread into a scratch directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::config::{ConfigFile, Descriptor, Manifest, check_digest};
use super::{Error, ImageStore, Reference, Result, unpack};
use keelson_ports::ImageInfo;

const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
const NAME_ANNOTATIONS: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// An entry of `manifest.json` in a `docker save` archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Imports every image for this platform; with a directory, one in the OCI layout.
pub(super) fn import(store: &ImageStore, path: &Path) -> Result<Vec<ImageInfo>> {
    if path.is_dir() {
        return import_tree(store, path);
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let scratch = store.scratch_dir()?;
    let result = spread(file, &scratch)
        .map_err(Error::io("read", path))
        .and_then(|()| import_tree(store, &scratch));
    let _ = fs::remove_dir_all(&scratch);
    result.map_err(|e| match e {
        Error::NotFound(_) => Error::Invalid(format!(
            "{} is neither an OCI layout nor a `docker save` archive: it has no index.json and no manifest.json",
            path.display()
        )),
        other => other,
    })
}

/// Copies the archive's plain files out; links inside `docker save` archives point to layers.
fn spread(file: File, into: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(unpack::decompress(io::BufReader::new(file))?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = into.join(plain_path(&entry.path()?)?);
        match entry.header().entry_type() {
            tar::EntryType::Regular => {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                io::copy(&mut entry, &mut File::create(&path)?)?;
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let target = entry.link_name()?.unwrap_or_default().into_owned();
                let base = match entry.header().entry_type() {
                    tar::EntryType::Link => PathBuf::new(),
                    _ => entry.path()?.parent().unwrap_or(Path::new("")).to_owned(),
                };
                let source = into.join(plain_path(&base.join(target))?);
                if source.is_file() {
                    if let Some(parent) = path.parent() {
                        fs::create_dir_all(parent)?;
                    }
                    fs::hard_link(source, &path)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A relative path that stays below its start.
fn plain_path(path: &Path) -> io::Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir if out.pop() => {}
            _ => {
                return Err(io::Error::other(format!(
                    "{} leaves the archive",
                    path.display()
                )));
            }
        }
    }
    Ok(out)
}

fn import_tree(store: &ImageStore, root: &Path) -> Result<Vec<ImageInfo>> {
    // Recent `docker save` archives are both; the older form names the tags in full.
    if root.join("manifest.json").is_file() {
        return import_docker(store, root);
    }
    if !root.join("index.json").is_file() {
        return Err(Error::NotFound(root.display().to_string()));
    }
    let index = Manifest::parse(&document(root, Path::new("index.json"))?, "the archive")?;
    let mut images = Vec::new();
    for descriptor in &index.manifests {
        let name = NAME_ANNOTATIONS
            .iter()
            .find_map(|key| descriptor.annotations.get(*key));
        // The reference annotation may be a bare tag, which names nothing.
        let name = name
            .filter(|n| n.contains(['/', ':']))
            .map(|n| Reference::parse(n))
            .transpose()?;
        if let Some(image) = import_manifest(store, root, descriptor, name.as_ref())? {
            images.push(image);
        }
    }
    if images.is_empty() {
        return Err(Error::Invalid(
            "the archive holds no image for this platform".into(),
        ));
    }
    Ok(images)
}

fn import_manifest(
    store: &ImageStore,
    root: &Path,
    descriptor: &Descriptor,
    name: Option<&Reference>,
) -> Result<Option<ImageInfo>> {
    let mut digest = descriptor.digest.clone();
    let mut manifest = Manifest::parse(&document(root, &blob_path(&digest)?)?, &digest)?;
    if !manifest.manifests.is_empty() {
        let chosen = manifest.choose_platform(&digest)?.clone();
        digest = chosen.digest;
        manifest = Manifest::parse(&document(root, &blob_path(&digest)?)?, &digest)?;
    }
    let Some(config) = &manifest.config else {
        return Err(Error::Invalid(format!(
            "manifest {digest} has no configuration"
        )));
    };
    let config = document(root, &blob_path(&config.digest)?)?;
    let parsed = ConfigFile::parse(&config, &digest)?;
    if parsed.rootfs.diff_ids.len() != manifest.layers.len() {
        // Attestations and other artifacts ride along in an index; they are no images.
        return Ok(None);
    }
    let mut layers = Vec::new();
    for (diff_id, layer) in parsed.rootfs.diff_ids.iter().zip(&manifest.layers) {
        layers.push((
            diff_id.clone(),
            root.join(blob_path(&layer.digest)?),
            Some(layer.clone()),
        ));
    }
    finish(store, &config, layers, |index, id| {
        if let Some(name) = name {
            let tag = name
                .tagged()
                .unwrap_or_else(|| format!("{}:latest", name.name()));
            index.set_tag(&tag, id);
            if let Some(record) = index.images.get_mut(id) {
                record.digests.insert(name.with_digest(&descriptor.digest));
            }
        }
    })
    .map(Some)
}

fn import_docker(store: &ImageStore, root: &Path) -> Result<Vec<ImageInfo>> {
    let bytes = document(root, Path::new("manifest.json"))?;
    let list: Vec<DockerImage> =
        serde_json::from_slice(&bytes).map_err(Error::json("the archive's manifest.json"))?;
    let mut images = Vec::new();
    for image in list {
        let config = document(root, Path::new(&image.config))?;
        let parsed = ConfigFile::parse(&config, &image.config)?;
        if parsed.rootfs.diff_ids.len() != image.layers.len() {
            return Err(Error::Invalid(format!(
                "{} does not list as many layers as its manifest",
                image.config
            )));
        }
        let tags = image.repo_tags.unwrap_or_default();
        let tags: Vec<Reference> = tags
            .iter()
            .map(|t| Reference::parse(t))
            .collect::<Result<_>>()?;
        let mut layers = Vec::new();
        for (diff_id, path) in parsed.rootfs.diff_ids.iter().zip(&image.layers) {
            let path = plain_path(Path::new(path)).map_err(|e| Error::Invalid(e.to_string()))?;
            layers.push((diff_id.clone(), root.join(path), None));
        }
        images.push(finish(store, &config, layers, |index, id| {
            for tag in tags.iter().filter_map(Reference::tagged) {
                index.set_tag(&tag, id);
            }
        })?);
    }
    Ok(images)
}

fn finish(
    store: &ImageStore,
    config: &[u8],
    layers: Vec<(String, PathBuf, Option<Descriptor>)>,
    name: impl FnOnce(&mut super::Index, &str),
) -> Result<ImageInfo> {
    let id = unpack::sha256(config);
    let order: Vec<String> = layers.iter().map(|(diff_id, ..)| diff_id.clone()).collect();
    let present = store.present_layers(&order)?;
    let mut unpacked = BTreeMap::new();
    for (diff_id, path, descriptor) in layers
        .iter()
        .filter(|(diff_id, ..)| !present.contains(diff_id))
    {
        if !unpacked.contains_key(diff_id) {
            let blob = File::open(path).map_err(Error::io("open", path))?;
            let dir = store.0.index.tmp_path();
            let layer = unpack::unpack_layer(blob, descriptor.as_ref(), diff_id, dir)?;
            unpacked.insert(diff_id.clone(), layer);
        }
    }
    store.publish(
        &id,
        config,
        &order,
        unpacked.into_values().collect(),
        |index| {
            name(index, &id);
            // No registry may have it: it stays until a person removes it.
            if let Some(record) = index.images.get_mut(&id) {
                record.pinned = true;
            }
        },
    )?;
    store.find(&id)?.ok_or(Error::NotFound(id))
}

fn blob_path(digest: &str) -> Result<PathBuf> {
    check_digest(digest)?;
    Ok(Path::new("blobs").join(digest.replacen(':', "/", 1)))
}

/// A small JSON file of the archive; named by digest, it must have that digest.
fn document(root: &Path, path: &Path) -> Result<Vec<u8>> {
    let plain = plain_path(path).map_err(|e| Error::Invalid(e.to_string()))?;
    let full = root.join(&plain);
    let file = File::open(&full).map_err(Error::io("open", &full))?;
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", &full))?;
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(Error::Invalid(format!("{} is too large", plain.display())));
    }
    if let Ok(hex) = plain.strip_prefix("blobs/sha256") {
        let actual = unpack::sha256(&bytes);
        if actual != format!("sha256:{}", hex.display()) {
            return Err(Error::Invalid(format!(
                "{} has the digest {actual}",
                plain.display()
            )));
        }
    }
    Ok(bytes)
}
