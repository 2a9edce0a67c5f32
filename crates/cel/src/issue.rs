//! What is wrong with an expression's text.

use std::fmt;
use std::sync::Arc;

/// One complaint of the parser or the checker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// From 1; below 1 when the place is not known.
    pub line: i32,
    /// From 0, in code points; -1 when the place is not known.
    pub column: i32,
    pub message: String,
    /// The text of the line, which `Display` shows below the message.
    pub snippet: Option<Arc<str>>,
}

/// Prints the message, the line it speaks of, and a mark below the place.
impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ERROR: <input>:{}:{}: {}",
            self.line,
            self.column + 1,
            self.message
        )?;
        let Some(snippet) = &self.snippet else {
            return Ok(());
        };
        let snippet = snippet.replace('\t', " ");
        write!(f, "\n | {snippet}\n | ")?;
        let before = usize::try_from(self.column).unwrap_or(0);
        for c in snippet.chars().take(before) {
            f.write_str(if c.len_utf8() > 1 { "\u{ff0e}" } else { "." })?;
        }
        let wide = snippet
            .chars()
            .nth(before)
            .is_some_and(|c| c.len_utf8() > 1);
        f.write_str(if wide { "\u{ff3e}" } else { "^" })
    }
}

/// All issues of one expression, one below the other, as field errors show them.
pub fn display(issues: &[Issue]) -> String {
    let lines: Vec<String> = issues.iter().map(Issue::to_string).collect();
    lines.join("\n")
}

/// By place, as they are shown.
pub(crate) fn sort(issues: &mut [Issue]) {
    issues.sort_by_key(|i| (i.line, i.column));
}
