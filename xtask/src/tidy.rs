//! The house rules a compiler does not check.

use crate::graph;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 800;
const BANNED_MODULES: &[&str] = &["utils", "util", "common", "helpers", "manager", "misc"];
/// Marks of unfinished work that must not be merged.
const BANNED_WORDS: &[&str] = &["FIXME", "XXX:", "HACK:"];

/// Every complaint, sorted. Empty when the tree is tidy.
pub(crate) fn check(root: &Path) -> Vec<String> {
    let mut complaints = Vec::new();
    let allowed = sizes(root, &mut complaints);
    let mut sources = Vec::new();
    for dir in ["bin", "crates", "testkit", "bench", "xtask"] {
        walk(&root.join(dir), &mut sources);
    }
    sources.sort();
    let mut large = BTreeSet::new();
    for path in &sources {
        let name = path
            .strip_prefix(root)
            .unwrap_or(path)
            .display()
            .to_string();
        let Ok(text) = fs::read_to_string(path) else {
            complaints.push(format!("{name}: not readable as UTF-8"));
            continue;
        };
        let lines = text.lines().count();
        let limit = allowed.get(&name).copied().unwrap_or(MAX_LINES);
        if lines > limit {
            complaints.push(format!("{name}: {lines} lines, at most {limit}: split it"));
        }
        if lines > MAX_LINES {
            large.insert(name.clone());
        }
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("");
        let parent = path
            .parent()
            .and_then(Path::file_name)
            .and_then(|s| s.to_str())
            .unwrap_or("");
        if BANNED_MODULES.contains(&stem) || BANNED_MODULES.contains(&parent) {
            complaints.push(format!("{name}: name it after what it holds"));
        }
        if !name.starts_with("xtask/") {
            for word in BANNED_WORDS.iter().filter(|w| text.contains(**w)) {
                complaints.push(format!("{name}: contains {word}"));
            }
        }
        if text.contains("unsafe {")
            && !name.starts_with("crates/linux/")
            && !name.starts_with("xtask/")
        {
            complaints.push(format!("{name}: unsafe code belongs in crates/linux"));
        }
    }
    for name in allowed.keys().filter(|n| !large.contains(*n)) {
        complaints.push(format!(
            "xtask/large_files.txt: {name} is small now, remove its line"
        ));
    }
    arrows(root, &mut complaints);
    complaints.sort();
    complaints
}

/// Files that may be larger than the rest: `path lines`. The list may only shrink.
fn sizes(root: &Path, complaints: &mut Vec<String>) -> BTreeMap<String, usize> {
    let text = fs::read_to_string(root.join("xtask/large_files.txt")).unwrap_or_default();
    let mut out = BTreeMap::new();
    for line in text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        match line
            .split_once(' ')
            .and_then(|(p, n)| Some((p, n.trim().parse().ok()?)))
        {
            Some((path, lines)) => {
                out.insert(path.to_owned(), lines);
            }
            None => complaints.push(format!("xtask/large_files.txt: cannot read {line:?}")),
        }
    }
    out
}

/// Every edge of the crate graph must be in `xtask/allowed_arrows.txt`.
fn arrows(root: &Path, complaints: &mut Vec<String>) {
    let text = fs::read_to_string(root.join("xtask/allowed_arrows.txt")).unwrap_or_default();
    let allowed: BTreeSet<(String, String)> = text
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split_once(" -> "))
        .map(|(a, b)| (a.trim().to_owned(), b.trim().to_owned()))
        .collect();
    match graph::edges(root) {
        Ok(edges) => {
            for (a, b) in edges.difference(&allowed) {
                complaints.push(format!(
                    "{a} -> {b}: not an allowed arrow (xtask/allowed_arrows.txt)"
                ));
            }
            for (a, b) in allowed.difference(&edges) {
                complaints.push(format!(
                    "xtask/allowed_arrows.txt: {a} -> {b} is unused, remove it"
                ));
            }
        }
        Err(e) => complaints.push(e),
    }
}

fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        let path = entry.path();
        if path.is_dir() {
            if entry.file_name() != "target" {
                walk(&path, out);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let complaints = check(&crate::repository());
        assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    }
}
