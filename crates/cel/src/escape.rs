//! Names of properties as identifiers of the language, and back.
//!
//! Specified by Kubernetes' documentation of CRD validation rules.

/// Words that cannot be identifiers.
pub(crate) const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The identifier that stands for a property; `None` for properties that expressions cannot name.
pub fn escape(name: &str) -> Option<String> {
    let first = name.bytes().next()?;
    if first.is_ascii_digit() {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("__") {
            out.push_str("__underscores__");
            rest = after;
            continue;
        }
        match c {
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => out.push(c),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    Some(out)
}

/// The property that an identifier stands for; `None` when it holds an unknown escape.
pub fn unescape(identifier: &str) -> Option<String> {
    if !identifier.contains("__") {
        return Some(identifier.to_owned());
    }
    let mut out = String::with_capacity(identifier.len());
    let mut rest = identifier;
    while let Some(c) = rest.chars().next() {
        if let Some((word, after)) = escaped_word(rest) {
            match word {
                "underscores" => out.push_str("__"),
                "dot" => out.push('.'),
                "dash" => out.push('-'),
                "slash" => out.push('/'),
                word if RESERVED.contains(&word) && identifier.len() == word.len() + 4 => {
                    out.push_str(word);
                }
                _ => return None,
            }
            rest = after;
            continue;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Some(out)
}

/// `__word__` at the start, where the word has no underscore.
fn escaped_word(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix("__")?;
    let end = inner.find('_')?;
    if end == 0 || !inner[end..].starts_with("__") {
        return None;
    }
    Some((&inner[..end], &inner[end + 2..]))
}
