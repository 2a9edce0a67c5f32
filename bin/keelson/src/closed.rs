//! Directories that hold a cluster's secrets are closed to everybody but their owner: 0700 at the
//! top, so that nothing below can be reached by path, whatever modes containers need there.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::Mode;

use crate::instance::Instance;

/// One of these in a directory means that it is an instance's. Plain names such as `log` and
/// `images` would not: `/var` has the one, many a home the other.
const MARKS: [&str; 4] = [
    "store/store.lock",
    "pki/ca.crt",
    "images/index.json",
    "runtime/sandboxes",
];
/// What a directory may hold before it has a mark: a start that failed, and configuration that a
/// person put there.
const EXPECTED: [&str; 10] = [
    "store",
    "pki",
    "images",
    "runtime",
    "pods",
    "log",
    "run",
    "admin.kubeconfig",
    "registries.yaml",
    "lost+found",
];
const STORE: &str = "store/store.redb";

/// Files and directories that this process makes from now on are its owner's alone, unless their
/// mode is set on purpose.
pub(crate) fn by_default() {
    rustix::process::umask(Mode::from_raw_mode(0o077));
}

/// Makes the directories of an instance, or closes those that an earlier version left open.
pub(crate) fn directories(instance: &Instance) -> Result<(), String> {
    data_directory(&instance.data_dir)?;
    if let Some(parent) = instance.run_dir.parent() {
        close(parent)?;
    }
    close(&instance.run_dir)
}

fn data_directory(dir: &Path) -> Result<(), String> {
    let entries = std::fs::read_dir(dir).map(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names.collect::<Vec<_>>()
    });
    let mut foreign = entries
        .unwrap_or_default()
        .into_iter()
        .filter(|name| !EXPECTED.iter().any(|expected| name == expected));
    let is_ours = MARKS.iter().any(|mark| dir.join(mark).exists());
    match foreign.next() {
        // Closing somebody's home or /var would lock others out of it.
        Some(name) if !is_ours => Err(format!(
            "--data-dir {} holds {name:?} and no cluster: choose an empty directory, or one that does not exist",
            dir.display()
        )),
        _ => close(dir),
    }
}

fn close(dir: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    match std::fs::metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed),
        Err(error) => Err(failed(error)),
        Ok(found) if !found.is_dir() => Err(format!("{} is no directory", dir.display())),
        Ok(found) if found.uid() != rustix::process::geteuid().as_raw() => Err(format!(
            "{} belongs to user {}: run as that user, or choose another directory",
            dir.display(),
            found.uid()
        )),
        Ok(found) if found.mode() & 0o077 != 0 => {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(failed)
        }
        Ok(_) => Ok(()),
    }
}

/// Whether a cluster lives in the directory; the first start makes a new one.
pub(crate) fn has_store(data_dir: &Path) -> bool {
    data_dir.join(STORE).exists()
}

/// A cluster that has lost its store must not become an empty one without a word: its pods would be
/// stopped as unknown ones, and its authorities would sign for another cluster.
pub(crate) fn store_is_there(data_dir: &Path) -> Result<(), String> {
    if has_store(data_dir) {
        return Ok(());
    }
    let Some(rest) = ["pki", "pods", "runtime"]
        .into_iter()
        .find(|name| data_dir.join(name).is_dir())
    else {
        return Ok(());
    };
    Err(format!(
        "{0} holds a cluster's {rest} but not its store ({STORE}): put the file back, or move \"{rest}\" away and run \
         `keelson snapshot restore FILE --data-dir {0}`; name its etcd with --etcd-endpoints if it lives there; \
         `keelson down --purge --data-dir {0}` removes everything, for a new cluster",
        data_dir.display()
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("keelson-closed-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn mode(dir: &Path) -> u32 {
        std::fs::metadata(dir).unwrap().mode() & 0o777
    }

    #[test]
    fn a_directory_of_an_earlier_version_is_tightened() {
        let scratch = Scratch::new("old");
        let dir = scratch.0.join("data");
        std::fs::create_dir_all(dir.join("store")).unwrap();
        std::fs::write(dir.join("store/store.lock"), "").unwrap();
        std::fs::write(dir.join("something.else"), "").unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        data_directory(&dir).unwrap();
        assert_eq!(mode(&dir), 0o700);
        let fresh = scratch.0.join("a/b");
        data_directory(&fresh).unwrap();
        assert_eq!(mode(&fresh), 0o700);
    }

    #[test]
    fn a_directory_of_somebody_else_is_left_alone() {
        let scratch = Scratch::new("foreign");
        std::fs::write(scratch.0.join("letter.txt"), "").unwrap();
        // As /var has it.
        std::fs::create_dir(scratch.0.join("log")).unwrap();
        std::fs::create_dir(scratch.0.join("images")).unwrap();
        std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = data_directory(&scratch.0).unwrap_err();
        assert!(error.contains("letter.txt"), "{error}");
        assert_eq!(mode(&scratch.0), 0o755);
    }

    #[test]
    fn a_cluster_without_its_store_is_not_an_empty_one() {
        let scratch = Scratch::new("lost");
        store_is_there(&scratch.0).unwrap();
        std::fs::create_dir(scratch.0.join("pki")).unwrap();
        let error = store_is_there(&scratch.0).unwrap_err();
        assert!(error.contains("snapshot restore"), "{error}");
        std::fs::create_dir(scratch.0.join("store")).unwrap();
        assert!(store_is_there(&scratch.0).is_err());
        std::fs::write(scratch.0.join(STORE), "x").unwrap();
        store_is_there(&scratch.0).unwrap();
    }
}
