//! Equality and order.

use super::collections::{list_map_key, property};
use super::{EvalError, List, Map, MapKey, Value};
use crate::escape::escape;
use crate::limits::deep;
use serde_json::Value as Json;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

/// More comparisons inside one `==` are refused: values that share their parts can be far larger
/// than what they cost.
const MAX_STEPS: usize = 2_000_000;

impl<'v> Value<'v> {
    /// Whether two values are equal. Numbers are compared by value, whatever their types.
    pub fn equals(&self, other: &Value<'v>) -> Result<bool, EvalError> {
        Comparison { left: MAX_STEPS }.equal(self, other)
    }
}

struct Comparison {
    left: usize,
}

impl Comparison {
    fn equal<'v>(&mut self, a: &Value<'v>, b: &Value<'v>) -> Result<bool, EvalError> {
        if self.left == 0 {
            return Err(EvalError::cost_limit());
        }
        self.left -= 1;
        Ok(match (a, b) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::String(a), Value::String(b)) => a.as_str() == b.as_str(),
            (Value::Bytes(a), Value::Bytes(b)) => a == b,
            (Value::Duration(a), Value::Duration(b)) => a == b,
            (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
            (Value::Type(a), Value::Type(b)) => a.runtime_name() == b.runtime_name(),
            (Value::Opaque(a), Value::Opaque(b)) => a.equals(&**b),
            (Value::Lazy(a), Value::Lazy(b)) => a == b,
            (Value::Optional(None), Value::Optional(None)) => true,
            (Value::Optional(Some(a)), Value::Optional(Some(b))) => self.equal(a, b)?,
            (Value::List(a), Value::List(b)) => self.lists(a, b)?,
            (Value::Map(a), Value::Map(b)) => self.maps(a, b)?,
            (Value::Object(a), Value::Object(b)) => {
                if a.type_name != b.type_name || a.fields.len() != b.fields.len() {
                    return Ok(false);
                }
                for (name, value) in &a.fields {
                    match b.fields.get(name) {
                        Some(other) if self.equal(value, other)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Value::Preserved(a), Value::Preserved(b)) => a == b,
            _ => numbers(a, b) == Some(Some(Ordering::Equal)),
        })
    }

    fn lists<'v>(&mut self, a: &List<'v>, b: &List<'v>) -> Result<bool, EvalError> {
        deep(|| self.same_lists(a, b))
    }

    fn same_lists<'v>(&mut self, a: &List<'v>, b: &List<'v>) -> Result<bool, EvalError> {
        if a.len() != b.len() {
            return Ok(false);
        }
        if let List::Json(_, Some(schema)) = a {
            match schema.list_type.as_str() {
                "set" => {
                    let mine: HashSet<_> = a.values()?.iter().map(MapKey::of).collect();
                    let theirs = b.values()?;
                    return Ok(theirs.iter().all(|v| mine.contains(&MapKey::of(v))));
                }
                "map" => {
                    let mut mine = HashMap::new();
                    for v in a.values()? {
                        mine.insert(list_map_key(&v, schema), v);
                    }
                    for v in b.values()? {
                        match mine.get(&list_map_key(&v, schema)) {
                            Some(m) if self.equal(m, &v)? => {}
                            _ => return Ok(false),
                        }
                    }
                    return Ok(true);
                }
                _ => {}
            }
        }
        for (a, b) in a.iter().zip(b.iter()) {
            if !self.equal(&a?, &b?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn maps<'v>(&mut self, a: &Map<'v>, b: &Map<'v>) -> Result<bool, EvalError> {
        deep(|| self.same_maps(a, b))
    }

    fn same_maps<'v>(&mut self, a: &Map<'v>, b: &Map<'v>) -> Result<bool, EvalError> {
        if a.len() != b.len() {
            return Ok(false);
        }
        if let Map::Json(data, Some(schema)) = a {
            return self.typed(data, schema, a, b);
        }
        for key in a.keys() {
            let (Some(mine), Some(theirs)) = (a.find(&key)?, b.find(&key)?) else {
                return Ok(false);
            };
            if !self.equal(&mine, &theirs)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fields that the schema does not declare are compared as they are.
    fn typed<'v>(
        &mut self,
        data: &serde_json::Map<String, Json>,
        schema: &crate::schema::Schema,
        a: &Map<'v>,
        b: &Map<'v>,
    ) -> Result<bool, EvalError> {
        for (name, json) in data {
            if property(schema, name).is_none() {
                match b {
                    Map::Json(other, _) if other.get(name).is_some_and(|o| o != json) => {
                        return Ok(false);
                    }
                    Map::Json(..) => continue,
                    Map::Values(_) | Map::Claims(_) => return Err(EvalError::no_such_overload()),
                }
            }
            let seen = match escape(name) {
                Some(e) if schema.properties.is_some() => e,
                _ => name.clone(),
            };
            let key = Value::string(seen);
            let equal = match (a.find(&key)?, b.find(&key)?) {
                (None, None) => true,
                (Some(mine), Some(theirs)) => self.equal(&mine, &theirs)?,
                _ => false,
            };
            if !equal {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The order of two numbers; `Some(None)` when one of them is not a number at all.
fn numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Option<Ordering>> {
    Some(match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Double(a), Value::Int(b)) => double_int(*a, *b),
        (Value::Int(a), Value::Double(b)) => double_int(*b, *a).map(Ordering::reverse),
        (Value::Double(a), Value::Uint(b)) => double_uint(*a, *b),
        (Value::Uint(a), Value::Double(b)) => double_uint(*b, *a).map(Ordering::reverse),
        _ => return None,
    })
}

fn double_int(d: f64, i: i64) -> Option<Ordering> {
    if d < i64::MIN as f64 {
        Some(Ordering::Less)
    } else if d > i64::MAX as f64 {
        Some(Ordering::Greater)
    } else {
        d.partial_cmp(&(i as f64))
    }
}

fn double_uint(d: f64, u: u64) -> Option<Ordering> {
    if d < 0.0 {
        Some(Ordering::Less)
    } else if d > u64::MAX as f64 {
        Some(Ordering::Greater)
    } else {
        d.partial_cmp(&(u as f64))
    }
}

/// The order of two values of types that have one.
pub(crate) fn compare(a: &Value<'_>, b: &Value<'_>) -> Result<Ordering, EvalError> {
    if let Some(order) = numbers(a, b) {
        return order.ok_or_else(|| EvalError::new("NaN values cannot be ordered"));
    }
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a.cmp(b)),
        (Value::String(a), Value::String(b)) => Ok(a.as_str().cmp(b.as_str())),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Ok(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(a.cmp(b)),
        _ => Err(EvalError::no_such_overload()),
    }
}
