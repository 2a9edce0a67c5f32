//! Optional values.

use super::Row;
use super::declare::Binding::{Own, Special};
use crate::value::{EvalError, Value, ValueResult};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("optional.of", "optional_of", "(V) -> optional(V)", Own(of)),
    Row("optional.ofNonZeroValue", "optional_ofNonZeroValue", "(V) -> optional(V)", Own(of_non_zero)),
    Row("optional.none", "optional_none", "() -> optional(V)", Own(none)),
    Row("value", "optional_value", "optional(V).() -> V", Own(value)),
    Row("hasValue", "optional_hasValue", "optional(V).() -> bool", Own(has_value)),
    Row("or", "optional_or_optional", "optional(V).(optional(V)) -> optional(V)", Special),
    Row("orValue", "optional_orValue_value", "optional(V).(V) -> V", Special),
    Row("_?._", "select_optional_field", "(dyn, string) -> optional(V)", Special),
    Row("_[?_]", "list_optindex_optional_int", "(list(V), int) -> optional(V)", Special),
    Row("_[?_]", "optional_list_optindex_optional_int", "(optional(list(V)), int) -> optional(V)", Special),
    Row("_[?_]", "map_optindex_optional_value", "(map(K, V), K) -> optional(V)", Special),
    Row("_[?_]", "optional_map_optindex_optional_value", "(optional(map(K, V)), K) -> optional(V)", Special),
    Row("_[_]", "optional_list_index_int", "(optional(list(V)), int) -> optional(V)", Special),
    Row("_[_]", "optional_map_index_value", "(optional(map(K, V)), K) -> optional(V)", Special),
    Row("first", "list_first", "list(V).() -> optional(V)", Own(first)),
    Row("last", "list_last", "list(V).() -> optional(V)", Own(last)),
    Row("optional.unwrap", "optional_unwrap", "(list(optional(V))) -> list(V)", Own(unwrap)),
    Row("unwrapOpt", "optional_unwrapOpt", "list(optional(V)).() -> list(V)", Own(unwrap)),
];

fn of<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::some(args[0].clone()))
}

fn of_non_zero<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(if args[0].is_zero() {
        Value::Optional(None)
    } else {
        Value::some(args[0].clone())
    })
}

fn none<'v>(_: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Optional(None))
}

fn value<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match &args[0] {
        Value::Optional(Some(v)) => Ok((**v).clone()),
        _ => Err(EvalError::new("optional.none() dereference")),
    }
}

fn has_value<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(matches!(args[0], Value::Optional(Some(_)))))
}

fn end<'v>(list: &Value<'v>, place: fn(usize) -> usize) -> ValueResult<'v> {
    let Value::List(list) = list else {
        return Err(EvalError::no_such_overload());
    };
    match list.get(place(list.len())) {
        Some(v) => v.map(Value::some),
        None => Ok(Value::Optional(None)),
    }
}

fn first<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    end(&args[0], |_| 0)
}

fn last<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    end(&args[0], |len| len.wrapping_sub(1))
}

fn unwrap<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let Value::List(list) = &args[0] else {
        return Err(EvalError::no_such_overload());
    };
    let mut out = Vec::new();
    for item in list.iter() {
        match item? {
            Value::Optional(Some(v)) => out.push((*v).clone()),
            Value::Optional(None) => {}
            v => return Err(EvalError::new(format!("value {v} is not optional"))),
        }
    }
    Ok(Value::list(out))
}
