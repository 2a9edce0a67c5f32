//! What upstream's documents say of built-in types and nothing else here knows: the values of
//! enumerations and what they mean, unions, the words of lists. A merge patch for each definition,
//! kept compressed and unpacked while documents are rendered, as the descriptions are.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use flate2::read::GzDecoder;
use serde_json::{Map, Value};

static LOADED: Mutex<Weak<Overlay>> = Mutex::new(Weak::new());
const PACKED: &[u8] = include_bytes!("overlay.json.gz");

pub(super) struct Overlay(Map<String, Value>);

impl Overlay {
    pub(super) fn load() -> Arc<Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(overlay) = loaded.upgrade() {
            return overlay;
        }
        let unpacked = serde_json::from_reader(GzDecoder::new(PACKED));
        let overlay = Arc::new(Self(unpacked.unwrap_or_else(|error| {
            tracing::error!(%error, "the overlay of OpenAPI definitions cannot be unpacked");
            Map::new()
        })));
        *loaded = Arc::downgrade(&overlay);
        overlay
    }

    /// Fields of which nothing is said although words for them are known.
    pub(super) fn undescribed(&self, name: &str) -> HashSet<String> {
        let properties = self.0.get(name).and_then(|patch| patch.get("properties"));
        let fields = properties.and_then(Value::as_object).into_iter().flatten();
        let silent =
            fields.filter(|(_, patch)| patch.get("description").is_some_and(Value::is_null));
        silent.map(|(field, _)| field.clone()).collect()
    }

    pub(super) fn apply(&self, name: &str, definition: &mut Value) {
        if let Some(patch) = self.0.get(name) {
            merge(definition, patch);
        }
    }
}

fn merge(value: &mut Value, patch: &Value) {
    let (Value::Object(fields), Value::Object(changes)) = (&mut *value, patch) else {
        *value = patch.clone();
        return;
    };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enumerations_are_there() {
        let mut definition = Value::Null;
        Overlay::load().apply("io.k8s.api.core.v1.Container", &mut definition);
        let values = &definition["properties"]["imagePullPolicy"]["enum"];
        assert_eq!(
            values,
            &serde_json::json!(["Always", "IfNotPresent", "Never"])
        );
    }
}
