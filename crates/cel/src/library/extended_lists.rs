//! List functions of the language's extensions, and what they cost.

use super::Row;
use super::declare::Binding::{Own, Shared};
use crate::eval::actual_size;
use crate::value::{EvalError, List, MapKey, Value, ValueResult, compare};
use std::cmp::Ordering;
use std::collections::HashSet;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("slice", "list_slice", "list(T).(int, int) -> list(T)", Own(slice)),
    Row("flatten", "list_flatten", "list(list(T)).() -> list(T)", Shared(flatten)),
    Row("flatten", "list_flatten_int", "list(dyn).(int) -> list(dyn)", Shared(flatten)),
    Row("sort", "list_int_sort", "list(int).() -> list(int)", Shared(sort)),
    Row("sort", "list_uint_sort", "list(uint).() -> list(uint)", Shared(sort)),
    Row("sort", "list_double_sort", "list(double).() -> list(double)", Shared(sort)),
    Row("sort", "list_bool_sort", "list(bool).() -> list(bool)", Shared(sort)),
    Row("sort", "list_google.protobuf.Duration_sort", "list(duration).() -> list(duration)", Shared(sort)),
    Row("sort", "list_google.protobuf.Timestamp_sort", "list(timestamp).() -> list(timestamp)", Shared(sort)),
    Row("sort", "list_string_sort", "list(string).() -> list(string)", Shared(sort)),
    Row("sort", "list_bytes_sort", "list(bytes).() -> list(bytes)", Shared(sort)),
    Row("@sortByAssociatedKeys", "list_int_sortByAssociatedKeys", "list(T).(list(int)) -> list(T)", Shared(sort_by_keys)),
    Row("@sortByAssociatedKeys", "list_uint_sortByAssociatedKeys", "list(T).(list(uint)) -> list(T)", Shared(sort_by_keys)),
    Row("@sortByAssociatedKeys", "list_double_sortByAssociatedKeys", "list(T).(list(double)) -> list(T)", Shared(sort_by_keys)),
    Row("@sortByAssociatedKeys", "list_bool_sortByAssociatedKeys", "list(T).(list(bool)) -> list(T)", Shared(sort_by_keys)),
    Row("@sortByAssociatedKeys", "list_google.protobuf.Duration_sortByAssociatedKeys", "list(T).(list(duration)) -> list(T)", Shared(sort_by_keys)),
    Row("@sortByAssociatedKeys", "list_google.protobuf.Timestamp_sortByAssociatedKeys", "list(T).(list(timestamp)) -> list(T)", Shared(sort_by_keys)),
    Row("@sortByAssociatedKeys", "list_string_sortByAssociatedKeys", "list(T).(list(string)) -> list(T)", Shared(sort_by_keys)),
    Row("@sortByAssociatedKeys", "list_bytes_sortByAssociatedKeys", "list(T).(list(bytes)) -> list(T)", Shared(sort_by_keys)),
    Row("lists.range", "lists_range", "(int) -> list(int)", Own(range)),
    Row("reverse", "list_reverse", "list(T).() -> list(T)", Own(reverse)),
    Row("distinct", "list_distinct", "list(T).() -> list(T)", Own(distinct)),
];

/// Lists this long cost more than any evaluation may.
const MAX_RANGE: i64 = 1_000_000;
const MAX_DISTINCT: usize = 1_000;

fn list<'a, 'v>(v: &'a Value<'v>) -> Result<&'a List<'v>, EvalError> {
    match v {
        Value::List(list) => Ok(list),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn slice<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (list, Value::Int(start), Value::Int(end)) = (list(&args[0])?, &args[1], &args[2]) else {
        return Err(EvalError::no_such_overload());
    };
    let refused = |why: &str| {
        Err(EvalError::new(format!(
            "cannot slice({start}, {end}), {why}"
        )))
    };
    let (Ok(from), Ok(to)) = (usize::try_from(*start), usize::try_from(*end)) else {
        return refused("negative indexes not supported");
    };
    if from > to {
        return refused("start index must be less than or equal to end index");
    }
    if list.len() < to {
        return refused(&format!("list is length {}", list.len()));
    }
    let items: Result<Vec<_>, _> = (from..to).filter_map(|i| list.get(i)).collect();
    items.map(Value::list)
}

fn flatten<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let depth = match args.get(1) {
        Some(Value::Int(depth)) => *depth,
        _ => 1,
    };
    if depth < 0 {
        return Err(EvalError::new("level must be non-negative"));
    }
    let mut out = Vec::new();
    level(list(&args[0])?, depth, &mut out)?;
    Ok(Value::list(out))
}

fn level<'v>(list: &List<'v>, depth: i64, out: &mut Vec<Value<'v>>) -> Result<(), EvalError> {
    for item in list.iter() {
        match item? {
            Value::List(inner) if depth > 0 => {
                crate::limits::deep(|| level(&inner, depth - 1, out))?;
            }
            v => out.push(v),
        }
        if out.len() > MAX_RANGE as usize {
            return Err(EvalError::cost_limit());
        }
    }
    Ok(())
}

fn sort<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let list = list(&args[0])?;
    sorted(list, list)
}

fn sort_by_keys<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    sorted(list(&args[0])?, list(&args[1])?)
}

fn sorted<'v>(items: &List<'v>, keys: &List<'v>) -> ValueResult<'v> {
    if items.len() != keys.len() {
        return Err(EvalError::new(format!(
            "@sortByAssociatedKeys() expected a list of the same size as the associated keys list, but got {} and {} elements respectively",
            items.len(),
            keys.len()
        )));
    }
    let keys = keys.values()?;
    if let Some(first) = keys.first() {
        let t = first.type_of();
        if compare(first, first).is_err() {
            return Err(EvalError::new("list elements must be comparable"));
        }
        if keys.iter().any(|k| k.type_of() != t) {
            return Err(EvalError::new("list elements must have the same type"));
        }
    }
    let mut pairs: Vec<_> = keys.into_iter().zip(items.values()?).collect();
    pairs.sort_by(|(a, _), (b, _)| compare(a, b).unwrap_or(Ordering::Equal));
    Ok(Value::list(
        pairs.into_iter().map(|(_, v)| v).collect::<Vec<_>>(),
    ))
}

fn range<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[0] {
        Value::Int(n) if *n > MAX_RANGE => Err(EvalError::cost_limit()),
        Value::Int(n) => Ok(Value::list((0..*n).map(Value::Int).collect::<Vec<_>>())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn reverse<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let mut items = list(&args[0])?.values()?;
    items.reverse();
    Ok(Value::list(items))
}

fn distinct<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let list = list(&args[0])?;
    if list.len() > MAX_DISTINCT {
        return Err(EvalError::cost_limit());
    }
    let mut seen = HashSet::new();
    let mut out: Vec<Value<'v>> = Vec::new();
    for item in list.iter() {
        let item = item?;
        let new = match MapKey::of(&item) {
            Some(key) => seen.insert(key),
            None => !contains(&out, &item)?,
        };
        if new {
            out.push(item);
        }
    }
    Ok(Value::list(out))
}

fn contains<'v>(values: &[Value<'v>], v: &Value<'v>) -> Result<bool, EvalError> {
    for other in values {
        if other.equals(v)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What a call cost; `None` for functions of other libraries.
pub(super) fn cost(
    overload: &str,
    args: &[ValueResult<'_>],
    result: &ValueResult<'_>,
) -> Option<u64> {
    let allocating = |factor: f64, size: u64| (size as f64 * factor) as u64 + 1 + 10;
    Some(match overload {
        "list_slice" | "lists_range" | "list_reverse" => allocating(1.0, actual_size(result)),
        "list_flatten" => allocating(1.0, actual_size(args.first()?)),
        "list_flatten_int" => {
            let depth = match args.get(1)? {
                Ok(Value::Int(depth)) => *depth as f64,
                _ => 1.0,
            };
            allocating(depth.max(0.0), actual_size(args.first()?))
        }
        "list_distinct" => compared(args.first()?, allocating),
        o if o.ends_with("_sort") && o.starts_with("list_") => compared(args.first()?, allocating),
        o if o.ends_with("_sortByAssociatedKeys") => compared(args.get(1)?, allocating),
        _ => return None,
    })
}

/// Every element compared with every other.
fn compared(v: &ValueResult<'_>, allocating: impl Fn(f64, u64) -> u64) -> u64 {
    let size = actual_size(v);
    let texts = match v {
        Ok(Value::List(list)) => {
            matches!(list.get(0), Some(Ok(Value::String(_) | Value::Bytes(_))))
        }
        _ => false,
    };
    let factor = if texts { 2.1 } else { 2.0 };
    allocating(factor, size.saturating_mul(size))
}
