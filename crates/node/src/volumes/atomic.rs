//! Writing a set of files so that readers see all old or all new ones.
//!
//! Content lives in a directory `..<time>.<random>`; `..data` points at it and is replaced by a
//! rename; visible names point through `..data`. Programs watch `..data` for changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use super::{VolumeContext, VolumeError, io, port};

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileContent {
    pub(crate) data: Vec<u8>,
    pub(crate) mode: u32,
    /// Owner other than root.
    pub(crate) user: Option<u32>,
}

/// Files by relative path.
pub(crate) type Payload = BTreeMap<String, FileContent>;

/// A path that stays inside the volume: relative, without `..`, not starting with `..`.
pub(crate) fn check_path(path: &str) -> Result<(), VolumeError> {
    let bad = |why: &str| Err(VolumeError::Failed(format!("invalid path {path:?}: {why}")));
    if path.is_empty() {
        return bad("must not be empty");
    }
    if path.starts_with("..") {
        return bad("must not start with '..'");
    }
    if path.len() > 4096 || path.split('/').any(|part| part.len() > 255) {
        return bad("too long");
    }
    if Path::new(path)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        Ok(())
    } else {
        bad("must be relative and must not contain '..'")
    }
}

/// Writes the payload; nothing is touched when it is there already.
pub(crate) async fn write(
    context: &VolumeContext<'_>,
    dir: &Path,
    payload: Payload,
) -> Result<(), VolumeError> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let target = dir.to_owned();
    let staged = tokio::task::spawn_blocking(move || stage(&target, &payload))
        .await
        .map_err(|error| VolumeError::Failed(error.to_string()))??;
    let Some(staged) = staged else { return Ok(()) };
    if let Some(group) = context.fs_group() {
        context
            .services
            .mounts
            .set_fs_group(&staged.dir, group, true)
            .await
            .map_err(port("setting fsGroup"))?;
    }
    let target = dir.to_owned();
    tokio::task::spawn_blocking(move || publish(&target, &staged))
        .await
        .map_err(|error| VolumeError::Failed(error.to_string()))?
}

struct Staged {
    dir: PathBuf,
    names: BTreeSet<String>,
}

fn stage(dir: &Path, payload: &Payload) -> Result<Option<Staged>, VolumeError> {
    let what = || format!("writing {}", dir.display());
    fs::create_dir_all(dir).map_err(io(what()))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(io(what()))?;
    if is_current(dir, payload) {
        return Ok(None);
    }
    let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S");
    let staged = dir.join(format!("..{now}.{:010}", rand::random::<u32>()));
    fs::create_dir(&staged).map_err(io(what()))?;
    fs::set_permissions(&staged, fs::Permissions::from_mode(0o755)).map_err(io(what()))?;
    for (path, content) in payload {
        let file = staged.join(path);
        if let Some(parent) = file.parent() {
            make_directories(&staged, parent).map_err(io(what()))?;
        }
        fs::write(&file, &content.data).map_err(io(what()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(content.mode & 0o7777))
            .map_err(io(what()))?;
        if let Some(user) = content.user {
            chown(&file, Some(user), None).map_err(io(what()))?;
        }
    }
    let names = payload
        .keys()
        .map(|path| first_part(path).to_owned())
        .collect();
    Ok(Some(Staged { dir: staged, names }))
}

/// Directories of a payload are open to the container's users, whoever they are; the volume's own
/// place is not.
fn make_directories(staged: &Path, dir: &Path) -> std::io::Result<()> {
    let Some(parent) = dir.parent().filter(|_| dir != staged && !dir.is_dir()) else {
        return Ok(());
    };
    make_directories(staged, parent)?;
    fs::create_dir(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

fn first_part(path: &str) -> &str {
    path.trim_start_matches("./")
        .split('/')
        .next()
        .unwrap_or(path)
}

fn publish(dir: &Path, staged: &Staged) -> Result<(), VolumeError> {
    let what = || format!("writing {}", dir.display());
    let previous = fs::read_link(dir.join(DATA)).ok();
    let staged_name = staged.dir.file_name().unwrap_or_default();
    let tmp = dir.join(DATA_TMP);
    remove_if_there(&tmp).map_err(io(what()))?;
    symlink(staged_name, &tmp).map_err(io(what()))?;
    fs::rename(&tmp, dir.join(DATA)).map_err(io(what()))?;
    for name in &staged.names {
        let link = dir.join(name);
        match symlink(Path::new(DATA).join(name), &link) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(io(what())(error));
            }
            _ => {}
        }
    }
    for entry in fs::read_dir(dir).map_err(io(what()))?.flatten() {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if !text.starts_with("..") && !staged.names.contains(text.as_ref()) {
            remove_if_there(&entry.path()).map_err(io(what()))?;
        }
    }
    if let Some(previous) = previous.filter(|previous| previous != Path::new(staged_name)) {
        fs::remove_dir_all(dir.join(previous))
            .or_else(absent_is_fine)
            .map_err(io(what()))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    fs::remove_file(path).or_else(absent_is_fine)
}

fn absent_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}

/// Whether the published files are exactly the payload. Modes are set at writing and changed by
/// `fsGroup`, so only content and names count.
fn is_current(dir: &Path, payload: &Payload) -> bool {
    let data = dir.join(DATA);
    let mut found = 0_usize;
    let mut pending = vec![data.clone()];
    while let Some(next) = pending.pop() {
        let Ok(entries) = fs::read_dir(&next) else {
            return false;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let Ok(relative) = path.strip_prefix(&data) else {
                return false;
            };
            let Some(wanted) = payload.get(relative.to_string_lossy().as_ref()) else {
                return false;
            };
            if fs::read(&path).ok().as_deref() != Some(wanted.data.as_slice()) {
                return false;
            }
            found += 1;
        }
    }
    found == payload.len()
}

#[cfg(test)]
pub(super) fn write_blocking(dir: &Path, payload: &Payload) -> Result<bool, VolumeError> {
    match stage(dir, payload)? {
        Some(staged) => publish(dir, &staged).map(|()| true),
        None => Ok(false),
    }
}
