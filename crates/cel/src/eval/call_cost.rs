//! What calls cost at run time.

use crate::value::{List, Value, ValueResult};

/// A code point of a traversed text.
const TRAVERSAL: f64 = 0.1;
/// A code point of a pattern.
const PATTERN: f64 = 0.25;
/// An authorization check; few of them fit into one evaluation.
const CHECK: u64 = 350_000;

/// The cost of one call with its evaluated arguments.
pub(super) fn of(
    function: &str,
    overload: &str,
    args: &[ValueResult<'_>],
    result: &ValueResult<'_>,
) -> u64 {
    crate::library::tracked_cost(overload, args, result)
        .or_else(|| kubernetes(function, overload, args, result))
        .unwrap_or_else(|| standard(overload, args))
}

fn scaled(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

fn pattern(text: u64, pattern: u64) -> u64 {
    let text = ((1.0 + text as f64) * TRAVERSAL).ceil() as u64;
    text.saturating_mul(scaled(pattern, PATTERN))
}

/// Functions of the Kubernetes libraries and those that Kubernetes prices on its own.
fn kubernetes(
    function: &str,
    overload: &str,
    args: &[ValueResult<'_>],
    result: &ValueResult<'_>,
) -> Option<u64> {
    let size = |i: usize| args.get(i).map(flat_size);
    Some(match function {
        "check" => CHECK,
        "serviceAccount" | "path" | "group" | "resource" | "subresource" | "namespace" | "name"
        | "allowed" | "reason" | "error" | "errored" => 1,
        "fieldSelector" | "labelSelector" => {
            let length = size(1)?;
            let requirements = scaled(length, 0.5);
            10 + scaled(length, TRAVERSAL) + scaled(requirements, 50.0)
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            args.first().map_or(0, |v| v.as_ref().map_or(1, traversal))
        }
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => scaled(size(0)?, TRAVERSAL),
        "replace" | "split" | "ip.isCanonical" => scaled(size(0)?, 2.0 * TRAVERSAL),
        "join" => scaled(flat_size(result), 2.0 * TRAVERSAL),
        "find" | "findAll" => pattern(size(0)?, size(1)?),
        "ip" if overload == "cidr_ip" => 1,
        "ip" => scaled(size(0)?, TRAVERSAL),
        "masked"
        | "prefixLength"
        | "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast" => 1,
        "containsIP" | "containsCIDR" => {
            let (own, other) = (size(0)?, size(1)?);
            let mut cost = scaled(own + own, TRAVERSAL);
            if function == "containsCIDR" {
                cost += scaled(own, TRAVERSAL) + 1;
            }
            if overload.ends_with("_string") {
                cost += scaled(other, TRAVERSAL);
            }
            cost
        }
        "validate" => {
            let format = args.first()?.as_ref().ok()?;
            pattern(size(1)?, crate::library::format_pattern_size(format)?)
        }
        "format.named" | "sign" | "asInteger" | "isInteger" | "asApproximateFloat"
        | "isGreaterThan" | "isLessThan" | "compareTo" | "add" | "sub" | "major" | "minor"
        | "patch" | "getScheme" | "getHostname" | "getHost" | "getPort" | "getEscapedPath"
        | "getQuery" => 1,
        "_==_" if matches!(args.first(), Some(Ok(Value::Opaque(_)))) => 1,
        _ => return None,
    })
}

fn standard(overload: &str, args: &[ValueResult<'_>]) -> u64 {
    let size = |i: usize| args.get(i).map_or(1, actual_size);
    match overload {
        "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string"
        | "strings_quote" | "string_format" => scaled(size(0), TRAVERSAL),
        "in_list" => size(1),
        "less_string"
        | "greater_string"
        | "less_equals_string"
        | "greater_equals_string"
        | "less_bytes"
        | "greater_bytes"
        | "less_equals_bytes"
        | "greater_equals_bytes"
        | "equals"
        | "not_equals" => scaled(size(0).min(size(1)), TRAVERSAL),
        "add_string" | "add_bytes" => scaled(size(0) + size(1), TRAVERSAL),
        "matches_string" => pattern(size(0), size(1)),
        "contains_string" => scaled(size(0), TRAVERSAL).saturating_mul(scaled(size(1), TRAVERSAL)),
        _ => 1,
    }
}

/// A value's size, 1 for values that have none.
fn flat_size(v: &ValueResult<'_>) -> u64 {
    match v {
        Ok(v) => v.size().map_or(1, |n| n as u64),
        Err(_) => 1,
    }
}

/// As above, looking into optionals.
pub(crate) fn actual_size(v: &ValueResult<'_>) -> u64 {
    let Ok(mut at) = v.as_ref() else {
        return 1;
    };
    while let Value::Optional(Some(inner)) = at {
        at = inner;
    }
    at.size().map_or(1, |n| n as u64)
}

/// The cost of going through all of a value.
fn traversal(v: &Value<'_>) -> u64 {
    match v {
        Value::String(s) => (s.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(b) => (b.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => elements(list),
        Value::Map(map) => {
            let mut cost = 0u64;
            for key in map.keys() {
                let value = map.find(&key).ok().flatten();
                let value = value.map_or(1, |v| traversal(&v));
                cost = cost.saturating_add(traversal(&key)).saturating_add(value);
            }
            cost
        }
        _ => 1,
    }
}

fn elements(list: &List<'_>) -> u64 {
    list.iter().fold(0, |cost, v| {
        cost.saturating_add(v.map_or(1, |v| traversal(&v)))
    })
}
