//! Container logs in the format that the kubelet reads: time, stream, `P` or `F`, text.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

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

pub(super) struct LogWriter {
    path: PathBuf,
    file: Option<File>,
    /// The beginning of a line that has no end yet, for each stream.
    open_lines: [Vec<u8>; 2],
    batch: Vec<u8>,
}

impl LogWriter {
    pub(super) fn open(path: &Path) -> io::Result<LogWriter> {
        let file = Some(open(path)?);
        Ok(LogWriter {
            path: path.to_path_buf(),
            file,
            open_lines: [Vec::new(), Vec::new()],
            batch: Vec::new(),
        })
    }

    /// After a rotation the old file has another name; from now on a new one is written.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = Some(open(&self.path)?);
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

    /// A full disk loses lines; it must not stop the container.
    fn append(&mut self, batch: Vec<u8>) {
        if !batch.is_empty()
            && let Some(file) = &mut self.file
        {
            let _ = file.write_all(&batch);
        }
        self.batch = batch;
        self.batch.shrink_to(4 * MAX_LINE_BYTES);
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
}
