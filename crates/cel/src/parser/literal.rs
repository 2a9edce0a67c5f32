//! The values that literals stand for.

use crate::ast::Literal;

/// What a quoted text means. `Err` has the message for the reader.
pub(super) fn unquote(text: &str, bytes: bool) -> Result<Vec<u8>, &'static str> {
    const UNABLE: &str = "unable to unescape string";
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (raw, text) = match text.strip_prefix(['r', 'R']) {
        Some(rest) => (true, rest),
        None => (false, text.as_str()),
    };
    let width = if text.len() >= 6 && (text.starts_with("'''") || text.starts_with("\"\"\"")) {
        3
    } else {
        1
    };
    let inner = text
        .get(width..text.len().saturating_sub(width))
        .ok_or(UNABLE)?;
    if raw || !inner.contains('\\') {
        return Ok(inner.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '\\' {
            push(&mut out, c);
            continue;
        }
        let escape = rest.chars().next().ok_or(UNABLE)?;
        rest = &rest[escape.len_utf8()..];
        let (digits, radix) = match escape {
            'x' | 'X' => (2, 16),
            'u' if !bytes => (4, 16),
            'U' if !bytes => (8, 16),
            '0'..='3' => (3, 8),
            _ => {
                push(&mut out, simple(escape).ok_or(UNABLE)?);
                continue;
            }
        };
        let number = if radix == 8 {
            let tail = rest.get(..2).ok_or(UNABLE)?;
            rest = &rest[2..];
            u32::from_str_radix(&format!("{escape}{tail}"), 8)
        } else {
            let number = rest.get(..digits).ok_or(UNABLE)?;
            rest = &rest[digits..];
            u32::from_str_radix(number, radix)
        };
        let number = number.map_err(|_| UNABLE)?;
        if bytes {
            out.push(number.to_le_bytes()[0]);
        } else {
            push(
                &mut out,
                char::from_u32(number).ok_or("invalid unicode code point")?,
            );
        }
    }
    Ok(out)
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn simple(c: char) -> Option<char> {
    Some(match c {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        '\\' | '\'' | '"' | '`' | '?' => c,
        _ => return None,
    })
}

pub(super) fn integer(text: &str, negative: bool) -> Option<Literal> {
    let sign = if negative { "-" } else { "" };
    let value = match text.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(&format!("{sign}{hex}"), 16),
        None => format!("{sign}{text}").parse(),
    };
    value.ok().map(Literal::Int)
}

pub(super) fn unsigned(text: &str) -> Option<Literal> {
    let digits = text.trim_end_matches(['u', 'U']);
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    value.ok().map(Literal::Uint)
}

pub(super) fn float(text: &str, negative: bool) -> Option<Literal> {
    let value: f64 = text.parse().ok()?;
    // Numbers out of range are refused, not made infinite.
    value
        .is_finite()
        .then_some(Literal::Double(if negative { -value } else { value }))
}
