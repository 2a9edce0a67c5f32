//! Events as lines of a file, which is put aside when it grows large.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::{AuditOptions, Sink};

pub(super) enum LogFile {
    Output,
    File(Mutex<Rotating>),
}

pub(super) struct Rotating {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: u64,
    max_age: Option<Duration>,
    max_backups: usize,
}

impl LogFile {
    pub(super) fn open(path: &str, options: &AuditOptions) -> io::Result<Self> {
        if path == "-" {
            return Ok(Self::Output);
        }
        let path = PathBuf::from(path);
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(directory)?;
        }
        let file = append(&path)?;
        let is_file = file.metadata()?.is_file();
        Ok(Self::File(Mutex::new(Rotating {
            size: file.metadata()?.len(),
            file,
            path,
            max_size: match options.log_max_size {
                // A device or a pipe is nothing to put aside: its name would become a file's.
                _ if !is_file => u64::MAX,
                0 => u64::MAX,
                megabytes => megabytes << 20,
            },
            max_age: (options.log_max_age > 0)
                .then(|| Duration::from_secs(u64::from(options.log_max_age) * 86_400)),
            max_backups: options.log_max_backups,
        })))
    }
}

impl Sink for LogFile {
    fn write(&self, event: &Value) {
        let mut line = event.to_string();
        line.push('\n');
        let outcome = match self {
            Self::Output => io::stdout().lock().write_all(line.as_bytes()),
            Self::File(file) => file
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(line.as_bytes()),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "an audit event is lost");
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

impl Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.max_size {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let now = Timestamp::now().to_zoned(TimeZone::UTC);
        let stamp = now.strftime("%Y-%m-%dT%H-%M-%S%.6f").to_string();
        let (stem, extension) = self.name();
        let backup = self
            .path
            .with_file_name(format!("{stem}-{stamp}{extension}"));
        fs::rename(&self.path, backup)?;
        self.file = append(&self.path)?;
        self.size = 0;
        self.remove_old();
        Ok(())
    }

    /// `audit` and `.log`.
    fn name(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.map(|part| part.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let extension = match text(self.path.extension()) {
            extension if extension.is_empty() => extension,
            extension => format!(".{extension}"),
        };
        (text(self.path.file_stem()), extension)
    }

    /// What cannot be removed now is tried again at the next rotation.
    fn remove_old(&self) {
        let (stem, extension) = self.name();
        let (start, directory) = (
            format!("{stem}-"),
            self.path.parent().unwrap_or(Path::new(".")),
        );
        let mut backups: Vec<PathBuf> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
                name.is_some_and(|n| {
                    let stamp = n
                        .strip_prefix(&start)
                        .and_then(|rest| rest.strip_suffix(&extension));
                    stamp.is_some_and(|s| s.len() >= 19 && s.as_bytes()[10] == b'T')
                })
            })
            .collect();
        // Names carry the time, so that they sort by age.
        backups.sort();
        let surplus = match self.max_backups {
            0 => 0,
            kept => backups.len().saturating_sub(kept),
        };
        let oldest = self
            .max_age
            .and_then(|age| SystemTime::now().checked_sub(age));
        for (index, path) in backups.iter().enumerate() {
            let modified = fs::metadata(path).and_then(|m| m.modified()).ok();
            let aged = matches!((modified, oldest), (Some(at), Some(limit)) if at < limit);
            if (index < surplus || aged)
                && let Err(error) = fs::remove_file(path)
            {
                tracing::warn!(path = %path.display(), %error, "removing an old audit log");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_full_file_is_put_aside_and_only_so_many_are_kept() {
        let directory =
            std::env::temp_dir().join(format!("keelson-audit-{}", uuid::Uuid::new_v4()));
        let path = directory.join("audit.log");
        let options = AuditOptions {
            log_max_size: 1,
            log_max_backups: 2,
            ..AuditOptions::default()
        };
        let log = LogFile::open(path.to_str().unwrap(), &options).unwrap();
        let event = json!({"text": "x".repeat(400 << 10)});
        for _ in 0..9 {
            log.write(&event);
        }
        let mut names: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].starts_with("audit-2") && names[2] == "audit.log");
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.lines()
                .all(|line| serde_json::from_str::<Value>(line).is_ok())
        );
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_device_is_written_to_and_never_put_aside() {
        use std::os::unix::fs::{FileTypeExt, symlink};
        let directory =
            std::env::temp_dir().join(format!("keelson-audit-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("audit.log");
        symlink("/dev/null", &path).unwrap();
        let options = AuditOptions {
            log_max_size: 1,
            ..AuditOptions::default()
        };
        let log = LogFile::open(path.to_str().unwrap(), &options).unwrap();
        for _ in 0..4 {
            log.write(&json!({"text": "x".repeat(400 << 10)}));
        }
        assert!(fs::metadata(&path).unwrap().file_type().is_char_device());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        fs::remove_dir_all(directory).unwrap();
    }
}
