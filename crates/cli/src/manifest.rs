//! Objects from files, directories and standard input; YAML streams or JSON, lists unfolded.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;

/// More than any sensible manifest, less than what hurts.
const MAX_BYTES: u64 = 64 << 20;

pub(crate) fn read_all(files: &[String], recursive: bool) -> Result<Vec<Value>, Error> {
    let mut objects = Vec::new();
    for file in files {
        if file == "-" {
            parse(
                Path::new("standard input"),
                &read(std::io::stdin())?,
                &mut objects,
            )?;
            continue;
        }
        for path in expand(Path::new(file), recursive, true)? {
            parse(
                &path,
                &read(std::fs::File::open(&path).map_err(|error| failed(&path, &error))?)?,
                &mut objects,
            )?;
        }
    }
    if objects.is_empty() {
        return Err(Error::Usage("no objects passed".to_owned()));
    }
    Ok(objects)
}

fn read(source: impl Read) -> Result<String, Error> {
    let mut text = String::new();
    source.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn expand(path: &Path, recursive: bool, named: bool) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        let known = path.extension().is_some_and(|extension| {
            ["yaml", "yml", "json"]
                .iter()
                .any(|known| extension == *known)
        });
        return Ok(if named || known {
            vec![path.to_owned()]
        } else {
            Vec::new()
        });
    }
    if !named && !recursive {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(path).map_err(|error| failed(path, &error))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        files.extend(expand(&path, recursive, false)?);
    }
    Ok(files)
}

fn parse(path: &Path, text: &str, objects: &mut Vec<Value>) -> Result<(), Error> {
    let documents: Vec<Value> = if text.trim_start().starts_with('{') {
        vec![serde_json::from_str(text).map_err(|error| failed(path, &error))?]
    } else {
        serde_saphyr::from_multiple(text).map_err(|error| failed(path, &error))?
    };
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(mut list)
                if list
                    .get("kind")
                    .and_then(Value::as_str)
                    .is_some_and(|kind| kind.ends_with("List")) =>
            {
                match list.remove("items") {
                    Some(Value::Array(items)) => {
                        objects.extend(items.into_iter().map(|item| typed(item, &list)));
                    }
                    _ => return Err(failed(path, &"a list without items")),
                }
            }
            object @ Value::Object(_) => objects.push(object),
            _ => return Err(failed(path, &"a document is not an object")),
        }
    }
    Ok(())
}

/// Items of a `PodList` need not say that they are Pods.
fn typed(mut item: Value, list: &Map<String, Value>) -> Value {
    let text = |name| list.get(name).and_then(Value::as_str);
    if let (Some(fields), Some(kind), Some(api_version)) = (
        item.as_object_mut(),
        text("kind").and_then(|kind| kind.strip_suffix("List")),
        text("apiVersion"),
    ) && !kind.is_empty()
        && !fields.contains_key("kind")
        && !fields.contains_key("apiVersion")
    {
        fields.insert("kind".into(), kind.into());
        fields.insert("apiVersion".into(), api_version.into());
    }
    item
}

fn failed(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::Manifest {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_lists_become_objects() {
        let mut objects = Vec::new();
        let text = "a: 1\n---\n---\nkind: ConfigMapList\nitems:\n- {b: 2}\n- {c: 3}\n";
        parse(Path::new("x"), text, &mut objects).unwrap();
        assert_eq!(objects.len(), 3);
        let text = "kind: ConfigMapList\napiVersion: v1\nitems:\n- {b: 2}\n";
        parse(Path::new("x"), text, &mut objects).unwrap();
        assert_eq!(
            (&objects[3]["kind"], &objects[3]["apiVersion"]),
            (&"ConfigMap".into(), &"v1".into())
        );
        assert!(parse(Path::new("x"), "- 1\n", &mut objects).is_err());
        assert!(parse(Path::new("x"), "{", &mut objects).is_err());
    }
}
