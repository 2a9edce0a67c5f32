//! Label selectors: the query-string syntax and the `LabelSelector` object.

use crate::field::{FieldError, Path, aggregate};
use crate::go;
use crate::validation::{is_qualified_name, is_valid_label_value};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One term. `values` are sorted and unique.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

/// All of its requirements hold; none at all matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// Longer texts are refused.
const MAX_TEXT: usize = 256 * 1024;

impl Selector {
    pub fn everything() -> Selector {
        Selector::default()
    }

    pub fn nothing() -> Selector {
        Selector {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    /// Parses `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(s: &str) -> Result<Selector, SelectorError> {
        if s.len() > MAX_TEXT {
            return Err(SelectorError("selector is too long".into()));
        }
        let mut parser = Parser {
            tokens: lex(s),
            at: 0,
        };
        let mut requirements = parser.parse().map_err(SelectorError)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector {
            requirements,
            nothing: false,
        })
    }

    /// From a `LabelSelector` object. Null matches nothing, `{}` everything, as upstream.
    pub fn from_label_selector(v: &Value) -> Result<Selector, SelectorError> {
        let Some(map) = v.as_object() else {
            return if v.is_null() {
                Ok(Selector::nothing())
            } else {
                Err(SelectorError("a label selector must be an object".into()))
            };
        };
        let mut requirements = Vec::new();
        if let Some(labels) = map.get("matchLabels").and_then(Value::as_object) {
            for (k, v) in labels {
                let value = v.as_str().unwrap_or("").to_owned();
                requirements.push(new_requirement(k, Operator::Equals, vec![value])?);
            }
        }
        for e in map
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let text = |k: &str| e.get(k).and_then(Value::as_str).unwrap_or("");
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!(
                        "{} is not a valid label selector operator",
                        go::quote(other)
                    )));
                }
            };
            let values = e
                .get("values")
                .and_then(Value::as_array)
                .map(|l| {
                    l.iter()
                        .filter_map(|v| v.as_str().map(str::to_owned))
                        .collect()
                })
                .unwrap_or_default();
            requirements.push(new_requirement(text("key"), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Selector {
            requirements,
            nothing: false,
        })
    }

    /// Every pair given must be present.
    pub fn from_set<K: Into<String>, V: Into<String>>(
        set: impl IntoIterator<Item = (K, V)>,
    ) -> Selector {
        let mut requirements: Vec<Requirement> = set
            .into_iter()
            .map(|(k, v)| Requirement {
                key: k.into(),
                operator: Operator::Equals,
                values: vec![v.into()],
            })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Selector {
            requirements,
            nothing: false,
        }
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_fn(|k| labels.get(k).map(String::as_str))
    }

    pub fn matches_fn<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Matches the labels of an object's metadata.
    pub fn matches_object(&self, obj: &Value) -> bool {
        let labels = obj.get("metadata").and_then(|m| m.get("labels"));
        self.matches_fn(|k| labels.and_then(|l| l.get(k)).and_then(Value::as_str))
    }

    /// No requirement: matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// The value a label must have, if the selector fixes one.
    pub fn requires_exact(&self, label: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|r| {
                r.key == label
                    && matches!(r.operator, Operator::Equals | Operator::In)
                    && r.values.len() == 1
            })
            .map(|r| r.values[0].as_str())
    }
}

impl Requirement {
    /// `value` is the label's value, `None` when the label is absent.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let has = |v: &str| self.values.iter().any(|x| x == v);
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(has),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(has),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let (Some(have), Some(bound)) = (
                    value.and_then(integer),
                    self.values.first().and_then(|v| integer(v)),
                ) else {
                    return false;
                };
                if self.operator == Operator::GreaterThan {
                    have > bound
                } else {
                    have < bound
                }
            }
        }
    }
}

fn integer(s: &str) -> Option<i64> {
    s.parse().ok()
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let joined = r.values.join(",");
            match r.operator {
                Operator::In => write!(f, "{} in ({joined})", r.key)?,
                Operator::NotIn => write!(f, "{} notin ({joined})", r.key)?,
                Operator::Equals => write!(f, "{}={joined}", r.key)?,
                Operator::NotEquals => write!(f, "{}!={joined}", r.key)?,
                Operator::Exists => f.write_str(&r.key)?,
                Operator::DoesNotExist => write!(f, "!{}", r.key)?,
                Operator::GreaterThan => write!(f, "{}>{joined}", r.key)?,
                Operator::LessThan => write!(f, "{}<{joined}", r.key)?,
            }
        }
        Ok(())
    }
}

fn key_error(key: &str, path: &Path) -> Option<FieldError> {
    let errs = is_qualified_name(key);
    (!errs.is_empty()).then(|| FieldError::invalid(path, key, errs.join("; ")))
}

/// A checked requirement.
pub fn new_requirement(
    key: &str,
    operator: Operator,
    mut values: Vec<String>,
) -> Result<Requirement, SelectorError> {
    let root = Path::root();
    let mut errors: Vec<FieldError> = key_error(key, &root.child("key")).into_iter().collect();
    let path = root.child("values");
    let wrong = |text: &str| FieldError::invalid(&path, values.clone(), text);
    match operator {
        Operator::In | Operator::NotIn if values.is_empty() => {
            errors.push(wrong(
                "for 'in', 'notin' operators, values set can't be empty",
            ));
        }
        Operator::Equals | Operator::NotEquals if values.len() != 1 => {
            errors.push(wrong("exact-match compatibility requires one single value"));
        }
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
            errors.push(wrong(
                "values set must be empty for exists and does not exist",
            ));
        }
        Operator::GreaterThan | Operator::LessThan => {
            if values.len() != 1 {
                errors.push(wrong(
                    "for 'Gt', 'Lt' operators, exactly one value is required",
                ));
            }
            for (i, v) in values
                .iter()
                .enumerate()
                .filter(|(_, v)| integer(v).is_none())
            {
                errors.push(FieldError::invalid(
                    &path.index(i),
                    v.as_str(),
                    "for 'Gt', 'Lt' operators, the value must be an integer",
                ));
            }
        }
        _ => {}
    }
    for (i, v) in values.iter().enumerate() {
        let errs = is_valid_label_value(v);
        if !errs.is_empty() {
            let at = path.index(i).key(key);
            errors.push(FieldError::invalid(&at, v.as_str(), errs.join("; ")));
        }
    }
    if !errors.is_empty() {
        return Err(SelectorError(aggregate(&errors)));
    }
    values.sort();
    values.dedup();
    Ok(Requirement {
        key: key.to_owned(),
        operator,
        values,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Word,
    In,
    NotIn,
    Open,
    Close,
    Comma,
    Not,
    Equals,
    NotEquals,
    Greater,
    Less,
    Unknown,
    End,
}

fn lex(s: &str) -> Vec<(Token, &str)> {
    let special = |b: u8| matches!(b, b'=' | b'!' | b'(' | b')' | b',' | b'>' | b'<');
    let space = |b: u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    let b = s.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < b.len() {
        if space(b[i]) {
            i += 1;
            continue;
        }
        let start = i;
        if special(b[i]) {
            let two = b.get(i + 1) == Some(&b'=');
            let (token, len) = match b[i] {
                b'(' => (Token::Open, 1),
                b')' => (Token::Close, 1),
                b',' => (Token::Comma, 1),
                b'>' => (Token::Greater, 1),
                b'<' => (Token::Less, 1),
                b'!' if two => (Token::NotEquals, 2),
                b'!' => (Token::Not, 1),
                b'=' if two => (Token::Equals, 2),
                b'=' => (Token::Equals, 1),
                _ => (Token::Unknown, 1),
            };
            i += len;
            out.push((token, &s[start..i]));
            continue;
        }
        while i < b.len() && !special(b[i]) && !space(b[i]) {
            i += 1;
        }
        let word = &s[start..i];
        let token = match word {
            "in" => Token::In,
            "notin" => Token::NotIn,
            _ => Token::Word,
        };
        out.push((token, word));
    }
    out.push((Token::End, ""));
    out
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> (Token, &'a str) {
        self.tokens
            .get(self.at)
            .copied()
            .unwrap_or((Token::End, ""))
    }

    fn next(&mut self) -> (Token, &'a str) {
        let t = self.peek();
        self.at += 1;
        t
    }

    /// `in` and `notin` are plain words where a value or key may stand.
    fn as_word((t, s): (Token, &'a str)) -> (Token, &'a str) {
        (
            if matches!(t, Token::In | Token::NotIn) {
                Token::Word
            } else {
                t
            },
            s,
        )
    }

    fn parse(&mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        loop {
            match Self::as_word(self.peek()) {
                (Token::Word | Token::Not, _) => {
                    let r = self
                        .requirement()
                        .map_err(|e| format!("unable to parse requirement: {e}"))?;
                    out.push(r);
                    match self.next() {
                        (Token::End, _) => return Ok(out),
                        (Token::Comma, _) => match Self::as_word(self.peek()) {
                            (Token::Word | Token::Not, _) => {}
                            (_, l) => {
                                return Err(format!("found '{l}', expected: identifier after ','"));
                            }
                        },
                        (_, l) => {
                            return Err(format!("found '{l}', expected: ',' or 'end of string'"));
                        }
                    }
                }
                (Token::End, _) => return Ok(out),
                (_, l) => {
                    return Err(format!(
                        "found '{l}', expected: !, identifier, or 'end of string'"
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = Self::as_word(self.next());
        let negated = token.0 == Token::Not;
        if negated {
            token = Self::as_word(self.next());
        }
        let (Token::Word, key) = token else {
            return Err(format!("found '{}', expected: identifier", token.1));
        };
        if let Some(e) = key_error(key, &Path::root()) {
            return Err(e.to_string());
        }
        let done = |op, values| new_requirement(key, op, values).map_err(|e| e.0);
        if negated {
            return done(Operator::DoesNotExist, vec![]);
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return done(Operator::Exists, vec![]);
        }
        let (token, literal) = self.next();
        let op = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => {
                return Err(format!(
                    "found '{literal}', expected: in, notin, =, ==, !=, gt, lt"
                ));
            }
        };
        let mut values = match op {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        values.sort();
        values.dedup();
        done(op, values)
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match Self::as_word(self.next()) {
            (Token::Word, s) => Ok(s.to_owned()),
            (_, s) => Err(format!("found '{s}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let (token, l) = self.next();
        if token != Token::Open {
            return Err(format!("found '{l}' expected: '('"));
        }
        match Self::as_word(self.peek()) {
            (Token::Word | Token::Comma, _) => {}
            (Token::Close, _) => {
                self.next();
                return Ok(vec![String::new()]);
            }
            (_, l) => return Err(format!("found '{l}', expected: ',', ')' or identifier")),
        }
        let mut out: Vec<String> = Vec::new();
        loop {
            match Self::as_word(self.next()) {
                (Token::Word, s) => {
                    out.push(s.to_owned());
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => break,
                        (_, l) => return Err(format!("found '{l}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if out.is_empty() {
                        out.push(String::new());
                    }
                    match self.peek().0 {
                        Token::Close => {
                            out.push(String::new());
                            break;
                        }
                        Token::Comma => out.push(String::new()),
                        _ => {}
                    }
                }
                (_, l) => return Err(format!("found '{l}', expected: ',', or identifier")),
            }
        }
        self.next();
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn matching() {
        let l = set(&[("app", "web"), ("tier", "front"), ("n", "5")]);
        for (text, want) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("missing notin (a)", true),
            ("!app", false),
            ("!missing", true),
            ("n>4", true),
            ("n<5", false),
            ("app>4", false),
            ("in in (in)", false),
            ("tier=", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&l), want, "{text}");
        }
    }

    #[test]
    fn errors_and_display() {
        for bad in [
            "a=b,", ",a", "a in b", "a in (b", "a==b==c", "=a", "a b", "x<a", "a=@",
        ] {
            assert!(Selector::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Selector::parse("z notin (b,a),!y,x").unwrap().to_string(),
            "x,!y,z notin (a,b)"
        );
        assert_eq!(
            Selector::parse("a in b").unwrap_err().to_string(),
            "unable to parse requirement: found 'b' expected: '('"
        );
    }

    #[test]
    fn objects() {
        let s = Selector::from_label_selector(&json!({
            "matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["d"]}]
        }))
        .unwrap();
        assert!(s.matches(&set(&[("a", "b"), ("c", "d")])));
        assert!(!s.matches(&set(&[("a", "b")])));
        assert!(
            !Selector::from_label_selector(&Value::Null)
                .unwrap()
                .matches(&set(&[]))
        );
        assert!(
            Selector::from_label_selector(&json!({}))
                .unwrap()
                .matches(&set(&[]))
        );
    }
}
