//! `/logs/`: the machine's own logs below `/var/log`, and what a query finds there.
//!
//! Nothing outside of the directory is shown, neither by `..` nor through a link: a pod that may
//! write there must not read the machine's files through this server.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use regex::Regex;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::query::Query;
use super::{Body, Server, full, response, text};

const PLAIN: &str = "text/plain; charset=utf-8";
const MAX_SERVICES: usize = 4;
const MAX_SERVICE_BYTES: usize = 256;
const MAX_TAIL_LINES: i64 = 100_000;
const MAX_LISTED: usize = 10_000;
const CHUNK_BYTES: usize = 64 << 10;
const FORMATS: [&str; 7] = [
    "cat",
    "json",
    "short",
    "short-iso",
    "short-iso-precise",
    "short-precise",
    "short-unix",
];

pub(super) async fn handle(server: &Server, path: &[String], query: &Query) -> Response<Body> {
    let config = &server.agent.node.config;
    if !config.enable_system_log_handler {
        return text(StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.");
    }
    let dir = config.system_log_dir.clone();
    if config.enable_system_log_query {
        match LogQuery::parse(query) {
            Err(errors) => return text(StatusCode::BAD_REQUEST, aggregate(&errors)),
            Ok(Some(query)) => {
                let found = tokio::task::spawn_blocking(move || answer(&dir, &query)).await;
                return found.unwrap_or_else(|error| failed(&error));
            }
            Ok(None) => {}
        }
    }
    let relative = path.join("/");
    let shown = tokio::task::spawn_blocking(move || show(&dir, &relative)).await;
    shown.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &dyn std::fmt::Display) -> Response<Body> {
    text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn aggregate(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

/// Opens what is below `dir` and nothing else; never waits for a FIFO's other end.
fn open(dir: &Path, relative: &str) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let root = rustix::fs::openat(
        CWD,
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let relative = if relative.is_empty() { "." } else { relative };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, relative, flags, Mode::empty(), resolve)?;
    Ok(File::from(found))
}

fn refusal(error: &std::io::Error) -> Response<Body> {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            text(StatusCode::NOT_FOUND, "404 page not found")
        }
        // Out of the directory, or not to be read.
        ErrorKind::PermissionDenied | ErrorKind::CrossesDevices => {
            text(StatusCode::FORBIDDEN, "403 Forbidden")
        }
        _ => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "500 Internal Server Error",
        ),
    }
}

fn show(dir: &Path, relative: &str) -> Response<Body> {
    let opened = open(dir, relative).and_then(|file| Ok((file.metadata()?, file)));
    match opened {
        Ok((metadata, _)) if metadata.is_dir() => match list(&dir.join(relative)) {
            Ok(page) => response(StatusCode::OK, "text/html; charset=utf-8", full(page)),
            Err(error) => refusal(&error),
        },
        Ok((metadata, file)) if metadata.is_file() => contents(vec![(file, metadata.size())]),
        Ok(_) => text(StatusCode::FORBIDDEN, "403 Forbidden"),
        Err(error) => refusal(&error),
    }
}

fn list(dir: &Path) -> std::io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)?.take(MAX_LISTED) {
        let entry = entry?;
        let slash = if entry.file_type()?.is_dir() { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    let mut page = String::from(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n",
    );
    for name in names {
        page.push_str(&format!(
            "<a href=\"{}\">{}</a>\n",
            percent_encode(&name),
            html_escape(&name)
        ));
    }
    page.push_str("</pre>\n");
    Ok(page)
}

fn html_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn percent_encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The files one after the other, each as long as it was when it was opened: a log grows meanwhile.
fn contents(files: Vec<(File, u64)>) -> Response<Body> {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(2);
    let length: u64 = files.iter().map(|(_, size)| size).sum();
    // A reader that goes away ends it: the channel closes.
    tokio::task::spawn_blocking(move || {
        for (file, size) in files {
            let mut rest = file.take(size);
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = rest.read(&mut chunk).map(|n| {
                    chunk.truncate(n);
                    Bytes::from(chunk)
                });
                let ended = read.as_ref().map_or(true, Bytes::is_empty);
                if read.as_ref().is_ok_and(Bytes::is_empty) {
                    break;
                }
                if sender.blocking_send(read).is_err() || ended {
                    return;
                }
            }
        }
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk.map(Frame::data).map_err(Into::into), receiver))
    });
    let mut answer = response(
        StatusCode::OK,
        PLAIN,
        StreamBody::new(stream).boxed_unsync(),
    );
    let headers = answer.headers_mut();
    headers.insert(http::header::CONTENT_LENGTH, length.into());
    answer
}

/// `?query=` and its options, as `kubectl get --raw` sends them.
#[derive(Debug, Default, PartialEq)]
struct LogQuery {
    services: Vec<String>,
    file: Option<String>,
    /// Whether anything narrows what a journal would show.
    has_options: bool,
}

impl LogQuery {
    /// `None` when nothing is asked for but a path.
    fn parse(query: &Query) -> Result<Option<Self>, Vec<String>> {
        let queries = query.all("query");
        let units = query.all("unit");
        let is_file = |name: &&String| name.contains(['/', '\\']);
        let files: Vec<String> = queries.iter().filter(is_file).cloned().collect();
        let services: Vec<String> = queries
            .iter()
            .filter(|name| !is_file(name))
            .chain(&units)
            .filter(|name| !name.trim().is_empty())
            .cloned()
            .collect();
        let mut errors = Vec::new();
        if files.is_empty() && services.is_empty() {
            if queries.is_empty() && units.is_empty() {
                return Ok(None);
            }
            errors.push(invalid("unit", &list_of(&queries), "unit cannot be empty"));
        }
        let has_options = options(query, &mut errors);
        validate_services(&services, &mut errors);
        match files.as_slice() {
            [_, ..] if !services.is_empty() => {
                let value = format!("{}, {}", list_of(&files), list_of(&services));
                errors.push(invalid(
                    "query",
                    &value,
                    "cannot specify a file and service",
                ));
            }
            [_, _, ..] => {
                errors.push(invalid(
                    "query",
                    &list_of(&files),
                    "cannot specify more than one file",
                ));
            }
            [_] if has_options => {
                errors.push(invalid(
                    "query",
                    &list_of(&files),
                    "cannot specify file with options",
                ));
            }
            _ => {}
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Some(Self {
            services,
            file: files.into_iter().next(),
            has_options,
        }))
    }
}

fn list_of(names: &[String]) -> String {
    format!("[{}]", names.join(" "))
}

fn invalid(field: &str, value: &str, why: &str) -> String {
    format!("{field}: Invalid value: {value:?}: {why}")
}

/// Checks the options, and tells whether there are any.
fn options(query: &Query, errors: &mut Vec<String>) -> bool {
    let given = |name: &str| query.get(name).filter(|value| !value.is_empty());
    let either = |name: &str, other: &str| given(name).or_else(|| given(other));
    let mut times = [None, None];
    for (name, time) in ["sinceTime", "untilTime"].into_iter().zip(&mut times) {
        let Some(value) = given(name) else { continue };
        match value.parse::<jiff::Timestamp>() {
            Ok(parsed) => *time = Some(parsed),
            Err(_) => errors.push(invalid(name, value, "invalid time format")),
        }
    }
    let [since, until] = times;
    if since.zip(until).is_some_and(|(since, until)| since > until) {
        let value = given("untilTime").unwrap_or_default();
        errors.push(invalid("untilTime", value, "must be after `sinceTime`"));
    }
    for (name, range, why) in [
        ("boot", i64::MIN..=0, "must be less than 1"),
        (
            "tailLines",
            0..=MAX_TAIL_LINES,
            "must be between 0 and 100000, inclusive",
        ),
    ] {
        let other = if name == "tailLines" { "tail" } else { name };
        let Some(value) = either(name, other) else {
            continue;
        };
        match value.parse::<i64>() {
            Ok(number) if range.contains(&number) => {}
            Ok(number) => errors.push(format!("{name}: Invalid value: {number}: {why}")),
            Err(_) => errors.push(invalid(name, value, "must be a number")),
        }
    }
    let pattern = either("pattern", "grep");
    if let Some(pattern) = pattern
        && let Err(error) = Regex::new(pattern)
    {
        errors.push(invalid("pattern", pattern, &error.to_string()));
    }
    for name in ["since", "until"] {
        let Some(value) = given(name) else { continue };
        if given(&format!("{name}Time")).is_some() {
            let why = format!(
                "{name}Time: Forbidden: `since or until` and `{name}Time` cannot be specified"
            );
            errors.push(why);
        }
        if !is_date(value) {
            errors.push(invalid(name, value, "date must be a relative time of the form '(+|-)[0-9]+(s|m|h|d)' or a date in 'YYYY-MM-DD HH:MM:SS' form"));
        }
    }
    if let Some(format) = given("output")
        && !FORMATS.contains(&format)
    {
        errors.push(format!(
            "output: Unsupported value: {format:?}: supported values: {}",
            FORMATS.map(|f| format!("{f:?}")).join(", ")
        ));
    }
    [
        "sinceTime",
        "untilTime",
        "boot",
        "tailLines",
        "tail",
        "pattern",
        "grep",
        "since",
        "until",
        "output",
    ]
    .into_iter()
    .any(|name| given(name).is_some())
}

fn is_date(value: &str) -> bool {
    let relative = value.strip_prefix(['+', '-']).unwrap_or(value);
    let digits = relative.strip_suffix(['s', 'm', 'h', 'd']);
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
        || jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", value).is_ok()
}

fn validate_services(services: &[String], errors: &mut Vec<String>) {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    for service in services {
        if service.len() > MAX_SERVICE_BYTES {
            let why = format!("length must be less than {MAX_SERVICE_BYTES}");
            errors.push(invalid("query", service, &why));
        } else if !service.chars().all(is_safe) {
            errors.push(invalid(
                "query",
                service,
                "input contains unsupported characters",
            ));
        }
    }
    if services.len() > MAX_SERVICES {
        let count = services.len();
        errors.push(format!(
            "query: Too many: {count}: must have at most {MAX_SERVICES} items"
        ));
    }
}

/// The logs are files: this server calls no program, and so reads no journal.
fn answer(dir: &Path, query: &LogQuery) -> Response<Body> {
    let names = match &query.file {
        Some(file) => vec![vec![file.trim_start_matches('/').to_owned()]],
        None => query
            .services
            .iter()
            .map(|service| {
                vec![
                    service.clone(),
                    format!("{service}.log"),
                    format!("{service}/{service}.log"),
                ]
            })
            .collect(),
    };
    if query.has_options {
        let services = list_of(&query.services);
        return text(
            StatusCode::OK,
            format!(
                "\noptions present and query resolved to log files for {services}\ntry without specifying options\n"
            ),
        );
    }
    let mut files = Vec::new();
    for candidates in names {
        match candidates.iter().find_map(|name| regular(dir, name)) {
            Some(file) => files.push(file),
            None => {
                let name = candidates.first().map(String::as_str).unwrap_or_default();
                return match &query.file {
                    Some(_) => text(
                        StatusCode::BAD_REQUEST,
                        invalid("query", name, "no such file"),
                    ),
                    None => text(StatusCode::OK, format!("\nlog not found for {name}\n")),
                };
            }
        }
    }
    contents(files)
}

fn regular(dir: &Path, name: &str) -> Option<(File, u64)> {
    let file = open(dir, name).ok()?;
    let metadata = file.metadata().ok()?;
    metadata.is_file().then(|| (file, metadata.size()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn queries_are_refused_as_upstream_refuses_them() {
        let cases = [
            ("query=kubelet", Ok(Some(&["kubelet"][..]))),
            ("query=a&query=b&unit=c", Ok(Some(&["a", "b", "c"][..]))),
            ("", Ok(None)),
            ("tailLines=5", Ok(None)),
            ("query=%20", Err("unit cannot be empty")),
            ("query=a;b", Err("input contains unsupported characters")),
            (
                "query=a&query=b&query=c&query=d&query=e",
                Err("must have at most 4 items"),
            ),
            (
                "query=/a.log&query=b",
                Err("cannot specify a file and service"),
            ),
            (
                "query=/a.log&query=/b.log",
                Err("cannot specify more than one file"),
            ),
            (
                "query=/a.log&tailLines=1",
                Err("cannot specify file with options"),
            ),
            (
                "query=a&tailLines=100001",
                Err("must be between 0 and 100000"),
            ),
            ("query=a&boot=1", Err("must be less than 1")),
            ("query=a&sinceTime=yesterday", Err("invalid time format")),
            (
                "query=a&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z",
                Err("must be after `sinceTime`"),
            ),
            ("query=a&since=-5m", Ok(Some(&["a"][..]))),
            ("query=a&since=soon", Err("date must be")),
            ("query=a&pattern=(", Err("pattern: Invalid value")),
            ("query=a&output=xml", Err("output: Unsupported value")),
        ];
        for (text, expected) in cases {
            let parsed = LogQuery::parse(&Query::parse(text));
            match expected {
                Ok(services) => {
                    let parsed = parsed.unwrap().map(|query| query.services);
                    let services = services.map(|s| s.iter().map(|&s| s.to_owned()).collect());
                    assert_eq!(parsed, services, "{text}");
                }
                Err(part) => {
                    let errors = parsed.unwrap_err();
                    assert!(aggregate(&errors).contains(part), "{text}: {errors:?}");
                }
            }
        }
    }

    async fn body(answer: Response<Body>) -> (u16, String) {
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn nothing_outside_of_the_directory_is_shown() {
        let base = std::env::temp_dir().join(format!("keelson-logs-{}", std::process::id()));
        let dir = base.join("log");
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        std::fs::write(base.join("secret"), "secret").unwrap();
        std::fs::write(dir.join("a.log"), "hello\n").unwrap();
        std::fs::write(dir.join("sub/sub.log"), "below\n").unwrap();
        std::os::unix::fs::symlink("../secret", dir.join("out")).unwrap();
        std::os::unix::fs::symlink(base.join("secret"), dir.join("away")).unwrap();
        std::os::unix::fs::symlink("sub/sub.log", dir.join("within")).unwrap();
        let cases = [
            ("a.log", 200, "hello\n"),
            ("within", 200, "below\n"),
            ("sub/sub.log", 200, "below\n"),
            ("none", 404, "404 page not found\n"),
            ("../secret", 403, "403 Forbidden\n"),
            ("sub/../../secret", 403, "403 Forbidden\n"),
            ("out", 403, "403 Forbidden\n"),
            ("away", 403, "403 Forbidden\n"),
        ];
        for (path, status, text) in cases {
            assert_eq!(
                body(show(&dir, path)).await,
                (status, text.to_owned()),
                "{path}"
            );
        }
        let (_, listing) = body(show(&dir, "")).await;
        assert!(listing.contains("<a href=\"sub/\">sub/</a>\n"), "{listing}");

        let found = |services: &[&str]| {
            let services = services.iter().map(|&s| s.to_owned()).collect();
            let query = LogQuery {
                services,
                ..LogQuery::default()
            };
            body(answer(&dir, &query))
        };
        assert_eq!(found(&["a", "sub"]).await.1, "hello\nbelow\n");
        assert_eq!(found(&["gone"]).await.1, "\nlog not found for gone\n");
        assert_eq!(found(&["out"]).await.1, "\nlog not found for out\n");
        std::fs::remove_dir_all(base).unwrap();
    }
}
