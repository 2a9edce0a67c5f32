//! `/containerLogs/<namespace>/<pod>/<container>`: the log file, line by line.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use keelson_ports::ContainerState;
use tokio::sync::mpsc;

use super::{Body, BoxError, Call, Server, response, text};
use crate::logs;
use crate::pod;
use crate::status;
use keelson_streaming::websocket::{self, Encoding};

/// How often a followed file is looked at for more. There is no event for a file's growth in the
/// ports, and the loop lives only as long as somebody follows.
const FOLLOW_PERIOD: Duration = Duration::from_millis(150);
const CHUNK_BYTES: usize = 64 << 10;
/// Longer lines are sent in pieces, as the runtime wrote them.
const MAX_LINE_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LogOptions {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail: Option<u64>,
    pub(super) since: Option<Timestamp>,
    pub(super) limit_bytes: Option<u64>,
    /// `stdout`, `stderr` or both.
    pub(super) stream: Option<String>,
}

pub(super) async fn handle(server: &Arc<Server>, mut call: Call) -> Response<Body> {
    let [_, namespace, pod_name, container] = call.path.as_slice() else {
        return text(
            StatusCode::BAD_REQUEST,
            "the path must be /containerLogs/<namespace>/<pod>/<container>",
        );
    };
    let options = match options(&call, server.agent.node.clock.now()) {
        Ok(options) => options,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let Some(pod) = server.agent.pod(namespace, pod_name) else {
        return text(
            StatusCode::NOT_FOUND,
            format!("pod \"{pod_name}\" does not exist"),
        );
    };
    let (id, path) = match locate(server, &pod, container, options.previous) {
        Ok(found) => found,
        Err((status, message)) => return text(status, message),
    };
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, BoxError>>(8);
    let server = server.clone();
    tokio::spawn(async move {
        let alive = {
            let server = server.clone();
            let uid = pod::uid(&pod).to_owned();
            move || {
                let runtime = server.agent.node.state.pod(&uid);
                runtime
                    .containers
                    .iter()
                    .any(|c| c.id == id && c.state == ContainerState::Running)
                    && !server.shutdown.is_cancelled()
            }
        };
        if let Err(error) = copy(&path, &options, alive, &sender).await {
            // The receiver may be gone: the client went away.
            let _ = sender.send(Err(Box::new(error))).await;
        }
    });
    let log = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|frame| (frame, receiver))
    });
    let log = StreamBody::new(log);
    let headers = call.request.headers();
    if websocket::is_upgrade(headers, "websocket") {
        return match websocket::accept(call.request.method(), headers, websocket::ONE_WAY_PROTOCOLS)
        {
            Ok((response, protocol)) => {
                let upgrade = hyper::upgrade::on(&mut call.request);
                let log = log.into_data_stream();
                tokio::spawn(websocket::send(upgrade, Encoding::of(protocol), log));
                super::switched(response)
            }
            Err(refusal) => super::text(refusal.status, refusal.message),
        };
    }
    response(StatusCode::OK, "text/plain", log.boxed_unsync())
}

fn options(call: &Call, now: SystemTime) -> Result<LogOptions, String> {
    let query = &call.query;
    let mut since = None;
    if let Some(text) = query.get("sinceTime").filter(|text| !text.is_empty()) {
        since = Some(
            text.parse::<Timestamp>()
                .map_err(|_| format!("invalid value {text:?} for sinceTime"))?,
        );
    }
    if let Some(seconds) = query.number::<u64>("sinceSeconds")? {
        if seconds == 0 {
            return Err("sinceSeconds must be greater than 0".to_owned());
        }
        let from = now
            .checked_sub(Duration::from_secs(seconds))
            .unwrap_or(SystemTime::UNIX_EPOCH);
        since = Timestamp::try_from(from).ok();
    }
    let stream = query
        .get("stream")
        .filter(|stream| !stream.is_empty() && *stream != "All");
    Ok(LogOptions {
        follow: query.any(&["follow"]),
        previous: query.any(&["previous"]),
        timestamps: query.any(&["timestamps"]),
        tail: query.number("tailLines")?,
        since,
        limit_bytes: query.number("limitBytes")?,
        stream: match stream {
            Some("Stdout" | "stdout") => Some("stdout".to_owned()),
            Some("Stderr" | "stderr") => Some("stderr".to_owned()),
            Some(other) => return Err(format!("invalid value {other:?} for stream")),
            None => None,
        },
    })
}

/// Id and log file of the container that is meant.
fn locate(
    server: &Server,
    pod: &Pod,
    container: &str,
    previous: bool,
) -> Result<(String, PathBuf), (StatusCode, String)> {
    let pod_name = pod::name(pod);
    if pod::find_container(pod, container).is_none() {
        return Err((
            StatusCode::NOT_FOUND,
            format!("container \"{container}\" not found in pod \"{pod_name}\""),
        ));
    }
    let runtime = server.agent.node.state.pod(pod::uid(pod));
    let found = if previous {
        runtime.previous(container)
    } else {
        runtime.latest(container)
    };
    if let Some(found) = found.filter(|found| found.state != ContainerState::Created) {
        return Ok((found.id.clone(), found.log_path.clone()));
    }
    if previous {
        let message = format!(
            "previous terminated container \"{container}\" in pod \"{pod_name}\" not found"
        );
        return Err((StatusCode::BAD_REQUEST, message));
    }
    let waiting =
        status::recorded(pod, container).and_then(|status| status.state.as_ref()?.waiting.clone());
    let message = match waiting.and_then(|waiting| waiting.reason) {
        Some(reason) if reason == "ErrImagePull" => {
            format!(
                "container \"{container}\" in pod \"{pod_name}\" is waiting to start: image can't be pulled"
            )
        }
        Some(reason) if reason == "ImagePullBackOff" => {
            format!(
                "container \"{container}\" in pod \"{pod_name}\" is waiting to start: trying and failing to pull image"
            )
        }
        Some(reason) => {
            format!("container \"{container}\" in pod \"{pod_name}\" is waiting to start: {reason}")
        }
        None => format!("container \"{container}\" in pod \"{pod_name}\" is not available"),
    };
    Err((StatusCode::BAD_REQUEST, message))
}

/// One line of a log file: `<time> <stream> <F|P> <text>`.
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let text = parts.next().unwrap_or_default();
    Some(Line {
        time,
        stream,
        partial: tags.split(|byte| *byte == b':').next() == Some(b"P"),
        text,
    })
}

/// Turns lines of the file into what the client sees.
struct Renderer<'a> {
    options: &'a LogOptions,
    left: u64,
    /// The line before was a piece without an end.
    open: bool,
    since_passed: bool,
}

impl<'a> Renderer<'a> {
    fn new(options: &'a LogOptions) -> Self {
        Self {
            options,
            left: options.limit_bytes.unwrap_or(u64::MAX),
            open: false,
            since_passed: options.since.is_none(),
        }
    }

    /// False when no more may be written.
    fn render(&mut self, raw: &[u8], output: &mut BytesMut) -> bool {
        let Some(line) = parse(raw) else { return true };
        if self
            .options
            .stream
            .as_deref()
            .is_some_and(|stream| stream != line.stream)
        {
            return true;
        }
        if !self.since_passed {
            let at = line.time.parse::<Timestamp>().ok();
            if at
                .zip(self.options.since)
                .is_some_and(|(at, since)| at < since)
            {
                return true;
            }
            self.since_passed = true;
        }
        let start = output.len();
        if self.options.timestamps && !self.open {
            output.extend_from_slice(line.time.as_bytes());
            output.extend_from_slice(b" ");
        }
        output.extend_from_slice(line.text);
        if !line.partial {
            output.extend_from_slice(b"\n");
        }
        self.open = line.partial;
        let written = (output.len() - start) as u64;
        if written > self.left {
            output.truncate(start + usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left = 0;
            return false;
        }
        self.left -= written;
        self.left > 0
    }
}

async fn copy(
    path: &Path,
    options: &LogOptions,
    alive: impl Fn() -> bool,
    sender: &mpsc::Sender<Result<Frame<Bytes>, BoxError>>,
) -> std::io::Result<()> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && options.follow => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    // Who does not follow reads what was there when the reading began, whatever the writer does.
    let mut left = match options.follow {
        true => u64::MAX,
        false => file.metadata()?.len(),
    };
    let start = match options.tail {
        Some(lines) => tail_offset(&mut file, lines)?,
        None => 0,
    };
    left = left.saturating_sub(start);
    file.seek(SeekFrom::Start(start))?;
    let mut renderer = Renderer::new(options);
    let mut pending = BytesMut::new();
    let mut output = BytesMut::new();
    if options.limit_bytes == Some(0) {
        return Ok(());
    }
    loop {
        // Asked before reading: what a container wrote before it ended is never missed.
        let was_alive = options.follow && alive();
        let ended = loop {
            let mut chunk = vec![
                0;
                usize::try_from(left)
                    .unwrap_or(CHUNK_BYTES)
                    .min(CHUNK_BYTES)
            ];
            let read = file.read(&mut chunk)?;
            if !options.follow {
                left -= read as u64;
            }
            pending.extend_from_slice(&chunk[..read]);
            let mut go_on = true;
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line = pending.split_to(end + 1);
                go_on = renderer.render(&line[..end], &mut output);
                if !go_on {
                    break;
                }
            }
            if pending.len() > MAX_LINE_BYTES {
                pending.clear();
            }
            if !output.is_empty()
                && sender
                    .send(Ok(Frame::data(output.split().freeze())))
                    .await
                    .is_err()
            {
                return Ok(());
            }
            if !go_on {
                return Ok(());
            }
            if read == 0 {
                break !was_alive;
            }
        };
        if options.follow && is_rotated(&file, path) {
            if let Ok(next) = File::open(logs::after(&file, path)) {
                file = next;
                continue;
            }
        } else if ended {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW_PERIOD) => {}
            () = sender.closed() => return Ok(()),
        }
    }
}

/// Whether another file stands under the name now.
fn is_rotated(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else {
        return false;
    };
    open.ino() != named.ino()
}

/// Where the last `lines` lines begin. Pieces of a long line count as one line: a line begins where
/// the one before it is not a piece.
fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let size = file.metadata()?.len();
    if lines == 0 {
        return Ok(size);
    }
    let is_piece = |text: &[u8]| parse(text).is_some_and(|line| line.partial);
    let mut end = size;
    let mut carried: Vec<u8> = Vec::new();
    let mut after: Option<u64> = None;
    let mut found = 0_u64;
    while end > 0 {
        let begin = end.saturating_sub(CHUNK_BYTES as u64);
        let mut chunk = vec![0; usize::try_from(end - begin).unwrap_or(0)];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut chunk)?;
        chunk.append(&mut carried);
        let mut stop = chunk.len();
        if end == size && chunk.last() == Some(&b'\n') {
            stop -= 1;
        }
        while let Some(newline) = chunk[..stop].iter().rposition(|byte| *byte == b'\n') {
            if let Some(start) = after.filter(|_| !is_piece(&chunk[newline + 1..stop])) {
                found += 1;
                if found == lines {
                    return Ok(start);
                }
            }
            after = Some(begin + newline as u64 + 1);
            stop = newline;
        }
        chunk.truncate(stop);
        carried = chunk;
        end = begin;
    }
    if let Some(start) = after.filter(|_| !is_piece(&carried)) {
        found += 1;
        if found == lines {
            return Ok(start);
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Temp(PathBuf);

    impl Temp {
        fn new(content: &str) -> Self {
            let path = std::env::temp_dir().join(format!(
                "keelson-log-{}-{:x}",
                std::process::id(),
                rand::random::<u64>()
            ));
            std::fs::write(&path, content).unwrap();
            Self(path)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    const LOG: &str = "2026-01-01T00:00:00.000000001Z stdout F one\n\
        2026-01-01T00:00:01Z stderr F two\n\
        2026-01-01T00:00:02Z stdout P thr\n\
        2026-01-01T00:00:02Z stdout F ee\n\
        2026-01-01T00:00:03Z stdout F \n\
        2026-01-01T00:00:04Z stdout F last line\n";

    async fn read(content: &str, options: LogOptions) -> String {
        let file = Temp::new(content);
        let (sender, mut receiver) = mpsc::channel(64);
        copy(&file.0, &options, || false, &sender).await.unwrap();
        drop(sender);
        let mut text = Vec::new();
        while let Some(frame) = receiver.recv().await {
            text.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn options_select_lines() {
        let default = LogOptions::default;
        assert_eq!(read(LOG, default()).await, "one\ntwo\nthree\n\nlast line\n");
        assert_eq!(
            read(
                LOG,
                LogOptions {
                    tail: Some(1),
                    ..default()
                }
            )
            .await,
            "last line\n"
        );
        assert_eq!(
            read(
                LOG,
                LogOptions {
                    tail: Some(3),
                    ..default()
                }
            )
            .await,
            "three\n\nlast line\n"
        );
        assert_eq!(
            read(
                LOG,
                LogOptions {
                    tail: Some(4),
                    ..default()
                }
            )
            .await,
            "two\nthree\n\nlast line\n"
        );
        assert_eq!(
            read(
                LOG,
                LogOptions {
                    tail: Some(99),
                    ..default()
                }
            )
            .await,
            "one\ntwo\nthree\n\nlast line\n"
        );
        assert_eq!(
            read(
                LOG,
                LogOptions {
                    tail: Some(0),
                    ..default()
                }
            )
            .await,
            ""
        );
        assert_eq!(
            read(
                LOG,
                LogOptions {
                    stream: Some("stderr".into()),
                    ..default()
                }
            )
            .await,
            "two\n"
        );
        assert_eq!(
            read(
                LOG,
                LogOptions {
                    limit_bytes: Some(5),
                    ..default()
                }
            )
            .await,
            "one\nt"
        );
        assert_eq!(
            read(
                LOG,
                LogOptions {
                    timestamps: true,
                    tail: Some(3),
                    ..default()
                }
            )
            .await,
            "2026-01-01T00:00:02Z three\n2026-01-01T00:00:03Z \n2026-01-01T00:00:04Z last line\n"
        );
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        assert_eq!(
            read(LOG, LogOptions { since, ..default() }).await,
            "\nlast line\n"
        );
    }

    #[tokio::test]
    async fn the_tail_of_a_long_file_is_found_across_chunks() {
        let mut content = String::new();
        for n in 0..5000 {
            content.push_str(&format!(
                "2026-01-01T00:00:00Z stdout F line {n} {}\n",
                "x".repeat(n % 97)
            ));
        }
        for wanted in [1_usize, 2, 999, 4999, 5000] {
            let text = read(
                &content,
                LogOptions {
                    tail: Some(wanted as u64),
                    ..LogOptions::default()
                },
            )
            .await;
            assert_eq!(text.lines().count(), wanted);
            assert!(
                text.starts_with(&format!("line {} ", 5000 - wanted)),
                "{wanted}"
            );
        }
    }

    #[tokio::test]
    async fn following_sees_what_is_appended_and_ends_with_the_container() {
        use std::io::Write;
        use std::sync::atomic::{AtomicBool, Ordering};
        let file = Temp::new("2026-01-01T00:00:00Z stdout F one\n");
        let (sender, mut receiver) = mpsc::channel(64);
        let alive = Arc::new(AtomicBool::new(true));
        let (path, still) = (file.0.clone(), alive.clone());
        let task = tokio::spawn(async move {
            let options = LogOptions {
                follow: true,
                ..LogOptions::default()
            };
            copy(&path, &options, || still.load(Ordering::Acquire), &sender).await
        });
        let mut next = async || receiver.recv().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(next().await, "one\n");
        let mut log = std::fs::OpenOptions::new()
            .append(true)
            .open(&file.0)
            .unwrap();
        log.write_all(b"2026-01-01T00:00:01Z stdout F two\n")
            .unwrap();
        assert_eq!(next().await, "two\n");
        alive.store(false, Ordering::Release);
        task.await.unwrap().unwrap();
    }
}
