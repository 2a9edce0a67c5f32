//! What two-variable comprehensions are made of.

use super::Row;
use super::declare::Binding::Own;
use crate::value::{EvalError, Map, MapEntries, Value, ValueResult};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("cel.@mapInsert", "@mapInsert_map_key_value", "(map(K, V), K, V) -> map(K, V)", Own(insert)),
    Row("cel.@mapInsert", "@mapInsert_map_map", "(map(K, V), map(K, V)) -> map(K, V)", Own(insert)),
];

/// Inserts into a map that must not have the key yet.
pub(crate) fn insert_new<'v>(
    entries: &mut MapEntries<'v>,
    key: Value<'v>,
    value: Value<'v>,
) -> Result<(), EvalError> {
    if entries.get(&key).is_some() {
        return Err(EvalError::new(format!(
            "insert failed: key {key} already exists"
        )));
    }
    entries.insert(key, value).map(drop)
}

fn insert<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let Value::Map(target) = &args[0] else {
        return Err(EvalError::no_such_overload());
    };
    let mut out = MapEntries::default();
    copy(target, &mut out)?;
    match (&args[1], args.get(2)) {
        (key, Some(value)) => insert_new(&mut out, key.clone(), value.clone())?,
        (Value::Map(more), None) => copy(more, &mut out)?,
        _ => return Err(EvalError::no_such_overload()),
    }
    Ok(Value::from(out))
}

fn copy<'v>(map: &Map<'v>, out: &mut MapEntries<'v>) -> Result<(), EvalError> {
    for key in map.keys() {
        let value = map.find(&key)?.unwrap_or(Value::Null);
        insert_new(out, key, value)?;
    }
    Ok(())
}
