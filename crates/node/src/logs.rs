//! Container log files: rotation and removal. Reading them is the HTTP server's business.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
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

/// The end of a log as a termination message: at most 80 lines and 2048 bytes, without the runtime's
/// time stamps.
pub(crate) fn last_words(log: &Path) -> String {
    const MAX_BYTES: usize = 2048;
    const MAX_LINES: usize = 80;
    const MAX_READ: u64 = 64 << 10;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(log)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(MAX_READ)))?;
        let mut bytes = Vec::new();
        file.take(MAX_READ).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        let mut parts = line.splitn(4, ' ').skip(2);
        let (Some(tag), Some(words)) = (parts.next(), parts.next()) else {
            continue;
        };
        match lines.last_mut().filter(|_| open) {
            Some(last) => last.push_str(words),
            None => lines.push(words.to_owned()),
        }
        open = tag.split(':').next() == Some("P");
        if !open && let Some(last) = lines.last_mut() {
            last.push('\n');
        }
    }
    let mut message = lines[lines.len().saturating_sub(MAX_LINES)..].concat();
    let start = message.ceil_char_boundary(message.len().saturating_sub(MAX_BYTES));
    message.split_off(start)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn last_words_are_the_logs_end() {
        let file = std::env::temp_dir().join(format!(
            "keelson-words-{}-{:x}",
            std::process::id(),
            rand::random::<u64>()
        ));
        let mut log = String::new();
        for n in 0..200 {
            log.push_str(&format!("2026-01-01T00:00:00Z stdout F line {n}\n"));
        }
        fs::write(&file, log).unwrap();
        let words = last_words(&file);
        fs::remove_file(&file).unwrap();
        assert!(
            words.starts_with("line 120\n") && words.ends_with("line 199\n"),
            "{words}"
        );
        assert_eq!(last_words(&file), "");
    }

    #[test]
    fn last_words_end_as_the_container_ended_them() {
        let file = std::env::temp_dir().join(format!(
            "keelson-words-{}-{:x}",
            std::process::id(),
            rand::random::<u64>()
        ));
        fs::write(&file, "T stdout F one\nT stdout P DO\nT stdout P NE\n").unwrap();
        let words = last_words(&file);
        fs::remove_file(&file).unwrap();
        assert_eq!(words, "one\nDONE");
    }
}
