//! Container log files: rotation and removal. Reading them is the HTTP server's business.

use std::fs;
use std::path::{Path, PathBuf};

use keelson_ports::Runtime;

/// The rotated files of a log, oldest first: `<file>.<time>`, or `.gz` for older ones.
pub(crate) fn rotated(log: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str()))
    else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

/// Removes a log with its rotated files.
pub(crate) fn remove_all(log: &Path) {
    for file in rotated(log).into_iter().chain([log.to_owned()]) {
        if let Err(error) = fs::remove_file(&file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(file = %file.display(), %error, "removing a log failed");
        }
    }
}

/// Rotates a log that has grown beyond `max_bytes`; `max_files` counts the one being written.
pub(crate) async fn rotate(
    runtime: &dyn Runtime,
    id: &str,
    log: &Path,
    max_bytes: u64,
    max_files: usize,
) -> std::io::Result<bool> {
    let size = match fs::metadata(log) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if size < max_bytes {
        return Ok(false);
    }
    let stamp = k8s_openapi::jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    let target = PathBuf::from(format!("{}.{stamp}", log.display()));
    fs::rename(log, &target)?;
    if let Err(error) = runtime.reopen_container_log(id).await {
        // The runtime still writes to the renamed file: put it back under its name.
        fs::rename(&target, log)?;
        return Err(std::io::Error::other(error.to_string()));
    }
    let old = rotated(log);
    for file in old
        .iter()
        .take(old.len().saturating_sub(max_files.saturating_sub(1)))
    {
        fs::remove_file(file)?;
    }
    Ok(true)
}
