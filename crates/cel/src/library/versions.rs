//! Semantic versions.

use super::Row;
use super::declare::Binding::Own;
use crate::value::{EvalError, Opaque, Value, ValueResult};
use keelson_machinery::go::quote;
use std::any::Any;
use std::cmp::Ordering;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("semver", "string_to_semver", "(string) -> kubernetes.Semver", Own(semver)),
    Row("semver", "string_bool_to_semver", "(string, bool) -> kubernetes.Semver", Own(semver)),
    Row("isSemver", "is_semver_string", "(string) -> bool", Own(is_semver)),
    Row("isSemver", "is_semver_string_bool", "(string, bool) -> bool", Own(is_semver)),
    Row("isGreaterThan", "semver_is_greater_than", "kubernetes.Semver.(kubernetes.Semver) -> bool", Own(is_greater_than)),
    Row("isLessThan", "semver_is_less_than", "kubernetes.Semver.(kubernetes.Semver) -> bool", Own(is_less_than)),
    Row("compareTo", "semver_compare_to", "kubernetes.Semver.(kubernetes.Semver) -> int", Own(compare_to)),
    Row("major", "semver_major", "kubernetes.Semver.() -> int", Own(major)),
    Row("minor", "semver_minor", "kubernetes.Semver.() -> int", Own(minor)),
    Row("patch", "semver_patch", "kubernetes.Semver.() -> int", Own(patch)),
];

/// Build metadata plays no part in comparisons and is not kept.
#[derive(Debug, PartialEq)]
struct Semver {
    numbers: [u64; 3],
    pre: Vec<Identifier>,
}

/// Numbers come before words.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Word(String),
}

impl Opaque for Semver {
    fn type_name(&self) -> &str {
        "kubernetes.Semver"
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Semver>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Semver {
    fn order(&self, other: &Semver) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| {
            // A version without a pre-release comes after those with one.
            match (self.pre.is_empty(), other.pre.is_empty()) {
                (true, true) => Ordering::Equal,
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) => self.pre.cmp(&other.pre),
            }
        })
    }
}

fn digits(s: &str) -> bool {
    s.bytes().all(|b| b.is_ascii_digit())
}

fn word(s: &str) -> bool {
    s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn number(s: &str, name: &str) -> Result<u64, String> {
    if !digits(s) {
        return Err(format!(
            "Invalid character(s) found in {} number {}",
            name.to_lowercase(),
            quote(s)
        ));
    }
    if s.len() > 1 && s.starts_with('0') {
        return Err(format!(
            "{name} number must not contain leading zeroes {}",
            quote(s)
        ));
    }
    let shown = quote(s);
    s.parse().map_err(|_| {
        let why = if s.is_empty() {
            "invalid syntax"
        } else {
            "value out of range"
        };
        format!("strconv.ParseUint: parsing {shown}: {why}")
    })
}

fn parse(s: &str) -> Result<Semver, String> {
    if s.is_empty() {
        return Err("Version string empty".to_owned());
    }
    let parts: Vec<&str> = s.splitn(3, '.').collect();
    let [first, second, third] = parts[..] else {
        return Err("No Major.Minor.Patch elements found".to_owned());
    };
    let major = number(first, "Major")?;
    let minor = number(second, "Minor")?;
    let (rest, build) = match third.split_once('+') {
        Some((rest, build)) => (rest, Some(build)),
        None => (third, None),
    };
    let (last, pre) = match rest.split_once('-') {
        Some((last, pre)) => (last, Some(pre)),
        None => (rest, None),
    };
    let patch = number(last, "Patch")?;
    let mut identifiers = Vec::new();
    for part in pre.into_iter().flat_map(|p| p.split('.')) {
        identifiers.push(identifier(part)?);
    }
    for part in build.into_iter().flat_map(|b| b.split('.')) {
        if part.is_empty() {
            return Err("Build meta data is empty".to_owned());
        }
        if !word(part) {
            return Err(format!(
                "Invalid character(s) found in build meta data {}",
                quote(part)
            ));
        }
    }
    Ok(Semver {
        numbers: [major, minor, patch],
        pre: identifiers,
    })
}

fn identifier(s: &str) -> Result<Identifier, String> {
    if s.is_empty() {
        return Err("Prerelease is empty".to_owned());
    }
    if digits(s) {
        if s.len() > 1 && s.starts_with('0') {
            return Err(format!(
                "Numeric PreRelease version must not contain leading zeroes {}",
                quote(s)
            ));
        }
        let shown = quote(s);
        return s
            .parse()
            .map(Identifier::Number)
            .map_err(|_| format!("strconv.ParseUint: parsing {shown}: value out of range"));
    }
    if !word(s) {
        return Err(format!(
            "Invalid character(s) found in prerelease {}",
            quote(s)
        ));
    }
    Ok(Identifier::Word(s.to_owned()))
}

/// Versions as people write them: `v1`, `1.2`, `01.02.03`.
fn parse_tolerant(s: &str) -> Result<Semver, String> {
    let s = s.strip_prefix('v').unwrap_or(s);
    let mut parts: Vec<String> = s.splitn(3, '.').map(without_zeros).collect();
    if parts.len() < 3 {
        if parts.last().is_some_and(|p| p.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data".to_owned());
        }
        parts.resize(3, "0".to_owned());
    }
    parse(&parts.join("."))
}

fn without_zeros(part: &str) -> String {
    if part.len() < 2 {
        return part.to_owned();
    }
    let rest = part.trim_start_matches('0');
    if rest.starts_with(|c: char| c.is_ascii_digit()) {
        rest.to_owned()
    } else {
        format!("0{rest}")
    }
}

fn version(args: &[Value<'_>]) -> Result<Semver, String> {
    let text = args[0].as_str().unwrap_or_default();
    match args.get(1) {
        Some(Value::Bool(true)) => parse_tolerant(text),
        _ => parse(text),
    }
}

fn semver<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    version(args).map(Value::opaque).map_err(EvalError::new)
}

fn is_semver<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(version(args).is_ok()))
}

fn held<'a>(v: &'a Value<'_>) -> Result<&'a Semver, EvalError> {
    v.downcast().ok_or_else(EvalError::no_such_overload)
}

fn order(args: &[Value<'_>]) -> Result<Ordering, EvalError> {
    Ok(held(&args[0])?.order(held(&args[1])?))
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

fn part<'v>(v: &Value<'_>, i: usize) -> ValueResult<'v> {
    Ok(Value::Int(held(v)?.numbers[i].cast_signed()))
}

fn major<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part(&args[0], 0)
}

fn minor<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part(&args[0], 1)
}

fn patch<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part(&args[0], 2)
}
