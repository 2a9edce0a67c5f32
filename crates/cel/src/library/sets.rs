//! Lists seen as sets.

use super::Row;
use super::declare::Binding::Own;
use crate::eval::actual_size;
use crate::value::{EvalError, List, Value, ValueResult};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("sets.contains", "list_sets_contains_list", "(list(T), list(T)) -> bool", Own(contains)),
    Row("sets.equivalent", "list_sets_equivalent_list", "(list(T), list(T)) -> bool", Own(equivalent)),
    Row("sets.intersects", "list_sets_intersects_list", "(list(T), list(T)) -> bool", Own(intersects)),
];

/// More comparisons cost more than any evaluation may.
const MAX_COMPARISONS: usize = 2_000_000;

fn lists<'a, 'v>(args: &'a [Value<'v>]) -> Result<(&'a List<'v>, &'a List<'v>), EvalError> {
    match (&args[0], &args[1]) {
        (Value::List(a), Value::List(b)) => {
            if a.len().saturating_mul(b.len()) > MAX_COMPARISONS {
                return Err(EvalError::cost_limit());
            }
            Ok((a, b))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

fn holds<'v>(list: &List<'v>, v: &Value<'v>) -> Result<bool, EvalError> {
    for item in list.iter() {
        if item?.equals(v)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn holds_all<'v>(list: &List<'v>, others: &List<'v>) -> Result<bool, EvalError> {
    for other in others.iter() {
        if !holds(list, &other?)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn contains<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (a, b) = lists(args)?;
    holds_all(a, b).map(Value::Bool)
}

fn equivalent<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (a, b) = lists(args)?;
    Ok(Value::Bool(holds_all(a, b)? && holds_all(b, a)?))
}

fn intersects<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (a, b) = lists(args)?;
    for item in a.iter() {
        if holds(b, &item?)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

/// What a call cost; `None` for functions of other libraries.
pub(super) fn cost(overload: &str, args: &[ValueResult<'_>]) -> Option<u64> {
    let factor = match overload {
        "list_sets_contains_list" | "list_sets_intersects_list" => 1,
        "list_sets_equivalent_list" => 2,
        _ => return None,
    };
    let product = actual_size(args.first()?).saturating_mul(actual_size(args.get(1)?));
    Some(1 + product.saturating_mul(factor))
}
