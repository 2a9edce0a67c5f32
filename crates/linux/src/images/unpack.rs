//! Unpacks one layer into a directory that can be an overlay's lower directory.
//!
//! The archive is hostile until proven otherwise: every path is resolved by the kernel with
//! `RESOLVE_IN_ROOT`, so neither `..` nor a symbolic link leaves the target, and what is created
//! is created through a descriptor of its parent, never by path.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags,
};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::config::Descriptor;
use super::index::LayerRecord;
use super::{Error, Result, UnpackedLayer};

const MAX_ENTRIES: u64 = 4_000_000;
const MAX_UNPACKED_BYTES: u64 = 256 << 30;
const MAX_XATTR_BYTES: usize = 64 << 10;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// `sha256:…` of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    digest_text(&Sha256::digest(bytes))
}

fn digest_text(hash: &[u8]) -> String {
    hash.iter().fold("sha256:".to_owned(), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

/// A reader that hashes what passes through it.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Hashing {
            inner,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    /// Reads what is left, then tells the digest of everything.
    fn finish(&mut self) -> io::Result<String> {
        io::copy(self, &mut io::sink())?;
        Ok(digest_text(&self.hash.clone().finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

/// Decompresses gzip and zstd by what the stream begins with, whatever a media type claims.
pub(super) fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0u8; 4];
    let mut have = 0;
    while have < magic.len() {
        match reader.read(&mut magic[have..])? {
            0 => break,
            n => have += n,
        }
    }
    let whole = io::Cursor::new(magic[..have].to_vec()).chain(reader);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(
            64 << 10,
            whole,
        ))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

/// Unpacks a layer's blob into `dir`, which must not exist, and verifies its digest (when it has
/// one) and its diff id. On an error nothing is left behind.
pub(super) fn unpack_layer(
    blob: impl Read,
    descriptor: Option<&Descriptor>,
    diff_id: &str,
    dir: PathBuf,
) -> Result<UnpackedLayer> {
    let result = unpack_verified(blob, descriptor, diff_id, &dir);
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&dir);
    }
    result.map(|(record, implicit_dirs)| UnpackedLayer {
        diff_id: diff_id.to_owned(),
        dir,
        record,
        implicit_dirs,
    })
}

fn unpack_verified(
    blob: impl Read,
    descriptor: Option<&Descriptor>,
    diff_id: &str,
    dir: &Path,
) -> Result<(LayerRecord, Vec<PathBuf>)> {
    std::fs::create_dir(dir).map_err(Error::io("create", dir))?;
    rustix::fs::chmod(dir, Mode::from_raw_mode(0o755))
        .map_err(|e| Error::io("create", dir)(e.into()))?;
    let mut compressed = Hashing::new(blob);
    let unpacked = {
        let plain = decompress(&mut compressed).map_err(Error::io("read a layer for", dir))?;
        let mut plain = Hashing::new(plain);
        let mut unpacker = Unpacker::open(dir).map_err(Error::io("open", dir))?;
        unpacker
            .unpack(&mut plain)
            .map_err(Error::io("unpack a layer into", dir))?;
        let actual = plain.finish().map_err(Error::io("read a layer for", dir))?;
        if actual != diff_id {
            return Err(Error::Invalid(format!(
                "a layer's content is {actual}, not {diff_id} as the image says"
            )));
        }
        (unpacker.record, unpacker.implicit.into_iter().collect())
    };
    let actual = compressed
        .finish()
        .map_err(Error::io("read a layer for", dir))?;
    if let Some(d) =
        descriptor.filter(|d| d.digest != actual || (d.size != 0 && d.size != compressed.bytes))
    {
        return Err(Error::Invalid(format!(
            "a layer's blob is {actual} of {} bytes, not {} of {} bytes",
            compressed.bytes, d.digest, d.size
        )));
    }
    Ok(unpacked)
}

struct Unpacker {
    root: OwnedFd,
    record: LayerRecord,
    /// Directories made because something was in them.
    implicit: HashSet<PathBuf>,
    /// Names that this layer made itself; a later whiteout in the same layer leaves them alone.
    made: HashSet<PathBuf>,
    /// Set at the end: filling a directory changes its time.
    dir_times: Vec<(PathBuf, Timespec)>,
    /// The last parent, as entries of one directory follow each other.
    parent: Option<(PathBuf, OwnedFd)>,
}

impl Unpacker {
    fn open(dir: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Unpacker {
            root,
            record: LayerRecord::default(),
            implicit: HashSet::new(),
            made: HashSet::new(),
            dir_times: Vec::new(),
            parent: None,
        })
    }

    fn unpack(&mut self, tar: &mut impl Read) -> io::Result<()> {
        let mut archive = tar::Archive::new(tar);
        for entry in archive.entries()? {
            let mut entry = entry?;
            self.record.inodes += 1;
            self.record.size_bytes = self.record.size_bytes.saturating_add(entry.size());
            if self.record.inodes > MAX_ENTRIES || self.record.size_bytes > MAX_UNPACKED_BYTES {
                return Err(io::Error::other(
                    "the layer is larger than any image may be",
                ));
            }
            let path = OsStr::from_bytes(&entry.path_bytes()).to_owned();
            self.entry(&path, &mut entry).map_err(|e| {
                io::Error::new(e.kind(), format!("{}: {e}", path.to_string_lossy()))
            })?;
        }
        for (path, time) in std::mem::take(&mut self.dir_times).into_iter().rev() {
            if let Ok(fd) = self.open_dir(&path) {
                let times = Timestamps {
                    last_access: omit(),
                    last_modification: time,
                };
                rustix::fs::futimens(&fd, &times)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &OsStr, entry: &mut tar::Entry<'_, impl Read>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let path = normal_path(Path::new(path))?;
        let facts = Facts::read(entry)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            // The root's own entry.
            let root = self.root.try_clone()?;
            return self.describe_dir(&path, root, &facts);
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.parent_dir(&parent_path)?;
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(&parent_path, &parent, &name);
        }
        if kind == EntryType::Directory {
            return self.directory(&path, &parent, &name, &facts);
        }
        self.clear(&path, &parent, &name)?;
        let mode = Mode::from_raw_mode(0o600);
        match kind {
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.parent = None;
                rustix::fs::symlinkat(target.as_slice(), &parent, name.as_os_str())?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(Path::new(OsStr::from_bytes(&target)), &parent, &name)?;
                self.made.insert(path);
                return Ok(());
            }
            EntryType::Char | EntryType::Block => {
                let header = entry.header();
                let dev = rustix::fs::makedev(
                    header.device_major()?.unwrap_or(0),
                    header.device_minor()?.unwrap_or(0),
                );
                let device = if kind == EntryType::Char {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                rustix::fs::mknodat(&parent, name.as_os_str(), device, mode, dev)?;
            }
            EntryType::Fifo => {
                rustix::fs::mknodat(&parent, name.as_os_str(), FileType::Fifo, mode, 0)?
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(&parent, name.as_os_str(), flags, mode)?;
                let mut file = std::fs::File::from(fd);
                io::copy(entry, &mut file)?;
                facts.apply_to_file(file.as_fd())?;
                self.made.insert(path);
                return Ok(());
            }
            other => {
                return Err(io::Error::other(format!(
                    "unknown tar entry type {other:?}"
                )));
            }
        }
        facts.apply_by_name(&parent, &name, kind)?;
        self.made.insert(path);
        Ok(())
    }

    fn directory(
        &mut self,
        path: &Path,
        parent: &OwnedFd,
        name: &OsStr,
        facts: &Facts,
    ) -> io::Result<()> {
        let mut hides_lower = false;
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            Ok(stat) => {
                hides_lower = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                    && stat.st_rdev == 0;
                self.clear(path, parent, name)?;
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
            }
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?
            }
            Err(e) => return Err(e.into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        if hides_lower {
            rustix::fs::fsetxattr(&fd, OPAQUE_XATTR, b"y", XattrFlags::empty())?;
        }
        self.implicit.remove(path);
        self.made.insert(path.to_owned());
        self.describe_dir(path, fd, facts)
    }

    fn describe_dir(&mut self, path: &Path, fd: OwnedFd, facts: &Facts) -> io::Result<()> {
        facts.apply_to_file(fd.as_fd())?;
        self.dir_times.push((path.to_owned(), facts.mtime));
        Ok(())
    }

    /// `.wh.name` hides what lower layers have; overlayfs wants a 0:0 device there instead.
    fn whiteout(&mut self, parent_path: &Path, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        if name.as_bytes() == OPAQUE {
            let fd = self.open_dir(parent_path)?;
            return Ok(rustix::fs::fsetxattr(
                &fd,
                OPAQUE_XATTR,
                b"y",
                XattrFlags::empty(),
            )?);
        }
        if name.as_bytes().starts_with(b".wh..wh.") {
            // Bookkeeping of AUFS, which means nothing here.
            return Ok(());
        }
        let hidden = OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]);
        let plain = !hidden.is_empty() && hidden != "." && hidden != "..";
        if !plain || self.made.contains(&parent_path.join(hidden)) {
            return Ok(());
        }
        match rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn hard_link(&mut self, target: &Path, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let target = normal_path(target)?;
        let source_dir = self.parent_dir(target.parent().unwrap_or(Path::new("")))?;
        let source = target
            .file_name()
            .ok_or_else(|| io::Error::other("a hard link to the root"))?;
        Ok(rustix::fs::linkat(
            &source_dir,
            source,
            parent,
            name,
            AtFlags::empty(),
        )?)
    }

    /// Makes room: a later entry replaces an earlier one of the same name.
    fn clear(&mut self, path: &Path, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => self.parent = None,
            Err(rustix::io::Errno::NOENT) => {}
            Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
                self.parent = None;
                remove_tree(parent, name, 0)?;
                self.made.retain(|made| !made.starts_with(path));
                self.implicit.retain(|made| !made.starts_with(path));
            }
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )?)
    }

    /// The directory `path`, which is made when the layer has not described it.
    fn parent_dir(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some((cached, fd)) = &self.parent
            && cached == path
        {
            return fd.try_clone();
        }
        let fd = match self.open_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.make_dirs(path, 0)?,
            other => other?,
        };
        self.parent = Some((path.to_owned(), fd.try_clone()?));
        Ok(fd)
    }

    fn make_dirs(&mut self, path: &Path, depth: usize) -> io::Result<OwnedFd> {
        if depth > 40 {
            return Err(rustix::io::Errno::LOOP.into());
        }
        let (Some(parent_path), Some(name)) = (path.parent(), path.file_name()) else {
            return self.open_dir(path);
        };
        let parent = match self.open_dir(parent_path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.make_dirs(parent_path, depth + 1)?
            }
            other => other?,
        };
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let mode = Mode::from_raw_mode(0o755);
                rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
                self.implicit.insert(path.to_owned());
            }
            Err(rustix::io::Errno::EXIST) => {
                // A link whose target lives in a lower layer: make the target here.
                if let Ok(target) = rustix::fs::readlinkat(&parent, name, Vec::new()) {
                    let target =
                        PathBuf::from(OsString::from(OsStr::from_bytes(target.as_bytes())));
                    let joined = normal_path(&parent_path.join(target))?;
                    return self.make_dirs(&joined, depth + 1);
                }
            }
            Err(e) => return Err(e.into()),
        }
        self.open_dir(path)
    }
}

/// Removes a directory with what is in it, never following links.
fn remove_tree(parent: &OwnedFd, name: &OsStr, depth: usize) -> io::Result<()> {
    if depth > 1000 {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let child = OsStr::from_bytes(entry.file_name().to_bytes());
        if child == "." || child == ".." {
            continue;
        }
        match rustix::fs::unlinkat(&dir, child, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
                remove_tree(&dir, child, depth + 1)?
            }
            other => other?,
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// A path without root, `.` and `..`; what would climb out stays at the root, as `chroot` has it.
fn normal_path(path: &Path) -> io::Result<PathBuf> {
    if path.as_os_str().len() > 4096 {
        return Err(rustix::io::Errno::NAMETOOLONG.into());
    }
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(out)
}

fn omit() -> Timespec {
    Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    }
}

/// What an entry says about its inode.
struct Facts {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    mtime: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Facts {
    fn read(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Self> {
        let header = entry.header();
        // An empty field is zero; whoever wrote it meant root.
        let (mut uid, mut gid) = (header.uid().unwrap_or(0), header.gid().unwrap_or(0));
        let mode = header.mode()? & 0o7777;
        let mut mtime = Timespec {
            tv_sec: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0),
            tv_nsec: 0,
        };
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let (Ok(key), value) = (extension.key(), extension.value_bytes()) else {
                    continue;
                };
                let number = || {
                    std::str::from_utf8(value)
                        .ok()
                        .and_then(|v| v.parse::<u64>().ok())
                };
                match key {
                    "uid" => uid = number().unwrap_or(uid),
                    "gid" => gid = number().unwrap_or(gid),
                    "mtime" => mtime = parse_time(value).unwrap_or(mtime),
                    _ => {
                        if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                            if value.len() > MAX_XATTR_BYTES || xattrs.len() >= 64 {
                                return Err(io::Error::other(
                                    "too many or too large extended attributes",
                                ));
                            }
                            xattrs.push((name.to_owned(), value.to_vec()));
                        }
                    }
                }
            }
        }
        let id = |id: u64| u32::try_from(id).ok().filter(|&id| id != u32::MAX);
        let wrong = || io::Error::other("an owner's id is out of range");
        Ok(Facts {
            uid: Uid::from_raw(id(uid).ok_or_else(wrong)?),
            gid: Gid::from_raw(id(gid).ok_or_else(wrong)?),
            mode: Mode::from_raw_mode(mode),
            mtime,
            xattrs,
        })
    }

    fn apply_to_file(&self, fd: impl AsFd) -> io::Result<()> {
        // Changing the owner clears the set-id bits and file capabilities: the mode comes after.
        rustix::fs::fchown(&fd, Some(self.uid), Some(self.gid))?;
        rustix::fs::fchmod(&fd, self.mode)?;
        for (name, value) in self.xattrs.iter().filter(|(name, _)| wanted_xattr(name)) {
            match rustix::fs::fsetxattr(&fd, name.as_str(), value, XattrFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let times = Timestamps {
            last_access: omit(),
            last_modification: self.mtime,
        };
        Ok(rustix::fs::futimens(&fd, &times)?)
    }

    /// For what cannot be opened: links, devices, pipes.
    fn apply_by_name(&self, parent: &OwnedFd, name: &OsStr, kind: EntryType) -> io::Result<()> {
        rustix::fs::chownat(
            parent,
            name,
            Some(self.uid),
            Some(self.gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if kind != EntryType::Symlink {
            rustix::fs::chmodat(parent, name, self.mode, AtFlags::empty())?;
        }
        let times = Timestamps {
            last_access: omit(),
            last_modification: self.mtime,
        };
        Ok(rustix::fs::utimensat(
            parent,
            name,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
}

/// An image has no say in overlayfs' own attributes, nor in the host's security labels.
fn wanted_xattr(name: &str) -> bool {
    name.starts_with("user.") || name == "security.capability"
}

/// `seconds[.fraction]`, as PAX writes it.
fn parse_time(value: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut nanos = fraction
        .bytes()
        .take(9)
        .map(|b| b as char)
        .collect::<String>();
    while nanos.len() < 9 {
        nanos.push('0');
    }
    Some(Timespec {
        tv_sec: seconds.parse().ok()?,
        tv_nsec: nanos.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    fn tar_of(entries: &[(&str, EntryType, &str, u32)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, data, mode) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_mtime(1_000_000);
            let body: &[u8] = if *kind == EntryType::Regular {
                data.as_bytes()
            } else {
                b""
            };
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.as_old_mut().linkname[..data.len()].copy_from_slice(data.as_bytes());
            }
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack(tar: &[u8]) -> (PathBuf, UnpackedLayer) {
        let dir =
            std::env::temp_dir().join(format!("keelson-unpack-{}", uuid::Uuid::new_v4().simple()));
        let layer = unpack_layer(tar, None, &sha256(tar), dir.clone()).unwrap();
        (dir, layer)
    }

    #[test]
    fn nothing_leaves_the_root() {
        let outside =
            std::env::temp_dir().join(format!("keelson-outside-{}", uuid::Uuid::new_v4().simple()));
        let link = outside.to_string_lossy().into_owned();
        std::fs::create_dir(&outside).unwrap();
        let tar = tar_of(&[
            ("evil", EntryType::Symlink, &link, 0o777),
            ("evil/file", EntryType::Regular, "x", 0o644),
            ("../../up", EntryType::Regular, "y", 0o644),
        ]);
        let (dir, _) = unpack(&tar);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(std::fs::read(dir.join("up")).unwrap(), b"y");
        std::fs::remove_dir_all(dir).unwrap();
        std::fs::remove_dir_all(outside).unwrap();
    }

    #[test]
    fn modes_links_and_whiteouts() {
        let tar = tar_of(&[
            ("bin", EntryType::Directory, "", 0o755),
            ("bin/su", EntryType::Regular, "su", 0o4755),
            ("bin/su2", EntryType::Link, "bin/su", 0o755),
            ("var/.wh.old", EntryType::Regular, "", 0o644),
            ("opt", EntryType::Directory, "", 0o1777),
            ("opt/.wh..wh..opq", EntryType::Regular, "", 0o644),
        ]);
        let (dir, layer) = unpack(&tar);
        let su = std::fs::metadata(dir.join("bin/su")).unwrap();
        assert_eq!(
            (su.mode() & 0o7777, su.nlink(), su.mtime()),
            (0o4755, 2, 1_000_000)
        );
        let whiteout = std::fs::symlink_metadata(dir.join("var/old")).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        assert_eq!(layer.implicit_dirs, [PathBuf::from("var")]);
        let mut value = [0u8; 1];
        rustix::fs::getxattr(dir.join("opt"), OPAQUE_XATTR, &mut value[..]).unwrap();
        assert_eq!(&value, b"y");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_wrong_digest_leaves_nothing() {
        let tar = tar_of(&[("a", EntryType::Regular, "a", 0o644)]);
        let dir =
            std::env::temp_dir().join(format!("keelson-unpack-{}", uuid::Uuid::new_v4().simple()));
        let wrong = sha256(b"something else");
        assert!(unpack_layer(tar.as_slice(), None, &wrong, dir.clone()).is_err());
        assert!(!dir.exists());
    }
}
