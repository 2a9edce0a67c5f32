//! Mounts and file-system facts for volumes.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use async_trait::async_trait;
use keelson_ports::{Error, FsUsage, Mounts, Result, TreeUsage};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::{mountinfo, sys};

/// Deeper trees than this are not volumes but loops.
const MAX_DEPTH: usize = 256;

#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxMounts;

fn failed(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = format!("{what} {}", path.display());
    move |error| {
        let message = format!("{what}: {error}");
        match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(message),
            _ => match error.raw_os_error() {
                Some(libc::ENODEV) => {
                    Error::Unsupported(format!("{message} (the kernel lacks this file system)"))
                }
                Some(libc::ELOOP | libc::EXDEV) => Error::Invalid(message),
                _ => Error::Failed(message),
            },
        }
    }
}

fn errno(what: &str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Error {
    let failed = failed(what, path);
    move |error| failed(error.into())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Failed(format!("mount work was interrupted: {error}")))?
}

#[async_trait]
impl Mounts for LinuxMounts {
    async fn mount_tmpfs(&self, target: &Path, size_bytes: Option<u64>, mode: u32) -> Result<()> {
        let mut options = vec![format!("mode={mode:o}")];
        options.extend(size_bytes.map(|size| format!("size={size}")));
        self.mount("tmpfs", "tmpfs", target, &options).await
    }

    async fn bind(&self, source: &Path, target: &Path, readonly: bool) -> Result<()> {
        let (source, target) = (source.to_path_buf(), target.to_path_buf());
        blocking(move || {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let tree =
                rustix::mount::open_tree(CWD, &source, flags).map_err(errno("binding", &source))?;
            if readonly {
                sys::set_mount_attributes(tree.as_fd(), sys::MOUNT_READONLY, 0, true)
                    .map_err(failed("binding read-only", &source))?;
            }
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(tree.as_fd(), "", CWD, &target, flags)
                .map_err(errno("mounting on", &target))
        })
        .await
    }

    async fn mount(
        &self,
        fstype: &str,
        source: &str,
        target: &Path,
        options: &[String],
    ) -> Result<()> {
        let (flags, data) = split_options(options);
        let data = sys::c_string(data.as_ref()).map_err(failed("mounting on", target))?;
        let (fstype, source, target) = (fstype.to_owned(), source.to_owned(), target.to_path_buf());
        blocking(move || {
            rustix::mount::mount(
                source.as_str(),
                &target,
                fstype.as_str(),
                flags,
                data.as_c_str(),
            )
            .map_err(errno(&format!("mounting {fstype} on"), &target))
        })
        .await
    }

    async fn unmount(&self, target: &Path) -> Result<()> {
        let target = target.to_path_buf();
        blocking(move || {
            loop {
                match rustix::mount::unmount(&target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                {
                    Ok(()) => {}
                    Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
                    Err(error) => return Err(errno("unmounting", &target)(error)),
                }
            }
        })
        .await
    }

    async fn is_mount_point(&self, path: &Path) -> Result<bool> {
        let path = path.to_path_buf();
        blocking(move || {
            let mounts = mountinfo::read().map_err(failed("reading the mount table for", &path))?;
            let real = std::fs::canonicalize(&path).map_err(failed("resolving", &path))?;
            Ok(mounts.iter().any(|mount| mount.target == real))
        })
        .await
    }

    async fn mounts_below(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let path = path.to_path_buf();
        blocking(move || {
            let mounts = mountinfo::read().map_err(failed("reading the mount table for", &path))?;
            let mut below: Vec<PathBuf> = mounts
                .into_iter()
                .map(|mount| mount.target)
                .filter(|target| target.starts_with(&path) && *target != path)
                .collect();
            below.sort_by_key(|target| std::cmp::Reverse(target.components().count()));
            below.dedup();
            Ok(below)
        })
        .await
    }

    async fn open_in_root(&self, root: &Path, relative: &Path, create: bool) -> Result<OwnedFd> {
        let (root, relative) = (root.to_path_buf(), relative.to_path_buf());
        blocking(move || open_beneath(&root, &relative, create)).await
    }

    async fn set_fs_group(&self, path: &Path, gid: u32, readonly: bool) -> Result<()> {
        let path = path.to_path_buf();
        blocking(move || {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd =
                rustix::fs::open(&path, flags, Mode::empty()).map_err(errno("opening", &path))?;
            give_to_group(fd, gid, readonly, 0).map_err(failed("setting the group of", &path))
        })
        .await
    }

    async fn tree_usage(&self, path: &Path) -> Result<TreeUsage> {
        let path = path.to_path_buf();
        blocking(move || Ok(crate::disk::usage(&path))).await
    }

    async fn fs_usage(&self, path: &Path) -> Result<FsUsage> {
        let path = path.to_path_buf();
        blocking(move || {
            let stat = rustix::fs::statvfs(&path).map_err(errno("reading the usage of", &path))?;
            let block = stat.f_frsize;
            let used = stat.f_blocks.saturating_sub(stat.f_bfree);
            Ok(FsUsage {
                // Blocks kept back for others (the superuser, a quota) are no capacity: nobody here
                // could free them, so they must not look like a disk that fills up.
                capacity_bytes: used.saturating_add(stat.f_bavail).saturating_mul(block),
                available_bytes: stat.f_bavail.saturating_mul(block),
                used_bytes: used.saturating_mul(block),
                inodes: stat.f_files,
                inodes_free: stat.f_ffree,
            })
        })
        .await
    }
}

/// The options that are flags of the call, and the rest that the file system reads itself.
fn split_options(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options
        .iter()
        .flat_map(|option| option.split(','))
        .filter(|option| !option.is_empty())
    {
        match option {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => flags.remove(MountFlags::RDONLY),
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "defaults" | "suid" | "dev" | "exec" | "async" | "auto" | "noauto" | "_netdev"
            | "nofail" => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// Follows no link out of `root`: a link inside it that points outside is an error, not a way.
fn open_beneath(root: &Path, relative: &Path, create: bool) -> Result<OwnedFd> {
    let names: Vec<_> = relative
        .components()
        .map(|component| match component {
            Component::Normal(name) => Ok(Some(name)),
            Component::CurDir => Ok(None),
            _ => Err(Error::Invalid(format!(
                "{:?} must be a relative path without ..",
                relative.display().to_string()
            ))),
        })
        .filter_map(Result::transpose)
        .collect::<Result<_>>()?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let base = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())
        .map_err(errno("opening", root))?;
    let path: PathBuf = if names.is_empty() {
        PathBuf::from(".")
    } else {
        names.iter().collect()
    };
    match sys::open_confined(base.as_fd(), &path, resolve) {
        Err(rustix::io::Errno::NOENT) if create => {}
        opened => return opened.map_err(errno("opening", &root.join(&path))),
    }
    // What a pod is given below a volume is as open as the volume itself.
    let mode = rustix::fs::statat(&base, "", AtFlags::EMPTY_PATH)
        .map_err(errno("opening", root))?
        .st_mode
        & 0o2777;
    let mut done = PathBuf::new();
    let mut parent = base.try_clone().map_err(failed("opening", root))?;
    for name in names {
        done.push(name);
        parent = match sys::open_confined(base.as_fd(), &done, resolve) {
            Err(rustix::io::Errno::NOENT) => {
                let made = match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) => true,
                    Err(rustix::io::Errno::EXIST) => false,
                    Err(error) => return Err(errno("creating", &root.join(&done))(error)),
                };
                let opened = sys::open_confined(base.as_fd(), &done, resolve)
                    .map_err(errno("opening", &root.join(&done)))?;
                if made {
                    set_mode(&opened, mode).map_err(failed("creating", &root.join(&done)))?;
                }
                opened
            }
            opened => opened.map_err(errno("opening", &root.join(&done)))?,
        };
    }
    Ok(parent)
}

/// A descriptor opened as a path cannot change modes or be read itself; its name under /proc can.
fn by_descriptor(entry: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(entry))
}

fn set_mode(entry: &OwnedFd, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(by_descriptor(entry), Permissions::from_mode(mode))
}

/// Group, group bits and set-group-id of everything in the tree, as the kubelet sets them for
/// `fsGroup`. Links are not followed.
fn give_to_group(entry: OwnedFd, gid: u32, readonly: bool, depth: usize) -> io::Result<()> {
    let stat = rustix::fs::statat(&entry, "", AtFlags::EMPTY_PATH)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Symlink || depth > MAX_DEPTH {
        return Ok(());
    }
    sys::change_owner(entry.as_fd(), None, Some(gid))?;
    let directory = kind == FileType::Directory;
    let mut mode = (stat.st_mode & 0o7777) | if readonly { 0o440 } else { 0o660 };
    if directory {
        mode |= 0o110 | 0o2000;
    }
    set_mode(&entry, mode)?;
    let name = by_descriptor(&entry);
    if !directory {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for child in std::fs::read_dir(&name)? {
        match rustix::fs::openat(&entry, child?.file_name(), flags, Mode::empty()) {
            Ok(child) => give_to_group(child, gid, readonly, depth + 1)?,
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data_are_told_apart() {
        let (flags, data) = split_options(&[
            "ro,nosuid".to_owned(),
            "size=1m".to_owned(),
            "mode=0755".to_owned(),
        ]);
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(data, "size=1m,mode=0755");
    }

    #[test]
    fn sub_paths_stay_inside() {
        let root = std::env::temp_dir().join(format!("keelson-mounts-{}", std::process::id()));
        std::fs::create_dir_all(root.join("in")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        std::os::unix::fs::symlink("in", root.join("link")).unwrap();
        assert!(open_beneath(&root, Path::new("link/new/deep"), true).is_ok());
        assert!(root.join("in/new/deep").is_dir());
        std::fs::set_permissions(&root, Permissions::from_mode(0o2777)).unwrap();
        assert!(open_beneath(&root, Path::new("open/deep"), true).is_ok());
        for made in ["open", "open/deep"] {
            let mode = std::fs::metadata(root.join(made))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o7777, 0o2777, "{made}");
        }
        assert!(open_beneath(&root, Path::new("out/passwd"), false).is_err());
        assert!(open_beneath(&root, Path::new("out/x"), true).is_err());
        assert!(open_beneath(&root, Path::new("../x"), true).is_err());
        assert!(open_beneath(&root, Path::new(""), false).is_ok());
        assert!(
            open_beneath(&root, Path::new("missing"), false)
                .unwrap_err()
                .is_not_found()
        );
        std::fs::remove_dir_all(&root).unwrap();
    }
}
