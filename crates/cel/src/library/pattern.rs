//! Patterns of RE2 in the syntax of the `regex` crate.
//!
//! The two differ in what shorthand classes mean (ASCII in RE2), in set operations inside classes
//! (unknown to RE2), in `{` that begins no repetition (a literal in RE2), in `\Q…\E` and `\pN`, and
//! in how much repeating is allowed. Patterns are rewritten where they differ.

use regex::Regex;

/// Named classes inside of brackets.
const CLASSES: &[&str] = &[
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// How often nested repetitions may repeat what is inside of all of them.
const MAX_REPEAT: u32 = 1000;

/// The pattern in the syntax of the `regex` crate, or what is wrong with it.
pub(super) fn rewrite(pattern: &str) -> Result<String, String> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut rewriter = Rewriter {
        pattern,
        chars: &chars,
        at: 0,
        out: String::with_capacity(pattern.len() + 16),
        groups: vec![1],
        atom: None,
        repetition: None,
    };
    while rewriter.at < chars.len() {
        rewriter.step()?;
    }
    if rewriter.groups.len() > 1 {
        return Err(format!("missing closing ): `{pattern}`"));
    }
    Ok(rewriter.out)
}

struct Rewriter<'p> {
    pattern: &'p str,
    chars: &'p [char],
    at: usize,
    out: String,
    /// For each open group, how often what is in it repeats at most; the pattern itself is first.
    groups: Vec<u32>,
    /// How often the last thing repeats; `None` where there is nothing to repeat.
    atom: Option<u32>,
    /// Where the repetition directly before this place began.
    repetition: Option<usize>,
}

impl Rewriter<'_> {
    fn text(&self, from: usize, to: usize) -> String {
        self.chars[from..to.min(self.chars.len())].iter().collect()
    }

    /// Something that can be repeated ended at a place.
    fn atom(&mut self, repeats: u32, end: usize) {
        self.atom = Some(repeats);
        self.repetition = None;
        self.at = end;
    }

    /// Nothing to repeat is before a place.
    fn fresh(&mut self, end: usize) {
        self.atom = None;
        self.repetition = None;
        self.at = end;
    }

    fn step(&mut self) -> Result<(), String> {
        let at = self.at;
        match self.chars[at] {
            '\\' => {
                let end = escape(self.chars, at, &mut self.out, false)?;
                self.atom(1, end);
            }
            '[' => {
                let end = class(self.chars, at, &mut self.out)?;
                self.atom(1, end);
            }
            '*' | '+' | '?' => self.repeat(at + 1, 1)?,
            '{' => match repetition(self.chars, at) {
                Some((end, times)) => {
                    if times > MAX_REPEAT {
                        let shown = self.text(at, end);
                        return Err(format!("invalid repeat count: `{shown}`"));
                    }
                    self.repeat(end, times)?;
                }
                None => {
                    self.out.push_str("\\{");
                    self.atom(1, at + 1);
                }
            },
            '(' => self.open()?,
            ')' => self.close()?,
            '|' => {
                self.out.push('|');
                self.fresh(at + 1);
            }
            c => {
                if matches!(c, '}' | ']') {
                    self.out.push('\\');
                }
                self.out.push(c);
                self.atom(1, at + 1);
            }
        }
        Ok(())
    }

    /// A repetition from here to `end`, with a `?` behind it when it is lazy.
    fn repeat(&mut self, end: usize, times: u32) -> Result<(), String> {
        let start = self.at;
        let end = end + usize::from(self.chars.get(end) == Some(&'?'));
        let shown = self.text(start, end);
        let Some(atom) = self.atom else {
            return Err(format!(
                "missing argument to repetition operator: `{shown}`"
            ));
        };
        if let Some(before) = self.repetition {
            let shown = self.text(before, end);
            return Err(format!("invalid nested repetition operator: `{shown}`"));
        }
        let repeats = atom.saturating_mul(times.max(1));
        if repeats > MAX_REPEAT {
            return Err(format!("invalid repeat count: `{shown}`"));
        }
        if let Some(group) = self.groups.last_mut() {
            *group = repeats.max(*group);
        }
        self.out.push_str(&shown);
        self.repetition = Some(start);
        self.atom = Some(repeats);
        self.at = end;
        Ok(())
    }

    fn open(&mut self) -> Result<(), String> {
        let at = self.at;
        if self.chars.get(at + 1) != Some(&'?') {
            self.out.push('(');
            self.groups.push(1);
            self.fresh(at + 1);
            return Ok(());
        }
        let end = group_flags(self.chars, at)?;
        let shown = self.text(at, end);
        self.out.push_str(&shown);
        // `(?flags)` opens nothing.
        if self.chars[end - 1] == ')' {
            self.at = end;
            return Ok(());
        }
        self.groups.push(1);
        self.fresh(end);
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        if self.groups.len() == 1 {
            return Err(format!("unexpected ): `{}`", self.pattern));
        }
        let inside = self.groups.pop().unwrap_or(1);
        if let Some(group) = self.groups.last_mut() {
            *group = inside.max(*group);
        }
        self.out.push(')');
        self.atom(inside, self.at + 1);
        Ok(())
    }
}

/// `{n}`, `{n,}` or `{n,m}`: where it ends and how often it repeats at most, which is beyond the
/// limit when the counts contradict each other.
fn repetition(chars: &[char], at: usize) -> Option<(usize, u32)> {
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
    let times = match high {
        Some(high) if high < low => u32::MAX,
        Some(high) => high.max(low),
        None => low,
    };
    Some((close + 1, times))
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
    let shown: String = chars[at..end.min(chars.len())].iter().collect();
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
        let class = format!("\\{letter}{{{name}}}");
        if Regex::new(&class).is_err() {
            return Err(format!("invalid character class range: `{shown}`"));
        }
        out.push_str(&class);
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
                if !CLASSES.contains(&name[2..name.len() - 2].trim_start_matches('^')) {
                    return Err(format!("invalid character class range: `{name}`"));
                }
                out.push_str(&name);
                i += close + 2;
                first = false;
                continue;
            }
        }
        first = false;
        let start = i;
        i = class_char(chars, i, out)?;
        // A shorthand class cannot begin a range.
        let set = chars[start] == '\\'
            && chars
                .get(start + 1)
                .is_some_and(|c| "dwsDWSpP".contains(*c));
        let dash =
            !set && chars.get(i) == Some(&'-') && chars.get(i + 1).is_some_and(|c| *c != ']');
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
