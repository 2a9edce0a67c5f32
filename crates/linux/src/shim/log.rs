//! Container logs in the format that the kubelet reads: time, stream, `P` or `F`, text.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A longer line is written in pieces, all but the last tagged `P`.
const MAX_LINE_BYTES: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    pub(super) fn index(self) -> usize {
        match self {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        }
    }
}

/// How large a log file becomes, and how many of them there are with the one being written. The
/// shim holds to it itself: no timer elsewhere keeps up with a fast writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    pub max_bytes: u64,
    pub max_files: usize,
}

pub(super) struct LogWriter {
    path: PathBuf,
    file: Option<File>,
    size_bytes: u64,
    /// Absent in what an older version started: its logs are rotated from outside.
    limits: Option<LogLimits>,
    /// What a full disk did not take, to be told of when it takes something again.
    lost_bytes: u64,
    /// The beginning of a line that has no end yet, for each stream.
    open_lines: [Vec<u8>; 2],
    batch: Vec<u8>,
}

impl LogWriter {
    pub(super) fn open(path: &Path, limits: Option<LogLimits>) -> io::Result<LogWriter> {
        let mut writer = LogWriter {
            path: path.to_path_buf(),
            file: None,
            size_bytes: 0,
            limits,
            lost_bytes: 0,
            open_lines: [Vec::new(), Vec::new()],
            batch: Vec::new(),
        };
        writer.reopen()?;
        Ok(writer)
    }

    /// After a rotation the old file has another name; from now on a new one is written.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let file = open(&self.path)?;
        self.size_bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    pub(super) fn write(&mut self, stream: Stream, data: &[u8]) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.clear();
        render(
            &mut batch,
            &mut self.open_lines[stream.index()],
            stream,
            data,
            &timestamp(SystemTime::now()),
        );
        self.append(batch);
    }

    /// The stream ended. A last line without its newline stays a piece, so that readers add none.
    pub(super) fn finish(&mut self, stream: Stream) {
        let line = std::mem::take(&mut self.open_lines[stream.index()]);
        if !line.is_empty() {
            let mut batch = Vec::with_capacity(line.len() + 64);
            push_line(
                &mut batch,
                &timestamp(SystemTime::now()),
                stream,
                b'P',
                &line,
            );
            self.append(batch);
        }
    }

    fn append(&mut self, batch: Vec<u8>) {
        let mut rest = batch.as_slice();
        while !rest.is_empty() {
            let room = self.room();
            if room == 0 && self.size_bytes > 0 {
                self.rotate();
                continue;
            }
            let piece = lines_within(rest, room);
            if piece == 0 && self.size_bytes > 0 {
                self.rotate();
                continue;
            }
            // A line that is longer than a whole file has one to itself.
            let piece = if piece == 0 { first_line(rest) } else { piece };
            self.put(&rest[..piece]);
            rest = &rest[piece..];
        }
        self.batch = batch;
        self.batch.shrink_to(4 * MAX_LINE_BYTES);
    }

    /// Bytes that the file may still take.
    fn room(&self) -> u64 {
        self.limits.map_or(u64::MAX, |limits| {
            limits.max_bytes.saturating_sub(self.size_bytes)
        })
    }

    /// A full disk loses lines, and the log says how much; it must not stop the container.
    fn put(&mut self, lines: &[u8]) {
        let mark = match self.lost_bytes {
            0 => Vec::new(),
            lost => {
                let mut mark = Vec::new();
                let text = format!("[{lost} bytes of this log were lost: the disk was full]");
                let time = timestamp(SystemTime::now());
                push_line(&mut mark, &time, Stream::Stderr, b'F', text.as_bytes());
                mark
            }
        };
        for (bytes, is_mark) in [(mark.as_slice(), true), (lines, false)] {
            if bytes.is_empty() {
                continue;
            }
            let written = match &mut self.file {
                Some(file) => file.write_all(bytes).inspect_err(|_| {
                    // Half a line would garble the one that is written next.
                    let _ = file.set_len(self.size_bytes);
                }),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            match (written, is_mark) {
                (Ok(()), true) => self.lost_bytes = 0,
                (Ok(()), false) => {}
                (Err(_), true) => {
                    self.lost_bytes += lines.len() as u64;
                    return;
                }
                (Err(_), false) => {
                    self.lost_bytes += bytes.len() as u64;
                    return;
                }
            }
            self.size_bytes += bytes.len() as u64;
        }
    }

    /// Renames the file and begins another; the oldest go. Where that fails the file is emptied, for
    /// the bound holds whatever happens.
    fn rotate(&mut self) {
        let target = rotated_name(&self.path, SystemTime::now());
        let renamed = std::fs::rename(&self.path, target).and_then(|()| self.reopen());
        if renamed.is_err()
            && let Some(file) = &self.file
        {
            let _ = file.set_len(0);
            self.size_bytes = 0;
        }
        if let Some(limits) = self.limits {
            remove_oldest(&self.path, limits.max_files.saturating_sub(1));
        }
    }
}

/// Length of the whole lines at the beginning that fit into `room`.
fn lines_within(lines: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if lines.len() <= room {
        return lines.len();
    }
    let fitting = &lines[..room];
    fitting
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1)
}

fn first_line(lines: &[u8]) -> usize {
    let end = lines.iter().position(|byte| *byte == b'\n');
    end.map_or(lines.len(), |end| end + 1)
}

/// `0.log.20260102-030405-000000006`: in the order of their names the oldest comes first, however
/// many there are in a second.
fn rotated_name(log: &Path, time: SystemTime) -> PathBuf {
    let digits: String = timestamp(time)
        .chars()
        .filter_map(|c| match c {
            'T' | '.' => Some('-'),
            '-' | ':' | 'Z' => None,
            c => Some(c),
        })
        .collect();
    let mut name = log.as_os_str().to_owned();
    name.push(".");
    name.push(digits);
    PathBuf::from(name)
}

/// Keeps the newest `keep` of a log's rotated files, compressed or not.
fn remove_oldest(log: &Path, keep: usize) {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else {
        return;
    };
    let mut prefix = name.as_encoded_bytes().to_vec();
    prefix.push(b'.');
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut rotated: Vec<_> = names
        .filter(|name| name.as_encoded_bytes().starts_with(&prefix))
        .collect();
    rotated.sort();
    let surplus = rotated.len().saturating_sub(keep);
    for name in &rotated[..surplus] {
        let _ = std::fs::remove_file(directory.join(name));
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

fn render(batch: &mut Vec<u8>, open_line: &mut Vec<u8>, stream: Stream, data: &[u8], time: &str) {
    let mut rest = data;
    while !rest.is_empty() {
        let room = MAX_LINE_BYTES - open_line.len();
        let window = &rest[..rest.len().min(room)];
        match window.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                open_line.extend_from_slice(&window[..end]);
                push_line(batch, time, stream, b'F', open_line);
                open_line.clear();
                rest = &rest[end + 1..];
            }
            None => {
                open_line.extend_from_slice(window);
                rest = &rest[window.len()..];
                if open_line.len() == MAX_LINE_BYTES {
                    push_line(batch, time, stream, b'P', open_line);
                    open_line.clear();
                }
            }
        }
    }
}

fn push_line(batch: &mut Vec<u8>, time: &str, stream: Stream, tag: u8, line: &[u8]) {
    batch.extend_from_slice(time.as_bytes());
    batch.push(b' ');
    batch.extend_from_slice(stream.name().as_bytes());
    batch.extend_from_slice(&[b' ', tag, b' ']);
    batch.extend_from_slice(line);
    batch.push(b'\n');
}

/// RFC 3339 in UTC with nanoseconds. By hand, because a time-zone library costs each shim memory.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

/// Days since 1970 as a date, counted in eras of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_right_across_leap_years() {
        let at = |seconds: u64| timestamp(UNIX_EPOCH + Duration::new(seconds, 5));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.000000005Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000005Z");
    }

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut batch, mut open_line) = (Vec::new(), Vec::new());
        for chunk in chunks {
            render(&mut batch, &mut open_line, Stream::Stderr, chunk, "T");
        }
        String::from_utf8(batch)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn lines_join_across_reads() {
        assert_eq!(lines(&[b"a", b"b\n\nc"]), ["T stderr F ab", "T stderr F "]);
    }

    #[test]
    fn long_lines_are_written_in_pieces() {
        let long = vec![b'x'; MAX_LINE_BYTES + 3];
        let got = lines(&[&long, b"\n"]);
        assert_eq!(got.len(), 2);
        assert!(got[0].starts_with("T stderr P xxx"));
        assert_eq!(got[1], "T stderr F xxx");
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("keelson-log-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        /// Name and size of every file, oldest first, the one being written last.
        fn files(&self) -> Vec<(String, u64)> {
            let mut files: Vec<_> = std::fs::read_dir(&self.0)
                .unwrap()
                .flatten()
                .map(|e| {
                    (
                        e.file_name().into_string().unwrap(),
                        e.metadata().unwrap().len(),
                    )
                })
                .collect();
            files.sort_by_key(|(name, _)| (name == "0.log", name.clone()));
            files
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_stay_within_their_size_and_number_however_fast_the_writer_is() {
        let scratch = Scratch::new("fast");
        let limits = LogLimits {
            max_bytes: 64 << 10,
            max_files: 3,
        };
        let log = scratch.0.join("0.log");
        let mut writer = LogWriter::open(&log, Some(limits)).unwrap();
        // 2 bytes a line, as `yes` writes: what reaches the disk is twenty times that.
        let chunk = b"y\n".repeat(16 << 10);
        for _ in 0..40 {
            writer.write(Stream::Stdout, &chunk);
            let files = scratch.files();
            assert!(files.len() <= 3, "{files:?}");
            assert!(files.iter().all(|(_, size)| *size <= 64 << 10), "{files:?}");
        }
        for (name, _) in scratch.files() {
            let text = std::fs::read_to_string(scratch.0.join(name)).unwrap();
            assert!(text.lines().all(|line| line.ends_with(" stdout F y")));
        }
    }

    #[test]
    fn what_is_kept_is_the_newest_without_a_gap() {
        let scratch = Scratch::new("order");
        let limits = LogLimits {
            max_bytes: 500,
            max_files: 4,
        };
        let mut writer = LogWriter::open(&scratch.0.join("0.log"), Some(limits)).unwrap();
        for number in 0..200 {
            writer.write(Stream::Stdout, format!("{number}\n").as_bytes());
        }
        let text: String = scratch
            .files()
            .iter()
            .map(|(name, _)| std::fs::read_to_string(scratch.0.join(name)).unwrap())
            .collect();
        let last = |line: &str| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap();
        let numbers: Vec<u32> = text.lines().map(last).collect();
        assert_eq!(numbers.last(), Some(&199));
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{numbers:?}"
        );
    }

    #[test]
    fn a_line_longer_than_a_file_has_one_to_itself() {
        let scratch = Scratch::new("long");
        let limits = LogLimits {
            max_bytes: 100,
            max_files: 2,
        };
        let mut writer = LogWriter::open(&scratch.0.join("0.log"), Some(limits)).unwrap();
        writer.write(Stream::Stdout, b"short\n");
        writer.write(
            Stream::Stdout,
            format!("{}\nend\n", "x".repeat(300)).as_bytes(),
        );
        let files = scratch.files();
        assert_eq!(files.len(), 2);
        assert!(files[0].1 > 300 && files[1].1 < 100, "{files:?}");
    }

    #[test]
    fn rotated_names_sort_by_time() {
        let at = |nanos: u32| {
            rotated_name(
                Path::new("/l/0.log"),
                UNIX_EPOCH + Duration::new(951_782_400, nanos),
            )
        };
        assert_eq!(at(6), Path::new("/l/0.log.20000229-000000-000000006"));
        assert!(at(6) < at(100_000_000));
    }
}
