//! Lists and maps.

use super::{EvalError, Str, Value, ValueResult};
use crate::escape::{escape, unescape};
use crate::schema::Schema;
use serde_json::Value as Json;
use std::collections::HashMap;
use std::sync::Arc;

/// Shorter concatenations are copied into one list.
const COPIED_CONCATENATION: usize = 1024;

/// A list.
#[derive(Debug, Clone)]
pub enum List<'v> {
    /// Data of the API; the schema is the list's own.
    Json(&'v [Json], Option<&'v Schema>),
    /// Claims, see [`Value::from_claims`].
    Claims(&'v [Json]),
    Values(Arc<Vec<Value<'v>>>),
    /// Two long lists, one after the other, and their length.
    Joined(Arc<(List<'v>, List<'v>)>, usize),
}

/// A map, or data of an object.
#[derive(Debug, Clone)]
pub enum Map<'v> {
    /// Data of the API; the schema is the map's own.
    Json(&'v serde_json::Map<String, Json>, Option<&'v Schema>),
    /// Claims, see [`Value::from_claims`].
    Claims(&'v serde_json::Map<String, Json>),
    Values(Arc<MapEntries<'v>>),
}

/// Entries of a map that an expression made, in the order they were made.
#[derive(Debug, Clone, Default)]
pub struct MapEntries<'v> {
    entries: Vec<(Value<'v>, Value<'v>)>,
    index: HashMap<MapKey, usize>,
}

/// What of a key decides whether two keys are the same. Numbers are the same when their values
/// are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum MapKey {
    Null,
    Bool(bool),
    Whole(i128),
    Double(u64),
    String(Arc<str>),
    Time(i128),
    Duration(i64),
    Type(String),
}

impl MapKey {
    pub(crate) fn of(v: &Value<'_>) -> Option<MapKey> {
        Some(match v {
            Value::Null => MapKey::Null,
            Value::Bool(b) => MapKey::Bool(*b),
            Value::Int(i) => MapKey::Whole(i128::from(*i)),
            Value::Uint(u) => MapKey::Whole(i128::from(*u)),
            // Beyond 2⁶⁴ no int or uint is equal.
            Value::Double(d) if d.fract() == 0.0 && d.abs() < 1.9e19 => MapKey::Whole(*d as i128),
            Value::Double(d) => MapKey::Double(d.to_bits()),
            Value::String(Str::Shared(s)) => MapKey::String(s.clone()),
            Value::String(s) => MapKey::String(s.as_str().into()),
            Value::Timestamp(t) => MapKey::Time(crate::time::nanos(*t)),
            Value::Duration(d) => MapKey::Duration(*d),
            Value::Type(t) => MapKey::Type(t.runtime_name().to_owned()),
            _ => return None,
        })
    }
}

impl<'v> List<'v> {
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, _) | List::Claims(items) => items.len(),
            List::Values(values) => values.len(),
            List::Joined(_, len) => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, index: usize) -> Option<ValueResult<'v>> {
        let mut at = self;
        let mut index = index;
        loop {
            match at {
                List::Json(items, schema) => {
                    let json = items.get(index)?;
                    let item = schema.and_then(|s| s.items.as_deref());
                    if schema.is_some() && item.is_none() {
                        return Some(Err(EvalError::new(
                            "invalid array type, expected Items with a non-empty Schema",
                        )));
                    }
                    return Some(Value::from_json(json, item));
                }
                List::Claims(items) => {
                    return items.get(index).map(|json| Ok(Value::from_claims(json)));
                }
                List::Values(values) => return values.get(index).cloned().map(Ok),
                List::Joined(parts, _) => {
                    let first = parts.0.len();
                    if index < first {
                        at = &parts.0;
                    } else {
                        index -= first;
                        at = &parts.1;
                    }
                }
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = ValueResult<'v>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    /// All elements, or the first error.
    pub(crate) fn values(&self) -> Result<Vec<Value<'v>>, EvalError> {
        self.iter().collect()
    }

    /// The value of `self + other`. Lists that are sets or maps by their schema are merged.
    pub(crate) fn join(&self, other: &List<'v>) -> Result<List<'v>, EvalError> {
        if let List::Json(_, Some(schema)) = self {
            match schema.list_type.as_str() {
                "set" => return self.union(other),
                "map" => return self.merge(other, schema),
                _ => {}
            }
        }
        if self.is_empty() && matches!(self, List::Values(_)) {
            return Ok(other.clone());
        }
        if other.is_empty() {
            return Ok(self.clone());
        }
        let len = self.len().saturating_add(other.len());
        if len > COPIED_CONCATENATION {
            return Ok(List::Joined(Arc::new((self.clone(), other.clone())), len));
        }
        let mut values = self.values()?;
        values.extend(other.values()?);
        Ok(List::Values(Arc::new(values)))
    }

    fn union(&self, other: &List<'v>) -> Result<List<'v>, EvalError> {
        let mut values = self.values()?;
        let mut seen: std::collections::HashSet<_> = values.iter().filter_map(MapKey::of).collect();
        for v in other.values()? {
            let new = MapKey::of(&v).is_none_or(|key| seen.insert(key));
            if new {
                values.push(v);
            }
        }
        Ok(List::Values(Arc::new(values)))
    }

    fn merge(&self, other: &List<'v>, schema: &Schema) -> Result<List<'v>, EvalError> {
        let mut values = self.values()?;
        let mut places = HashMap::new();
        for (i, v) in values.iter().enumerate() {
            places.insert(list_map_key(v, schema), i);
        }
        for v in other.values()? {
            match places.get(&list_map_key(&v, schema)) {
                Some(place) => values[*place] = v,
                None => values.push(v),
            }
        }
        Ok(List::Values(Arc::new(values)))
    }
}

/// The fields that tell elements of a list of type map apart.
pub(super) fn list_map_key(v: &Value<'_>, schema: &Schema) -> Vec<Option<MapKey>> {
    let field = |name: &String| match v {
        Value::Map(m) => match m.find(&Value::string(escape(name)?)) {
            Ok(Some(v)) => MapKey::of(&v),
            _ => None,
        },
        _ => None,
    };
    schema.list_map_keys.iter().map(field).collect()
}

impl<'v> Map<'v> {
    pub fn len(&self) -> usize {
        match self {
            Map::Json(m, _) | Map::Claims(m) => m.len(),
            Map::Values(m) => m.entries.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a key; `None` when there is none, an error when no such key can be.
    pub fn find(&self, key: &Value<'_>) -> Result<Option<Value<'v>>, EvalError> {
        match self {
            Map::Values(m) => Ok(m.get(key).cloned()),
            Map::Json(m, None) => match key {
                Value::String(s) => Ok(m.get(s.as_str()).map(super::json::untyped)),
                _ => Ok(None),
            },
            Map::Claims(m) => match key {
                Value::String(s) => {
                    let plain = unescape(s);
                    let name = plain.as_deref().unwrap_or(s);
                    Ok(m.get(name).map(Value::from_claims))
                }
                _ => Ok(None),
            },
            Map::Json(m, Some(schema)) => {
                let Value::String(name) = key else {
                    return Err(EvalError::no_such_overload());
                };
                find_typed(m, schema, name)
            }
        }
    }

    /// Keys as expressions see them; those of data are in the order of their names.
    pub fn keys(&self) -> Vec<Value<'v>> {
        match self {
            Map::Values(m) => m.entries.iter().map(|(k, _)| k.clone()).collect(),
            Map::Json(m, None) | Map::Claims(m) => {
                let names = m.keys();
                names.map(|k| Value::String(Str::Borrowed(k))).collect()
            }
            Map::Json(m, Some(schema)) => {
                let visible = m.keys().filter(|k| property(schema, k).is_some());
                visible
                    .map(|k| match escape(k) {
                        Some(e) if schema.properties.is_some() && e != *k => Value::string(e),
                        _ => Value::String(Str::Borrowed(k)),
                    })
                    .collect()
            }
        }
    }

    pub(crate) fn first(&self) -> Option<(Value<'v>, ValueResult<'v>)> {
        match self {
            Map::Values(m) => m.entries.first().map(|(k, v)| (k.clone(), Ok(v.clone()))),
            Map::Json(..) | Map::Claims(_) => {
                let key = self.keys().into_iter().next()?;
                let value = self.find(&key).map(|v| v.unwrap_or(Value::Null));
                Some((key, value))
            }
        }
    }
}

/// The schema of a property or of every value.
pub(super) fn property<'v>(schema: &'v Schema, name: &str) -> Option<&'v Schema> {
    if schema.embedded_resource || schema.properties.is_some() {
        return schema.properties.as_ref().and_then(|p| p.get(name));
    }
    schema.additional_properties.as_deref()
}

fn find_typed<'v>(
    m: &'v serde_json::Map<String, Json>,
    schema: &'v Schema,
    name: &str,
) -> Result<Option<Value<'v>>, EvalError> {
    let object = schema.properties.is_some();
    let plain = if object { unescape(name) } else { None };
    if object && plain.is_none() {
        return Ok(None);
    }
    let name = plain.as_deref().unwrap_or(name);
    let Some(json) = m.get(name) else {
        return Ok(None);
    };
    // A null of an object is a field that is not there.
    if object && json.is_null() {
        return Ok(None);
    }
    match property(schema, name) {
        Some(s) => Value::from_json(json, Some(s)).map(Some),
        None => Ok(None),
    }
}

impl<'v> MapEntries<'v> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn entries(&self) -> &[(Value<'v>, Value<'v>)] {
        &self.entries
    }

    pub fn get(&self, key: &Value<'_>) -> Option<&Value<'v>> {
        let place = self.index.get(&MapKey::of(key)?)?;
        self.entries.get(*place).map(|(_, v)| v)
    }

    /// Sets a key's value and tells whether the key was new; an error for keys that cannot be.
    pub fn insert(&mut self, key: Value<'v>, value: Value<'v>) -> Result<bool, EvalError> {
        let Some(k) = MapKey::of(&key) else {
            return Err(EvalError::new("unsupported key type"));
        };
        if let Some(place) = self.index.get(&k) {
            self.entries[*place].1 = value;
            return Ok(false);
        }
        self.index.insert(k, self.entries.len());
        self.entries.push((key, value));
        Ok(true)
    }

    /// Removes a key, when it is there.
    pub(crate) fn remove(&mut self, key: &Value<'v>) {
        let Some(place) = MapKey::of(key).and_then(|k| self.index.remove(&k)) else {
            return;
        };
        self.entries.remove(place);
        for later in self.index.values_mut().filter(|p| **p > place) {
            *later -= 1;
        }
    }
}
