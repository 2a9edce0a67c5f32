//! Regular expressions of RE2, carried out by the `regex` crate.
//!
//! The two syntaxes differ in what shorthand classes mean (ASCII in RE2), in set operations inside
//! classes (unknown to RE2), in `{` that begins no repetition (a literal in RE2) and in `\Q…\E`,
//! `\C` and `\pN`. Patterns are rewritten where they differ.

use super::Row;
use super::declare::Binding::Own;
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
    let rewritten = rewrite(pattern)
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

/// The pattern in the syntax of the `regex` crate, or what is wrong with it.
fn rewrite(pattern: &str) -> Result<String, String> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut i = 0;
    let mut open = 0usize;
    // Where the last thing that a repetition can apply to began; `None` at the start of a branch.
    let mut repeatable = false;
    let mut last_repeat: Option<usize> = None;
    let text =
        |from: usize, to: usize| -> String { chars[from..to.min(chars.len())].iter().collect() };
    while i < chars.len() {
        match chars[i] {
            '\\' => {
                i = escape(&chars, i, &mut out, false)?;
                repeatable = true;
                last_repeat = None;
            }
            '[' => {
                i = class(&chars, i, &mut out)?;
                repeatable = true;
                last_repeat = None;
            }
            c @ ('*' | '+' | '?') => {
                let start = i;
                i += 1;
                if chars.get(i) == Some(&'?') {
                    i += 1;
                }
                if !repeatable {
                    return Err(format!(
                        "missing argument to repetition operator: `{}`",
                        text(start, i)
                    ));
                }
                if let Some(before) = last_repeat {
                    return Err(format!(
                        "invalid nested repetition operator: `{}`",
                        text(before, i)
                    ));
                }
                last_repeat = Some(start);
                out.push(c);
                if i - start == 2 {
                    out.push('?');
                }
            }
            '{' => match repetition(&chars, i) {
                None => {
                    out.push_str("\\{");
                    i += 1;
                    repeatable = true;
                    last_repeat = None;
                }
                Some((end, valid)) => {
                    if !valid {
                        return Err(format!("invalid repeat count: `{}`", text(i, end)));
                    }
                    let start = i;
                    let lazy = usize::from(chars.get(end) == Some(&'?'));
                    if !repeatable {
                        return Err(format!(
                            "missing argument to repetition operator: `{}`",
                            text(start, end + lazy)
                        ));
                    }
                    if let Some(before) = last_repeat {
                        return Err(format!(
                            "invalid nested repetition operator: `{}`",
                            text(before, end + lazy)
                        ));
                    }
                    last_repeat = Some(start);
                    out.push_str(&text(i, end + lazy));
                    i = end + lazy;
                }
            },
            '(' => {
                if chars.get(i + 1) == Some(&'?') {
                    let end = group_flags(&chars, i)?;
                    // `(?flags)` opens nothing.
                    if chars[end - 1] == ')' {
                        out.push_str(&text(i, end));
                        i = end;
                        continue;
                    }
                    out.push_str(&text(i, end));
                    i = end;
                } else {
                    out.push('(');
                    i += 1;
                }
                open += 1;
                repeatable = false;
                last_repeat = None;
            }
            ')' => {
                if open == 0 {
                    return Err(format!("unexpected ): `{pattern}`"));
                }
                open -= 1;
                out.push(')');
                i += 1;
                repeatable = true;
                last_repeat = None;
            }
            '|' => {
                out.push('|');
                i += 1;
                repeatable = false;
                last_repeat = None;
            }
            c => {
                match c {
                    '}' | ']' => {
                        out.push('\\');
                        out.push(c);
                    }
                    c => out.push(c),
                }
                i += 1;
                repeatable = true;
                last_repeat = None;
            }
        }
    }
    if open > 0 {
        return Err(format!("missing closing ): `{pattern}`"));
    }
    Ok(out)
}

/// `{n}`, `{n,}` or `{n,m}`: where it ends and whether its counts are allowed.
fn repetition(chars: &[char], at: usize) -> Option<(usize, bool)> {
    let close = at + chars.get(at..)?.iter().take(16).position(|c| *c == '}')?;
    let inside: String = chars[at + 1..close].iter().collect();
    let number = |s: &str| {
        (!s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()))
            .then(|| s.parse().unwrap_or(u32::MAX))
    };
    let (low, high) = match inside.split_once(',') {
        None => {
            let n = number(&inside)?;
            (n, Some(n))
        }
        Some((low, "")) => (number(low)?, None),
        Some((low, high)) => (number(low)?, Some(number(high)?)),
    };
    let valid = low <= 1000 && high.is_none_or(|h| h <= 1000 && h >= low);
    Some((close + 1, valid))
}

/// Past `(?flags)`, `(?flags:`, `(?P<name>` or `(?<name>`.
fn group_flags(chars: &[char], at: usize) -> Result<usize, String> {
    let rest: String = chars[at..].iter().collect();
    let named = rest.starts_with("(?P<") || rest.starts_with("(?<");
    let ends = |c: char| {
        if named {
            c == '>'
        } else {
            c == ':' || c == ')'
        }
    };
    let Some(end) = chars[at..].iter().position(|c| ends(*c)) else {
        return Err(if named {
            format!("invalid named capture: `{rest}`")
        } else {
            format!("missing closing ): `{rest}`")
        });
    };
    let whole: String = chars[at..=at + end].iter().collect();
    if named {
        let name = whole.trim_start_matches("(?P<").trim_start_matches("(?<");
        let name = name.trim_end_matches('>');
        let valid = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        return if valid {
            Ok(at + end + 1)
        } else {
            Err(format!("invalid named capture: `{whole}`"))
        };
    }
    let flags = &chars[at + 2..at + end];
    let valid = flags.iter().all(|c| "imsU-".contains(*c));
    if valid && flags.iter().filter(|c| **c == '-').count() <= 1 && flags.last() != Some(&'-') {
        return Ok(at + end + 1);
    }
    let shown: String = chars[at..(at + 3).min(chars.len())].iter().collect();
    Err(format!("invalid or unsupported Perl syntax: `{shown}`"))
}

/// Rewrites an escape sequence and gives where it ends.
fn escape(chars: &[char], at: usize, out: &mut String, in_class: bool) -> Result<usize, String> {
    let Some(c) = chars.get(at + 1).copied() else {
        return Err("trailing backslash at end of expression: ``".to_owned());
    };
    let shorthand = match c {
        'd' => Some("0-9"),
        'w' => Some("0-9A-Za-z_"),
        's' => Some("\\t\\n\\x0c\\r "),
        _ => None,
    };
    if let Some(set) = shorthand {
        if in_class {
            out.push_str(set);
        } else {
            out.push_str(&format!("[{set}]"));
        }
        return Ok(at + 2);
    }
    match c {
        'D' => out.push_str("[^0-9]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        'S' => out.push_str("[^\\t\\n\\x0c\\r ]"),
        'b' if !in_class => out.push_str("(?-u:\\b)"),
        'B' if !in_class => out.push_str("(?-u:\\B)"),
        'A' | 'z' if !in_class => {
            out.push('\\');
            out.push(c);
        }
        'a' | 'f' | 't' | 'n' | 'r' | 'v' => {
            out.push('\\');
            out.push(c);
        }
        'Q' if !in_class => {
            let mut i = at + 2;
            while i < chars.len() && !(chars[i] == '\\' && chars.get(i + 1) == Some(&'E')) {
                out.push_str(&regex::escape(&chars[i].to_string()));
                i += 1;
            }
            return Ok((i + 2).min(chars.len()));
        }
        'p' | 'P' => return property(chars, at, out),
        'x' => return hex(chars, at, out),
        '0'..='7' => {
            let digits: String = chars[at + 1..]
                .iter()
                .take(3)
                .take_while(|c| ('0'..='7').contains(*c))
                .collect();
            // One digit alone, unless it is zero, would be a back reference.
            if c != '0' && digits.len() < 2 {
                return Err(format!("invalid escape sequence: `\\{c}`"));
            }
            let code = u32::from_str_radix(&digits, 8).unwrap_or(0);
            out.push_str(&format!("\\x{{{code:x}}}"));
            return Ok(at + 1 + digits.len());
        }
        c if c.is_ascii_punctuation() => {
            out.push('\\');
            out.push(c);
        }
        c => return Err(format!("invalid escape sequence: `\\{c}`")),
    }
    Ok(at + 2)
}

/// `\pN`, `\p{Greek}`, `\p{^Greek}`.
fn property(chars: &[char], at: usize, out: &mut String) -> Result<usize, String> {
    let rest = &chars[at + 2..];
    let (name, end): (String, usize) = match rest.first() {
        Some('{') => {
            let close = rest.iter().position(|c| *c == '}');
            let Some(close) = close else {
                let shown: String = chars[at..].iter().collect();
                return Err(format!("invalid character class range: `{shown}`"));
            };
            (rest[1..close].iter().collect(), at + 3 + close)
        }
        Some(c) => (c.to_string(), at + 3),
        None => {
            return Err(format!(
                "invalid character class range: `\\{}`",
                chars[at + 1]
            ));
        }
    };
    let negated = name.starts_with('^') != (chars[at + 1] == 'P');
    let letter = if negated { 'P' } else { 'p' };
    let name = name.trim_start_matches('^');
    if name == "Any" {
        out.push_str(if negated {
            "[^\\x{0}-\\x{10ffff}]"
        } else {
            "(?s:.)"
        });
    } else {
        out.push_str(&format!("\\{letter}{{{name}}}"));
    }
    Ok(end)
}

/// `\x7F` or `\x{10FFFF}`.
fn hex(chars: &[char], at: usize, out: &mut String) -> Result<usize, String> {
    let rest = &chars[at + 2..];
    let (digits, end): (String, usize) = if rest.first() == Some(&'{') {
        let close = rest.iter().position(|c| *c == '}').unwrap_or(rest.len());
        (rest[1..close.max(1)].iter().collect(), at + 3 + close)
    } else {
        (rest.iter().take(2).collect(), at + 4)
    };
    let code = u32::from_str_radix(&digits, 16)
        .ok()
        .filter(|c| *c <= 0x0010_ffff);
    let long_enough = rest.first() == Some(&'{') || digits.len() == 2;
    match code.filter(|_| long_enough && end <= chars.len()) {
        Some(code) => {
            out.push_str(&format!("\\x{{{code:x}}}"));
            Ok(end)
        }
        None => {
            let shown: String = chars[at..end.min(chars.len())].iter().collect();
            Err(format!("invalid escape sequence: `{shown}`"))
        }
    }
}

/// A bracketed class. `[`, `&&`, `--` and `~~` mean nothing special in RE2.
fn class(chars: &[char], at: usize, out: &mut String) -> Result<usize, String> {
    let missing = || {
        let rest: String = chars[at..].iter().collect();
        format!("missing closing ]: `{rest}`")
    };
    out.push('[');
    let mut i = at + 1;
    if chars.get(i) == Some(&'^') {
        out.push('^');
        i += 1;
    }
    let mut first = true;
    loop {
        let c = *chars.get(i).ok_or_else(missing)?;
        if c == ']' && !first {
            out.push(']');
            return Ok(i + 1);
        }
        if c == '[' && chars.get(i + 1) == Some(&':') {
            let close = chars[i..].windows(2).position(|w| w == [':', ']']);
            if let Some(close) = close {
                let name: String = chars[i..i + close + 2].iter().collect();
                out.push_str(&name);
                i += close + 2;
                first = false;
                continue;
            }
        }
        first = false;
        let start = i;
        i = class_char(chars, i, out)?;
        let dash = chars.get(i) == Some(&'-') && chars.get(i + 1).is_some_and(|c| *c != ']');
        if dash {
            let low = single(chars, start, i);
            let high_end = class_char(chars, i + 1, &mut String::new())?;
            let high = single(chars, i + 1, high_end);
            if let (Some(low), Some(high)) = (low, high)
                && low > high
            {
                let shown: String = chars[start..high_end].iter().collect();
                return Err(format!("invalid character class range: `{shown}`"));
            }
            out.push('-');
            i = class_char(chars, i + 1, out)?;
        }
    }
}

/// The character that one class item is, when it is written plainly.
fn single(chars: &[char], from: usize, to: usize) -> Option<char> {
    (to - from == 1).then(|| chars[from])
}

fn class_char(chars: &[char], i: usize, out: &mut String) -> Result<usize, String> {
    match chars.get(i) {
        Some('\\') => escape(chars, i, out, true),
        Some(c @ ('[' | '&' | '-' | '~' | '^' | ']')) => {
            out.push('\\');
            out.push(*c);
            Ok(i + 1)
        }
        Some(c) => {
            out.push(*c);
            Ok(i + 1)
        }
        None => Err("missing closing ]: ``".to_owned()),
    }
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
