//! Words for types and fields, for `kubectl explain`. They are kept compressed and unpacked while
//! a document is rendered: documents are rarely read, and the words are most of them.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use flate2::read::GzDecoder;

/// The words for what every object has are those of this kind.
const ANY_KIND: &str = "io.k8s.api.core.v1.ConfigMap";

/// Shared by the documents that are being rendered at one time.
static LOADED: Mutex<Weak<Descriptions>> = Mutex::new(Weak::new());

pub(super) struct Descriptions {
    text: String,
    /// Where a definition's block is; see `cargo xtask describe` for its form.
    blocks: HashMap<String, Range<usize>>,
}

impl Descriptions {
    pub(super) fn load() -> Arc<Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(descriptions) = loaded.upgrade() {
            return descriptions;
        }
        let descriptions = Arc::new(Self::unpack());
        *loaded = Arc::downgrade(&descriptions);
        descriptions
    }

    fn unpack() -> Self {
        let mut text = String::new();
        if let Err(error) = GzDecoder::new(keelson_api::DESCRIPTIONS).read_to_string(&mut text) {
            tracing::error!(%error, "the descriptions cannot be unpacked");
            text.clear();
        }
        let mut blocks: HashMap<String, Range<usize>> = HashMap::new();
        let mut begun: Option<(String, usize)> = None;
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if let Some((name, _)) = line.split_once('\t').filter(|(name, _)| !name.is_empty())
                && let Some((before, start)) = begun.replace((name.to_owned(), at))
            {
                blocks.insert(before, start..at);
            }
            at += line.len();
        }
        blocks.extend(begun.map(|(name, start)| (name, start..at)));
        Self { text, blocks }
    }

    /// A built-in type as a whole.
    pub(super) fn of_type(&self, name: &str) -> Option<String> {
        let first = self.block(name)?.lines().next()?;
        words(first.split_once('\t')?.1)
    }

    /// A field of a built-in type.
    pub(super) fn of_field(&self, owner: &str, field: &str) -> Option<String> {
        let mut lines = self.block(owner)?.lines().skip(1);
        lines.find_map(|line| {
            let (name, text) = line.strip_prefix('\t')?.split_once('\t')?;
            (name == field).then(|| words(text))?
        })
    }

    /// A field of an object's root, for kinds that have no words of their own.
    pub(super) fn of_root(&self, field: &str) -> Option<String> {
        match field {
            "apiVersion" | "kind" | "metadata" => self.of_field(ANY_KIND, field),
            _ => None,
        }
    }

    fn block(&self, name: &str) -> Option<&str> {
        self.text.get(self.blocks.get(name)?.clone())
    }
}

fn words(json: &str) -> Option<String> {
    serde_json::from_str::<String>(json)
        .ok()
        .filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_fields_and_roots_have_words() {
        let all = Descriptions::load();
        assert!(Arc::ptr_eq(&all, &Descriptions::load()));
        assert!(all.of_type("io.k8s.api.core.v1.Container").is_some());
        let replicas = all.of_field("io.k8s.api.apps.v1.DeploymentSpec", "replicas");
        assert!(replicas.is_some_and(|text| text.contains("desired pods")));
        assert!(all.of_root("metadata").is_some());
        assert_eq!(all.of_root("spec"), None);
        assert_eq!(
            all.of_field("io.k8s.api.core.v1.Container", "nothing"),
            None
        );
    }

    #[test]
    fn nearly_every_field_of_every_served_kind_is_described() {
        let all = Descriptions::load();
        let (mut known, mut missing) = (0, Vec::new());
        for name in keelson_api::type_names() {
            let Some(schema) = keelson_api::schema(name) else {
                continue;
            };
            // Lists are one generic type where the words come from.
            if name.ends_with("List") {
                continue;
            }
            for field in schema.fields() {
                match all.of_field(name, &field.name) {
                    Some(_) => known += 1,
                    None => missing.push(format!("{name}.{}", field.name)),
                }
            }
        }
        assert!(
            missing.len() * 50 < known,
            "{known} known, missing: {missing:?}"
        );
    }
}
