//! A container's root file system, put together in its own mount namespace with the
//! descriptor-based mount calls: no path inside the image is ever followed outside of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use keelson_ports::MountPropagation;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::{Context, LaunchError};
use crate::mountinfo;
use crate::spec::{CgroupView, LaunchSpec, MountSource, MountSpec};
use crate::sys;

/// Symbolic links that lead to nothing are followed by hand, this often at most.
const MAX_LINKS: u32 = 16;
/// Device nodes that a privileged container gets at most.
const MAX_HOST_DEVICES: usize = 4096;
const SHM_PATH: &str = "/dev/shm";

/// Leaves the process inside the finished root.
pub(super) fn enter(spec: &LaunchSpec) -> Result<(), LaunchError> {
    // Mounts that propagate back to the host must be taken while the namespace still belongs to
    // the host's peer groups.
    let bidirectional = spec
        .mounts
        .iter()
        .filter(|mount| mount.propagation == MountPropagation::Bidirectional)
        .map(|mount| Ok((mount.target.clone(), shared_source(mount)?)))
        .collect::<Result<Vec<_>, LaunchError>>()?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .context("making the mount namespace a slave of the host's")?;

    let overlay = overlay(&spec.layers, Some((&spec.upper, &spec.work)))?;
    attach_at(&overlay, &spec.rootfs)?;
    drop(overlay);
    let root = open_path(CWD, &spec.rootfs).context("opening the root file system")?;

    let mut mounts = base_mounts(spec)?;
    for mount in &spec.mounts {
        let taken = bidirectional
            .iter()
            .find(|(target, _)| *target == mount.target);
        let tree = match taken {
            Some((_, tree)) => tree.try_clone().context("duplicating a mount descriptor")?,
            None => user_tree(mount)?,
        };
        mounts.retain(|(target, _)| *target != mount.target);
        mounts.push((mount.target.clone(), tree));
    }
    // Stable: a mount comes after everything above it, and otherwise in the order it was given.
    mounts.sort_by_key(|(target, _)| target.components().count());
    let own_dev = !spec
        .mounts
        .iter()
        .any(|mount| mount.target == Path::new("/dev"));
    for (target, tree) in &mounts {
        attach_in(root.as_fd(), target, tree)?;
        if own_dev && target == Path::new("/dev") {
            fill_dev(root.as_fd(), spec)?;
        }
    }
    drop(mounts);
    if let CgroupView::V1(hierarchies) = &spec.cgroup
        && !spec
            .mounts
            .iter()
            .any(|mount| mount.target == Path::new("/sys/fs/cgroup"))
    {
        mount_cgroups_v1(root.as_fd(), hierarchies, !spec.privileged)?;
    }
    pivot(root.as_fd())?;
    drop(root);
    if !spec.privileged {
        protect(spec)?;
    }
    if spec.readonly_rootfs {
        let root = open_path(CWD, Path::new("/")).context("opening the root file system")?;
        sys::set_mount_attributes(root.as_fd(), sys::MOUNT_READONLY, 0, false)
            .context("making the root file system read-only")?;
    }
    Ok(())
}

/// A detached overlay of the layers; writable when it has an upper directory.
fn overlay(layers: &[PathBuf], upper: Option<(&Path, &Path)>) -> Result<OwnedFd, LaunchError> {
    let make = || -> rustix::io::Result<OwnedFd> {
        let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(fs.as_fd(), "source", "overlay")?;
        for layer in layers.iter().rev() {
            rustix::mount::fsconfig_set_string(fs.as_fd(), "lowerdir+", layer)?;
        }
        if let Some((upper, work)) = upper {
            rustix::mount::fsconfig_set_string(fs.as_fd(), "upperdir", upper)?;
            rustix::mount::fsconfig_set_string(fs.as_fd(), "workdir", work)?;
            // The writable layer does not outlive the container, so nobody needs it on the disk.
            // Kernels before 5.10 do not know the option.
            let _ = rustix::mount::fsconfig_set_flag(fs.as_fd(), "volatile");
        }
        rustix::mount::fsconfig_create(fs.as_fd())?;
        rustix::mount::fsmount(
            fs.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
    };
    make().context("mounting the image's layers (overlay needs Linux 6.5 or newer)")
}

/// The mounts every container has, as detached trees.
fn base_mounts(spec: &LaunchSpec) -> Result<Vec<(PathBuf, OwnedFd)>, LaunchError> {
    let strict = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let readonly = if spec.privileged {
        MountAttrFlags::empty()
    } else {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    };
    let dev_options = [("mode", "755"), ("size", "65536k")];
    let pts_options = [("mode", "0620"), ("ptmxmode", "0666"), ("gid", "5")];
    let shm = clone_tree(&spec.shm, false)?;
    let mut out = vec![
        ("/proc", new_mount("proc", &[], strict)?),
        (
            "/dev",
            new_mount("tmpfs", &dev_options, MountAttrFlags::MOUNT_ATTR_NOSUID)?,
        ),
        (
            "/dev/pts",
            new_mount(
                "devpts",
                &pts_options,
                MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
            )?,
        ),
        (SHM_PATH, shm),
        ("/sys", new_mount("sysfs", &[], strict | readonly)?),
    ];
    // A kernel without POSIX message queues has no such file system.
    if let Ok(mqueue) = new_mount("mqueue", &[], strict) {
        out.push(("/dev/mqueue", mqueue));
    }
    if matches!(spec.cgroup, CgroupView::V2) {
        out.push((
            "/sys/fs/cgroup",
            new_mount("cgroup2", &[], strict | readonly)?,
        ));
    }
    Ok(out
        .into_iter()
        .map(|(target, tree)| (PathBuf::from(target), tree))
        .collect())
}

fn new_mount(
    fstype: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, LaunchError> {
    let make = || -> rustix::io::Result<OwnedFd> {
        let fs = rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(fs.as_fd(), "source", fstype)?;
        for (key, value) in options {
            rustix::mount::fsconfig_set_string(fs.as_fd(), *key, *value)?;
        }
        rustix::mount::fsconfig_create(fs.as_fd())?;
        rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().with_context(|| format!("mounting {fstype}"))
}

fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, LaunchError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path, flags)
        .with_context(|| format!("mounting {:?}", path.display().to_string()))
}

fn shared_source(mount: &MountSpec) -> Result<OwnedFd, LaunchError> {
    let MountSource::Host(path) = &mount.source else {
        return Err(LaunchError::new(
            "an image volume cannot propagate mounts to the host".to_owned(),
        ));
    };
    let real =
        std::fs::canonicalize(path).with_context(|| format!("resolving {}", path.display()))?;
    let mounts = mountinfo::read().context("reading the mount table")?;
    let entry = mountinfo::mount_of(&mounts, &real);
    if !entry.is_some_and(|entry| entry.shared) {
        let on = entry.map_or_else(
            || "/".to_owned(),
            |entry| entry.target.display().to_string(),
        );
        return Err(LaunchError::new(format!(
            "path {:?} is mounted on {on:?} but it is not a shared mount",
            path.display().to_string()
        )));
    }
    let tree = clone_tree(&real, true)?;
    restrict(mount, &tree, libc::MS_SHARED)?;
    Ok(tree)
}

fn user_tree(mount: &MountSpec) -> Result<OwnedFd, LaunchError> {
    match &mount.source {
        MountSource::Host(path) => {
            if let Err(error) = std::fs::metadata(path)
                && error.kind() == io::ErrorKind::NotFound
            {
                // This process has no umask: a plain directory would be open for all to write.
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(path)
                    .with_context(|| format!("creating {}", path.display()))?;
            }
            let tree = clone_tree(path, true)?;
            let propagation = match mount.propagation {
                MountPropagation::HostToContainer => libc::MS_SLAVE,
                _ => libc::MS_PRIVATE,
            };
            restrict(mount, &tree, propagation)?;
            Ok(tree)
        }
        MountSource::Layers(layers) => {
            let tree = match layers.as_slice() {
                [only] => clone_tree(only, false)?,
                layers => overlay(layers, None)?,
            };
            sys::set_mount_attributes(tree.as_fd(), sys::MOUNT_READONLY, libc::MS_PRIVATE, true)
                .context("making an image volume read-only")?;
            Ok(tree)
        }
    }
}

fn restrict(
    mount: &MountSpec,
    tree: &OwnedFd,
    propagation: libc::c_ulong,
) -> Result<(), LaunchError> {
    let describe = || format!("restricting the mount at {}", mount.target.display());
    sys::set_mount_attributes(tree.as_fd(), 0, propagation, true).with_context(describe)?;
    if mount.readonly || mount.recursive_readonly {
        sys::set_mount_attributes(
            tree.as_fd(),
            sys::MOUNT_READONLY,
            0,
            mount.recursive_readonly,
        )
        .with_context(describe)?;
    }
    Ok(())
}

fn attach_at(tree: &OwnedFd, path: &Path) -> Result<(), LaunchError> {
    rustix::mount::move_mount(
        tree.as_fd(),
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .with_context(|| format!("mounting on {}", path.display()))
}

fn attach_fd(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", target, "", flags)
}

fn attach_in(root: BorrowedFd<'_>, target: &Path, tree: &OwnedFd) -> Result<(), LaunchError> {
    let describe = || {
        format!(
            "error mounting to rootfs at {:?}",
            target.display().to_string()
        )
    };
    let stat = rustix::fs::fstat(tree).with_context(describe)?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let place = make_in_root(root, target, directory).with_context(describe)?;
    attach_fd(tree.as_fd(), place.as_fd()).with_context(describe)
}

fn open_path(base: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(base, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn open_in_root(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    sys::open_confined(root, path, ResolveFlags::IN_ROOT)
}

/// Opens a path as the container will see it, making what is missing.
fn make_in_root(root: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<OwnedFd> {
    let mut wanted = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match make_once(root, &wanted, directory)? {
            Made::Found(fd) => return Ok(fd),
            Made::LinksTo(elsewhere) => wanted = elsewhere,
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

enum Made {
    Found(OwnedFd),
    LinksTo(PathBuf),
}

fn make_once(root: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<Made> {
    match open_in_root(root, path) {
        Ok(fd) => return Ok(Made::Found(fd)),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let names: Vec<&OsStr> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name),
            Component::ParentDir => Some(OsStr::new("..")),
            _ => None,
        })
        .collect();
    let mut done = PathBuf::from("/");
    let mut parent = open_in_root(root, &done)?;
    for (index, name) in names.iter().enumerate() {
        let next = done.join(name);
        let last = index + 1 == names.len();
        match open_in_root(root, &next) {
            Ok(fd) => parent = fd,
            Err(rustix::io::Errno::NOENT) => {
                if let Ok(link) = rustix::fs::readlinkat(&parent, *name, Vec::new()) {
                    let link = PathBuf::from(std::ffi::OsString::from_vec(link.into_bytes()));
                    let rest: PathBuf = names[index + 1..].iter().collect();
                    return Ok(Made::LinksTo(done.join(link).join(rest)));
                }
                if last && !directory {
                    let flags = OFlags::CREATE
                        | OFlags::EXCL
                        | OFlags::NOFOLLOW
                        | OFlags::CLOEXEC
                        | OFlags::WRONLY;
                    rustix::fs::openat(&parent, *name, flags, Mode::from_raw_mode(0o644))?;
                } else {
                    rustix::fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o755))?;
                }
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                parent = rustix::fs::openat(&parent, *name, flags, Mode::empty())?;
            }
            Err(error) => return Err(error.into()),
        }
        done = next;
    }
    Ok(Made::Found(parent))
}

const STANDARD_DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const STANDARD_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

fn fill_dev(root: BorrowedFd<'_>, spec: &LaunchSpec) -> Result<(), LaunchError> {
    let dev = open_in_root(root, Path::new("/dev")).context("opening /dev")?;
    for (name, major, minor) in STANDARD_DEVICES {
        let device = rustix::fs::makedev(major, minor);
        sys::make_node(dev.as_fd(), OsStr::new(name), libc::S_IFCHR | 0o666, device)
            .with_context(|| format!("making /dev/{name}"))?;
    }
    for (name, target) in STANDARD_LINKS {
        rustix::fs::symlinkat(target, &dev, name).with_context(|| format!("making /dev/{name}"))?;
    }
    if spec.privileged {
        let mut left = MAX_HOST_DEVICES;
        copy_host_devices(root, Path::new("/dev"), &mut left);
    }
    for device in &spec.devices {
        copy_device(root, &device.host_path, &device.container_path)
            .with_context(|| format!("making the device {}", device.container_path.display()))?;
    }
    Ok(())
}

fn copy_device(root: BorrowedFd<'_>, host: &Path, container: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(host)?;
    if metadata.is_dir() {
        for entry in std::fs::read_dir(host)?.flatten() {
            if !entry.file_type()?.is_symlink() {
                copy_device(root, &entry.path(), &container.join(entry.file_name()))?;
            }
        }
        return Ok(());
    }
    let kind = metadata.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return Ok(());
    }
    let (Some(parent), Some(name)) = (container.parent(), container.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let parent = make_in_root(root, parent, true)?;
    match sys::make_node(parent.as_fd(), name, metadata.mode(), metadata.rdev()) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            let made = rustix::fs::openat(
                &parent,
                name,
                OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::empty(),
            )?;
            sys::change_owner(made.as_fd(), Some(metadata.uid()), Some(metadata.gid()))
        }
    }
}

/// A privileged container sees the host's devices. One that vanishes meanwhile is left out.
fn copy_host_devices(root: BorrowedFd<'_>, directory: &Path, left: &mut usize) {
    const OWN: [&str; 6] = ["pts", "shm", "fd", "mqueue", "console", ".lxc"];
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if *left == 0
            || (directory == Path::new("/dev") && OWN.iter().any(|own| entry.file_name() == *own))
        {
            continue;
        }
        if kind.is_dir() {
            copy_host_devices(root, &entry.path(), left);
        } else if kind.is_char_device() || kind.is_block_device() {
            *left -= 1;
            let _ = copy_device(root, &entry.path(), &entry.path());
        }
    }
}

fn mount_cgroups_v1(
    root: BorrowedFd<'_>,
    list: &[(String, PathBuf)],
    readonly: bool,
) -> Result<(), LaunchError> {
    let strict = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let base = Path::new("/sys/fs/cgroup");
    let tmpfs = new_mount("tmpfs", &[("mode", "755")], strict)?;
    attach_in(root, base, &tmpfs)?;
    let attributes = sys::MOUNT_NOSUID
        | sys::MOUNT_NODEV
        | sys::MOUNT_NOEXEC
        | if readonly { sys::MOUNT_READONLY } else { 0 };
    for (name, source) in list {
        let tree = clone_tree(source, false)?;
        sys::set_mount_attributes(tree.as_fd(), attributes, libc::MS_PRIVATE, false)
            .with_context(|| format!("restricting the cgroup mount {name}"))?;
        attach_in(root, &base.join(name), &tree)?;
    }
    if readonly {
        sys::set_mount_attributes(tmpfs.as_fd(), sys::MOUNT_READONLY, 0, false)
            .context("making /sys/fs/cgroup read-only")?;
    }
    Ok(())
}

/// Makes `root` the root of this mount namespace and lets go of the host's.
fn pivot(root: BorrowedFd<'_>) -> Result<(), LaunchError> {
    rustix::process::fchdir(root).context("entering the root file system")?;
    // The old root ends up mounted over the new one, where one call removes it.
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("unmounting the host's root")?;
    rustix::process::chdir("/").context("entering the new root")
}

/// Hides and write-protects the parts of `/proc` and `/sys` that are not the container's.
fn protect(spec: &LaunchSpec) -> Result<(), LaunchError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    for path in &spec.readonly_paths {
        let describe = || format!("making {path} read-only");
        let place = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => continue,
            place => place.with_context(describe)?,
        };
        let tree = clone_tree(Path::new(path), true)?;
        sys::set_mount_attributes(tree.as_fd(), sys::MOUNT_READONLY, 0, true)
            .with_context(describe)?;
        attach_fd(tree.as_fd(), place.as_fd()).with_context(describe)?;
    }
    for path in &spec.masked_paths {
        let describe = || format!("masking {path}");
        let place = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => continue,
            place => place.with_context(describe)?,
        };
        let stat = rustix::fs::statat(&place, "", AtFlags::EMPTY_PATH).with_context(describe)?;
        let tree = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            new_mount(
                "tmpfs",
                &[("size", "0"), ("nr_inodes", "1")],
                MountAttrFlags::MOUNT_ATTR_RDONLY,
            )?
        } else {
            clone_tree(Path::new("/dev/null"), false)?
        };
        attach_fd(tree.as_fd(), place.as_fd()).with_context(describe)?;
    }
    Ok(())
}
