//! Field selectors: `status.phase=Running,metadata.name!=x`.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    pub field: String,
    pub value: String,
    pub equal: bool,
}

/// All of its terms hold; none at all matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("invalid selector: '{selector}'; can't understand '{part}'")]
    Term { selector: String, part: String },
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    // Go prints a character of this kind as its number.
    #[error("invalid field selector: unescaped character in value: {0}")]
    Unescaped(u32),
    #[error("selector is too long")]
    TooLong,
}

const MAX_TEXT: usize = 256 * 1024;

impl Selector {
    pub fn everything() -> Selector {
        Selector::default()
    }

    pub fn one(field: &str, value: &str) -> Selector {
        Selector {
            terms: vec![Term {
                field: field.to_owned(),
                value: value.to_owned(),
                equal: true,
            }],
        }
    }

    pub fn parse(s: &str) -> Result<Selector, SelectorError> {
        if s.len() > MAX_TEXT {
            return Err(SelectorError::TooLong);
        }
        let mut parts = split_terms(s);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            let bad = || SelectorError::Term {
                selector: s.to_owned(),
                part: part.to_owned(),
            };
            let at = part.find(['=', '!']).ok_or_else(bad)?;
            let (field, rest) = part.split_at(at);
            let (equal, raw) = if let Some(r) = rest.strip_prefix("!=") {
                (false, r)
            } else if let Some(r) = rest.strip_prefix("==") {
                (true, r)
            } else if let Some(r) = rest.strip_prefix('=') {
                (true, r)
            } else {
                // A lone exclamation mark belongs to the name; look for an operator behind it.
                let Some(next) = rest.find('=') else {
                    return Err(bad());
                };
                let cut = if rest[..next].ends_with('!') {
                    next - 1
                } else {
                    next
                };
                let (name, op) = part.split_at(at + cut);
                let value = op.trim_start_matches('!').trim_start_matches('=');
                terms.push(Term {
                    field: name.to_owned(),
                    value: unescape(value)?,
                    equal: !op.starts_with('!'),
                });
                continue;
            };
            terms.push(Term {
                field: field.to_owned(),
                value: unescape(raw)?,
                equal,
            });
        }
        // `=` says nothing about anything.
        terms.retain(|t| !(t.field.is_empty() && t.value.is_empty() && t.equal));
        Ok(Selector { terms })
    }

    /// `get` returns a field's text; an unknown field compares as the empty one.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms
            .iter()
            .all(|t| (get(&t.field).unwrap_or("") == t.value) == t.equal)
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The value a field must have, if the selector fixes one.
    pub fn requires_exact(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|t| t.equal && t.field == field)
            .map(|t| t.value.as_str())
    }

    /// The selector without its terms about one field.
    pub fn without(&self, field: &str) -> Selector {
        Selector {
            terms: self
                .terms
                .iter()
                .filter(|t| t.field != field)
                .cloned()
                .collect(),
        }
    }
}

fn split_terms(s: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (i, c) in s.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&s[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&s[start..]);
    out
}

fn unescape(s: &str) -> Result<String, SelectorError> {
    if !s.contains(['\\', ',', '=']) {
        return Ok(s.to_owned());
    }
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(n @ ('\\' | ',' | '=')) => out.push(n),
                other => {
                    let seq = other
                        .map(|c| format!("\\{c}"))
                        .unwrap_or_else(|| "\\".into());
                    return Err(SelectorError::Escape(seq));
                }
            },
            ',' | '=' => return Err(SelectorError::Unescaped(c.into())),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn escape(s: &str) -> String {
    s.replace('\\', "\\\\")
        .replace(',', "\\,")
        .replace('=', "\\=")
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.terms.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(
                f,
                "{}{}{}",
                t.field,
                if t.equal { "=" } else { "!=" },
                escape(&t.value)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_match_print() {
        let get = |f: &str| match f {
            "metadata.name" => Some("a"),
            "status.phase" => Some("Running"),
            _ => None,
        };
        for (text, want) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,status.phase!=Failed", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=", true),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(get), want, "{text}");
        }
        assert!(Selector::parse("abc").is_err());
        assert!(Selector::parse("a=b\\x").is_err());
        assert!(Selector::parse("a=b=c").is_err());
        let s = Selector::parse("x=a\\,b\\=c").unwrap();
        assert_eq!(s.requires_exact("x"), Some("a,b=c"));
        assert_eq!(s.to_string(), "x=a\\,b\\=c");
        assert_eq!(Selector::parse("b=1,a=2").unwrap().to_string(), "a=2,b=1");
    }
}
