//! Objects made up from a schema.

use keelson_api::{Additional, ListType, Schema, Type};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

pub(crate) struct Generator {
    rng: StdRng,
    /// How likely an optional field is there.
    density: f64,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Generator {
        let mut rng = StdRng::seed_from_u64(seed);
        let density = rng.random_range(0.05..0.6);
        Generator { rng, density }
    }

    pub(crate) fn object(&mut self, schema: &Schema, api_version: &str, kind: &str) -> Value {
        let mut v = self.value(schema, 0);
        v["apiVersion"] = json!(api_version);
        v["kind"] = json!(kind);
        if let Some(m) = v.get_mut("metadata").and_then(Value::as_object_mut) {
            m.remove("managedFields");
        }
        v
    }

    fn text(&mut self) -> String {
        let n = self.rng.random_range(1..6);
        (0..n)
            .map(|_| char::from(self.rng.random_range(b'a'..=b'z')))
            .collect()
    }

    pub(crate) fn value(&mut self, s: &Schema, depth: usize) -> Value {
        match s.kind() {
            Type::Object => self.map(s, depth),
            Type::Array => self.list(s, depth),
            Type::String => match self.rng.random_range(0..8) {
                0 => json!(""),
                _ => json!(self.text()),
            },
            Type::Integer => match self.rng.random_range(0..3) {
                0 => json!(0),
                1 => json!(self.rng.random_range(-1000..1000)),
                _ => json!(self.rng.random_range(0..i32::MAX)),
            },
            Type::Number => json!(f64::from(self.rng.random_range(1..1000)) / 4.0),
            Type::Boolean => json!(self.rng.random::<bool>()),
            Type::Bytes => json!(["", "AA==", "AAECAwQ="][self.rng.random_range(0..3)]),
            Type::IntOrString => {
                if self.rng.random() {
                    json!(self.rng.random_range(0..70000))
                } else {
                    json!(self.text())
                }
            }
            Type::Quantity => {
                json!(
                    ["100m", "1500m", "1Gi", "0.5", "1e3", "2000", "12345Ki"]
                        [self.rng.random_range(0..7)]
                )
            }
            Type::Time => json!("2026-01-02T03:04:05Z"),
            Type::MicroTime => json!("2026-01-02T03:04:05.000006Z"),
            // Schemas in a definition's schema, which are no raw JSON on the wire.
            Type::Any if s.type_name().contains("JSONSchemaPropsOr") => {
                json!({"type": self.text()})
            }
            Type::Any => json!({self.text(): [1, self.text(), null]}),
        }
    }

    fn map(&mut self, s: &Schema, depth: usize) -> Value {
        let mut out = Map::new();
        match s.additional() {
            Additional::Of(of) => {
                for _ in 0..self.rng.random_range(0..3) {
                    out.insert(self.text(), self.value(of, depth + 1));
                }
            }
            Additional::Open => {
                out.insert(format!("f:{}", self.text()), json!({}));
            }
            Additional::Closed => {}
        }
        for f in s.fields() {
            let wanted = depth < 12 && (f.required || self.rng.random_bool(self.density));
            if wanted && !(depth > 4 && self.rng.random_bool(0.7)) {
                out.insert(f.name.to_string(), self.value(&f.schema, depth + 1));
            }
        }
        // Objects inside objects do not say their type on the wire.
        if depth > 0 && !keelson_api::group_version_kinds(s.type_name()).is_empty() {
            out.remove("apiVersion");
            out.remove("kind");
        }
        Value::Object(out)
    }

    fn list(&mut self, s: &Schema, depth: usize) -> Value {
        let Some(of) = s.items() else {
            return json!([]);
        };
        let n = if depth > 8 {
            0
        } else {
            self.rng.random_range(0..3)
        };
        let mut items: Vec<Value> = (0..n).map(|_| self.value(of, depth + 1)).collect();
        // Items must be told apart by their keys.
        for (i, item) in items.iter_mut().enumerate() {
            match s.list_type() {
                ListType::Set if item.is_number() => *item = json!(i),
                ListType::Set => *item = json!(format!("item-{i}")),
                ListType::Map | ListType::Atomic => {
                    let keys = s.list_keys().iter().map(|k| k.as_ref());
                    let merge = Some(s.patch_merge_key.as_ref()).filter(|k| !k.is_empty());
                    for key in keys.chain(merge) {
                        let Some(f) = of.field(key) else { continue };
                        item[key] = match f.schema.kind() {
                            Type::Integer => json!(i + 1),
                            _ => json!(format!("key-{i}")),
                        };
                    }
                }
            }
            if s.patch_merges() && s.patch_merge_key.is_empty() && item.is_string() {
                *item = json!(format!("item-{i}"));
            }
        }
        Value::Array(items)
    }

    /// Anything at all, with names that mean something to patches and ownership.
    pub(crate) fn chaos(&mut self, depth: usize) -> Value {
        const NAMES: &[&str] = &[
            "metadata",
            "spec",
            "status",
            "name",
            "containers",
            "ports",
            "labels",
            "finalizers",
            "managedFields",
            "fieldsV1",
            "fieldsType",
            "operation",
            "apiVersion",
            "kind",
            "template",
            "strategy",
            "$patch",
            "$retainKeys",
            "$setElementOrder/containers",
            "$setElementOrder/finalizers",
            "$deleteFromPrimitiveList/finalizers",
            "f:a",
            "k:{\"name\":1}",
            "k:x",
            "v:",
            ".",
            "op",
            "path",
            "value",
            "from",
        ];
        match self.rng.random_range(0..if depth > 5 { 6 } else { 10 }) {
            0 => Value::Null,
            1 => json!(self.rng.random::<bool>()),
            2 => json!(self.rng.random::<i64>()),
            3 => json!(self.rng.random::<f64>()),
            4 => json!(
                [
                    "delete", "replace", "merge", "FieldsV1", "Update", "/spec/-", "~2", ""
                ][self.rng.random_range(0..8)]
            ),
            5 => json!(self.text()),
            6 | 7 => (0..self.rng.random_range(0..4))
                .map(|_| self.chaos(depth + 1))
                .collect(),
            _ => Value::Object(
                (0..self.rng.random_range(0..5))
                    .map(|_| {
                        let name = NAMES[self.rng.random_range(0..NAMES.len())];
                        (name.to_owned(), self.chaos(depth + 1))
                    })
                    .collect(),
            ),
        }
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.rng.random()).collect()
    }
}
