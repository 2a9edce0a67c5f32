//! JSON text to a tree, with errors in the words of Go's decoder, and a parser that notices keys
//! given twice. The last one wins, as everywhere.

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};
use std::fmt;

const MAX_DUPLICATES: usize = 100;

/// The tree, and the paths of duplicate keys.
pub(crate) fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    match parse_once(bytes) {
        Ok(parsed) => Ok(parsed),
        // Go's decoder takes bytes that are no UTF-8 for replacement characters.
        Err(_) if std::str::from_utf8(bytes).is_err() => {
            let text = String::from_utf8_lossy(bytes);
            parse_once(text.as_bytes()).map_err(|err| in_words_of_go(text.as_bytes(), &err))
        }
        Err(err) => Err(in_words_of_go(bytes, &err)),
    }
}

/// A tree, and what a strict decoder minds in the text: `duplicate field "a.b"`.
pub fn parse_strict(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let (value, duplicates) = parse_json(bytes)?;
    let problems = duplicates.iter().map(|path| crate::decode::duplicate(path));
    Ok((value, problems.collect()))
}

/// A tree, for who does not mind keys given twice.
pub fn parse(bytes: &[u8]) -> Result<Value, String> {
    match serde_json::from_slice(bytes) {
        Ok(value) => Ok(value),
        Err(_) => parse_json(bytes).map(|(value, _)| value),
    }
}

fn parse_once(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut context = Context::default();
    let mut d = serde_json::Deserializer::from_slice(bytes);
    let value = Seed(&mut context).deserialize(&mut d)?;
    d.end()?;
    Ok((value, context.duplicates))
}

fn in_words_of_go(bytes: &[u8], err: &serde_json::Error) -> String {
    crate::json_syntax::error(bytes).unwrap_or_else(|| {
        // Nesting that Go would take and we do not, or a lone surrogate.
        if err.to_string().starts_with("recursion limit") {
            "exceeded max depth".to_owned()
        } else {
            err.to_string()
        }
    })
}

/// Paths of all keys in the order of the document; of a key given again, that place too. For
/// reports only: it costs a string a key.
pub(crate) fn key_order(bytes: &[u8]) -> Vec<String> {
    let mut context = Context {
        order: Some(Vec::new()),
        ..Context::default()
    };
    let mut d = serde_json::Deserializer::from_slice(bytes);
    let _ = Seed(&mut context).deserialize(&mut d);
    context.order.unwrap_or_default()
}

enum Step {
    Key(String),
    Index(usize),
}

#[derive(Default)]
struct Context {
    path: Vec<Step>,
    duplicates: Vec<String>,
    order: Option<Vec<String>>,
}

impl Context {
    fn duplicate(&mut self, key: &str) {
        if self.duplicates.len() < MAX_DUPLICATES {
            let path = self.path_of(key);
            self.duplicates.push(path);
        }
    }

    fn path_of(&self, key: &str) -> String {
        let mut out = String::new();
        for s in &self.path {
            match s {
                Step::Index(i) => {
                    // An index follows its list without a dot.
                    out.truncate(out.trim_end_matches('.').len());
                    out.push_str(&format!("[{i}]."));
                }
                Step::Key(k) => {
                    out.push_str(k);
                    out.push('.');
                }
            }
        }
        out.push_str(key);
        out
    }
}

struct Seed<'c>(&'c mut Context);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        Ok(Value::from(v))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E: Error>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        Value::deserialize(d)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            self.0.path.push(Step::Index(out.len()));
            let item = seq.next_element_seed(Seed(&mut *self.0))?;
            self.0.path.pop();
            match item {
                Some(v) => out.push(v),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if self.0.order.is_some() {
                let path = self.0.path_of(&key);
                if let Some(order) = &mut self.0.order {
                    order.push(path);
                }
            }
            self.0.path.push(Step::Key(key));
            let value = map.next_value_seed(Seed(&mut *self.0))?;
            let Some(Step::Key(key)) = self.0.path.pop() else {
                continue;
            };
            match out.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(value);
                }
                Entry::Occupied(mut place) => {
                    self.0.duplicate(place.key());
                    place.insert(value);
                }
            }
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_duplicates() {
        let (v, d) =
            parse_json(br#"{"a":[{"b":1,"b":2}],"c":{"d":{"e":1,"e":null}},"c":3}"#).unwrap();
        assert_eq!(d, ["a[0].b", "c.d.e", "c"]);
        assert_eq!(v["c"], 3);
        assert!(parse_json(b"[1,]").is_err());
        let deep = "[".repeat(100_000);
        assert!(parse_json(deep.as_bytes()).is_err());
    }
}
