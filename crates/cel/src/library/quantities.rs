//! Quantities.

use super::Row;
use super::declare::Binding::Own;
use crate::value::{EvalError, Opaque, Value, ValueResult};
use keelson_machinery::quantity;
use std::any::Any;
use std::cmp::Ordering;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("quantity", "string_to_quantity", "(string) -> kubernetes.Quantity", Own(parse)),
    Row("isQuantity", "is_quantity_string", "(string) -> bool", Own(is_quantity)),
    Row("sign", "quantity_sign", "(kubernetes.Quantity) -> int", Own(sign)),
    Row("isGreaterThan", "quantity_is_greater_than", "kubernetes.Quantity.(kubernetes.Quantity) -> bool", Own(is_greater_than)),
    Row("isLessThan", "quantity_is_less_than", "kubernetes.Quantity.(kubernetes.Quantity) -> bool", Own(is_less_than)),
    Row("compareTo", "quantity_compare_to", "kubernetes.Quantity.(kubernetes.Quantity) -> int", Own(compare_to)),
    Row("asApproximateFloat", "quantity_get_float", "kubernetes.Quantity.() -> double", Own(as_approximate_float)),
    Row("asInteger", "quantity_get_int", "kubernetes.Quantity.() -> int", Own(as_integer)),
    Row("isInteger", "quantity_is_integer", "kubernetes.Quantity.() -> bool", Own(is_integer)),
    Row("add", "quantity_add", "kubernetes.Quantity.(kubernetes.Quantity) -> kubernetes.Quantity", Own(add)),
    Row("add", "quantity_add_int", "kubernetes.Quantity.(int) -> kubernetes.Quantity", Own(add)),
    Row("sub", "quantity_sub", "kubernetes.Quantity.(kubernetes.Quantity) -> kubernetes.Quantity", Own(sub)),
    Row("sub", "quantity_sub_int", "kubernetes.Quantity.(int) -> kubernetes.Quantity", Own(sub)),
];

/// A quantity, and upstream's decimal exponent of its last digit when upstream holds it as a
/// 64-bit integer: what counts as an integer depends on how the quantity came to be.
#[derive(Debug)]
struct Quantity(quantity::Quantity, Option<i32>);

impl Opaque for Quantity {
    fn type_name(&self) -> &str {
        "kubernetes.Quantity"
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        other
            .as_any()
            .downcast_ref::<Quantity>()
            .is_some_and(|o| o.0 == self.0)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn held<'a>(v: &'a Value<'_>) -> Result<&'a Quantity, EvalError> {
    v.downcast().ok_or_else(EvalError::no_such_overload)
}

fn quantity<'a>(v: &'a Value<'_>) -> Result<&'a quantity::Quantity, EvalError> {
    held(v).map(|q| &q.0)
}

fn parse<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let text = args[0].as_str().unwrap_or_default();
    match quantity::Quantity::parse(text) {
        Ok(q) => Ok(Value::opaque(Quantity(q, exponent(text)))),
        Err(e) => Err(EvalError::new(e.to_string())),
    }
}

/// The exponent of a valid quantity's last digit, for those of up to eighteen digits.
fn exponent(text: &str) -> Option<i32> {
    const DIGITS: i32 = 18;
    let text = text.trim_start_matches(['+', '-']);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = i32::try_from(whole.trim_start_matches('0').len()).ok()?;
    let fraction = i32::try_from(fraction.len()).ok()?;
    if let Some(power) = suffix.strip_suffix('i') {
        let power = 10 * (i32::try_from("KMGTPE".find(power)?).ok()? + 1);
        // Upstream leaves room for the factor.
        let fits = fraction == 0 && 15 - whole - power * 3 / 10 > 0;
        return fits.then_some(0);
    }
    let power = match suffix {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "" => 0,
        "k" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        "E" => 18,
        exponent => exponent.get(1..)?.parse().ok()?,
    };
    let exponent = power - fraction;
    (whole + fraction <= DIGITS && exponent >= -9).then_some(exponent)
}

fn is_quantity<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let text = args[0].as_str().unwrap_or_default();
    Ok(Value::Bool(quantity::Quantity::parse(text).is_ok()))
}

fn sign<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Int(quantity(&args[0])?.sign().into()))
}

fn order(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    Ok(quantity(&args[0])?.cmp(quantity(&args[1])?))
}

fn is_greater_than<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(order(args)?.is_gt()))
}

fn is_less_than<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(order(args)?.is_lt()))
}

fn compare_to<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Int(order(args)? as i64))
}

fn as_approximate_float<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Double(quantity(&args[0])?.as_f64()))
}

/// The value when it is whole, fits, and is held as upstream holds integers.
fn whole(q: &Quantity) -> Option<i64> {
    let value = q.0.value();
    let same = q.0.is_integer() && quantity::Quantity::from_value(value) == q.0;
    q.1.filter(|exponent| *exponent >= 0 && same).map(|_| value)
}

fn as_integer<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    match whole(held(&args[0])?) {
        Some(i) => Ok(Value::Int(i)),
        None => Err(EvalError::new("cannot convert value to integer")),
    }
}

fn is_integer<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(whole(held(&args[0])?).is_some()))
}

/// The result of a sum or a difference.
fn combined<'v>(
    args: &[Value<'v>],
    combine: fn(quantity::Quantity, quantity::Quantity) -> quantity::Quantity,
) -> ValueResult<'v> {
    let first = held(&args[0])?;
    let second = match &args[1] {
        Value::Int(i) => &Quantity(quantity::Quantity::from_value(*i), Some(0)),
        v => held(v)?,
    };
    let exponent = match (first.1, second.1) {
        (Some(_), Some(b)) if first.0.is_zero() => Some(b),
        (Some(a), Some(b)) => Some(a.min(b)),
        (None, b) if first.0.is_zero() => b,
        _ => None,
    };
    let result = combine(first.0, second.0);
    Ok(Value::opaque(Quantity(result, exponent)))
}

fn add<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    combined(args, |a, b| a + b)
}

fn sub<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    combined(args, |a, b| a - b)
}
