//! Reading and writing an object's tree. A dotted path never fails: what is missing reads as
//! null, empty or zero, as it does upstream where absent and zero are one.

use serde_json::{Map, Value};
use std::sync::LazyLock;

static NULL: Value = Value::Null;
static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

pub(crate) trait Tree {
    /// The value under a dotted path, null when there is none.
    fn at(&self, path: &str) -> &Value;
    fn text(&self, path: &str) -> &str;
    fn int(&self, path: &str) -> Option<i64>;
    fn flag(&self, path: &str) -> bool;
    fn list(&self, path: &str) -> &[Value];
    fn map(&self, path: &str) -> &Map<String, Value>;

    fn has(&self, path: &str) -> bool {
        !self.at(path).is_null()
    }

    /// A number, zero when absent.
    fn num(&self, path: &str) -> i64 {
        self.int(path).unwrap_or(0)
    }
}

impl Tree for Value {
    fn at(&self, path: &str) -> &Value {
        if path.is_empty() {
            return self;
        }
        let mut here = self;
        for key in path.split('.') {
            match here.get(key) {
                Some(v) => here = v,
                None => return &NULL,
            }
        }
        here
    }

    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or("")
    }

    fn int(&self, path: &str) -> Option<i64> {
        self.at(path).as_i64()
    }

    fn flag(&self, path: &str) -> bool {
        self.at(path).as_bool().unwrap_or(false)
    }

    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map_or(&[], Vec::as_slice)
    }

    fn map(&self, path: &str) -> &Map<String, Value> {
        self.at(path).as_object().unwrap_or(&EMPTY)
    }
}

pub(crate) trait TreeMut {
    /// The object under a dotted path, made when absent; `None` when something else is there.
    fn object(&mut self, path: &str) -> Option<&mut Map<String, Value>>;
    /// As [`TreeMut::object`], but makes the last step only.
    fn object_if(&mut self, path: &str) -> Option<&mut Map<String, Value>>;
    /// The value under a dotted path if it is there.
    fn at_mut(&mut self, path: &str) -> Option<&mut Value>;
    fn list_mut(&mut self, path: &str) -> &mut [Value];
    /// Writes the value; null removes the field.
    fn put(&mut self, path: &str, value: impl Into<Value>);
    fn remove(&mut self, path: &str);
    /// Makes what is there what it was before. Most of the time it is, and is not copied again.
    fn keep(&mut self, path: &str, old: &Value);
    /// Writes the value unless one is there.
    fn fill(&mut self, path: &str, value: impl Into<Value>);
    /// As [`TreeMut::fill`], and an empty string counts as absent.
    fn fill_text(&mut self, path: &str, value: &str);
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

impl TreeMut for Value {
    fn object(&mut self, path: &str) -> Option<&mut Map<String, Value>> {
        let mut here = self;
        for key in path.split('.').filter(|k| !k.is_empty()) {
            let map = here.as_object_mut()?;
            let next = map.entry(key).or_insert(Value::Null);
            if next.is_null() {
                *next = Value::Object(Map::new());
            }
            here = next;
        }
        here.as_object_mut()
    }

    fn object_if(&mut self, path: &str) -> Option<&mut Map<String, Value>> {
        let (parent, key) = split(path);
        self.at_mut(parent).filter(|v| v.is_object())?.object(key)
    }

    fn at_mut(&mut self, path: &str) -> Option<&mut Value> {
        let mut here = self;
        for key in path.split('.').filter(|k| !k.is_empty()) {
            here = here.get_mut(key)?;
        }
        Some(here)
    }

    fn list_mut(&mut self, path: &str) -> &mut [Value] {
        match self.at_mut(path) {
            Some(Value::Array(items)) => items,
            _ => &mut [],
        }
    }

    fn put(&mut self, path: &str, value: impl Into<Value>) {
        let value = value.into();
        if value.is_null() {
            return self.remove(path);
        }
        let (parent, key) = split(path);
        if let Some(map) = self.object(parent) {
            map.insert(key.to_owned(), value);
        }
    }

    fn keep(&mut self, path: &str, old: &Value) {
        let old = old.at(path);
        if self.at(path) != old {
            self.put(path, old.clone());
        }
    }

    fn remove(&mut self, path: &str) {
        let (parent, key) = split(path);
        if let Some(Value::Object(map)) = self.at_mut(parent) {
            map.remove(key);
        }
    }

    fn fill(&mut self, path: &str, value: impl Into<Value>) {
        if !self.has(path) {
            self.put(path, value);
        }
    }

    fn fill_text(&mut self, path: &str, value: &str) {
        if self.text(path).is_empty() {
            self.put(path, value);
        }
    }
}
