//! The standard functions and operators.

use super::declare::Binding::{Own, Shared, Special};
use super::{Row, conversions, regular};
use crate::time::Moment;
use crate::value::{EvalError, MapKey, Value, ValueResult, compare};
use std::cmp::Ordering;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("_?_:_", "conditional", "(bool, A, A) -> A", Special),
    Row("_&&_", "logical_and", "(bool, bool) -> bool", Special),
    Row("_||_", "logical_or", "(bool, bool) -> bool", Special),
    Row("!_", "logical_not", "(bool) -> bool", Shared(not)),
    Row("@not_strictly_false", "not_strictly_false", "(bool) -> bool", Special),
    Row("_==_", "equals", "(A, A) -> bool", Special),
    Row("_!=_", "not_equals", "(A, A) -> bool", Special),
    Row("_+_", "add_bytes", "(bytes, bytes) -> bytes", Shared(add)),
    Row("_+_", "add_double", "(double, double) -> double", Shared(add)),
    Row("_+_", "add_duration_duration", "(duration, duration) -> duration", Shared(add)),
    Row("_+_", "add_duration_timestamp", "(duration, timestamp) -> timestamp", Shared(add)),
    Row("_+_", "add_timestamp_duration", "(timestamp, duration) -> timestamp", Shared(add)),
    Row("_+_", "add_int64", "(int, int) -> int", Shared(add)),
    Row("_+_", "add_list", "(list(A), list(A)) -> list(A)", Shared(add)),
    Row("_+_", "add_string", "(string, string) -> string", Shared(add)),
    Row("_+_", "add_uint64", "(uint, uint) -> uint", Shared(add)),
    Row("_/_", "divide_double", "(double, double) -> double", Shared(divide)),
    Row("_/_", "divide_int64", "(int, int) -> int", Shared(divide)),
    Row("_/_", "divide_uint64", "(uint, uint) -> uint", Shared(divide)),
    Row("_%_", "modulo_int64", "(int, int) -> int", Shared(modulo)),
    Row("_%_", "modulo_uint64", "(uint, uint) -> uint", Shared(modulo)),
    Row("_*_", "multiply_double", "(double, double) -> double", Shared(multiply)),
    Row("_*_", "multiply_int64", "(int, int) -> int", Shared(multiply)),
    Row("_*_", "multiply_uint64", "(uint, uint) -> uint", Shared(multiply)),
    Row("-_", "negate_double", "(double) -> double", Shared(negate)),
    Row("-_", "negate_int64", "(int) -> int", Shared(negate)),
    Row("_-_", "subtract_double", "(double, double) -> double", Shared(subtract)),
    Row("_-_", "subtract_duration_duration", "(duration, duration) -> duration", Shared(subtract)),
    Row("_-_", "subtract_int64", "(int, int) -> int", Shared(subtract)),
    Row("_-_", "subtract_timestamp_duration", "(timestamp, duration) -> timestamp", Shared(subtract)),
    Row("_-_", "subtract_timestamp_timestamp", "(timestamp, timestamp) -> duration", Shared(subtract)),
    Row("_-_", "subtract_uint64", "(uint, uint) -> uint", Shared(subtract)),
    Row("_<_", "less_bool", "(bool, bool) -> bool", Shared(less)),
    Row("_<_", "less_int64", "(int, int) -> bool", Shared(less)),
    Row("_<_", "less_int64_double", "(int, double) -> bool", Shared(less)),
    Row("_<_", "less_int64_uint64", "(int, uint) -> bool", Shared(less)),
    Row("_<_", "less_uint64", "(uint, uint) -> bool", Shared(less)),
    Row("_<_", "less_uint64_double", "(uint, double) -> bool", Shared(less)),
    Row("_<_", "less_uint64_int64", "(uint, int) -> bool", Shared(less)),
    Row("_<_", "less_double", "(double, double) -> bool", Shared(less)),
    Row("_<_", "less_double_int64", "(double, int) -> bool", Shared(less)),
    Row("_<_", "less_double_uint64", "(double, uint) -> bool", Shared(less)),
    Row("_<_", "less_string", "(string, string) -> bool", Shared(less)),
    Row("_<_", "less_bytes", "(bytes, bytes) -> bool", Shared(less)),
    Row("_<_", "less_timestamp", "(timestamp, timestamp) -> bool", Shared(less)),
    Row("_<_", "less_duration", "(duration, duration) -> bool", Shared(less)),
    Row("_<=_", "less_equals_bool", "(bool, bool) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_int64", "(int, int) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_int64_double", "(int, double) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_int64_uint64", "(int, uint) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_uint64", "(uint, uint) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_uint64_double", "(uint, double) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_uint64_int64", "(uint, int) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_double", "(double, double) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_double_int64", "(double, int) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_double_uint64", "(double, uint) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_string", "(string, string) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_bytes", "(bytes, bytes) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_timestamp", "(timestamp, timestamp) -> bool", Shared(less_equals)),
    Row("_<=_", "less_equals_duration", "(duration, duration) -> bool", Shared(less_equals)),
    Row("_>_", "greater_bool", "(bool, bool) -> bool", Shared(greater)),
    Row("_>_", "greater_int64", "(int, int) -> bool", Shared(greater)),
    Row("_>_", "greater_int64_double", "(int, double) -> bool", Shared(greater)),
    Row("_>_", "greater_int64_uint64", "(int, uint) -> bool", Shared(greater)),
    Row("_>_", "greater_uint64", "(uint, uint) -> bool", Shared(greater)),
    Row("_>_", "greater_uint64_double", "(uint, double) -> bool", Shared(greater)),
    Row("_>_", "greater_uint64_int64", "(uint, int) -> bool", Shared(greater)),
    Row("_>_", "greater_double", "(double, double) -> bool", Shared(greater)),
    Row("_>_", "greater_double_int64", "(double, int) -> bool", Shared(greater)),
    Row("_>_", "greater_double_uint64", "(double, uint) -> bool", Shared(greater)),
    Row("_>_", "greater_string", "(string, string) -> bool", Shared(greater)),
    Row("_>_", "greater_bytes", "(bytes, bytes) -> bool", Shared(greater)),
    Row("_>_", "greater_timestamp", "(timestamp, timestamp) -> bool", Shared(greater)),
    Row("_>_", "greater_duration", "(duration, duration) -> bool", Shared(greater)),
    Row("_>=_", "greater_equals_bool", "(bool, bool) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_int64", "(int, int) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_int64_double", "(int, double) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_int64_uint64", "(int, uint) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_uint64", "(uint, uint) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_uint64_double", "(uint, double) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_uint64_int64", "(uint, int) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_double", "(double, double) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_double_int64", "(double, int) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_double_uint64", "(double, uint) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_string", "(string, string) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_bytes", "(bytes, bytes) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_timestamp", "(timestamp, timestamp) -> bool", Shared(greater_equals)),
    Row("_>=_", "greater_equals_duration", "(duration, duration) -> bool", Shared(greater_equals)),
    Row("_[_]", "index_list", "(list(A), int) -> A", Special),
    Row("_[_]", "index_map", "(map(A, B), A) -> B", Special),
    Row("@in", "in_list", "(A, list(A)) -> bool", Shared(contained)),
    Row("@in", "in_map", "(A, map(A, B)) -> bool", Shared(contained)),
    Row("size", "size_bytes", "(bytes) -> int", Shared(size)),
    Row("size", "bytes_size", "bytes.() -> int", Shared(size)),
    Row("size", "size_list", "(list(A)) -> int", Shared(size)),
    Row("size", "list_size", "list(A).() -> int", Shared(size)),
    Row("size", "size_map", "(map(A, B)) -> int", Shared(size)),
    Row("size", "map_size", "map(A, B).() -> int", Shared(size)),
    Row("size", "size_string", "(string) -> int", Shared(size)),
    Row("size", "string_size", "string.() -> int", Shared(size)),
    Row("type", "type", "(A) -> type(A)", Shared(type_of)),
    Row("bool", "bool_to_bool", "(bool) -> bool", Own(conversions::to_bool)),
    Row("bool", "string_to_bool", "(string) -> bool", Own(conversions::to_bool)),
    Row("bytes", "bytes_to_bytes", "(bytes) -> bytes", Own(conversions::to_bytes)),
    Row("bytes", "string_to_bytes", "(string) -> bytes", Own(conversions::to_bytes)),
    Row("double", "double_to_double", "(double) -> double", Own(conversions::to_double)),
    Row("double", "int64_to_double", "(int) -> double", Own(conversions::to_double)),
    Row("double", "string_to_double", "(string) -> double", Own(conversions::to_double)),
    Row("double", "uint64_to_double", "(uint) -> double", Own(conversions::to_double)),
    Row("duration", "duration_to_duration", "(duration) -> duration", Own(conversions::to_duration)),
    Row("duration", "int64_to_duration", "(int) -> duration", Own(conversions::to_duration)),
    Row("duration", "string_to_duration", "(string) -> duration", Own(conversions::to_duration)),
    Row("int", "int64_to_int64", "(int) -> int", Own(conversions::to_int)),
    Row("int", "double_to_int64", "(double) -> int", Own(conversions::to_int)),
    Row("int", "duration_to_int64", "(duration) -> int", Own(conversions::to_int)),
    Row("int", "string_to_int64", "(string) -> int", Own(conversions::to_int)),
    Row("int", "timestamp_to_int64", "(timestamp) -> int", Own(conversions::to_int)),
    Row("int", "uint64_to_int64", "(uint) -> int", Own(conversions::to_int)),
    Row("string", "string_to_string", "(string) -> string", Own(conversions::to_string)),
    Row("string", "bool_to_string", "(bool) -> string", Own(conversions::to_string)),
    Row("string", "bytes_to_string", "(bytes) -> string", Own(conversions::to_string)),
    Row("string", "double_to_string", "(double) -> string", Own(conversions::to_string)),
    Row("string", "duration_to_string", "(duration) -> string", Own(conversions::to_string)),
    Row("string", "int64_to_string", "(int) -> string", Own(conversions::to_string)),
    Row("string", "timestamp_to_string", "(timestamp) -> string", Own(conversions::to_string)),
    Row("string", "uint64_to_string", "(uint) -> string", Own(conversions::to_string)),
    Row("timestamp", "timestamp_to_timestamp", "(timestamp) -> timestamp", Own(conversions::to_timestamp)),
    Row("timestamp", "int64_to_timestamp", "(int) -> timestamp", Own(conversions::to_timestamp)),
    Row("timestamp", "string_to_timestamp", "(string) -> timestamp", Own(conversions::to_timestamp)),
    Row("uint", "uint64_to_uint64", "(uint) -> uint", Own(conversions::to_uint)),
    Row("uint", "double_to_uint64", "(double) -> uint", Own(conversions::to_uint)),
    Row("uint", "int64_to_uint64", "(int) -> uint", Own(conversions::to_uint)),
    Row("uint", "string_to_uint64", "(string) -> uint", Own(conversions::to_uint)),
    Row("dyn", "to_dyn", "(A) -> dyn", Shared(identity)),
    Row("contains", "contains_string", "string.(string) -> bool", Shared(contains)),
    Row("endsWith", "ends_with_string", "string.(string) -> bool", Shared(ends_with)),
    Row("startsWith", "starts_with_string", "string.(string) -> bool", Shared(starts_with)),
    Row("matches", "matches", "(string, string) -> bool", Shared(matches)),
    Row("matches", "matches_string", "string.(string) -> bool", Shared(matches)),
];

/// The error of an operator whose first operand has no such operation.
fn missing<'v>(operator: &str, first: &Value<'_>) -> ValueResult<'v> {
    // Some types look for the operator among their methods first and name no operator.
    if matches!(
        first,
        Value::String(_) | Value::Timestamp(_) | Value::Duration(_)
    ) {
        return Err(EvalError::no_such_overload());
    }
    Err(EvalError::new(format!("no such overload: {operator}")))
}

fn failed<'v>(message: &str) -> ValueResult<'v> {
    Err(EvalError::new(message))
}

fn checked<'v, T>(result: Option<T>, make: fn(T) -> Value<'v>, message: &str) -> ValueResult<'v> {
    result.map(make).ok_or_else(|| EvalError::new(message))
}

const INT_OVERFLOW: &str = "integer overflow";
const UINT_OVERFLOW: &str = "unsigned integer overflow";
const DURATION_OVERFLOW: &str = "duration overflow";
const TIMESTAMP_OVERFLOW: &str = "timestamp overflow";

fn identity<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(args[0].clone())
}

fn type_of<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Type(args[0].type_of()))
}

fn not<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[0] {
        Value::Bool(b) => Ok(Value::Bool(!b)),
        _ => Err(EvalError::no_such_overload()),
    }
}

pub(super) fn add<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => checked(a.checked_add(*b), Value::Int, INT_OVERFLOW),
        (Value::Uint(a), Value::Uint(b)) => checked(a.checked_add(*b), Value::Uint, UINT_OVERFLOW),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => {
            Ok(Value::string([a.as_str(), b.as_str()].concat()))
        }
        (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes([&**a, &**b].concat().into())),
        (Value::List(a), Value::List(b)) => a.join(b).map(Value::List),
        (Value::Duration(a), Value::Duration(b)) => {
            checked(a.checked_add(*b), Value::Duration, INT_OVERFLOW)
        }
        (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t)) => {
            moved(*t, Some(*d))
        }
        (
            Value::Int(_)
            | Value::Uint(_)
            | Value::Double(_)
            | Value::String(_)
            | Value::Bytes(_)
            | Value::List(_)
            | Value::Duration(_)
            | Value::Timestamp(_),
            _,
        ) => Err(EvalError::no_such_overload()),
        (first, _) => missing("_+_", first),
    }
}

fn moved<'v>(t: Moment, nanos: Option<i64>) -> ValueResult<'v> {
    let to = nanos.and_then(|n| t.after(n));
    checked(to, Value::Timestamp, TIMESTAMP_OVERFLOW)
}

fn subtract<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => checked(a.checked_sub(*b), Value::Int, INT_OVERFLOW),
        (Value::Uint(a), Value::Uint(b)) => checked(a.checked_sub(*b), Value::Uint, UINT_OVERFLOW),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (Value::Duration(a), Value::Duration(b)) => {
            checked(a.checked_sub(*b), Value::Duration, INT_OVERFLOW)
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => {
            let nanos = i64::try_from(crate::time::nanos(*a) - crate::time::nanos(*b));
            checked(nanos.ok(), Value::Duration, DURATION_OVERFLOW)
        }
        (Value::Timestamp(t), Value::Duration(d)) => moved(*t, d.checked_neg()),
        (
            Value::Int(_)
            | Value::Uint(_)
            | Value::Double(_)
            | Value::Duration(_)
            | Value::Timestamp(_),
            _,
        ) => Err(EvalError::no_such_overload()),
        (first, _) => missing("_-_", first),
    }
}

fn multiply<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => checked(a.checked_mul(*b), Value::Int, INT_OVERFLOW),
        (Value::Uint(a), Value::Uint(b)) => checked(a.checked_mul(*b), Value::Uint, UINT_OVERFLOW),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        (Value::Int(_) | Value::Uint(_) | Value::Double(_), _) => {
            Err(EvalError::no_such_overload())
        }
        (first, _) => missing("_*_", first),
    }
}

fn divide<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match (&args[0], &args[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => {
            failed("division by zero")
        }
        (Value::Int(a), Value::Int(b)) => checked(a.checked_div(*b), Value::Int, INT_OVERFLOW),
        (Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a / b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        (Value::Int(_) | Value::Uint(_) | Value::Double(_), _) => {
            Err(EvalError::no_such_overload())
        }
        (first, _) => missing("_/_", first),
    }
}

fn modulo<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match (&args[0], &args[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => {
            failed("modulus by zero")
        }
        (Value::Int(a), Value::Int(b)) => checked(a.checked_rem(*b), Value::Int, INT_OVERFLOW),
        (Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a % b)),
        (Value::Int(_) | Value::Uint(_), _) => Err(EvalError::no_such_overload()),
        (first, _) => missing("_%_", first),
    }
}

fn negate<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[0] {
        Value::Int(i) => checked(i.checked_neg(), Value::Int, INT_OVERFLOW),
        Value::Double(d) => Ok(Value::Double(-d)),
        Value::Duration(d) => checked(d.checked_neg(), Value::Duration, INT_OVERFLOW),
        Value::Bool(_) => Err(EvalError::no_such_overload()),
        first => missing("-_", first),
    }
}

fn relation<'v>(
    operator: &str,
    args: &[Value<'v>],
    holds: fn(Ordering) -> bool,
) -> ValueResult<'v> {
    let comparable = matches!(
        args[0],
        Value::Bool(_)
            | Value::Int(_)
            | Value::Uint(_)
            | Value::Double(_)
            | Value::String(_)
            | Value::Bytes(_)
            | Value::Duration(_)
            | Value::Timestamp(_)
    );
    if !comparable {
        return missing(operator, &args[0]);
    }
    compare(&args[0], &args[1]).map(|order| Value::Bool(holds(order)))
}

fn less<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    relation("_<_", args, Ordering::is_lt)
}

fn less_equals<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    relation("_<=_", args, Ordering::is_le)
}

fn greater<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    relation("_>_", args, Ordering::is_gt)
}

fn greater_equals<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    relation("_>=_", args, Ordering::is_ge)
}

fn contained<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[1] {
        Value::Map(map) => Ok(Value::Bool(map.find(&args[0])?.is_some())),
        Value::List(list) => {
            for item in list.iter() {
                if args[0].equals(&item?)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        Value::Object(object) => {
            let name = args[0].as_str();
            Ok(Value::Bool(
                name.is_some_and(|n| object.fields.contains_key(n)),
            ))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn size<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[0] {
        v @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_)) => {
            let size = v.size().unwrap_or(0);
            Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX)))
        }
        first => missing("size", first),
    }
}

fn texts<'a>(args: &'a [Value<'_>]) -> Result<(&'a str, &'a str), EvalError> {
    match (&args[0], &args[1]) {
        (Value::String(a), Value::String(b)) => Ok((a, b)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn contains<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    texts(args).map(|(s, part)| Value::Bool(s.contains(part)))
}

fn ends_with<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    texts(args).map(|(s, end)| Value::Bool(s.ends_with(end)))
}

fn starts_with<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    texts(args).map(|(s, start)| Value::Bool(s.starts_with(start)))
}

fn matches<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    if !matches!(args[0], Value::String(_)) {
        return missing("matches", &args[0]);
    }
    let (s, pattern) = texts(args)?;
    Ok(Value::Bool(regular::compile(pattern)?.is_match(s)))
}

/// Whether two keys of a constant list are the same.
pub(crate) fn set_key(v: &Value<'_>) -> Option<MapKey> {
    match v {
        Value::Null | Value::Timestamp(_) | Value::Duration(_) | Value::Type(_) => None,
        v => MapKey::of(v),
    }
}
