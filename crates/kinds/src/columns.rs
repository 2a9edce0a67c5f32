//! What the columns of tables mean, in the words that clients see: `columns.txt` has a line for
//! each, with the resource (`*` for all others), the column and its description as JSON.

use std::collections::HashMap;
use std::sync::OnceLock;

const WORDS: &str = include_str!("columns.txt");

/// By resource and column, as the lines begin.
type Words = HashMap<&'static str, String>;

/// The description of a column; empty when there is none.
pub fn column_description(group: &str, resource: &str, column: &str) -> &'static str {
    static READ: OnceLock<Words> = OnceLock::new();
    let words = READ.get_or_init(read);
    let dot = if group.is_empty() { "" } else { "." };
    let own = format!("{resource}{dot}{group}\t{column}");
    words
        .get(own.as_str())
        .or_else(|| words.get(format!("*\t{column}").as_str()))
        .map_or("", String::as_str)
}

fn read() -> Words {
    WORDS
        .lines()
        .filter_map(|line| {
            let (column, text) = line.rsplit_once('\t')?;
            Some((column, serde_json::from_str(text).ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        assert_eq!(read().len(), WORDS.lines().count());
        let events = column_description("events.k8s.io", "events", "Reason");
        assert!(!events.is_empty());
        assert!(!column_description("", "pods", "Name").is_empty());
        assert_eq!(column_description("", "pods", "Nothing"), "");
    }
}
