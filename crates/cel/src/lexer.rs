//! Text to tokens.

use crate::issue::Issue;
use crate::source::Source;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Operators, brackets, punctuation, `in`, `true`, `false`, `null`.
    Symbol(&'static str),
    Ident,
    EscapedIdent,
    Int,
    Uint,
    Float,
    String,
    Bytes,
    End,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    /// In code points.
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Longer ones come before their prefixes.
const SYMBOLS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!",
    "?", ":", "+", "*", "/", "%",
];
const WORDS: &[&str] = &["in", "true", "false", "null"];

/// The tokens, ended by `Kind::End`, and what could not be read.
pub(crate) fn tokens(source: &Source) -> (Vec<Token>, Vec<Issue>) {
    let lexer = Lexer {
        chars: source.chars(),
    };
    let mut out = Vec::new();
    let mut issues = Vec::new();
    let mut at = 0;
    loop {
        at = lexer.skip(at);
        if at >= lexer.chars.len() {
            break;
        }
        match lexer.token(at) {
            Ok((kind, end)) => {
                out.push(Token {
                    kind,
                    start: at,
                    end,
                });
                at = end;
            }
            Err(stopped) => {
                let end = (stopped + 1).min(lexer.chars.len());
                let text: String = lexer.chars[at..end].iter().collect();
                let message = format!("Syntax error: token recognition error at: '{text}'");
                issues.push(source.issue(Some(at), message));
                at = stopped + 1;
            }
        }
    }
    let end = lexer.chars.len();
    out.push(Token {
        kind: Kind::End,
        start: end,
        end,
    });
    (out, issues)
}

struct Lexer<'a> {
    chars: &'a [char],
}

impl Lexer<'_> {
    fn at(&self, i: usize) -> char {
        // No token holds it, so that it stands for the end.
        self.chars.get(i).copied().unwrap_or('\0')
    }

    fn ends(&self, i: usize) -> bool {
        i >= self.chars.len()
    }

    fn starts(&self, i: usize, text: &str) -> bool {
        text.chars().enumerate().all(|(k, c)| self.at(i + k) == c)
    }

    /// Past white space and comments.
    fn skip(&self, mut i: usize) -> usize {
        loop {
            if matches!(self.at(i), ' ' | '\t' | '\r' | '\n' | '\u{c}') && !self.ends(i) {
                i += 1;
            } else if self.starts(i, "//") {
                while !self.ends(i) && self.at(i) != '\n' {
                    i += 1;
                }
            } else {
                return i;
            }
        }
    }

    /// The longest token at a place and its end, or where reading stopped.
    fn token(&self, i: usize) -> Result<(Kind, usize), usize> {
        let c = self.at(i);
        if c.is_ascii_digit() || (c == '.' && self.at(i + 1).is_ascii_digit()) {
            return Ok(self.number(i));
        }
        let letter = c.is_ascii_alphabetic();
        match self.quoted(i) {
            // A prefix without its string is a name.
            None => {}
            Some(Err(_)) if letter => {}
            Some(found) => return found,
        }
        if letter || c == '_' {
            let end = self.span(i, |c| c.is_ascii_alphanumeric() || c == '_');
            let word: String = self.chars[i..end].iter().collect();
            let kind = WORDS
                .iter()
                .find(|w| **w == word)
                .map_or(Kind::Ident, |w| Kind::Symbol(w));
            return Ok((kind, end));
        }
        if c == '`' {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-/ ".contains(c);
            let end = self.span(i + 1, allowed);
            if end > i + 1 && self.at(end) == '`' {
                return Ok((Kind::EscapedIdent, end + 1));
            }
            return Err(end);
        }
        if let Some(symbol) = SYMBOLS.iter().find(|s| self.starts(i, s)) {
            return Ok((Kind::Symbol(symbol), i + symbol.len()));
        }
        Err(if matches!(c, '&' | '|' | '=') {
            i + 1
        } else {
            i
        })
    }

    fn span(&self, mut i: usize, accept: impl Fn(char) -> bool) -> usize {
        while !self.ends(i) && accept(self.at(i)) {
            i += 1;
        }
        i
    }

    fn number(&self, i: usize) -> (Kind, usize) {
        let unsigned = |end: usize| {
            if matches!(self.at(end), 'u' | 'U') {
                (Kind::Uint, end + 1)
            } else {
                (Kind::Int, end)
            }
        };
        if self.starts(i, "0x") {
            let end = self.span(i + 2, |c| c.is_ascii_hexdigit());
            if end > i + 2 {
                return unsigned(end);
            }
        }
        let digits = |i: usize| self.span(i, |c| c.is_ascii_digit());
        let whole = digits(i);
        let mut end = whole;
        if self.at(end) == '.' && self.at(end + 1).is_ascii_digit() {
            end = digits(end + 1);
        }
        if matches!(self.at(end), 'e' | 'E') {
            let sign = usize::from(matches!(self.at(end + 1), '+' | '-'));
            let exponent = end + 1 + sign;
            if self.at(exponent).is_ascii_digit() {
                end = digits(exponent);
            }
        }
        if end > whole {
            return (Kind::Float, end);
        }
        unsigned(whole)
    }

    /// A string or bytes literal; `None` when the text does not begin one.
    fn quoted(&self, i: usize) -> Option<Result<(Kind, usize), usize>> {
        let bytes = matches!(self.at(i), 'b' | 'B');
        let after_bytes = i + usize::from(bytes);
        let raw = matches!(self.at(after_bytes), 'r' | 'R');
        let open = after_bytes + usize::from(raw);
        let quote = self.at(open);
        if !matches!(quote, '"' | '\'') {
            return None;
        }
        let kind = if bytes { Kind::Bytes } else { Kind::String };
        let triple: String = [quote; 3].iter().collect();
        if self.starts(open, &triple) {
            if let Ok(end) = self.body(open + 3, raw, |i| self.starts(i, &triple), false) {
                return Some(Ok((kind, end + 3)));
            }
            // Without its end it is an empty string with something behind it.
            return Some(Ok((kind, open + 2)));
        }
        let end = self.body(open + 1, raw, |i| self.at(i) == quote, true);
        Some(end.map(|end| (kind, end + 1)))
    }

    /// Where a string's closing quote is, or where it stops to be a string.
    fn body(
        &self,
        mut i: usize,
        raw: bool,
        closes: impl Fn(usize) -> bool,
        one_line: bool,
    ) -> Result<usize, usize> {
        loop {
            if self.ends(i) {
                return Err(i);
            }
            if closes(i) {
                return Ok(i);
            }
            let c = self.at(i);
            if one_line && matches!(c, '\n' | '\r') {
                return Err(i);
            }
            i = if c == '\\' && !raw {
                self.escape(i)?
            } else {
                i + 1
            };
        }
    }

    /// Past an escape sequence.
    fn escape(&self, i: usize) -> Result<usize, usize> {
        let run = |from: usize, n: usize, accept: fn(char) -> bool| {
            let bad = (from..from + n).find(|k| !accept(self.at(*k)));
            bad.map_or(Ok(from + n), Err)
        };
        let hex = |c: char| c.is_ascii_hexdigit();
        match self.at(i + 1) {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`' => Ok(i + 2),
            'x' | 'X' => run(i + 2, 2, hex),
            'u' => run(i + 2, 4, hex),
            'U' => run(i + 2, 8, hex),
            '0'..='3' => run(i + 2, 2, |c| ('0'..='7').contains(&c)),
            _ => Err(i + 1),
        }
    }
}
