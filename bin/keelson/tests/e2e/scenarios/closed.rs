//! What other users of the machine find of a cluster: nothing. Every file, directory and socket has
//! the mode that the table in `docs/files.md` gives it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::lab::{Lab, Namespace};

/// A user that has nothing to do with the cluster.
const OTHER_USER: &str = "65534";

const PAGE: &str = include_str!("../../../../../docs/files.md");

pub(super) fn files(ns: &Namespace<'_>) {
    ns.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "stringData": {"word": "not for others"},
    }));
    let volumes =
        json!([{"name": "v", "secret": {"secretName": "s"}}, {"name": "e", "emptyDir": {}}]);
    let mounts = json!([
        {"name": "v", "mountPath": "/v"},
        {"name": "e", "mountPath": "/e", "subPath": "made/below"},
    ]);
    let extra = json!({"volumes": volumes, "containers": [{"volumeMounts": mounts,
        "securityContext": {"runAsUser": 1234, "runAsNonRoot": true}}]});
    ns.apply(&ns.pod("reader", &["sleep", "3600"], extra));
    ns.wait_ready("reader");
    // The pod's own user reads and writes what it was given, though the way there is closed.
    let read = ns.kubectl(&["exec", "reader", "--", "/hello", "cat", "/v/word"]);
    assert_eq!(read, "not for others");
    ns.kubectl(&["exec", "reader", "--", "/hello", "mkdir", "/e/own"]);

    let marker = ns.lab.dir.join("for-all-to-see");
    std::fs::write(&marker, "").unwrap();
    assert!(
        found_by_others(&marker).contains(&marker),
        "the search finds nothing at all"
    );
    let rows = rows();
    for top in tops(ns.lab) {
        let found = found_by_others(&top);
        let inside: Vec<&PathBuf> = found.iter().filter(|path| **path != top).collect();
        assert!(inside.is_empty(), "another user finds {inside:?}");
        // A file of another scenario may be made at this moment, and get its mode at the next.
        let mut wrong = differences(&rows, ns.lab, &top);
        if !wrong.is_empty() {
            std::thread::sleep(Duration::from_secs(2));
            let still = differences(&rows, ns.lab, &top);
            wrong.retain(|difference| still.contains(difference));
        }
        assert!(
            wrong.is_empty(),
            "not as docs/files.md has it:\n{}",
            wrong.join("\n")
        );
    }
}

fn tops(lab: &Lab) -> [PathBuf; 2] {
    [lab.data_dir(), Path::new("/run/keelson").join(lab.id())]
}

fn found_by_others(top: &Path) -> Vec<PathBuf> {
    let found = Command::new("setpriv")
        .args([
            "--reuid",
            OTHER_USER,
            "--regid",
            OTHER_USER,
            "--clear-groups",
            "find",
        ])
        .arg(top)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    text.lines().map(PathBuf::from).collect()
}

/// A row of the page: paths, then the modes of directories, and of files and sockets, there.
struct Row {
    paths: Vec<&'static str>,
    directories: Cell,
    files: Cell,
}

#[derive(Clone)]
enum Cell {
    None,
    /// One of these.
    Modes(Vec<u32>),
    /// Set by an image or a Pod.
    Any,
}

fn cell(text: &str) -> Cell {
    let modes: Result<Vec<u32>, _> = text
        .split(" or ")
        .map(|mode| u32::from_str_radix(mode, 8))
        .collect();
    match (text, modes) {
        ("–", _) => Cell::None,
        (_, Ok(modes)) => Cell::Modes(modes),
        _ => Cell::Any,
    }
}

/// The first table of the page.
fn rows() -> Vec<Row> {
    let table = PAGE.lines().skip_while(|line| !line.starts_with("|---"));
    let rows: Vec<Row> = table
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [paths, directories, files, _] = cells.as_slice() else {
                panic!("a row of four cells: {line}")
            };
            Row {
                // Every second piece stands between backticks.
                paths: paths.split('`').skip(1).step_by(2).collect(),
                directories: cell(directories),
                files: cell(files),
            }
        })
        .collect();
    assert!(rows.len() > 10, "the table was not found");
    rows
}

fn differences(rows: &[Row], lab: &Lab, top: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    check(rows, lab, top, &mut wrong);
    wrong
}

/// Compares `path` and what is below it; content of images and volumes is not looked into.
fn check(rows: &[Row], lab: &Lab, path: &Path, wrong: &mut Vec<String>) {
    // Pods of other scenarios come and go meanwhile.
    let Ok(found) = std::fs::symlink_metadata(path) else {
        return;
    };
    if found.is_symlink() {
        return;
    }
    let name = shown(lab, path);
    let row = rows
        .iter()
        .find(|row| row.paths.iter().any(|pattern| matches(pattern, &name)));
    let wanted = match (row, found.is_dir()) {
        (Some(row), true) => row.directories.clone(),
        (Some(row), false) => row.files.clone(),
        (None, _) => Cell::None,
    };
    let mode = found.mode() & 0o7777;
    match wanted {
        Cell::Any => return,
        Cell::Modes(modes) if modes.contains(&mode) => {}
        Cell::Modes(_) => wrong.push(format!("{name} is {mode:o}")),
        Cell::None => wrong.push(format!("{name} ({mode:o}) is in no row")),
    }
    if found.uid() != 0 {
        wrong.push(format!("{name} belongs to {}", found.uid()));
    }
    if found.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            check(rows, lab, &entry.path(), wrong);
        }
    }
}

/// As the page writes it: relative to the data directory, or below `/run/keelson/ID`.
fn shown(lab: &Lab, path: &Path) -> String {
    let [data, run] = tops(lab);
    let below = |top: &Path, name: &str| {
        let rest = path.strip_prefix(top).ok()?;
        Some(Path::new(name).join(rest).display().to_string())
    };
    let name = below(&data, ".").or_else(|| below(&run, "/run/keelson/ID"));
    let name = name.unwrap_or_else(|| path.display().to_string());
    match name.trim_start_matches("./").trim_end_matches('/') {
        "" => ".".to_owned(),
        name => name.to_owned(),
    }
}

/// `*` stands for what is within one name.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) if name_matches(pattern, name) => {}
            _ => return false,
        }
    }
}

fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
    }
}

#[test]
fn patterns_of_the_page_match_whole_paths() {
    for (pattern, path, fits) in [
        ("store", "store", true),
        ("store/*", "store/store.redb", true),
        ("store/*", "store", false),
        ("pods/*/etc-hosts", "pods/u/etc-hosts", true),
        (
            "pods/*/containers/*/termination-*",
            "pods/u/containers/c/termination-0",
            true,
        ),
        ("*.sock", "a.sock.tmp", false),
        (".", ".", true),
    ] {
        assert_eq!(matches(pattern, path), fits, "{pattern} {path}");
    }
    assert!(rows().iter().all(|row| !row.paths.is_empty()));
}
