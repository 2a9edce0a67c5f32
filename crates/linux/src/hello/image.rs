//! Makes the image's root file system of this process's own executable.
//!
//! A static binary stands alone; a dynamic one brings its loader and libraries, as they are
//! mapped into this process, to the paths where the loader looks for them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use keelson_ports::ImageInfo;
use serde_json::json;

use super::COMMANDS;
use crate::images::{Error, ImageStore, content_digest};

/// The name under which pods ask for it.
pub const HELLO_IMAGE: &str = "localhost/keelson/hello:latest";

/// Enters the image into the store, unless this very binary's is there already.
pub fn ensure_hello_image(store: &ImageStore) -> Result<ImageInfo, Error> {
    let parts = Parts::of_this_process()
        .map_err(|e| Error::Registry(format!("cannot inspect this executable: {e}")))?;
    let identity = parts.identity();
    let layer = content_digest(&[identity.as_slice(), b"layer"].concat());
    let old = store.find(HELLO_IMAGE)?;
    if let Some(image) = old
        .as_ref()
        .filter(|i| i.env.contains(&format!("HELLO_LAYER={layer}")))
    {
        return Ok(image.clone());
    }
    let dir = store.scratch_dir()?;
    if let Err(e) = parts.lay_out(&dir) {
        let _ = fs::remove_dir_all(&dir);
        return Err(Error::Registry(format!(
            "cannot make the image {HELLO_IMAGE}: {e}"
        )));
    }
    let config = json!({
        "architecture": crate::images::host_architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/hello"],
            "Env": ["PATH=/bin", format!("HELLO_LAYER={layer}")],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.clone()]},
    });
    let image = store.add_local(HELLO_IMAGE, &config, vec![(layer, dir)], true)?;
    // The one of an earlier version has lost its name; its containers keep its layers.
    if let Some(old) = old.filter(|old| old.id != image.id) {
        store.remove_reference(&old.id)?;
    }
    Ok(image)
}

struct Parts {
    executable: PathBuf,
    /// The loader's path as the executable names it; `None` for a static one.
    loader: Option<PathBuf>,
    libraries: BTreeSet<PathBuf>,
}

impl Parts {
    fn of_this_process() -> io::Result<Self> {
        // The link, not its target: the file may have been replaced or deleted since it was started.
        let executable = PathBuf::from("/proc/self/exe");
        let loader = interpreter(&executable)?;
        let own = fs::metadata(&executable)?;
        let mut libraries = BTreeSet::new();
        if loader.is_some() {
            for line in fs::read_to_string("/proc/self/maps")?.lines() {
                let Some(path) = line
                    .splitn(6, ' ')
                    .nth(5)
                    .map(str::trim)
                    .filter(|p| p.starts_with('/'))
                else {
                    continue;
                };
                let is_self =
                    fs::metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (own.dev(), own.ino()));
                let is_library = path.contains(".so") && !path.ends_with(" (deleted)");
                if is_library && !is_self {
                    libraries.insert(PathBuf::from(path));
                }
            }
        }
        Ok(Parts {
            executable,
            loader,
            libraries,
        })
    }

    /// Differs whenever some file does. Sizes and times stand for contents: hashing them all at
    /// each start would take longer than the start.
    fn identity(&self) -> Vec<u8> {
        let mut text = format!("1 {}", env!("CARGO_PKG_VERSION"));
        for path in std::iter::once(&self.executable).chain(&self.libraries) {
            if let Ok(m) = fs::metadata(path) {
                text.push_str(&format!(
                    "\n{} {} {} {}",
                    path.display(),
                    m.len(),
                    m.mtime(),
                    m.mtime_nsec()
                ));
            }
        }
        for command in COMMANDS {
            text.push_str(command.name);
        }
        text.into_bytes()
    }

    fn lay_out(&self, root: &Path) -> io::Result<()> {
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
        for (dir, mode) in [
            ("bin", 0o755),
            ("etc", 0o755),
            ("proc", 0o555),
            ("sys", 0o555),
            ("dev", 0o755),
            ("tmp", 0o1777),
        ] {
            fs::create_dir(root.join(dir))?;
            fs::set_permissions(root.join(dir), fs::Permissions::from_mode(mode))?;
        }
        copy_in(
            &fs::canonicalize(&self.executable).unwrap_or_else(|_| self.executable.clone()),
            &self.executable,
            &root.join("hello"),
        )?;
        for command in COMMANDS {
            symlink("../hello", root.join("bin").join(command.name))?;
        }
        // Where the node mounts its own: a read-only root cannot be given them later.
        for name in ["hosts", "hostname", "resolv.conf"] {
            write(&root.join("etc").join(name), "")?;
        }
        write(
            &root.join("etc/passwd"),
            "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        )?;
        write(&root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
        for library in &self.libraries {
            let target = under(root, library);
            make_parents(&target)?;
            copy_in(library, library, &target)?;
            // `/usr/lib` is where `/lib` points to on this host; in the image both must answer.
            for (real, alias) in [("/usr/lib", "/lib"), ("/usr/lib64", "/lib64")] {
                if let (Ok(rest), true) = (library.strip_prefix(real), is_link_to(alias, real)) {
                    let alias = under(root, Path::new(alias)).join(rest);
                    make_parents(&alias)?;
                    if !alias.exists() {
                        fs::hard_link(&target, alias)?;
                    }
                }
            }
        }
        let Some(loader) = &self.loader else {
            return Ok(());
        };
        let target = under(root, loader);
        if !target.exists() {
            make_parents(&target)?;
            copy_in(loader, loader, &target)?;
        }
        Ok(())
    }
}

/// Whatever the node keeps closed, the users of a container read its image.
fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn make_parents(path: &Path) -> io::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) else {
        return Ok(());
    };
    make_parents(parent)?;
    fs::create_dir(parent)?;
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755))
}

fn is_link_to(alias: &str, real: &str) -> bool {
    fs::canonicalize(alias).is_ok_and(|target| target == Path::new(real))
}

fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// A hard link where both lie on one file system, else a copy. Containers write to their own
/// layer, never to what is below.
fn copy_in(link_from: &Path, copy_from: &Path, to: &Path) -> io::Result<()> {
    // Linking what is not the very same file any more would put another version in.
    let same = match (fs::metadata(link_from), fs::metadata(copy_from)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    let fit = fs::metadata(copy_from)?.mode() & 0o005 == 0o005;
    if same && fit && fs::hard_link(fs::canonicalize(link_from)?, to).is_ok() {
        return Ok(());
    }
    fs::copy(copy_from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))
}

/// `PT_INTERP` of an ELF file for a 64-bit little-endian machine.
fn interpreter(path: &Path) -> io::Result<Option<PathBuf>> {
    let mut head = vec![0; 4096];
    let n = fs::File::open(path)?.read(&mut head)?;
    head.truncate(n);
    Ok(parse_interpreter(&head))
}

fn parse_interpreter(head: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(head.get(at..at + bytes)?);
        Some(u64::from_le_bytes(value))
    };
    if head.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for i in 0..count {
        let at = usize::try_from(table + i * size).ok()?;
        if number(at, 4)? == PT_INTERP {
            let (offset, length) = (
                usize::try_from(number(at + 8, 8)?).ok()?,
                usize::try_from(number(at + 32, 8)?).ok()?,
            );
            let name = head.get(offset..offset.checked_add(length)?)?;
            return Some(PathBuf::from(
                String::from_utf8_lossy(name).trim_end_matches('\0'),
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::RegistryConfig;

    /// The image is made of the test program itself, which is dynamic as the product may be:
    /// in a chroot its loader must find everything.
    #[test]
    fn the_root_file_system_is_complete() {
        let data =
            std::env::temp_dir().join(format!("keelson-hello-{}", uuid::Uuid::new_v4().simple()));
        let store = ImageStore::open(&data, RegistryConfig::default()).unwrap();
        let image = ensure_hello_image(&store).unwrap();
        assert!(image.pinned && image.entrypoint == ["/hello"]);
        assert_eq!(
            ensure_hello_image(&store).unwrap().id,
            image.id,
            "made once"
        );
        let root = store.rootfs(&image.id).unwrap().layers.remove(0);
        if rustix::process::geteuid().is_root() {
            let script = root.join("hello");
            let output = std::process::Command::new("chroot")
                .arg(&root)
                .args(["/hello", "--list"])
                .output();
            if let Ok(output) = output {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(
                    output.status.success() && text.contains("complete"),
                    "{} {output:?}",
                    script.display()
                );
            }
        }
        fs::remove_dir_all(data).unwrap();
    }
}
