//! The crate graph, read from the manifests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// `(crate, dependency)` for the crates of this repository, names without the common prefix.
/// Dependencies of tests alone are left out.
pub(crate) fn edges(root: &Path) -> Result<BTreeSet<(String, String)>, String> {
    let mut out = BTreeSet::new();
    let mut manifests = vec![
        root.join("bin/keelson/Cargo.toml"),
        root.join("testkit/Cargo.toml"),
        root.join("testkit/etcd/Cargo.toml"),
        root.join("testkit/fuzz/Cargo.toml"),
        root.join("bench/Cargo.toml"),
        root.join("xtask/Cargo.toml"),
    ];
    let crates = root.join("crates");
    let dir = fs::read_dir(&crates).map_err(|e| format!("read {}: {e}", crates.display()))?;
    manifests.extend(
        dir.filter_map(|e| e.ok())
            .map(|e| e.path().join("Cargo.toml")),
    );
    for path in manifests.iter().filter(|p| p.exists()) {
        let text = fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
        let mut name = String::new();
        let mut section = String::new();
        for line in text.lines() {
            if let Some(s) = line.strip_prefix('[') {
                section = s.trim_end_matches(']').to_owned();
            } else if section == "package" && line.starts_with("name") {
                name = short(line.split('"').nth(1).unwrap_or(""));
            } else if section == "dependencies" && line.starts_with("keelson-") {
                let dependency = line.split(['.', ' ', '=']).next().unwrap_or("");
                out.insert((name.clone(), short(dependency)));
            }
        }
    }
    Ok(out)
}

fn short(name: &str) -> String {
    name.strip_prefix("keelson-").unwrap_or(name).to_owned()
}
