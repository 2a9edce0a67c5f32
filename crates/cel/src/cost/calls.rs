//! What calls can cost.

use super::estimate::{Arg, Estimator};
use super::{CostRange, SizeRange, UNKNOWN, scaled};
use crate::ast::{Expr, ExprKind, Literal};
use crate::types::Type;
use std::sync::Arc;

/// A code point of a traversed text.
const TRAVERSAL: f64 = 0.1;
/// A code point of a pattern.
const PATTERN: f64 = 0.25;
/// An authorization check.
const CHECK: u64 = 350_000;
/// The longest pattern and the longest text of a named format.
const FORMAT_PATTERN: f64 = 128.0;
const FORMAT_SIZE: u64 = 64;
const ADDRESS: SizeRange = SizeRange { min: 4, max: 16 };

pub(super) struct Call<'e> {
    pub(super) expr: &'e Expr,
    pub(super) function: &'e str,
    pub(super) overload: &'e str,
    pub(super) target: Option<&'e Arg<'e>>,
    pub(super) args: &'e [Arg<'e>],
    pub(super) costs: &'e [CostRange],
}

pub(super) struct Estimate {
    pub(super) cost: CostRange,
    /// The size of what the call gives.
    pub(super) result: Option<SizeRange>,
}

fn of(cost: CostRange) -> Option<Estimate> {
    Some(Estimate { cost, result: None })
}

fn sized(cost: CostRange, result: SizeRange) -> Option<Estimate> {
    Some(Estimate {
        cost,
        result: Some(result),
    })
}

fn fixed(n: u64) -> Option<Estimate> {
    of(CostRange::exactly(n))
}

/// The cost of one overload of a call, its arguments included.
pub(super) fn estimate(e: &mut Estimator<'_>, call: &Call<'_>) -> Estimate {
    let own = lists(e, call)
        .or_else(|| kubernetes(e, call))
        .or_else(|| standard(e, call));
    let args = call
        .costs
        .iter()
        .fold(CostRange::exactly(0), |sum, c| sum.plus(*c));
    match (call.overload, call.costs) {
        // What is not evaluated costs nothing.
        ("logical_and" | "logical_or", [left, right]) => Estimate {
            cost: CostRange {
                min: left.min,
                max: left.max.saturating_add(right.max),
            },
            result: None,
        },
        ("conditional", [condition, yes, no]) => {
            let [_, yes_arg, no_arg] = call.args else {
                return Estimate {
                    cost: args,
                    result: None,
                };
            };
            e.union_entries(call.expr, yes_arg.expr, no_arg.expr);
            Estimate {
                cost: condition.plus(yes.union(*no)),
                result: Some(known(yes_arg).union(known(no_arg))),
            }
        }
        _ => match own {
            Some(own) => Estimate {
                cost: own.cost.plus(args),
                result: own.result,
            },
            None => Estimate {
                cost: args.plus(CostRange::exactly(1)),
                result: None,
            },
        },
    }
}

/// The size that the walk found.
fn known(arg: &Arg<'_>) -> SizeRange {
    arg.size.unwrap_or(UNKNOWN)
}

/// As above, or what the estimator knows of the argument.
fn size(e: &Estimator<'_>, arg: &Arg<'_>) -> SizeRange {
    arg.size
        .or_else(|| e.sizes.estimate_size(&arg.path, &arg.ty))
        .unwrap_or(UNKNOWN)
}

fn constant(arg: &Arg<'_>) -> Option<i64> {
    match &arg.expr.kind {
        ExprKind::Literal(Literal::Int(i)) => Some(*i),
        _ => None,
    }
}

/// A constant that is an integer, at least 0, or what stands for others.
fn constant_or(arg: &Arg<'_>, other: u64) -> u64 {
    constant(arg).map_or(other, |i| u64::try_from(i).unwrap_or(0))
}

/// Extended lists and sets.
fn lists(e: &Estimator<'_>, call: &Call<'_>) -> Option<Estimate> {
    let allocating = |factor: f64, size: SizeRange| {
        let cost = size.each(factor).plus(CostRange::exactly(1 + 10));
        sized(cost, size)
    };
    let texts =
        call.overload.starts_with("list_string_") || call.overload.starts_with("list_bytes_");
    let factor = if texts { 2.1 } else { 2.0 };
    let squared = |arg: &Arg<'_>| {
        let size = size(e, arg);
        size.times(size)
    };
    match (call.overload, call.target, call.args) {
        ("list_slice", Some(target), [start, end]) => {
            let end = constant_or(end, size(e, target).max);
            let width = end.wrapping_sub(constant_or(start, 0));
            allocating(1.0, SizeRange::exactly(width))
        }
        ("list_flatten", Some(target), []) => allocating(1.0, size(e, target)),
        ("list_flatten_int", Some(target), [depth]) => {
            allocating(constant_or(depth, u64::MAX) as f64, size(e, target))
        }
        ("lists_range", None, [n]) => allocating(1.0, SizeRange::exactly(constant_or(n, u64::MAX))),
        ("list_reverse", Some(target), []) => allocating(1.0, size(e, target)),
        ("list_distinct", Some(target), []) => allocating(2.0, squared(target)),
        (o, Some(target), []) if o.starts_with("list_") && o.ends_with("_sort") => {
            allocating(factor, squared(target))
        }
        (o, Some(_), [keys]) if o.ends_with("_sortByAssociatedKeys") => {
            allocating(factor, squared(keys))
        }
        ("list_sets_contains_list" | "list_sets_intersects_list", _, [a, b]) => of(size(e, a)
            .times(size(e, b))
            .each(1.0)
            .plus(CostRange::exactly(1))),
        ("list_sets_equivalent_list", _, [a, b]) => of(size(e, a)
            .times(size(e, b))
            .each(2.0)
            .plus(CostRange::exactly(1))),
        _ => None,
    }
}

/// Functions of the Kubernetes libraries and those that Kubernetes prices on its own.
fn kubernetes(e: &Estimator<'_>, call: &Call<'_>) -> Option<Estimate> {
    let first = call.args.first();
    match call.function {
        "check" => fixed(CHECK),
        "serviceAccount"
        | "path"
        | "group"
        | "resource"
        | "subresource"
        | "namespace"
        | "name"
        | "allowed"
        | "reason"
        | "error"
        | "errored"
        | "masked"
        | "prefixLength"
        | "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast"
        | "format.named"
        | "sign"
        | "asInteger"
        | "isInteger"
        | "asApproximateFloat"
        | "isGreaterThan"
        | "isLessThan"
        | "compareTo"
        | "add"
        | "sub"
        | "major"
        | "minor"
        | "patch"
        | "getScheme"
        | "getHostname"
        | "getHost"
        | "getPort"
        | "getEscapedPath"
        | "getQuery" => fixed(1),
        "fieldSelector" | "labelSelector" => match call.args {
            [selector] => of(selector_cost(size(e, selector))),
            _ => None,
        },
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            traversal(e, call.target?)
        }
        "url" | "jsonpatch.escapeKey" => match call.args {
            [text] => {
                let size = size(e, text);
                sized(size.each(TRAVERSAL), size)
            }
            _ => None,
        },
        "lowerAscii" | "upperAscii" | "substring" | "trim" => {
            let size = size(e, call.target?);
            sized(size.each(TRAVERSAL), size)
        }
        "replace" => replace(e, call),
        "split" => {
            let text = size(e, call.target?);
            let parts = call.args.get(1).and_then(constant);
            let max = parts.map_or(text.max, i64::cast_unsigned);
            sized(text.each(2.0 * TRAVERSAL), SizeRange { min: 0, max })
        }
        "join" => join(e, call),
        "find" | "findAll" => {
            let text = size(e, call.target?);
            let more = text.plus(SizeRange::exactly(1)).each(TRAVERSAL);
            let pattern = size(e, first?).each(PATTERN);
            let max = text.max;
            sized(more.times(pattern), SizeRange { min: 0, max })
        }
        "ip" if call.overload == "cidr_ip" => fixed(1),
        "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
            of(size(e, first?).each(TRAVERSAL))
        }
        "ip.isCanonical" => of(size(e, first?).each(2.0 * TRAVERSAL)),
        "containsIP" | "containsCIDR" => {
            let mut cost = ADDRESS.plus(ADDRESS).each(TRAVERSAL);
            if call.function == "containsCIDR" {
                cost = cost
                    .plus(ADDRESS.each(TRAVERSAL))
                    .plus(CostRange::exactly(1));
            }
            if call.overload.ends_with("_string") {
                cost = cost.plus(size(e, first?).each(TRAVERSAL));
            }
            of(cost)
        }
        "validate" => of(size(e, first?)
            .each(TRAVERSAL)
            .each(FORMAT_PATTERN * PATTERN)),
        "_==_" => match call.args {
            [left, right] if left.ty == right.ty => equality(left, right),
            _ => None,
        },
        _ => None,
    }
}

fn selector_cost(length: SizeRange) -> CostRange {
    let requirements = length.each(0.5).each(50.0);
    CostRange::exactly(10)
        .plus(length.each(TRAVERSAL))
        .plus(requirements)
}

fn traversal(e: &Estimator<'_>, target: &Arg<'_>) -> Option<Estimate> {
    let Type::List(element) = &target.ty else {
        return of(size(e, target).each(TRAVERSAL));
    };
    let mut each = CostRange::exactly(1);
    if matches!(**element, Type::String | Type::Bytes) {
        each = each.plus(element_size(e, target, element).each(TRAVERSAL));
    }
    of(size(e, target).times(each))
}

/// What the estimator knows of the elements of a list.
fn element_size(e: &Estimator<'_>, list: &Arg<'_>, element: &Type) -> SizeRange {
    let mut path: Vec<Arc<str>> = list.path.clone();
    if !path.is_empty() {
        path.push("@items".into());
    }
    e.sizes.estimate_size(&path, element).unwrap_or(UNKNOWN)
}

fn replace(e: &Estimator<'_>, call: &Call<'_>) -> Option<Estimate> {
    let (text, [old, new, ..]) = (size(e, call.target?), call.args) else {
        return None;
    };
    let (old, new) = (size(e, old), size(e, new));
    let mut count = SizeRange::exactly(0);
    let mut kept = SizeRange::exactly(0);
    // The longest result: as many replacements as the shortest old text allows.
    if old.min == 0 {
        count.max = text.max.saturating_add(1);
        kept.max = text.max;
    } else if new.max <= old.min {
        kept.max = text.max;
    } else {
        count.max = (text.max as f64 / old.min as f64).ceil() as u64;
    }
    // The shortest one: as many as the longest old text allows.
    if old.max == 0 {
        count.min = text.min.saturating_add(1);
        kept.min = text.min;
    } else if old.max <= new.min {
        kept.min = text.min;
    } else {
        count.min = (text.min as f64 / old.max as f64).ceil() as u64;
    }
    let result = count.times(new).plus(kept);
    sized(text.each(2.0 * TRAVERSAL), result)
}

fn join(e: &Estimator<'_>, call: &Call<'_>) -> Option<Estimate> {
    let target = call.target?;
    let count = size(e, target);
    let mut total = SizeRange::exactly(0);
    if let Type::List(element) = &target.ty {
        total = count.times(element_size(e, target, element));
    }
    if let Some(separator) = call.args.first() {
        let between = SizeRange {
            min: count.min.saturating_sub(1),
            max: count.max.saturating_sub(1),
        };
        total = total.plus(size(e, separator).times(between));
    }
    sized(total.each(TRAVERSAL), total)
}

fn equality(left: &Arg<'_>, right: &Arg<'_>) -> Option<Estimate> {
    let name = match &left.ty {
        Type::Opaque(name, _) | Type::Object(name) => &**name,
        _ => return None,
    };
    match name {
        "net.IP" | "net.CIDR" | "kubernetes.Quantity" | "kubernetes.Semver" => fixed(1),
        "kubernetes.NamedFormat" => of(CostRange {
            min: scaled(1, TRAVERSAL),
            max: scaled(FORMAT_SIZE, TRAVERSAL),
        }),
        "kubernetes.URL" => {
            let max = right.size.map_or(1, |s| s.max);
            of(CostRange { min: 1, max }.each(TRAVERSAL))
        }
        name if name.starts_with("kubernetes.authorization.") => fixed(1),
        _ => None,
    }
}

fn standard(e: &mut Estimator<'_>, call: &Call<'_>) -> Option<Estimate> {
    match (call.overload, call.target, call.args) {
        ("string_format", Some(format), _) => of(known(format).each(TRAVERSAL)),
        ("string_to_bytes", _, [s]) => {
            let SizeRange { min, max } = known(s);
            // A code point takes up to four bytes.
            let max = max.wrapping_mul(4);
            sized(known(s).each(TRAVERSAL), SizeRange { min, max })
        }
        ("bytes_to_string", _, [b]) => {
            let SizeRange { min, max } = known(b);
            let min = min / 4;
            sized(known(b).each(TRAVERSAL), SizeRange { min, max })
        }
        ("strings_quote", _, [s]) => {
            let SizeRange { min, max } = known(s);
            let (min, max) = (min.wrapping_add(2), max.wrapping_mul(2).wrapping_add(2));
            sized(known(s).each(TRAVERSAL), SizeRange { min, max })
        }
        ("starts_with_string" | "ends_with_string", _, [part]) => of(known(part).each(TRAVERSAL)),
        ("in_list", _, [_, list]) => of(known(list).each(1.0)),
        ("matches_string", Some(text), [pattern]) => {
            let text = known(text).plus(SizeRange::exactly(1)).each(TRAVERSAL);
            of(text.times(known(pattern).each(PATTERN)))
        }
        ("contains_string", Some(text), [part]) => of(known(text)
            .each(TRAVERSAL)
            .times(known(part).each(TRAVERSAL))),
        ("add_string" | "add_bytes" | "add_list", _, [a, b]) => {
            let result = known(a).plus(known(b));
            e.union_entries(call.expr, a.expr, b.expr);
            let cost = if call.overload == "add_list" {
                CostRange::exactly(1)
            } else {
                result.each(TRAVERSAL)
            };
            sized(cost, result)
        }
        (
            "less_string"
            | "greater_string"
            | "less_equals_string"
            | "greater_equals_string"
            | "less_bytes"
            | "greater_bytes"
            | "less_equals_bytes"
            | "greater_equals_bytes"
            | "equals"
            | "not_equals",
            _,
            [a, b],
        ) => {
            let max = known(a).max.min(known(b).max);
            let min = u64::from(max > 0);
            of(CostRange { min, max }.each(TRAVERSAL))
        }
        _ => None,
    }
}
