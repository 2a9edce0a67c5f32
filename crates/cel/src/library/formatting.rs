//! `format`: texts with values put into them.
//!
//! Numbers with a fraction are written the way upstream's default locale, American English, has
//! them: `1,234.50` and `1.234500×10⁰³`.

use crate::number;
use crate::time;
use crate::types::Type;
use crate::value::{EvalError, List, Map, Value, ValueResult};

/// Longer texts in bytes are refused: what they cost is only known when they are made.
const MAX_RESULT: usize = 16 << 20;
const MAX_PRECISION: usize = 1_000;
const DEFAULT_PRECISION: usize = 6;

/// One piece of a format.
pub(crate) enum Piece<'f> {
    Text(&'f str),
    Clause {
        verb: char,
        precision: Option<usize>,
    },
}

/// The pieces of a format, or what is wrong with it.
pub(crate) fn pieces(format: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut out = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        if at > 0 {
            out.push(Piece::Text(&rest[..at]));
        }
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push(Piece::Text("%"));
            rest = after;
            continue;
        }
        if rest.is_empty() {
            return Err("unexpected end of string".to_owned());
        }
        let (precision, after) = precision(rest).map_err(|e| {
            format!("could not parse formatting clause: error while parsing precision: {e}")
        })?;
        let verb = after.chars().next().unwrap_or_default();
        if !"sdfebxXo".contains(verb) {
            return Err(format!(
                "could not parse formatting clause: unrecognized formatting clause \"{verb}\""
            ));
        }
        out.push(Piece::Clause { verb, precision });
        rest = &after[verb.len_utf8()..];
    }
    if !rest.is_empty() {
        out.push(Piece::Text(rest));
    }
    Ok(out)
}

fn precision(s: &str) -> Result<(Option<usize>, &str), String> {
    let Some(digits) = s.strip_prefix('.') else {
        return Ok((None, s));
    };
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .ok_or("could not find end of precision specifier")?;
    match digits[..end].parse::<usize>() {
        Ok(n) if n <= MAX_PRECISION => Ok((Some(n), &digits[end..])),
        _ => Err(format!(
            "error while converting precision to integer: strconv.Atoi: parsing {:?}: invalid syntax",
            &digits[..end]
        )),
    }
}

pub(super) fn format<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let (Value::String(format), Value::List(values)) = (&args[0], &args[1]) else {
        return Err(EvalError::no_such_overload());
    };
    let mut out = String::new();
    let mut index = 0;
    for piece in pieces(format).map_err(EvalError::new)? {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Clause { verb, precision } => {
                let v = values
                    .get(index)
                    .ok_or_else(|| EvalError::new(format!("index {index} out of range")))??;
                let text = clause(&v, verb, precision)
                    .map_err(|e| EvalError::new(format!("error during formatting: {e}")))?;
                out.push_str(&text);
                index += 1;
            }
        }
        if out.len() > MAX_RESULT {
            return Err(EvalError::cost_limit());
        }
    }
    Ok(Value::string(out))
}

/// What is wrong with putting a value of a type under a verb.
pub(crate) fn refusal(verb: char, t: &Type) -> Option<String> {
    let number = matches!(t, Type::Int | Type::Uint);
    let text = matches!(t, Type::String | Type::Bytes);
    let (fits, what) = match verb {
        's' => (
            number
                || text
                || matches!(
                    t,
                    Type::List(_)
                        | Type::Map(..)
                        | Type::Double
                        | Type::Bool
                        | Type::Timestamp
                        | Type::Duration
                        | Type::Type(_)
                        | Type::Null
                ),
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps",
        ),
        'd' => (number, "decimal clause can only be used on integers"),
        'f' => (
            *t == Type::Double,
            "fixed-point clause can only be used on doubles",
        ),
        'e' => (
            *t == Type::Double,
            "scientific clause can only be used on doubles",
        ),
        'b' => (
            number || *t == Type::Bool,
            "only integers and bools can be formatted as binary",
        ),
        'o' => (number, "octal clause can only be used on integers"),
        _ => (
            number || text,
            "only integers, byte buffers, and strings can be formatted as hex",
        ),
    };
    let name = t.runtime_name();
    (!fits).then(|| format!("{what}, was given {name}"))
}

fn clause(v: &Value<'_>, verb: char, precision: Option<usize>) -> Result<String, String> {
    let special = matches!(v.as_str(), Some("NaN" | "Infinity" | "-Infinity"));
    if !(special && matches!(verb, 'f' | 'e'))
        && let Some(refusal) = refusal(verb, &v.type_of())
    {
        return Err(refusal);
    }
    let digits = precision.unwrap_or(DEFAULT_PRECISION);
    Ok(match (verb, v) {
        ('s', v) => string(v)?,
        ('d', v) => v.to_string(),
        ('f', v) => fixed(double(v), digits),
        ('e', v) => scientific(double(v)),
        ('b', Value::Bool(b)) => u8::from(*b).to_string(),
        ('b', v) => radix(v, |n| format!("{n:b}")),
        ('o', v) => radix(v, |n| format!("{n:o}")),
        ('x', v) => hex(v),
        (_, v) => hex(v).to_uppercase(),
    })
}

fn double(v: &Value<'_>) -> f64 {
    match v {
        Value::Double(d) => *d,
        Value::String(s) if s.as_str() == "Infinity" => f64::INFINITY,
        Value::String(s) if s.as_str() == "-Infinity" => f64::NEG_INFINITY,
        _ => f64::NAN,
    }
}

fn special(d: f64) -> Option<&'static str> {
    if d.is_nan() {
        Some("NaN")
    } else if d.is_infinite() {
        Some(if d < 0.0 { "-\u{221e}" } else { "\u{221e}" })
    } else {
        None
    }
}

fn fixed(d: f64, digits: usize) -> String {
    if let Some(text) = special(d) {
        return text.to_owned();
    }
    let text = format!("{d:.digits$}");
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.as_str()),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut grouped = String::from(sign);
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(c);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

/// Upstream's way to write these always has six digits behind the point.
fn scientific(d: f64) -> String {
    const RAISED: [char; 10] = [
        '\u{2070}', '\u{b9}', '\u{b2}', '\u{b3}', '\u{2074}', '\u{2075}', '\u{2076}', '\u{2077}',
        '\u{2078}', '\u{2079}',
    ];
    if let Some(text) = special(d) {
        return text.to_owned();
    }
    let text = format!("{d:.DEFAULT_PRECISION$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(rest) => ("\u{207b}", rest),
        None => ("", exponent),
    };
    let raised = format!("{exponent:0>2}");
    let raised = raised
        .chars()
        .filter_map(|c| RAISED.get(c.to_digit(10)? as usize));
    let raised: String = raised.collect();
    format!("{mantissa}\u{d7}10{sign}{raised}")
}

fn radix(v: &Value<'_>, digits: fn(u64) -> String) -> String {
    match v {
        Value::Int(i) => {
            let sign = if *i < 0 { "-" } else { "" };
            format!("{sign}{}", digits(i.unsigned_abs()))
        }
        Value::Uint(u) => digits(*u),
        _ => String::new(),
    }
}

fn hex(v: &Value<'_>) -> String {
    let bytes = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect();
    match v {
        Value::String(s) => bytes(s.as_bytes()),
        Value::Bytes(b) => bytes(b),
        v => radix(v, |n| format!("{n:x}")),
    }
}

fn string(v: &Value<'_>) -> Result<String, String> {
    Ok(match v {
        Value::List(l) => list(l)?,
        Value::Map(m) => map(m)?,
        Value::Null => "null".to_owned(),
        Value::Bytes(b) => match std::str::from_utf8(b) {
            Ok(s) => s.to_owned(),
            Err(_) => return Err("could not convert argument to string".to_owned()),
        },
        v => v.to_string(),
    })
}

/// A value inside of a list or a map, as a literal.
fn inside(v: &Value<'_>) -> Result<String, String> {
    let quote = keelson_machinery::go::quote;
    Ok(match v {
        Value::String(s) => quote(s),
        Value::Bytes(b) => format!("b{}", quote(&String::from_utf8_lossy(b))),
        Value::Double(d) => match special(*d) {
            Some(_) => quote(&number::plain(*d)),
            None => format!("{d:.6}"),
        },
        Value::Duration(d) => format!("duration({})", quote(&time::show_duration(*d))),
        Value::Timestamp(t) => format!("timestamp({})", quote(&time::show_timestamp(*t))),
        Value::Type(t) => format!("type({})", t.runtime_name()),
        Value::List(_) | Value::Map(_) => crate::limits::deep(|| string(v))?,
        Value::Null | Value::Int(_) | Value::Uint(_) | Value::Bool(_) => string(v)?,
        other => {
            let t = other.type_of();
            return Err(format!("no formatting function for {}", t.runtime_name()));
        }
    })
}

fn list(l: &List<'_>) -> Result<String, String> {
    let mut parts = Vec::new();
    let mut size = 0;
    for item in l.iter() {
        let part = inside(&item.map_err(|e| e.to_string())?)?;
        size += part.len();
        if size > MAX_RESULT {
            return Err("result too large".to_owned());
        }
        parts.push(part);
    }
    Ok(format!("[{}]", parts.join(", ")))
}

fn map(m: &Map<'_>) -> Result<String, String> {
    let mut parts = Vec::new();
    for key in m.keys() {
        let shown = match &key {
            Value::String(_) | Value::Bool(_) | Value::Int(_) | Value::Uint(_) => inside(&key)?,
            other => {
                let t = other.type_of();
                return Err(format!(
                    "no formatting function for map key of type {}",
                    t.runtime_name()
                ));
            }
        };
        let value = m.find(&key).map_err(|e| e.to_string())?;
        parts.push((shown, inside(&value.unwrap_or(Value::Null))?));
    }
    parts.sort();
    let parts: Vec<String> = parts.into_iter().map(|(k, v)| format!("{k}:{v}")).collect();
    Ok(format!("{{{}}}", parts.join(", ")))
}
