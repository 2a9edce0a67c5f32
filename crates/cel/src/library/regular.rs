//! Regular expressions of RE2, carried out by the `regex` crate.

use super::declare::Binding::Own;
use super::{Row, pattern as syntax};
use crate::value::{EvalError, Value, ValueResult};
use regex::{Regex, RegexBuilder};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("find", "string_find_string", "string.(string) -> string", Own(find)),
    Row("findAll", "string_find_all_string", "string.(string) -> list(string)", Own(find_all)),
    Row("findAll", "string_find_all_string_int", "string.(string, int) -> list(string)", Own(find_all)),
];

/// Bounds the memory of a compiled pattern, in bytes.
const SIZE_LIMIT: usize = 4 << 20;

pub(crate) fn compile(pattern: &str) -> Result<Regex, EvalError> {
    let rewritten = syntax::rewrite(pattern)
        .map_err(|message| EvalError::new(format!("error parsing regexp: {message}")))?;
    RegexBuilder::new(&rewritten)
        .size_limit(SIZE_LIMIT)
        .nest_limit(250)
        .build()
        .map_err(|_| {
            EvalError::new(format!(
                "error parsing regexp: invalid pattern: `{pattern}`"
            ))
        })
}

/// A pattern as Kubernetes reads it; the error says what is wrong, in Go's words.
pub fn regular_expression(pattern: &str) -> Result<Regex, String> {
    compile(pattern).map_err(|error| error.to_string())
}

/// Applies a function of a text and a pattern with the pattern compiled.
pub(crate) fn apply<'v>(function: &str, pattern: &Regex, args: &[Value<'v>]) -> ValueResult<'v> {
    let Some(Value::String(text)) = args.first() else {
        return Err(EvalError::no_such_overload());
    };
    match function {
        "find" => Ok(Value::string(pattern.find(text).map_or("", |m| m.as_str()))),
        "findAll" => {
            let limit = match args.get(2) {
                Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            let found = pattern.find_iter(text).take(limit);
            Ok(Value::list(
                found.map(|m| Value::string(m.as_str())).collect::<Vec<_>>(),
            ))
        }
        _ => Ok(Value::Bool(pattern.is_match(text))),
    }
}

fn searched<'v>(function: &str, args: &[Value<'v>]) -> ValueResult<'v> {
    let pattern = args[1].as_str().unwrap_or_default();
    let pattern = compile(pattern).map_err(|e| EvalError::new(format!("Illegal regex: {e}")))?;
    apply(function, &pattern, args)
}

fn find<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    searched("find", args)
}

fn find_all<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    searched("findAll", args)
}
