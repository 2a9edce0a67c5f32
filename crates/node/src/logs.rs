//! Container log files: rotation and removal. Reading them is the HTTP server's business.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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

const COMPRESSED: &str = "gz";
/// A compressed file that is not finished.
const UNFINISHED: &str = "tmp";

/// Compresses the rotated files of a log but the newest, which somebody may be reading on. A writer
/// that rotates faster than that loses its oldest files first, whatever form they have.
pub(crate) fn compress(log: &Path) -> std::io::Result<()> {
    let unfinished = |file: &&PathBuf| file.extension().is_some_and(|e| e == UNFINISHED);
    for file in rotated(log).iter().filter(unfinished) {
        fs::remove_file(file)?;
    }
    let plain = plain_rotated(log);
    let Some((_newest, older)) = plain.split_last() else {
        return Ok(());
    };
    for file in older {
        match compress_file(file) {
            // The writer was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

fn compress_file(file: &Path) -> std::io::Result<()> {
    let named = |extension: &str| PathBuf::from(format!("{}.{extension}", file.display()));
    let (temporary, target) = (named(UNFINISHED), named(COMPRESSED));
    let mut source = fs::File::open(file)?;
    let out = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(&temporary)?;
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
    std::io::copy(&mut source, &mut encoder)?;
    encoder.finish()?;
    // Not brought back when the writer has taken it away meanwhile.
    fs::remove_file(file).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    fs::rename(&temporary, &target)
}

/// The rotated files that can be read as they are, oldest first.
fn plain_rotated(log: &Path) -> Vec<PathBuf> {
    let mut files = rotated(log);
    files.retain(|file| {
        let extension = file.extension();
        extension.is_none_or(|e| e != COMPRESSED && e != UNFINISHED)
    });
    files
}

/// The file that goes on where `open` ends: the one rotated after it, or the log itself. `open` was
/// rotated, and may be gone by now.
pub(crate) fn after(open: &fs::File, log: &Path) -> PathBuf {
    let plain = plain_rotated(log);
    let inode = open.metadata().map_or(0, |found| found.ino());
    let is_open = |file: &PathBuf| fs::metadata(file).is_ok_and(|found| found.ino() == inode);
    let next = match plain.iter().position(is_open) {
        Some(position) => plain.get(position + 1),
        None => plain.first(),
    };
    next.cloned().unwrap_or_else(|| log.to_owned())
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
    let read = |file: &Path| -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(file)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(MAX_READ)))?;
        let mut bytes = Vec::new();
        file.take(MAX_READ).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(mut bytes) = read(log) else {
        return String::new();
    };
    // A file that was begun a moment ago holds no more than the last of them.
    if bytes.len() < MAX_BYTES
        && let Some(before) = plain_rotated(log).last()
    {
        let mut earlier = read(before).unwrap_or_default();
        earlier.append(&mut bytes);
        bytes = earlier;
    }
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

    #[test]
    fn rotated_files_are_compressed_but_for_the_newest_and_followed_in_order() {
        let dir = std::env::temp_dir().join(format!("keelson-compress-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let log = dir.join("0.log");
        let name = |n: u32| dir.join(format!("0.log.20260101-00000{n}-000000000"));
        for n in 1..=3 {
            fs::write(name(n), format!("T stdout F {n}\n")).unwrap();
        }
        fs::write(&log, "T stdout F now\n").unwrap();
        let (first, second) = (
            fs::File::open(name(1)).unwrap(),
            fs::File::open(name(2)).unwrap(),
        );
        assert_eq!(after(&first, &log), name(2));
        compress(&log).unwrap();
        let left: Vec<String> = rotated(&log)
            .iter()
            .map(|file| file.extension().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(left, ["gz", "gz", "20260101-000003-000000000"]);
        let mut text = String::new();
        let packed = fs::File::open(format!("{}.gz", name(1).display())).unwrap();
        flate2::read::GzDecoder::new(packed)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "T stdout F 1\n");
        // The second is gone under its name: what comes next is the oldest that is left.
        assert_eq!(after(&second, &log), name(3));
        let third = fs::File::open(name(3)).unwrap();
        assert_eq!(after(&third, &log), log);
        assert_eq!(last_words(&log), "3\nnow\n");
        fs::remove_dir_all(&dir).unwrap();
    }
}
