//! The text of an expression and places in it.

use crate::issue::Issue;
use std::sync::Arc;

#[derive(Debug, Clone)]
pub(crate) struct Source {
    chars: Vec<char>,
    /// Offset of each line's first code point.
    lines: Vec<usize>,
}

impl Source {
    pub(crate) fn new(text: &str) -> Source {
        let chars: Vec<char> = text.chars().collect();
        let after_newlines = chars
            .iter()
            .enumerate()
            .filter(|(_, c)| **c == '\n')
            .map(|(i, _)| i + 1);
        let lines = std::iter::once(0).chain(after_newlines).collect();
        Source { chars, lines }
    }

    pub(crate) fn chars(&self) -> &[char] {
        &self.chars
    }

    /// The issue at an offset in code points; at no place when there is none.
    pub(crate) fn issue(&self, offset: Option<usize>, message: impl Into<String>) -> Issue {
        let message = message.into();
        let Some(offset) = offset else {
            return Issue {
                line: -1,
                column: -1,
                message,
                snippet: None,
            };
        };
        if self.chars.is_empty() {
            return Issue {
                line: 1,
                column: -1,
                message,
                snippet: None,
            };
        }
        let line = self.lines.partition_point(|start| *start <= offset).max(1) - 1;
        let start = self.lines[line];
        Issue {
            line: i32::try_from(line + 1).unwrap_or(i32::MAX),
            column: i32::try_from(offset - start).unwrap_or(i32::MAX),
            message,
            snippet: Some(self.line(line)),
        }
    }

    fn line(&self, line: usize) -> Arc<str> {
        let start = self.lines[line];
        let end = self
            .lines
            .get(line + 1)
            .map_or(self.chars.len(), |next| next - 1);
        let text: String = self.chars[start..end].iter().collect();
        text.into()
    }
}
