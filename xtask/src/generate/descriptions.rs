//! What upstream says of types and fields, for `kubectl explain`. The words are taken from the
//! `k8s-openapi` crate (Apache-2.0), which has them from upstream's OpenAPI document: each of its
//! source files names a definition and ends with that definition's JSON schema.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

/// Definition, then field (empty for the definition itself), to words.
type Words = BTreeMap<String, BTreeMap<String, String>>;

/// Gzip of one block a definition: its name and words on one line, then a line a field; name and
/// JSON string are parted by a tab, and lines of fields begin with another.
pub(super) fn render(sources: &Path) -> Result<Vec<u8>, String> {
    let mut words = Words::new();
    collect(sources, &mut words)?;
    if words.is_empty() {
        return Err(format!("{} holds no definitions", sources.display()));
    }
    let mut out = GzEncoder::new(Vec::new(), Compression::best());
    for (definition, fields) in &words {
        for (field, text) in fields {
            let text = serde_json::to_string(text).map_err(|e| e.to_string())?;
            let line = if field.is_empty() {
                format!("{definition}\t{text}\n")
            } else {
                format!("\t{field}\t{text}\n")
            };
            out.write_all(line.as_bytes()).map_err(|e| e.to_string())?;
        }
    }
    out.finish().map_err(|e| e.to_string())
}

fn collect(dir: &Path, words: &mut Words) -> Result<(), String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("read {}: {e}", dir.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| e.to_string())?.path();
        if path.is_dir() {
            collect(&path, words)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text =
                fs::read_to_string(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
            if let Some((definition, fields)) = read_source(&text) {
                words.insert(definition, fields);
            }
        }
    }
    Ok(())
}

/// A definition's words from the schema that its file ends with. The file is generated, so that
/// indentation tells what belongs to what.
fn read_source(text: &str) -> Option<(String, BTreeMap<String, String>)> {
    let definition = text
        .lines()
        .next()?
        .strip_prefix("// Generated from definition ")?;
    let schema = text.split_once("fn json_schema(")?.1;
    let mut fields = BTreeMap::new();
    // A definition without words still begins its block.
    fields.insert(String::new(), String::new());
    let mut field = String::new();
    for line in schema.lines() {
        let body = line.trim_start();
        let indent = line.len() - body.len();
        if indent == 16
            && let Some(name) = body
                .strip_prefix('"')
                .and_then(|rest| rest.split_once("\": "))
        {
            field = name.0.to_owned();
        }
        let literal = if let Some(rest) = body.strip_prefix("\"description\": ") {
            (indent == 12 || indent == 20 && !field.is_empty()).then(|| rest.trim_end_matches(','))
        } else {
            body.split_once(".insert(\"description\".into(), ")
                .map(|(_, rest)| rest.trim_end_matches(".into());"))
        };
        let Some(literal) = literal else { continue };
        let owner = if indent == 12 { "" } else { &field };
        fields.insert(owner.to_owned(), unescape(literal)?);
    }
    Some((definition.to_owned(), fields))
}

/// A Rust string literal's value.
fn unescape(literal: &str) -> Option<String> {
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next()? {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'u' => {
                let hex: String = chars.by_ref().skip(1).take_while(|c| *c != '}').collect();
                out.push(char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?);
            }
            other => out.push(other),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_by_their_indentation() {
        let source = r#"// Generated from definition io.example.Thing

impl JsonSchema for Thing {
    fn json_schema(__gen: &mut SchemaGenerator) -> Schema {
        crate::schemars::json_schema!({
            "description": "A \"thing\".",
            "properties": {
                "size": {
                    "description": "How big.\nIn metres.",
                    "type": "integer",
                },
                "spec": ({
                    let mut schema_obj = __gen.subschema_for::<Spec>();
                    schema_obj.ensure_object().insert("description".into(), "What is wanted.".into());
                    schema_obj
                }),
            },
        })
    }
}
"#;
        let (definition, fields) = read_source(source).unwrap();
        assert_eq!(definition, "io.example.Thing");
        assert_eq!(fields[""], "A \"thing\".");
        assert_eq!(fields["size"], "How big.\nIn metres.");
        assert_eq!(fields["spec"], "What is wanted.");
    }
}
