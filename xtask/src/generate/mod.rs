//! `cargo xtask gen`: facts in, compact sorted text out. One fact a line, so that a new Kubernetes
//! version reads as a diff.

mod descriptions;
mod discovery;
mod go_source;
mod protobuf;
mod types;

use serde_json::Value;
use std::fs;
use std::path::Path;

pub(crate) fn run(from: &Path, source: &Path, root: &Path) -> Result<(), String> {
    let schemas = read(&from.join("schemas.json"))?;
    let out = root.join("crates/api/src/generated");
    fs::create_dir_all(&out).map_err(|e| format!("create {}: {e}", out.display()))?;
    let go = go_source::Packages::new(source);
    write(&out.join("types.txt"), &types::render(&schemas, &go)?)?;
    write(
        &out.join("protobuf.txt"),
        &protobuf::render(&read(&from.join("protobuf.json"))?, &schemas)?,
    )?;
    write(
        &out.join("resources.txt"),
        &discovery::render(&read(&from.join("discovery.json"))?)?,
    )
}

/// The words alone, which come from elsewhere; see [`descriptions`].
pub(crate) fn describe(sources: &Path, root: &Path) -> Result<(), String> {
    let path = root.join("crates/api/src/generated/descriptions.gz");
    fs::write(&path, descriptions::render(sources)?)
        .map_err(|e| format!("write {}: {e}", path.display()))
}

fn read(path: &Path) -> Result<Value, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    serde_json::from_str(&text).map_err(|e| format!("parse {}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("write {}: {e}", path.display()))
}
