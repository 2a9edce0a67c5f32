//! Conversions between types.

use keelson_machinery::go;

use crate::number;
use crate::time;
use crate::types::Type;
use crate::value::{EvalError, Value, ValueResult};

fn refused<'v>(from: &Value<'v>, to: &Type) -> ValueResult<'v> {
    Err(EvalError::new(format!(
        "type conversion error from '{}' to '{}'",
        from.type_of().runtime_name(),
        to.runtime_name()
    )))
}

pub(super) fn to_bool<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[0] {
        Value::Bool(b) => Ok(Value::Bool(*b)),
        Value::String(s) => match go::parse_bool(s.as_str()) {
            Some(value) => Ok(Value::Bool(value)),
            None => refused(&args[0], &Type::Bool),
        },
        v => refused(v, &Type::Bool),
    }
}

pub(super) fn to_bytes<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[0] {
        Value::Bytes(b) => Ok(Value::Bytes(b.clone())),
        Value::String(s) => Ok(Value::Bytes(s.as_bytes().into())),
        v => refused(v, &Type::Bytes),
    }
}

pub(super) fn to_double<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[0] {
        Value::Double(d) => Ok(Value::Double(*d)),
        Value::Int(i) => Ok(Value::Double(*i as f64)),
        Value::Uint(u) => Ok(Value::Double(*u as f64)),
        Value::String(s) => match number::parse_double(s) {
            Some(d) => Ok(Value::Double(d)),
            None => refused(&args[0], &Type::Double),
        },
        v => refused(v, &Type::Double),
    }
}

pub(super) fn to_duration<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[0] {
        Value::Duration(d) => Ok(Value::Duration(*d)),
        Value::String(s) => match time::parse_duration(s) {
            Some(d) => Ok(Value::Duration(d)),
            None => refused(&args[0], &Type::Duration),
        },
        v => refused(v, &Type::Duration),
    }
}

pub(super) fn to_int<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let overflow = || EvalError::new("integer overflow");
    match &args[0] {
        Value::Int(i) => Ok(Value::Int(*i)),
        Value::Uint(u) => i64::try_from(*u).map(Value::Int).map_err(|_| overflow()),
        Value::Double(d) if *d > i64::MIN as f64 && *d < i64::MAX as f64 => {
            Ok(Value::Int(*d as i64))
        }
        Value::Double(_) => Err(overflow()),
        Value::Duration(d) => Ok(Value::Int(*d)),
        Value::Timestamp(t) => Ok(Value::Int(time::seconds(*t))),
        Value::String(s) => match s.parse() {
            Ok(i) => Ok(Value::Int(i)),
            Err(_) => refused(&args[0], &Type::Int),
        },
        v => refused(v, &Type::Int),
    }
}

pub(super) fn to_string<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(match &args[0] {
        Value::String(s) => Value::String(s.clone()),
        Value::Bool(b) => Value::string(b.to_string()),
        Value::Int(i) => Value::string(i.to_string()),
        Value::Uint(u) => Value::string(u.to_string()),
        Value::Double(d) => Value::string(number::shortest(*d)),
        Value::Duration(d) => Value::string(time::show_duration(*d)),
        Value::Timestamp(t) => Value::string(time::show_timestamp(*t)),
        Value::Bytes(b) => match std::str::from_utf8(b) {
            Ok(s) => Value::string(s),
            Err(_) => {
                return Err(EvalError::new(
                    "invalid UTF-8 in bytes, cannot convert to string",
                ));
            }
        },
        v => return refused(v, &Type::String),
    })
}

pub(super) fn to_timestamp<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let bounded = |t: Option<time::Moment>| {
        t.filter(|t| time::in_range(*t))
            .map(Value::Timestamp)
            .ok_or_else(|| EvalError::new("timestamp overflow"))
    };
    match &args[0] {
        Value::Timestamp(t) => Ok(Value::Timestamp(*t)),
        Value::Int(i) => bounded(time::from_seconds(*i)),
        Value::String(s) => match time::parse_timestamp(s) {
            Some(t) => bounded(Some(t)),
            None => refused(&args[0], &Type::Timestamp),
        },
        v => refused(v, &Type::Timestamp),
    }
}

pub(super) fn to_uint<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let overflow = || EvalError::new("unsigned integer overflow");
    match &args[0] {
        Value::Uint(u) => Ok(Value::Uint(*u)),
        Value::Int(i) => u64::try_from(*i).map(Value::Uint).map_err(|_| overflow()),
        Value::Double(d) if *d >= 0.0 && *d < u64::MAX as f64 => Ok(Value::Uint(*d as u64)),
        Value::Double(_) => Err(overflow()),
        Value::String(s) if !s.starts_with('+') => match s.parse() {
            Ok(u) => Ok(Value::Uint(u)),
            Err(_) => refused(&args[0], &Type::Uint),
        },
        v => refused(v, &Type::Uint),
    }
}
