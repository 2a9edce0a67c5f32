//! `cargo xtask gen`: facts in, compact sorted text out. One fact a line, so that a new Kubernetes
//! version reads as a diff.
//!
//! Three files are data, not generated, because the facts have no words: they were read off a
//! server of upstream's and change by hand with a new version.
//! - `crates/apiserver/src/openapi/overlay.json.gz`: what `/openapi/v2` says of built-in types
//!   besides structure and the words of `k8s-openapi` (enumerations, unions), as merge patches.
//! - `crates/apiserver/src/openapi/parameters.json`: the parameters of that document.
//! - `crates/kinds/src/columns.txt`: the descriptions in `columnDefinitions` of tables.

mod descriptions;
mod discovery;
mod go_source;
mod protobuf;
mod types;

use serde_json::Value;
use std::fs;
use std::path::Path;

/// A generated file by its name in [`GENERATED`], and what is in it.
pub(crate) type Table = (&'static str, String);

const GENERATED: &str = "crates/api/src/generated";

/// What the facts give; types only with the source, which knows pointers.
pub(crate) fn tables(from: &Path, source: Option<&Path>) -> Result<Vec<Table>, String> {
    let schemas = read(&from.join("schemas.json"))?;
    let protobuf = protobuf::render(&read(&from.join("protobuf.json"))?, &schemas)?;
    let resources = discovery::render(&read(&from.join("discovery.json"))?)?;
    let mut tables = vec![("protobuf.txt", protobuf), ("resources.txt", resources)];
    if let Some(source) = source {
        let go = go_source::Packages::new(source);
        tables.push(("types.txt", types::render(&schemas, &go)?));
    }
    Ok(tables)
}

pub(crate) fn write(tables: &[Table], root: &Path) -> Result<(), String> {
    let out = root.join(GENERATED);
    fs::create_dir_all(&out).map_err(|e| format!("create {}: {e}", out.display()))?;
    tables.iter().try_for_each(|(name, text)| {
        let path = out.join(name);
        fs::write(&path, text).map_err(|e| format!("write {}: {e}", path.display()))
    })
}

/// The tables that are checked in as something else.
pub(crate) fn stale(tables: &[Table], root: &Path) -> Vec<&'static str> {
    let differs = |(name, text): &&Table| {
        let found = fs::read_to_string(root.join(GENERATED).join(name));
        found.ok().as_ref() != Some(text)
    };
    tables
        .iter()
        .filter(differs)
        .map(|(name, _)| *name)
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_stale_when_it_is_not_what_is_checked_in() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let file = root.join(GENERATED).join("resources.txt");
        let checked_in = fs::read_to_string(file).unwrap();
        let other = format!("{checked_in}more");
        assert_eq!(
            stale(&[("resources.txt", checked_in)], &root),
            Vec::<&str>::new()
        );
        assert_eq!(
            stale(
                &[("resources.txt", other), ("none.txt", String::new())],
                &root
            ),
            ["resources.txt", "none.txt"]
        );
    }
}
