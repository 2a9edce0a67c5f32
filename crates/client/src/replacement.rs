//! Files that a person names (kubeconfigs, snapshots) are replaced as a whole: a reader finds the
//! old or the new one, a failure leaves the old one, and nothing but a regular file is replaced.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};

/// A user and a group.
type Owner = (u32, u32);

/// A file beside the one that it will replace; gone when it is dropped before [`Self::commit`].
#[derive(Debug)]
pub struct Replacement {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    is_committed: bool,
}

impl Replacement {
    /// Begins an empty file that its owner alone may read. Directories on the way are made.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let target = target(path)?;
        make_directories(directory(&target))?;
        let mut name = OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(".{:016x}", rand::random::<u64>()));
        let temporary = target.with_file_name(name);
        // Never one that is there: somebody else may have laid it out, with a mode for others.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        Ok(Self {
            file,
            temporary,
            target,
            is_committed: false,
        })
    }

    /// Whether [`Self::begin`] would refuse the path for what is there.
    pub fn check(path: &Path) -> io::Result<()> {
        target(path).map(drop)
    }

    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where the new file is until it gets its name.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the file its owner and its name, durably.
    pub fn commit(mut self) -> io::Result<()> {
        let own = self.file.metadata()?.uid();
        let before = match std::fs::metadata(&self.target) {
            Ok(found) => Some((found.uid(), found.gid())),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let around = std::fs::metadata(directory(&self.target))?.uid();
        if let Some((user, group)) = owner(own, around, before, sudo_user()) {
            fchown(&self.file, Some(user), Some(group))?;
        }
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.target)?;
        self.is_committed = true;
        File::open(directory(&self.target))?.sync_all()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.is_committed {
            // A failure has been told already; this one is of no use to anybody.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// The regular file that a path stands for, or is to stand for. A link stays a link: the file that
/// it leads to is replaced.
fn target(path: &Path) -> io::Result<PathBuf> {
    let refused = |why: &str| Err(io::Error::new(ErrorKind::InvalidInput, why));
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => std::fs::canonicalize(path),
        Ok(_) => refused("it is no regular file: name a file to write to"),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Err(_) if path.is_symlink() => refused(
            "it is a link to a file that does not exist: name that file, or remove the link",
        ),
        Err(_) if path.file_name().is_none() => refused("it names no file"),
        Err(_) => Ok(path.to_owned()),
    }
}

fn directory(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn make_directories(wanted: &Path) -> io::Result<()> {
    if wanted.is_dir() {
        return Ok(());
    }
    let above = directory(wanted);
    make_directories(above)?;
    match DirBuilder::new().mode(0o700).create(wanted) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    let (own, around) = (
        std::fs::metadata(wanted)?.uid(),
        std::fs::metadata(above)?.uid(),
    );
    match owner(own, around, None, sudo_user()) {
        Some((user, group)) => chown(wanted, Some(user), Some(group)),
        None => Ok(()),
    }
}

/// Who a file of root's (`own` is 0) is for: the user in whose directory it lies (`around`), if it
/// was that user's `before`, or if that user called `sudo`. Anybody else could have laid out a
/// directory or a file to be given an administrator's key.
fn owner(own: u32, around: u32, before: Option<Owner>, sudo: Option<Owner>) -> Option<Owner> {
    if own != 0 || around == own {
        return None;
    }
    [before, sudo]
        .into_iter()
        .flatten()
        .find(|(user, _)| *user == around)
}

/// The user that `sudo` was called by.
fn sudo_user() -> Option<Owner> {
    let id = |name: &str| std::env::var(name).ok()?.parse().ok();
    Some((id("SUDO_UID")?, id("SUDO_GID")?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{FileTypeExt, symlink};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            let name = format!("keelson-replacement-{:016x}", rand::random::<u64>());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir(&dir).unwrap();
            Self(dir)
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn replace(path: &Path, text: &str) -> io::Result<()> {
        let mut new = Replacement::begin(path)?;
        new.file().write_all(text.as_bytes())?;
        new.commit()
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_is_its_owners_alone() {
        let scratch = Scratch::new();
        let path = scratch.0.join("a/b/file");
        replace(&path, "one").unwrap();
        replace(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(directory(&path))), (0o600, 0o700));
    }

    #[test]
    fn what_is_given_up_leaves_the_old_file_alone() {
        let scratch = Scratch::new();
        let path = scratch.0.join("file");
        replace(&path, "old").unwrap();
        let mut new = Replacement::begin(&path).unwrap();
        new.file().write_all(b"half").unwrap();
        drop(new);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(scratch.names(), ["file"]);
    }

    #[test]
    fn devices_directories_and_links_to_nothing_are_refused() {
        let scratch = Scratch::new();
        symlink("nowhere", scratch.0.join("dangling")).unwrap();
        symlink("/dev/full", scratch.0.join("device")).unwrap();
        for path in [
            Path::new("/dev/null"),
            &scratch.0,
            &scratch.0.join("device"),
            &scratch.0.join("dangling"),
        ] {
            let error = Replacement::begin(path).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::InvalidInput,
                "{}: {error}",
                path.display()
            );
        }
        assert!(
            std::fs::metadata("/dev/null")
                .unwrap()
                .file_type()
                .is_char_device()
        );
        assert_eq!(scratch.names().len(), 2);
    }

    #[test]
    fn a_link_stays_and_its_file_is_replaced() {
        let scratch = Scratch::new();
        let (link, file) = (scratch.0.join("link"), scratch.0.join("file"));
        std::fs::write(&file, "old").unwrap();
        symlink("file", &link).unwrap();
        replace(&link, "new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
    }

    #[test]
    fn roots_files_are_for_the_user_in_whose_directory_they_lie() {
        let (alice, mallory) = ((1000, 100), (666, 66));
        for (name, own, around, before, sudo, expected) in [
            ("not root", 1000, 1000, Some(alice), None, None),
            ("in root's directory", 0, 0, None, Some(alice), None),
            (
                "laid out in a common directory",
                0,
                0,
                Some(mallory),
                None,
                None,
            ),
            ("it was the user's", 0, 1000, Some(alice), None, Some(alice)),
            ("with sudo", 0, 1000, None, Some(alice), Some(alice)),
            (
                "with sudo, where it became root's",
                0,
                1000,
                Some((0, 0)),
                Some(alice),
                Some(alice),
            ),
            ("somebody else's directory", 0, 666, None, Some(alice), None),
            ("a new file without sudo", 0, 1000, None, None, None),
        ] {
            assert_eq!(owner(own, around, before, sudo), expected, "{name}");
        }
    }
}
