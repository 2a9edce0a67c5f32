//! List functions of Kubernetes.

use super::Row;
use super::declare::Binding::Own;
use crate::value::{EvalError, List, Value, ValueResult, compare};
use std::cmp::Ordering;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("isSorted", "list_int_is_sorted_bool", "list(int).() -> bool", Own(is_sorted)),
    Row("isSorted", "list_uint_is_sorted_bool", "list(uint).() -> bool", Own(is_sorted)),
    Row("isSorted", "list_double_is_sorted_bool", "list(double).() -> bool", Own(is_sorted)),
    Row("isSorted", "list_bool_is_sorted_bool", "list(bool).() -> bool", Own(is_sorted)),
    Row("isSorted", "list_duration_is_sorted_bool", "list(duration).() -> bool", Own(is_sorted)),
    Row("isSorted", "list_timestamp_is_sorted_bool", "list(timestamp).() -> bool", Own(is_sorted)),
    Row("isSorted", "list_string_is_sorted_bool", "list(string).() -> bool", Own(is_sorted)),
    Row("isSorted", "list_bytes_is_sorted_bool", "list(bytes).() -> bool", Own(is_sorted)),
    Row("sum", "list_int_sum_int", "list(int).() -> int", Own(sum_int)),
    Row("sum", "list_uint_sum_uint", "list(uint).() -> uint", Own(sum_uint)),
    Row("sum", "list_double_sum_double", "list(double).() -> double", Own(sum_double)),
    Row("sum", "list_duration_sum_duration", "list(duration).() -> duration", Own(sum_duration)),
    Row("max", "list_int_max_int", "list(int).() -> int", Own(max)),
    Row("max", "list_uint_max_uint", "list(uint).() -> uint", Own(max)),
    Row("max", "list_double_max_double", "list(double).() -> double", Own(max)),
    Row("max", "list_bool_max_bool", "list(bool).() -> bool", Own(max)),
    Row("max", "list_duration_max_duration", "list(duration).() -> duration", Own(max)),
    Row("max", "list_timestamp_max_timestamp", "list(timestamp).() -> timestamp", Own(max)),
    Row("max", "list_string_max_string", "list(string).() -> string", Own(max)),
    Row("max", "list_bytes_max_bytes", "list(bytes).() -> bytes", Own(max)),
    Row("min", "list_int_min_int", "list(int).() -> int", Own(min)),
    Row("min", "list_uint_min_uint", "list(uint).() -> uint", Own(min)),
    Row("min", "list_double_min_double", "list(double).() -> double", Own(min)),
    Row("min", "list_bool_min_bool", "list(bool).() -> bool", Own(min)),
    Row("min", "list_duration_min_duration", "list(duration).() -> duration", Own(min)),
    Row("min", "list_timestamp_min_timestamp", "list(timestamp).() -> timestamp", Own(min)),
    Row("min", "list_string_min_string", "list(string).() -> string", Own(min)),
    Row("min", "list_bytes_min_bytes", "list(bytes).() -> bytes", Own(min)),
    Row("indexOf", "list_a_index_of_int", "list(A).(A) -> int", Own(index_of)),
    Row("lastIndexOf", "list_a_last_index_of_int", "list(A).(A) -> int", Own(last_index_of)),
];

fn list<'a, 'v>(args: &'a [Value<'v>]) -> Result<&'a List<'v>, EvalError> {
    match &args[0] {
        Value::List(list) => Ok(list),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn is_sorted<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let mut previous: Option<Value<'v>> = None;
    for item in list(args)?.iter() {
        let item = item?;
        if let Some(previous) = &previous
            && compare(previous, &item)? == Ordering::Greater
        {
            return Ok(Value::Bool(false));
        }
        previous = Some(item);
    }
    Ok(Value::Bool(true))
}

fn sum<'v>(args: &[Value<'v>], zero: Value<'v>) -> ValueResult<'v> {
    let mut total = zero;
    for item in list(args)?.iter() {
        total = super::standard::add(&[total, item?])?;
    }
    Ok(total)
}

fn sum_int<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    sum(args, Value::Int(0))
}

fn sum_uint<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    sum(args, Value::Uint(0))
}

fn sum_double<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    sum(args, Value::Double(0.0))
}

fn sum_duration<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    sum(args, Value::Duration(0))
}

fn extreme<'v>(args: &[Value<'v>], name: &str, replaces: Ordering) -> ValueResult<'v> {
    let mut best: Option<Value<'v>> = None;
    for item in list(args)?.iter() {
        let item = item?;
        let better = match &best {
            None => true,
            Some(best) => compare(best, &item).is_ok_and(|o| o == replaces),
        };
        if better {
            best = Some(item);
        }
    }
    best.ok_or_else(|| EvalError::new(format!("{name} called on empty list")))
}

fn max<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    extreme(args, "max", Ordering::Less)
}

fn min<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    extreme(args, "min", Ordering::Greater)
}

fn place<'v>(found: Option<usize>) -> ValueResult<'v> {
    let place = found.and_then(|i| i64::try_from(i).ok());
    Ok(Value::Int(place.unwrap_or(-1)))
}

fn index_of<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    for (i, item) in list(args)?.iter().enumerate() {
        if item?.equals(&args[1])? {
            return place(Some(i));
        }
    }
    place(None)
}

fn last_index_of<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let list = list(args)?;
    for i in (0..list.len()).rev() {
        if let Some(item) = list.get(i)
            && item?.equals(&args[1])?
        {
            return place(Some(i));
        }
    }
    place(None)
}
