//! Text functions.

use super::Row;
use super::declare::Binding::Own;
use crate::value::{EvalError, Value, ValueResult};

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("charAt", "string_char_at_int", "string.(int) -> string", Own(char_at)),
    Row("indexOf", "string_index_of_string", "string.(string) -> int", Own(index_of)),
    Row("indexOf", "string_index_of_string_int", "string.(string, int) -> int", Own(index_of)),
    Row("lastIndexOf", "string_last_index_of_string", "string.(string) -> int", Own(last_index_of)),
    Row("lastIndexOf", "string_last_index_of_string_int", "string.(string, int) -> int", Own(last_index_of)),
    Row("lowerAscii", "string_lower_ascii", "string.() -> string", Own(lower_ascii)),
    Row("replace", "string_replace_string_string", "string.(string, string) -> string", Own(replace)),
    Row("replace", "string_replace_string_string_int", "string.(string, string, int) -> string", Own(replace)),
    Row("split", "string_split_string", "string.(string) -> list(string)", Own(split)),
    Row("split", "string_split_string_int", "string.(string, int) -> list(string)", Own(split)),
    Row("substring", "string_substring_int", "string.(int) -> string", Own(substring)),
    Row("substring", "string_substring_int_int", "string.(int, int) -> string", Own(substring)),
    Row("trim", "string_trim", "string.() -> string", Own(trim)),
    Row("upperAscii", "string_upper_ascii", "string.() -> string", Own(upper_ascii)),
    Row("format", "string_format", "string.(list(dyn)) -> string", Own(super::formatting::format)),
    Row("strings.quote", "strings_quote", "(string) -> string", Own(quote)),
    Row("join", "list_join", "list(string).() -> string", Own(join)),
    Row("join", "list_join_string", "list(string).(string) -> string", Own(join)),
];

/// Longer results in bytes are refused: what they cost is only known when they are made.
const MAX_RESULT: usize = 16 << 20;

fn text<'a>(args: &'a [Value<'_>], i: usize) -> &'a str {
    args.get(i).and_then(Value::as_str).unwrap_or_default()
}

fn number(args: &[Value<'_>], i: usize) -> Option<i64> {
    match args.get(i) {
        Some(Value::Int(n)) => Some(*n),
        _ => None,
    }
}

fn out_of_range<T>(i: i64) -> Result<T, EvalError> {
    Err(EvalError::new(format!("index out of range: {i}")))
}

/// A place in a text of `len` code points, at most behind its end.
fn place(i: i64, len: usize) -> Result<usize, EvalError> {
    match usize::try_from(i) {
        Ok(at) if at <= len => Ok(at),
        _ => out_of_range(i),
    }
}

fn int<'v>(i: usize) -> ValueResult<'v> {
    Ok(Value::Int(i64::try_from(i).unwrap_or(i64::MAX)))
}

fn char_at<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let s = text(args, 0);
    let at = place(number(args, 1).unwrap_or(0), s.chars().count())?;
    let found: String = s.chars().skip(at).take(1).collect();
    Ok(Value::string(found))
}

fn index_of<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (s, part) = (text(args, 0), text(args, 1));
    let offset = number(args, 2).unwrap_or(0);
    if part.is_empty() {
        return Ok(Value::Int(offset));
    }
    let Ok(skipped) = usize::try_from(offset) else {
        return out_of_range(offset);
    };
    let Some((from, _)) = s.char_indices().nth(skipped) else {
        return Ok(Value::Int(-1));
    };
    match s[from..].find(part) {
        Some(at) => int(skipped + s[from..from + at].chars().count()),
        None => Ok(Value::Int(-1)),
    }
}

fn last_index_of<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (s, part) = (text(args, 0), text(args, 1));
    let len = s.chars().count();
    let offset = match number(args, 2) {
        Some(offset) => offset,
        None if part.is_empty() => return int(len),
        None if s.len() < part.len() => return Ok(Value::Int(-1)),
        None => i64::try_from(len).unwrap_or(i64::MAX) - 1,
    };
    if part.is_empty() {
        return Ok(Value::Int(offset));
    }
    let Ok(offset) = usize::try_from(offset) else {
        return out_of_range(offset);
    };
    if offset >= len {
        return Ok(Value::Int(-1));
    }
    // The match may begin at the offset at the latest.
    let ends = s.char_indices().nth(offset + part.chars().count());
    let end = ends.map_or(s.len(), |(i, _)| i);
    match s[..end].rfind(part) {
        Some(at) => int(s[..at].chars().count()),
        None => Ok(Value::Int(-1)),
    }
}

fn lower_ascii<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(text(args, 0).to_ascii_lowercase()))
}

fn upper_ascii<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(text(args, 0).to_ascii_uppercase()))
}

fn trim<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(text(args, 0).trim()))
}

/// A limit of how often, where negative numbers set none.
fn limit(n: Option<i64>) -> usize {
    n.and_then(|n| usize::try_from(n).ok())
        .unwrap_or(usize::MAX)
}

fn replace<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (s, old, new) = (text(args, 0), text(args, 1), text(args, 2));
    let limit = limit(number(args, 3));
    let count = if old.is_empty() {
        s.chars().count() + 1
    } else {
        s.matches(old).take(limit).count()
    };
    let growth = count.min(limit).saturating_mul(new.len());
    if growth.saturating_add(s.len()) > MAX_RESULT {
        return Err(EvalError::cost_limit());
    }
    Ok(Value::string(s.replacen(old, new, limit)))
}

fn split<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (s, separator) = (text(args, 0), text(args, 1));
    let limit = limit(number(args, 2));
    if limit == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let parts: Vec<Value<'v>> = if separator.is_empty() {
        characters(s, limit)
    } else {
        s.splitn(limit, separator).map(Value::string).collect()
    };
    Ok(Value::list(parts))
}

/// The code points; what is left when there are too many of them is the last one.
fn characters<'v>(s: &str, limit: usize) -> Vec<Value<'v>> {
    let mut out = Vec::new();
    let mut rest = s;
    while let Some(c) = rest.chars().next() {
        if out.len() + 1 == limit {
            out.push(Value::string(rest));
            break;
        }
        let (first, after) = rest.split_at(c.len_utf8());
        out.push(Value::string(first));
        rest = after;
    }
    out
}

fn substring<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let s = text(args, 0);
    let len = s.chars().count();
    let start = number(args, 1).unwrap_or(0);
    let end = number(args, 2);
    if let Some(end) = end
        && start > end
    {
        return Err(EvalError::new(format!(
            "invalid substring range. start: {start}, end: {end}"
        )));
    }
    let from = place(start, len)?;
    let to = match end {
        Some(end) => place(end, len)?,
        None => len,
    };
    let part: String = s.chars().skip(from).take(to - from).collect();
    Ok(Value::string(part))
}

fn quote<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let mut out = String::from("\"");
    for c in text(args, 0).chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(Value::string(out))
}

fn join<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let Value::List(list) = &args[0] else {
        return Err(EvalError::no_such_overload());
    };
    let separator = text(args, 1);
    let mut out = String::new();
    for (i, item) in list.iter().enumerate() {
        if i > 0 {
            out.push_str(separator);
        }
        let item = item?;
        let Value::String(s) = &item else {
            return Err(EvalError::new(format!("join: invalid input: {item}")));
        };
        out.push_str(s);
        if out.len() > MAX_RESULT {
            return Err(EvalError::cost_limit());
        }
    }
    Ok(Value::string(out))
}
